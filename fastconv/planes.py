"""Whole planes: the sum of each, its largest pixel, a number spread over each, or given to its largest pixel.

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
from fastconv.gemm.move import lanes_between, masked_load, masked_store
from fastconv.gemm.schedule import part, span
from fastconv.gemm.tile import I64, data, element, load, shuffled, splat

LANES, TOGETHER = 16, 4
BLOCK = 2**12  # pixels that are in L1 when the largest is looked for again


def sums(planes: Array, divisor: int = 1) -> Array:
    """Return the sum of each row of a (planes, pixels) array, divided by ``divisor``."""
    result = np.empty(len(planes), planes.dtype)
    rows = contiguous(planes, planes.dtype).reshape(-1)
    threads.launch(_sum, 4.0 * planes.size, rows, planes.shape[1], result, planes.dtype.type(divisor))
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


def given(planes: Array, values: Array) -> Array:
    """Return zeros but for one value in each row of a (planes, pixels) array: where `maxima` finds the largest."""
    result = empty(planes.shape, planes.dtype)
    rows, largest = contiguous(planes, planes.dtype).reshape(-1), np.empty(len(planes), planes.dtype)
    threads.launch(_give, 6.0 * planes.size, rows, planes.shape[1], largest, values, result.reshape(-1))
    return result


def spread(values: Array, pixels: int) -> Array:
    """Return a (planes, pixels) array with each value all over its plane."""
    planes = empty((values.size, pixels), common(values))
    threads.launch(_spread, 4.0 * planes.size, contiguous(values, planes.dtype), planes)
    return planes


def _sum_of(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """Return the larger of each two numbers, or a where it is NaN."""
    won = builder.or_(builder.fcmp_ordered(">", a, b), builder.fcmp_unordered("uno", a, a))
    return builder.select(won, a, b)


def _reduction(name: str, start: float, join: Callable[[Any, Any, Any], Any]) -> Any:
    """Make the intrinsic that joins all numbers of each of `TOGETHER` planes."""

    def lanes_of(builder: Any, planes: types.Array, row: Any, count: Any) -> Any:
        """Return a plane joined to one vector: first what fills none, then whole ones."""
        vector, itemsize = ir.VectorType(element(planes), LANES), planes.dtype.bitwidth // 8
        result = cgutils.alloca_once(builder, vector)
        whole = builder.and_(count, I64(-LANES))
        rest = lanes_between(builder, whole, I64(0), count, list(range(LANES)))
        pixels = masked_load(builder, builder.gep(row, [whole]), rest, vector, itemsize)
        builder.store(builder.select(rest, pixels, ir.Constant(vector, [start] * LANES)), result)
        with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES), I64) as (q, _):
            pixels = load(builder, builder.gep(row, [q]), 0, vector, itemsize)
            builder.store(join(builder, pixels, builder.load(result)), result)
        return builder.load(result)

    def by_halves(builder: Any, vectors: list[Any]) -> Any:
        """Return a vector with all lanes of each of `TOGETHER` joined."""
        length = LANES  # of what is left of each vector
        while length > 1:
            half, together = length // 2, []
            for a, b in zip(vectors[::2], vectors[1::2] or vectors[:1], strict=True):
                count = a.type.count * (2 if len(vectors) > 1 else 1)
                low = [begin + j for begin in range(0, count, length) for j in range(half)]
                high = [at + half for at in low]
                together.append(join(builder, *(shuffled(builder, a, b, picks) for picks in (low, high))))
            vectors, length = together, half
        return vectors[0]

    @intrinsic
    def of_some(typing, planes, pixels, result, i, last, divisor):
        """Write to ``result[i]`` and those that follow, before ``last``, their planes' pixels joined; sums are divided."""

        def codegen(context, builder, signature, arguments):
            planes, pixels, result, i, last, divisor = arguments
            kind = signature.args[0]
            end, vectors = builder.sub(last, I64(1)), []
            for j in range(TOGETHER):
                plane = builder.add(i, I64(j))
                plane = builder.select(builder.icmp_signed("<", plane, end), plane, end)
                row = data(context, builder, kind, planes, builder.mul(plane, pixels))
                vectors.append(lanes_of(builder, kind, row, pixels))
            to = data(context, builder, signature.args[2], result, i)
            exist = lanes_between(builder, i, i, last, list(range(TOGETHER)))
            joined = by_halves(builder, vectors)
            if join is _sum_of:
                joined = builder.fdiv(joined, splat(builder, divisor, joined.type))
            masked_store(builder, joined, to, exist, kind.dtype.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(planes, types.int64, result, types.int64, types.int64, divisor), codegen

    of_some.__name__ = name
    return of_some


_total = _reduction("total", 0.0, _sum_of)
_greatest = _reduction("greatest", float("-inf"), _larger)


@jit.kernel
def _sum(workers, planes, pixels, result, divisor):
    for worker in numba.prange(workers):
        first, last = span(result.size, workers, worker)
        for i in range(first, last, TOGETHER):
            _total(planes, pixels, result, i, last, divisor)


@jit.inner
def _chunk(pixels):
    """Return how many planes are searched before the places of their maxima are."""
    return max(1, BLOCK // (pixels * TOGETHER)) * TOGETHER


@jit.kernel
def _maximum(workers, planes, pixels, values, places):
    for worker in numba.prange(workers):
        first, last = span(values.size, workers, worker)
        for begin in range(first, last, _chunk(pixels)):
            end = min(begin + _chunk(pixels), last)
            for i in range(begin, end, TOGETHER):
                _greatest(planes, pixels, values, i, end, 1)
            if places.size:
                for i in range(begin, end):
                    places[i] = _place(planes, i * pixels, pixels, values[i])


@jit.kernel
def _give(workers, planes, pixels, largest, values, result):
    for worker in numba.prange(workers):
        first, last = span(values.size, workers, worker)
        for begin in range(first, last, _chunk(pixels)):
            end = min(begin + _chunk(pixels), last)
            for i in range(begin, end, TOGETHER):
                _greatest(planes, pixels, largest, i, end, 1)
            result[begin * pixels : end * pixels] = 0
            for i in range(begin, end):
                result[i * pixels + _place(planes, i * pixels, pixels, largest[i])] = values[i]


@intrinsic
def _place(typing, planes, begin, count, value):
    """Return where the first number of a plane is that is the value or NaN: by vectors from the last to the first.

    All of them are looked at: a branch out would be guessed wrong.
    """

    def codegen(context, builder, signature, arguments):
        planes, begin, count, value = arguments
        kind = signature.args[0]
        vector, itemsize = ir.VectorType(element(kind), LANES), kind.dtype.bitwidth // 8
        row, bits = data(context, builder, kind, planes, begin), ir.IntType(LANES)
        values, place = splat(builder, value, vector), cgutils.alloca_once_value(builder, I64(0))

        def find(q: Any, pixels: Any, exist: Any = None) -> None:
            hit = builder.or_(
                builder.fcmp_ordered("==", pixels, values), builder.fcmp_unordered("uno", pixels, pixels)
            )
            hit = builder.bitcast(builder.and_(hit, exist) if exist else hit, bits)
            first = builder.add(q, builder.zext(builder.cttz(hit, ir.IntType(1)(0)), I64))
            none = builder.icmp_unsigned("==", hit, bits(0))
            builder.store(builder.select(none, builder.load(place), first), place)

        whole = builder.and_(count, I64(-LANES))
        rest = lanes_between(builder, whole, I64(0), count, list(range(LANES)))
        find(whole, masked_load(builder, builder.gep(row, [whole]), rest, vector, itemsize), rest)
        with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES), I64) as (back, _):
            q = builder.sub(builder.sub(whole, I64(LANES)), back)
            find(q, load(builder, builder.gep(row, [q]), 0, vector, itemsize))
        return builder.load(place)

    i = types.int64
    return types.int64(planes, i, i, planes.dtype), codegen


@jit.kernel
def _spread(workers, values, planes):
    for worker in numba.prange(workers):
        for i in range(part(len(planes), workers, worker), part(len(planes), workers, worker + 1)):
            row, value = planes[i], values[i]
            for q in range(row.size):
                row[q] = value
