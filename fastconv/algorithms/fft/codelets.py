"""Short Fourier transforms as straight-line vector code: every lane is a signal of its own.

Nothing crosses lanes inside a transform (`fourier`), so there is not one shuffle in it.  Arrays of vectors
are addressed as ``start + index*step + plane*gap``, in elements:

    ======== =============================================================================
    planes   re, im; a third holds re + im, for the product in three multiplications
    REAL     real -> half spectrum, with two planes or (REAL_SUM) three
    COMPLEX  complex -> complex, with two planes or (COMPLEX_SUM) three
    INVERSE_ of two planes (real only); of products of three planes (_GAUSS); of source times factor (_TIMES)
    ======== =============================================================================
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.algorithms.fft.fourier import Complex, Fourier
from fastconv.algorithms.straight import Vectors
from fastconv.gemm.tile import I64, cases, data, element, fma, load, store

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


def _loaded(lanes: Vectors, kind: int, at: Any, factor: Any, count: int) -> list[Complex]:
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


def _emit(lanes: Vectors, kind: int, n: int, source: Any, times: Any, target: Any) -> None:
    """Emit the transform of one kind and size; operands are functions of index and plane."""
    fourier = Fourier(lanes)
    count = n // 2 + 1 if kind in _TO_REAL else n
    values = _loaded(lanes, kind, source, times, count)
    if kind in _TO_REAL:
        for j, sample in enumerate(fourier.inverse_real(values)):
            target(j, 0, sample)
        return
    if kind in _OF_REAL:
        spectrum = fourier.real([v[0] for v in values])
    elif kind in (COMPLEX, COMPLEX_SUM):
        spectrum = fourier.complex(values)
    else:
        spectrum = fourier.inverse_complex(values)
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
        lanes = Vectors(builder, vector)

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
        for n in cases(builder, arguments[1], {n: n for n in _SIZES_OF.get(which, SIZES)}, "length"):
            _emit(lanes, which, n, *operands)
        return context.get_dummy_value()

    return signature, codegen
