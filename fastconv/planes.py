"""Whole planes: the sum of each, its largest pixel, a number spread over each, or given to its largest pixel.

Gradients by a bias are sums of planes, and pooling over a whole map is one of these.  A plane is summed in `LANES`
partial sums side by side, then those by halves, so that the order, and with it every bit, is the same on any
number of threads.  `TOGETHER` planes are taken at once: their loads wait for each other's, and their halves share vectors.
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
from fastconv.arrays import common, contiguous, empty
from fastconv.gemm.loops import rolled
from fastconv.gemm.move import lanes_between, masked_load, masked_store
from fastconv.gemm.schedule import span
from fastconv.gemm.tile import I64, data, element, load, prefetch, shuffled, splat, store
from fastconv.typing import Array

LANES, TOGETHER = 16, 4
AHEAD = 2**12  # bytes from what is read or written to what is asked for
I = types.int64


def sums(planes: Array, divisor: int = 1) -> Array:
    """Return the sum of each row of a (planes, pixels) array, divided by ``divisor``."""
    result = np.empty(len(planes), planes.dtype)
    rows = contiguous(planes, planes.dtype).reshape(-1)
    threads.launch(_sum, 4.0 * planes.size, rows, planes.shape[1], result, divisor)
    return result


def maxima(planes: Array, located: bool = True) -> tuple[Array, Array]:
    """Return the largest number of each row of a (planes, pixels) array, NaN before all, and where it is first.

    Of several NaN the last is taken, as PyTorch does.

    Places are an empty array if not ``located``.
    """
    values, places = np.empty(len(planes), planes.dtype), np.empty(len(planes) if located else 0, np.int64)
    rows = contiguous(planes, planes.dtype).reshape(-1)
    threads.launch(_maximum, 4.0 * planes.size, rows, planes.shape[1], values, places if located else None)
    return values, places


def given(planes: Array, values: Array) -> Array:
    """Return zeros but for one value in each row of a (planes, pixels) array: where `maxima` finds the largest."""
    result = empty(planes.shape, planes.dtype)
    rows = contiguous(planes, planes.dtype).reshape(-1)
    threads.launch(_give, 6.0 * planes.size, rows, planes.shape[1], values, result.reshape(-1))
    return result


def spread(values: Array, pixels: int, divisor: int = 1) -> Array:
    """Return a (planes, pixels) array with each value, divided by ``divisor``, all over its plane."""
    planes = empty((values.size, pixels), common(values))
    own = contiguous(values, planes.dtype)
    threads.launch(_spread, 4.0 * planes.size, planes.reshape(-1), pixels, own, divisor)
    return planes


@jit.kernel
def _sum(workers, planes, pixels, result, divisor):
    for worker in numba.prange(workers):
        first, last = span(result.size, workers, worker)
        for i in range(first, last, TOGETHER):
            _total(planes, pixels, i, last, result, divisor)


@jit.kernel
def _maximum(workers, planes, pixels, values, places):
    for worker in numba.prange(workers):
        first, last = span(values.size, workers, worker)
        for i in range(first, last, TOGETHER):
            _greatest(planes, pixels, i, last, values, places)


@jit.kernel
def _give(workers, planes, pixels, values, result):
    for worker in numba.prange(workers):
        first, last = span(values.size, workers, worker)
        for i in range(first, last, TOGETHER):
            _to_greatest(planes, pixels, i, last, values, result)


@jit.kernel
def _spread(workers, planes, pixels, values, divisor):
    for worker in numba.prange(workers):
        first, last = span(values.size, workers, worker)
        for i in range(first, last, TOGETHER):
            _everywhere(planes, pixels, i, last, values, divisor)


@intrinsic
def _total(typing, planes, pixels, i, last, result, divisor):
    """Write to ``result[i]`` and those that follow, before ``last``, the sums of their planes, divided."""

    def codegen(context, builder, signature, arguments):
        *some, result, divisor = arguments
        planes = Planes(context, builder, signature, some)
        total = planes.joined(0.0, builder.fadd)
        divisors = splat(builder, builder.sitofp(divisor, total.type.element), total.type)
        planes.write(signature.args[4], result, builder.fdiv(total, divisors))
        return context.get_dummy_value()

    return types.void(planes, I, I, I, result, I), codegen


@intrinsic
def _greatest(typing, planes, pixels, i, last, result, places):
    """Write to ``result[i]`` and those that follow, before ``last``, the largest numbers of their planes.

    Where each stands first is written to ``places``, unless that is None.
    """

    def codegen(context, builder, signature, arguments):
        *some, result, places = arguments
        planes = Planes(context, builder, signature, some)
        greatest = planes.greatest()
        planes.write(signature.args[4], result, greatest)
        if not isinstance(signature.args[5], types.NoneType):
            for plane, row, value in planes.each(greatest):
                to = data(context, builder, signature.args[5], places, plane)
                builder.store(planes.place(row, value), to)
        return context.get_dummy_value()

    return types.void(planes, I, I, I, result, places), codegen


@intrinsic
def _to_greatest(typing, planes, pixels, i, last, values, result):
    """Write planes of zeros, but each one's of ``values`` where the largest number of its plane stands first."""

    def codegen(context, builder, signature, arguments):
        *some, values, result = arguments
        planes = Planes(context, builder, signature, some)
        for plane, row, value in planes.each(planes.greatest()):
            place, to = planes.place(row, value), planes.row(result, plane)
            planes.fill(to, ir.Constant(planes.vector, [0.0] * LANES))
            given = builder.load(data(context, builder, signature.args[4], values, plane))
            builder.store(given, builder.gep(to, [place]))
        return context.get_dummy_value()

    return types.void(planes, I, I, I, values, result), codegen


@intrinsic
def _everywhere(typing, planes, pixels, i, last, values, divisor):
    """Write planes of their ``values``, divided."""

    def codegen(context, builder, signature, arguments):
        *some, values, divisor = arguments
        planes = Planes(context, builder, signature, some)
        for plane, row in zip(planes.numbers, planes.rows, strict=True):
            value = builder.load(data(context, builder, signature.args[4], values, plane))
            value = builder.fdiv(value, builder.sitofp(divisor, value.type))
            planes.fill(row, splat(builder, value, planes.vector))
        return context.get_dummy_value()

    return types.void(planes, I, I, I, values, I), codegen


class Planes:
    """`TOGETHER` planes from the i-th on, the last of all in place of those that lack."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        """Take the first arguments of an intrinsic: planes, pixels, i, last."""
        planes, self.pixels, self.i, self.last = arguments
        self.context, self.builder, self.array = context, builder, signature.args[0]
        self.itemsize = self.array.dtype.bitwidth // 8
        self.vector = ir.VectorType(element(self.array), LANES)
        end, ahead = builder.sub(self.last, I64(1)), [builder.add(self.i, I64(j)) for j in range(TOGETHER)]
        self.numbers = [builder.select(builder.icmp_signed("<", n, end), n, end) for n in ahead]
        self.rows = [self.row(planes, plane) for plane in self.numbers]
        self.whole = builder.and_(self.pixels, I64(-LANES))  # pixels that fill vectors
        self.rest = lanes_between(builder, self.whole, I64(0), self.pixels, list(range(LANES)))

    def row(self, planes: Any, plane: Any) -> Any:
        """Return where a plane begins."""
        return data(self.context, self.builder, self.array, planes, self.builder.mul(plane, self.pixels))

    def vectors(self, body: Callable[[Any], None]) -> None:
        """Call ``body`` with where each whole vector begins."""
        count = self.builder.lshr(self.pixels, I64(LANES.bit_length() - 1))
        rolled(self.builder, count, lambda v: body(self.builder.mul(v, I64(LANES))))

    def last_of(self, row: Any) -> Any:
        """Load the pixels that fill no vector."""
        at = self.builder.gep(row, [self.whole])
        return masked_load(self.builder, at, self.rest, self.vector, self.itemsize)

    def joined(self, start: float, join: Callable[[Any, Any], Any]) -> Any:
        """Return the pixels of each plane joined: first what fills no vector, then whole ones, then these by halves."""
        builder, starts = self.builder, ir.Constant(self.vector, [start] * LANES)
        results = [cgutils.alloca_once(builder, self.vector) for _ in self.rows]
        for row, result in zip(self.rows, results, strict=True):
            builder.store(builder.select(self.rest, self.last_of(row), starts), result)

        def turn(q: Any) -> None:
            for row, result in zip(self.rows, results, strict=True):
                at = builder.gep(row, [q])
                prefetch(builder, builder.gep(at, [I64(AHEAD // self.itemsize)]))
                pixels = load(builder, at, 0, self.vector, self.itemsize)
                builder.store(join(pixels, builder.load(result)), result)

        self.vectors(turn)
        vectors, length = [builder.load(result) for result in results], LANES  # of what is left of each
        while length > 1:
            half, together = length // 2, []
            for a, b in zip(vectors[::2], vectors[1::2] or vectors[:1], strict=True):
                count = a.type.count * (2 if len(vectors) > 1 else 1)
                low = [begin + j for begin in range(0, count, length) for j in range(half)]
                high = [at + half for at in low]
                together.append(join(*(shuffled(builder, a, b, picks) for picks in (low, high))))
            vectors, length = together, half
        return vectors[0]

    def greatest(self) -> Any:
        """Return the largest pixel of each plane, or NaN."""
        builder = self.builder

        def larger(a: Any, b: Any) -> Any:
            won = builder.or_(builder.fcmp_ordered(">", a, b), builder.fcmp_unordered("uno", a, a))
            return builder.select(won, a, b)

        return self.joined(float("-inf"), larger)

    def write(self, array: types.Array, result: Any, numbers: Any) -> None:
        """Write a number of each plane."""
        exist = lanes_between(self.builder, self.i, I64(0), self.last, list(range(TOGETHER)))
        to = data(self.context, self.builder, array, result, self.i)
        masked_store(self.builder, numbers, to, exist, self.itemsize)

    def each(self, numbers: Any) -> list[tuple[Any, Any, Any]]:
        """Return each plane's index, where it begins, and its own of the numbers."""
        own = [self.builder.extract_element(numbers, I64(j)) for j in range(TOGETHER)]
        return list(zip(self.numbers, self.rows, own, strict=True))

    def place(self, row: Any, value: Any) -> Any:
        """Return where the first pixel of a plane is that is the value, or the last that is NaN if the value is.

        All of them are looked at: a branch out would be guessed wrong.
        """
        builder, place = self.builder, cgutils.alloca_once(self.builder, I64)
        builder.store(I64(0), place)
        nan = builder.fcmp_unordered("uno", value, value)
        with builder.if_else(nan, likely=False) as (of_nan, of_number):
            with of_nan:
                self.find(row, place, lambda pixels: builder.fcmp_unordered("uno", pixels, pixels), False)
            with of_number:
                values = splat(builder, value, self.vector)
                self.find(row, place, lambda pixels: builder.fcmp_ordered("==", pixels, values), True)
        return builder.load(place)

    def find(self, row: Any, place: Any, hits: Callable[[Any], Any], first: bool) -> None:
        """Store the place of the first, or last, pixel that hits: by vectors, that which counts at last."""
        builder, bits = self.builder, ir.IntType(LANES)

        def look(q: Any, hit: Any) -> None:
            hit = builder.bitcast(hit, bits)
            if first:
                lane = builder.cttz(hit, ir.IntType(1)(0))
            else:
                lane = builder.sub(bits(LANES - 1), builder.ctlz(hit, ir.IntType(1)(0)))
            none = builder.icmp_unsigned("==", hit, bits(0))
            found = builder.add(q, builder.zext(lane, I64))
            builder.store(builder.select(none, builder.load(place), found), place)

        def turn(q: Any) -> None:
            if first:
                q = builder.sub(builder.sub(self.whole, I64(LANES)), q)
            look(q, hits(load(builder, builder.gep(row, [q]), 0, self.vector, self.itemsize)))

        last = builder.and_(hits(self.last_of(row)), self.rest)
        if first:
            look(self.whole, last)
        self.vectors(turn)
        if not first:
            look(self.whole, last)

    def fill(self, to: Any, numbers: Any) -> None:
        """Write a vector all over a plane."""
        builder = self.builder

        def turn(q: Any) -> None:
            at = builder.gep(to, [q])
            prefetch(builder, builder.gep(at, [I64(AHEAD // self.itemsize)]), write=True)
            store(builder, numbers, at, 0, self.itemsize)

        self.vectors(turn)
        masked_store(builder, numbers, builder.gep(to, [self.whole]), self.rest, self.itemsize)
