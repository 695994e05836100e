"""One window of `LANES` planes at once, as vector code: pixel j of all planes is one vector at ``x0 + j*LANES``.

LLVM does not vectorise loops of sixteen steps whose arrays it cannot tell apart, so the walk over a window is
emitted with its sums, maxima and places in registers:

    ================= ==========================================================================
    x, x0             the window's first pixel that exists
    taps              (depth, height, width): pixels of the window that exist
    steps             elements from one of them to the next along each axis
    places            the same steps, counted in pixels of the plane: they name the pixel taken
    ================= ==========================================================================

A NaN is taken whenever it is met, and of equal pixels the first, as PyTorch does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv.gemm.move import I32
from fastconv.gemm.tile import I64, data, element, load, splat, store
from fastconv.pooling.lines import exceeds
from fastconv.pooling.plan import LANES

TRIPLE = types.UniTuple(types.int64, 3)


def _vector(array: types.Array) -> tuple[ir.VectorType, int]:
    return ir.VectorType(element(array), LANES), array.dtype.bitwidth // 8


def _walk(builder: Any, taps: Any, body: Callable[..., None], *steps: Any) -> None:
    """Call ``body`` with the place of every tap by each of ``steps``, in row-major order."""
    taps, steps = cgutils.unpack_tuple(builder, taps), [cgutils.unpack_tuple(builder, s) for s in steps]

    def along(axis: int, at: list[Any]) -> None:
        if axis == 3:
            body(*at)
            return
        with cgutils.for_range(builder, taps[axis], intp=I64) as loop:
            along(
                axis + 1,
                [builder.add(a, builder.mul(loop.index, s[axis])) for a, s in zip(at, steps, strict=True)],
            )

    along(0, [I64(0)] * len(steps))


def _find(
    builder: Any, x: Any, taps: Any, steps: Any, places: Any, first: Any, vector: Any, itemsize: int
) -> Any:
    """Emit the search of a window; return pointers to its maxima and to their places from ``first``, -1 for none."""
    numbers = ir.VectorType(I32, LANES)
    best, place = cgutils.alloca_once(builder, vector), cgutils.alloca_once(builder, numbers)
    builder.store(ir.Constant(vector, [float("-inf")] * LANES), best)
    count = cgutils.unpack_tuple(builder, taps)
    empty = builder.icmp_signed("<=", builder.mul(builder.mul(*count[:2]), count[2]), I64(0))
    builder.store(splat(builder, builder.trunc(builder.select(empty, I64(-1), first), I32), numbers), place)

    def take(at: Any, number: Any) -> None:
        value, before = load(builder, builder.gep(x, [at]), 0, vector, itemsize), builder.load(best)
        won = exceeds(builder, value, before)
        builder.store(builder.select(won, value, before), best)
        name = splat(builder, builder.trunc(builder.add(number, first), I32), numbers)
        builder.store(builder.select(won, name, builder.load(place)), place)

    _walk(builder, taps, take, steps, places)
    return best, place


@intrinsic
def largest(typing, y, y0, x, x0, taps, steps):
    """Write the maxima of a window."""

    def codegen(context, builder, signature, arguments):
        y, y0, x, x0, taps, steps = arguments
        vector, itemsize = _vector(signature.args[2])
        to = data(context, builder, signature.args[0], y, y0)
        source = data(context, builder, signature.args[2], x, x0)
        # places are not read, so their code is removed
        best, _ = _find(builder, source, taps, steps, steps, I64(0), vector, itemsize)
        store(builder, builder.load(best), to, 0, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(y, i, x, i, TRIPLE, TRIPLE), codegen


@intrinsic
def largest_at(typing, y, y0, found, f0, x, x0, taps, steps, places, first):
    """Write the maxima of a window, and to ``found[f0:]`` where they stand, its first pixel being ``first``."""

    def codegen(context, builder, signature, arguments):
        y, y0, found, f0, x, x0, taps, steps, places, first = arguments
        vector, itemsize = _vector(signature.args[4])
        to = data(context, builder, signature.args[0], y, y0)
        names = data(context, builder, signature.args[2], found, f0)
        source = data(context, builder, signature.args[4], x, x0)
        best, place = _find(builder, source, taps, steps, places, first, vector, itemsize)
        store(builder, builder.load(best), to, 0, itemsize)
        store(builder, builder.load(place), names, 0, 4)
        return context.get_dummy_value()

    i = types.int64
    return types.void(y, i, found, i, x, i, TRIPLE, TRIPLE, TRIPLE, i), codegen


@intrinsic
def give_to_largest(typing, gx, g0, gy, y0, x, x0, taps, steps):
    """Add the gradient of a window to the pixel that it took; gx lies as x does, from ``g0``."""

    def codegen(context, builder, signature, arguments):
        gx, g0, gy, y0, x, x0, taps, steps = arguments
        vector, itemsize = _vector(signature.args[0])
        to = data(context, builder, signature.args[0], gx, g0)
        value = load(builder, data(context, builder, signature.args[2], gy, y0), 0, vector, itemsize)
        source = data(context, builder, signature.args[4], x, x0)
        _, place = _find(builder, source, taps, steps, steps, I64(0), vector, itemsize)
        taken = builder.load(place)

        def give(at: Any) -> None:
            here = splat(builder, builder.trunc(at, I32), taken.type)
            pixel = builder.gep(to, [at])
            old = load(builder, pixel, 0, vector, itemsize)
            new = builder.select(builder.icmp_signed("==", here, taken), builder.fadd(old, value), old)
            store(builder, new, pixel, 0, itemsize)

        _walk(builder, taps, give, steps)
        return context.get_dummy_value()

    i = types.int64
    return types.void(gx, i, gy, i, x, i, TRIPLE, TRIPLE), codegen


@intrinsic
def mean(typing, y, y0, counted, x, x0, taps, steps):
    """Write the sums of a window divided by ``counted``."""

    def codegen(context, builder, signature, arguments):
        y, y0, counted, x, x0, taps, steps = arguments
        vector, itemsize = _vector(signature.args[3])
        to = data(context, builder, signature.args[0], y, y0)
        source = data(context, builder, signature.args[3], x, x0)
        total = cgutils.alloca_once(builder, vector)
        builder.store(ir.Constant(vector, [0.0] * LANES), total)

        def add(at: Any) -> None:
            value = load(builder, builder.gep(source, [at]), 0, vector, itemsize)
            builder.store(builder.fadd(builder.load(total), value), total)

        _walk(builder, taps, add, steps)
        divisor = splat(builder, builder.sitofp(counted, vector.element), vector)
        store(builder, builder.fdiv(builder.load(total), divisor), to, 0, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(y, i, i, x, i, TRIPLE, TRIPLE), codegen


@intrinsic
def give_shares(typing, gx, g0, gy, y0, counted, taps, steps):
    """Add the gradient of a window, divided by ``counted``, to each of its pixels."""

    def codegen(context, builder, signature, arguments):
        gx, g0, gy, y0, counted, taps, steps = arguments
        vector, itemsize = _vector(signature.args[0])
        to = data(context, builder, signature.args[0], gx, g0)
        value = load(builder, data(context, builder, signature.args[2], gy, y0), 0, vector, itemsize)
        value = builder.fdiv(value, splat(builder, builder.sitofp(counted, vector.element), vector))

        def give(at: Any) -> None:
            pixel = builder.gep(to, [at])
            old = load(builder, pixel, 0, vector, itemsize)
            store(builder, builder.fadd(old, value), pixel, 0, itemsize)

        _walk(builder, taps, give, steps)
        return context.get_dummy_value()

    i = types.int64
    return types.void(gx, i, gy, i, i, TRIPLE, TRIPLE), codegen
