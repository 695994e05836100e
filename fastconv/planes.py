"""Whole planes: the sum of each, its largest pixel, and a number spread over each.

Gradients by a bias are sums of planes, and pooling over a whole map is one of all three.  A plane is summed in `LANES`
partial sums side by side, then those by halves, so that the order, and with it every bit, is the same on any
number of threads; the halves of `TOGETHER` planes are added at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, threads
from fastconv.arrays import Array, common, contiguous, empty
from fastconv.gemm.move import I32, lanes_between, masked_load
from fastconv.gemm.schedule import part
from fastconv.gemm.tile import I64, data, element, load, splat, store

LANES, TOGETHER = 16, 4


def sums(planes: Array) -> Array:
    """Return the sum of each row of a (planes, pixels) array."""
    result = np.empty(len(planes), planes.dtype)
    rows = contiguous(planes, planes.dtype).reshape(-1)
    threads.launch(_sum, 4.0 * planes.size, rows, planes.shape[1], result)
    return result


def maxima(planes: Array, located: bool = True) -> tuple[Array, Array]:
    """Return the largest number of each row of a (planes, pixels) array, NaN before all, and where it is first.

    Places are an empty array if not ``located``.
    """
    values, places = (
        np.empty(len(planes), planes.dtype),
        np.empty(len(planes) if located else 0, np.int64),
    )
    rows = contiguous(planes, planes.dtype).reshape(-1)
    threads.launch(_maximum, 4.0 * planes.size, rows, planes.shape[1], values, places)
    return values, places


def put(values: Array, places: Array, pixels: int) -> Array:
    """Return a (planes, pixels) array of zeros with a value at a place of each plane."""
    planes = empty((values.size, pixels), common(values))
    threads.launch(_put, 4.0 * planes.size, contiguous(values, planes.dtype), places, planes)
    return planes


def spread(values: Array, pixels: int) -> Array:
    """Return a (planes, pixels) array with each value all over its plane."""
    planes = empty((values.size, pixels), common(values))
    threads.launch(_spread, 4.0 * planes.size, contiguous(values, planes.dtype), planes)
    return planes


@jit.kernel
def _sum(workers, planes, pixels, result):
    for worker in numba.prange(workers):
        i, last = part(result.size, workers, worker), part(result.size, workers, worker + 1)
        while i + TOGETHER <= last:
            _totals(planes, i * pixels, pixels, result, i)
            i += TOGETHER
        while i < last:
            result[i] = _total(planes, i * pixels, pixels)
            i += 1


@jit.kernel
def _maximum(workers, planes, pixels, values, places):
    for worker in numba.prange(workers):
        for i in range(part(values.size, workers, worker), part(values.size, workers, worker + 1)):
            values[i] = _greatest(planes, i * pixels, pixels)
            if places.size:
                places[i] = _place(planes, i * pixels, pixels, values[i])


@jit.inner
def _place(planes, begin, count, value):
    place = 0
    for vector in range((count + LANES - 1) // LANES):  # from the last to the first: no branch to mispredict
        q = (count - 1) // LANES * LANES - vector * LANES
        lane = _first(planes, begin + q, count - q, value)
        place = q + lane if lane < LANES else place
    return place


def _along(
    builder: Any, planes: types.Array, row: Any, count: Any, outside: float, take: Callable[[Any], None]
) -> None:
    """Call ``take`` with the vectors of a plane: first what fills none, ``outside`` behind it, then whole ones."""
    vector, itemsize = ir.VectorType(element(planes), LANES), planes.dtype.bitwidth // 8
    whole = builder.and_(count, I64(-LANES))
    rest = lanes_between(builder, whole, I64(0), count, list(range(LANES)))
    pixels = masked_load(builder, builder.gep(row, [whole]), rest, vector, itemsize)
    take(builder.select(rest, pixels, ir.Constant(vector, [outside] * LANES)))
    with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES), I64) as (q, _):
        take(load(builder, builder.gep(row, [q]), 0, vector, itemsize))


def _filled(builder: Any, planes: types.Array, value: float) -> Any:
    """Return a pointer to a vector of equal numbers."""
    vector = ir.VectorType(element(planes), LANES)
    pointer = cgutils.alloca_once(builder, vector)
    builder.store(ir.Constant(vector, [value] * LANES), pointer)
    return pointer


def _partial_sums(builder: Any, planes: types.Array, row: Any, count: Any) -> Any:
    total = _filled(builder, planes, 0.0)
    _along(
        builder, planes, row, count, 0.0,
        lambda pixels: builder.store(builder.fadd(builder.load(total), pixels), total),
    )  # fmt: skip
    return builder.load(total)


def _picked(builder: Any, a: Any, b: Any, picks: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(picks)), picks))


def _added_by_halves(builder: Any, vectors: list[Any]) -> Any:
    """Return a vector with the sum of each, or for one vector the same of one lane."""
    length = LANES  # of what is left of each vector
    while length > 1:
        half, together = length // 2, []
        for a, b in zip(vectors[::2], vectors[1::2] or vectors[:1], strict=True):
            count = a.type.count * (2 if len(vectors) > 1 else 1)
            low = [begin + j for begin in range(0, count, length) for j in range(half)]
            high = [at + half for at in low]
            together.append(builder.fadd(_picked(builder, a, b, low), _picked(builder, a, b, high)))
        vectors, length = together, half
    return vectors[0]


@intrinsic
def _total(typing, planes, begin, count):
    """Return the sum of ``planes[begin : begin + count]``."""

    def codegen(context, builder, signature, arguments):
        planes, begin, count = arguments
        row = data(context, builder, signature.args[0], planes, begin)
        total = _added_by_halves(builder, [_partial_sums(builder, signature.args[0], row, count)])
        return builder.extract_element(total, I32(0))

    return planes.dtype(planes, types.int64, types.int64), codegen


@intrinsic
def _totals(typing, planes, begin, count, result, at):
    """Write the sums of `TOGETHER` planes."""

    def codegen(context, builder, signature, arguments):
        planes, begin, count, result, at = arguments
        kind = signature.args[0]
        row = data(context, builder, kind, planes, begin)
        partial = [
            _partial_sums(builder, kind, builder.gep(row, [builder.mul(count, I64(i))]), count)
            for i in range(TOGETHER)
        ]
        to = data(context, builder, signature.args[3], result, at)
        store(builder, _added_by_halves(builder, partial), to, 0, kind.dtype.bitwidth // 8)
        return context.get_dummy_value()

    i = types.int64
    return types.void(planes, i, i, result, i), codegen


@intrinsic
def _greatest(typing, planes, begin, count):
    """Return the largest of ``planes[begin : begin + count]``, a NaN if there is one."""

    def codegen(context, builder, signature, arguments):
        planes, begin, count = arguments
        row, best = (
            data(context, builder, signature.args[0], planes, begin),
            _filled(builder, signature.args[0], float("-inf")),
        )

        def larger(a: Any, b: Any) -> Any:
            won = builder.or_(builder.fcmp_ordered(">", a, b), builder.fcmp_unordered("uno", a, a))
            return builder.select(won, a, b)

        _along(
            builder, signature.args[0], row, count, float("-inf"),
            lambda pixels: builder.store(larger(pixels, builder.load(best)), best),
        )  # fmt: skip
        value = builder.load(best)
        while (half := value.type.count // 2) > 0:
            value = larger(*(_picked(builder, value, value, list(range(i, i + half))) for i in (0, half)))
        return builder.extract_element(value, I32(0))

    return planes.dtype(planes, types.int64, types.int64), codegen


@intrinsic
def _first(typing, planes, begin, count, value):
    """Return the first of the next `LANES` numbers that is the value or NaN; `LANES` if none is."""

    def codegen(context, builder, signature, arguments):
        planes, begin, count, value = arguments
        vector = ir.VectorType(element(signature.args[0]), LANES)
        row = data(context, builder, signature.args[0], planes, begin)
        exist = lanes_between(builder, I64(0), I64(0), count, list(range(LANES)))
        pixels = masked_load(builder, row, exist, vector, signature.args[0].dtype.bitwidth // 8)
        same = builder.fcmp_ordered("==", pixels, splat(builder, value, vector))
        hit = builder.or_(same, builder.fcmp_unordered("uno", pixels, pixels))
        bits = builder.zext(builder.bitcast(builder.and_(hit, exist), ir.IntType(LANES)), I64)
        return builder.cttz(builder.or_(bits, I64(1 << LANES)), ir.IntType(1)(1))

    i = types.int64
    return types.int64(planes, i, i, planes.dtype), codegen


@jit.kernel
def _put(workers, values, places, planes):
    for worker in numba.prange(workers):
        for i in range(part(len(planes), workers, worker), part(len(planes), workers, worker + 1)):
            row = planes[i]
            for q in range(row.size):
                row[q] = 0
            row[places[i]] = values[i]


@jit.kernel
def _spread(workers, values, planes):
    for worker in numba.prange(workers):
        for i in range(part(len(planes), workers, worker), part(len(planes), workers, worker + 1)):
            row, value = planes[i], values[i]
            for q in range(row.size):
                row[q] = value
