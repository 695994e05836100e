"""Short Fourier transforms as straight-line vector code: every lane is a signal of its own.

Nothing crosses lanes inside a transform, so there is not one shuffle in it.  Radix 2, decimation in
time, on real and complex signals.  A butterfly ``E +- w O`` with ``w = c (1 + i t)`` takes six fused
operations (Linzer and Feig): ``s = O (1 + i t)`` in two, ``E +- c s`` in four; ``|t| <= 1`` by taking the
cosine or the sine for c.

A real signal of length a has a/2 + 1 frequencies.  Inverses are not divided by the length.  Arrays of
vectors are addressed as ``start + index*step + plane*gap``, in elements:

    ======== =============================================================================
    planes   re, im; a third holds re + im, for the product in three multiplications
    REAL     real -> half spectrum, with two planes or (REAL_SUM) three
    COMPLEX  complex -> complex, with two planes or (COMPLEX_SUM) three
    INVERSE_ of two planes (real only); of products of three planes (_GAUSS); of source times factor (_TIMES)
    ======== =============================================================================
"""

from __future__ import annotations

from math import cos, pi, sin
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.gemm.tile import I64, data, element, fma, load, store

REAL, REAL_SUM, COMPLEX, COMPLEX_SUM = range(4)
INVERSE_REAL, INVERSE_REAL_GAUSS, INVERSE_REAL_TIMES, INVERSE_COMPLEX_GAUSS, INVERSE_COMPLEX_TIMES = range(
    4, 9
)
_OF_REAL = (REAL, REAL_SUM)
_TO_REAL = (INVERSE_REAL, INVERSE_REAL_GAUSS, INVERSE_REAL_TIMES)
_GAUSS = (INVERSE_REAL_GAUSS, INVERSE_COMPLEX_GAUSS)
_TIMES = (INVERSE_REAL_TIMES, INVERSE_COMPLEX_TIMES)

# Lengths that columns of a tile are transformed in: a complex 64 of dense tiles would cost seconds of
# compilation, and their kernels rarely need it.
DENSE_COLUMNS = (8, 16, 32)
CHANNEL_COLUMNS = (16, 32, 64)
SIZES = (8, 16, 32, 64)
_SIZES_OF = {COMPLEX_SUM: DENSE_COLUMNS, INVERSE_COMPLEX_GAUSS: DENSE_COLUMNS} | dict.fromkeys(
    (COMPLEX, INVERSE_COMPLEX_TIMES), CHANNEL_COLUMNS
)

Complex = tuple[Any, Any]


class Lanes:
    """Arithmetic on vectors while code is emitted."""

    def __init__(self, builder: Any, vector: ir.VectorType) -> None:
        self.builder, self.vector = builder, vector
        self.zero = self.constant(0.0)

    def constant(self, value: float) -> Any:
        return ir.Constant(self.vector, [value] * self.vector.count)

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b)

    def sub(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b)

    def scaled(self, a: Any, factor: float) -> Any:
        return self.builder.fmul(a, self.constant(factor))

    def multiply_add(self, factor: float, a: Any, b: Any) -> Any:
        """Return ``factor * a + b``."""
        return fma(self.builder, self.constant(factor), a, b)

    def turn(self, z: Complex, t: float, upright: bool) -> Complex:
        """Return z (1 + i t), or z (t + i) if upright."""
        re, im = z
        if upright:
            return self.multiply_add(t, re, self.builder.fneg(im)), self.multiply_add(t, im, re)
        return self.multiply_add(-t, im, re), self.multiply_add(t, re, im)

    def butterfly(self, even: Complex, odd: Complex, k: int, n: int) -> tuple[Complex, Complex]:
        """Return ``even + w odd`` and ``even - w odd`` for ``w = exp(-2 pi i k / n)``."""
        (er, ei), (zr, zi) = even, odd
        if k == 0:
            return (self.add(er, zr), self.add(ei, zi)), (self.sub(er, zr), self.sub(ei, zi))
        if 4 * k == n:
            return (self.add(er, zi), self.sub(ei, zr)), (self.sub(er, zi), self.add(ei, zr))
        c, t, upright = _polar(-k, n)
        sr, si = self.turn(odd, t, upright)
        plus = self.multiply_add(c, sr, er), self.multiply_add(c, si, ei)
        minus = self.multiply_add(-c, sr, er), self.multiply_add(-c, si, ei)
        return plus, minus

    def complex(self, z: list[Complex]) -> list[Complex]:
        """Transform a complex signal."""
        n = len(z)
        if n == 1:
            return z
        even, odd = self.complex(z[::2]), self.complex(z[1::2])
        pairs = [self.butterfly(even[k], odd[k], k, n) for k in range(n // 2)]
        return [p[0] for p in pairs] + [p[1] for p in pairs]

    def real(self, x: list[Any]) -> list[Complex]:
        """Transform a real signal to its half spectrum: X[n - k] is the conjugate of X[k]."""
        n = len(x)
        if n == 1:
            return [(x[0], self.zero)]
        even, odd = self.real(x[::2]), self.real(x[1::2])
        half = n // 2
        spectrum: list[Any] = [None] * (half + 1)
        spectrum[0] = (self.add(even[0][0], odd[0][0]), self.zero)
        spectrum[half] = (self.sub(even[0][0], odd[0][0]), self.zero)
        for k in range(1, (half + 1) // 2):
            spectrum[k], (re, im) = self.butterfly(even[k], odd[k], k, n)
            spectrum[half - k] = (re, self.builder.fneg(im))
        if half >= 2:
            spectrum[half // 2] = (even[half // 2][0], self.builder.fneg(odd[half // 2][0]))
        return spectrum

    def inverse_real(self, spectrum: list[Complex]) -> list[Any]:
        """Undo `real`, times n: even samples from X[k] + X[k + n/2], odd ones from the difference."""
        half = len(spectrum) - 1
        n = 2 * half
        if half == 0:
            return [spectrum[0][0]]
        first, middle = spectrum[0][0], spectrum[half][0]
        even = [(self.add(first, middle), self.zero)]
        odd = [(self.sub(first, middle), self.zero)]
        for k in range(1, (half + 1) // 2):
            (ar, ai), (br, bi) = spectrum[k], spectrum[half - k]
            even.append((self.add(ar, br), self.sub(ai, bi)))
            c, t, upright = _polar(k, n)
            re, im = self.turn((self.sub(ar, br), self.add(ai, bi)), t, upright)
            odd.append((self.scaled(re, c), self.scaled(im, c)))
        if half >= 2:
            re, im = spectrum[half // 2]
            even.append((self.add(re, re), self.zero))
            odd.append((self.scaled(im, -2.0), self.zero))
        samples: list[Any] = [None] * n
        samples[::2], samples[1::2] = self.inverse_real(even), self.inverse_real(odd)
        return samples


def _polar(k: int, n: int) -> tuple[float, float, bool]:
    """Return c, t and upright of ``exp(2 pi i k / n)`` = c (1 + i t), or c (t + i) if upright."""
    re, im = cos(2 * pi * k / n), sin(2 * pi * k / n)
    return (re, im / re, False) if abs(re) >= abs(im) else (im, re / im, True)


def _loaded(lanes: Lanes, kind: int, at: Any, factor: Any, count: int) -> list[Complex]:
    """Load a signal or the product that stands for it."""
    builder = lanes.builder
    if kind in _OF_REAL:
        return [(at(j, 0), None) for j in range(count)]
    values = []
    for j in range(count):
        re, im = at(j, 0), at(j, 1)
        if kind in _GAUSS:  # re = AC, im = BD, third = (A + B)(C + D)
            re, im = lanes.sub(re, im), lanes.sub(at(j, 2), lanes.add(re, im))
        elif kind in _TIMES:
            c, d = factor(j, 0), factor(j, 1)
            re, im = (
                fma(builder, re, c, builder.fneg(builder.fmul(im, d))),
                fma(builder, re, d, builder.fmul(im, c)),
            )
        values.append((re, im))
    return values


def _emit(lanes: Lanes, kind: int, n: int, source: Any, times: Any, target: Any) -> None:
    """Emit the transform of one kind and size; operands are functions of index and plane."""
    count = n // 2 + 1 if kind in _TO_REAL else n
    values = _loaded(lanes, kind, source, times, count)
    if kind in _TO_REAL:
        for j, sample in enumerate(lanes.inverse_real(values)):
            target(j, 0, sample)
        return
    if kind in _OF_REAL:
        spectrum = lanes.real([v[0] for v in values])
    elif kind in (COMPLEX, COMPLEX_SUM):
        spectrum = lanes.complex(values)
    else:  # the inverse is the transform with real and imaginary parts exchanged
        spectrum = [(re, im) for im, re in lanes.complex([(im, re) for re, im in values])]
    for j, (re, im) in enumerate(spectrum):
        target(j, 0, re)
        target(j, 1, im)
        if kind in (REAL_SUM, COMPLEX_SUM):
            target(j, 2, lanes.add(re, im))


@intrinsic(prefer_literal=True)
def transform(typing: Any, kind: Any, size: Any, src: Any, s0: Any, s_step: Any, s_gap: Any,
              factor: Any, f0: Any, f_step: Any, f_gap: Any,
              dst: Any, d0: Any, d_step: Any, d_gap: Any) -> Any:  # fmt: skip
    """Transform one vector of signals of ``size`` samples: a switch with a case for each size."""
    i = types.int64
    which = kind.literal_value
    signature = types.void(kind, i, src, i, i, i, factor, i, i, i, dst, i, i, i)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        itemsize = src.dtype.bitwidth // 8
        vector = ir.VectorType(element(src), machine.tile(itemsize).vl)
        lanes = Lanes(builder, vector)

        def operand(position: int) -> Any:
            array, start, step, gap = arguments[position : position + 4]
            first = data(context, builder, signature.args[position], array, start)

            def access(j: int, plane: int, value: Any = None) -> Any:
                index = builder.add(builder.mul(step, I64(j)), builder.mul(gap, I64(plane)))
                pointer = builder.gep(first, [index])
                if value is None:
                    return load(builder, pointer, 0, vector, itemsize)
                return store(builder, value, pointer, 0, itemsize)

            return access

        operands = [operand(position) for position in (2, 6, 10)]
        done = builder.append_basic_block("transformed")
        switch = builder.switch(arguments[1], done)
        for n in _SIZES_OF.get(which, SIZES):
            block = builder.append_basic_block(f"length_{n}")
            switch.add_case(I64(n), block)
            builder.position_at_end(block)
            _emit(lanes, which, n, *operands)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen
