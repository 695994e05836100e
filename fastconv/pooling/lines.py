"""Lines of pixels and the windows over them, as vector code: window q + lane is a lane.

    ================= ==========================================================================
    line              (kernel, stride, pad, pixels, windows, pitch, masks) of a row; the first two are of `SHAPES`
    pitch             elements from one row of scratch to the next: whole vectors
    masks             place in ``tables`` of an entry for each vector of windows: whether all pixels exist that they see, and
                      of each vector of pixels that they are picked from which do, as bits
    ================= ==========================================================================

Rows of few results go by vectors of half the width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from fastconv import machine
from fastconv.algorithms.direct.depthwise.lanes import lanes_of, load_lanes
from fastconv.gemm.loops import rolled
from fastconv.gemm.move import I1, I32, masked_store
from fastconv.gemm.tile import I64, data, element, load, prefetch, shuffled, splat

AHEAD = 2**13  # bytes from what is read or written to what is asked for: maps come from beyond L2
LEAST = float("-inf")
Shapes = Sequence[tuple[int, int]]
# (kernel, stride) along a row, each its own code
SHAPES: Shapes = ((2, 1), (3, 1), (2, 2), (3, 2), (3, 3), (4, 4))
APART = [shape for shape in SHAPES if shape[0] == shape[1]]
SLIDING = [shape for shape in SHAPES if shape not in APART]
I = types.int64
LINE = types.UniTuple(I, 7)

Join = Callable[[Any, Any, Any], Any]


def vector_length(windows: int, itemsize: int) -> int:
    """Return how many windows a vector has: half of its lanes hold a short row."""
    longest = machine.tile(itemsize).vl
    return half if windows <= (half := max(2, longest // 2)) else longest


class Line:
    """The windows of a row, and where vectors of their pixels lie."""

    def __init__(
        self, context: Any, builder: Any, array: types.Array, table: Any, tables: Any, line: Any
    ) -> None:
        self.builder, self.itemsize = builder, array.dtype.bitwidth // 8
        self.element = element(array)
        self.tables = data(context, builder, table, tables, I64(0))
        fields = cgutils.unpack_tuple(builder, line)
        self.kernel, self.stride, self.pad, self.pixels, self.windows, self.pitch, self.masks = fields

    def by_length(self, emit: Callable[[ir.VectorType], None]) -> None:
        """Call ``emit`` with the vectors that `vector_length` tells, for either of its lengths."""
        longest = machine.tile(self.itemsize).vl
        half = vector_length(0, self.itemsize)
        few = self.builder.icmp_signed("<=", self.windows, I64(half))
        with self.builder.if_else(few) as (in_halves, in_wholes):
            with in_halves:
                emit(ir.VectorType(self.element, half))
            with in_wholes:
                emit(ir.VectorType(self.element, longest))

    def by_shape(self, emit: Callable[[int, int, ir.VectorType], None], shapes: Shapes) -> None:
        """Call ``emit(kernel, stride, vector)`` for each of these shapes."""
        for kernel, stride in shapes:
            same = self.builder.and_(
                self.builder.icmp_signed("==", self.kernel, I64(kernel)),
                self.builder.icmp_signed("==", self.stride, I64(stride)),
            )
            with self.builder.if_then(same):
                self.by_length(partial(emit, kernel, stride))

    def vectors(self, elements: Any, length: int, body: Callable[[Any], None]) -> None:
        """Call ``body`` with the number of each vector of so many elements."""
        count = self.builder.sdiv(self.builder.add(elements, I64(length - 1)), I64(length))
        rolled(self.builder, count, body)

    def entry(self, at: Any, i: Any) -> Any:
        """Return an entry of the tables."""
        return self.builder.load(self.builder.gep(self.tables, [self.builder.add(at, i)]))

    def exist(self, kernel: int, stride: int, v: Any, part: int) -> Any:
        """Return the mask of those pixels that exist of part ``part`` that vector v of windows sees; part -1: if all do."""
        parts = 1 + stride * len(range(0, kernel, stride))
        at = self.builder.add(self.builder.mul(v, I64(parts)), I64(1 + part))
        return self.entry(self.masks, at)

    def write(self, at: Any, phases: list[Any], kernel: int, v: Any) -> None:
        """Write the pixels that vector v of windows sees first, from ``at`` on: those of ``stride`` vectors in turns."""
        builder, stride, count = self.builder, len(phases), phases[0].type.count
        row = in_line(builder, phases)
        for part in range(stride):
            spots = [divmod(part * count + i, stride) for i in range(count)]
            pixels = shuffled(builder, row, row, [phase * count + lane for lane, phase in spots])
            bits = lanes_of(builder, self.exist(kernel, stride, v, part), count)
            here = builder.gep(at, [I64(part * count)])
            prefetch(builder, builder.gep(here, [I64(AHEAD // self.itemsize)]), write=True)
            masked_store(
                builder, pixels, here, builder.bitcast(bits, ir.VectorType(I1, count)), self.itemsize
            )

    def place(self, line: Any, v: Any, count: int) -> Any:
        """Return where a vector lies in scratch."""
        return self.builder.add(self.builder.mul(line, self.pitch), self.builder.mul(v, I64(count)))


def in_line(builder: Any, vectors: list[Any]) -> Any:
    """Return vectors as one, the last repeated to a power of two."""
    while len(vectors) > 1:
        vectors = vectors + vectors[-1:] * (len(vectors) % 2)
        lanes = list(range(2 * vectors[0].type.count))
        vectors = [shuffled(builder, a, b, lanes) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def everywhere(vector: ir.VectorType, number: float) -> Any:
    """Return a vector of one number."""
    return ir.Constant(vector, [number] * vector.count)


def exceeds(builder: Any, values: Any, before: Any) -> Any:
    """Return which numbers are taken instead of those before."""
    return builder.or_(
        builder.fcmp_ordered(">", values, before), builder.fcmp_unordered("uno", values, values)
    )


def add(builder: Any, a: Any, b: Any) -> Any:
    """Return sums, to join by."""
    return builder.fadd(a, b)


def larger(builder: Any, before: Any, values: Any) -> Any:
    """Return maxima, to join by."""
    return builder.select(exceeds(builder, values, before), values, before)


def root(builder: Any, values: Any) -> Any:
    """Return square roots."""
    vector = values.type
    letter = "f32" if isinstance(vector.element, ir.FloatType) else "f64"
    kind = ir.FunctionType(vector, [vector])
    name = f"llvm.sqrt.v{vector.count}{letter}"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [values])


def first_taps(line: Line, v: Any, stride: int, vector: ir.VectorType) -> Any:
    """Return the first tap of each window that is a pixel."""
    builder, numbers = line.builder, ir.VectorType(I32, vector.count)
    missing = builder.sub(line.pad, builder.mul(v, I64(stride * vector.count)))
    missing = splat(builder, builder.trunc(missing, I32), numbers)
    missing = builder.sub(missing, ir.Constant(numbers, [stride * lane for lane in range(vector.count)]))
    zeros = ir.Constant(numbers, [0] * vector.count)
    missing = builder.select(builder.icmp_signed(">", missing, zeros), missing, zeros)
    return builder.sitofp(missing, vector)


def at_taps(builder: Any, vectors: list[Any], kernel: int, stride: int) -> Iterator[Any]:
    """Yield what each window has at its taps, one after the other, of a line of pixels in vectors."""
    for first in range(0, kernel, stride):
        row = in_line(builder, vectors[first : first + stride])
        for tap in range(min(stride, kernel - first)):
            lanes = [tap + stride * lane for lane in range(vectors[0].type.count)]
            yield shuffled(builder, row, row, lanes)


class Pixels:
    """Lines of pixels as windows of one shape see them."""

    def __init__(
        self,
        context: Any,
        line: Line,
        array: types.Array,
        x: Any,
        shape: tuple[int, int],
        vector: ir.VectorType,
    ) -> None:
        self.line, self.vector, (self.kernel, self.stride) = line, vector, shape
        self.x = data(context, line.builder, array, x, I64(0))
        self.size = context.make_array(array)(context, line.builder, x).nitems
        taps = range(0, self.kernel, self.stride)
        self.firsts = [first + part * vector.count for first in taps for part in range(self.stride)]

    def seen(self, at: Any, v: Any, start: float) -> tuple[list[Any], Any]:
        """Load what vector v of windows sees, ``start`` outside, and return the first tap of each that is a pixel.

        Pixels are loaded as they lie where all of them exist and the array does not end.
        """
        line, builder, vector, firsts = self.line, self.line.builder, self.vector, self.firsts
        end = builder.add(at, I64(firsts[-1] + vector.count))
        whole = builder.icmp_signed("!=", line.exist(self.kernel, self.stride, v, -1), I64(0))
        whole = builder.and_(whole, builder.icmp_signed("<=", end, self.size))
        here = builder.gep(self.x, [at])
        for first in firsts[: self.stride]:
            prefetch(builder, builder.gep(here, [I64(first + AHEAD // line.itemsize)]))
        with builder.if_else(whole) as (plain, masked):
            with plain:
                own = [load(builder, here, first, vector, line.itemsize) for first in firsts]
                own, block = [*own, everywhere(vector, 0.0)], builder.block
            with masked:
                some = []
                for part, first in enumerate(firsts):
                    bits = lanes_of(builder, line.exist(self.kernel, self.stride, v, part), vector.count)
                    values = load_lanes(
                        builder, builder.gep(here, [I64(first)]), bits, vector, 1, line.itemsize
                    )
                    mask = builder.bitcast(bits, ir.VectorType(I1, vector.count))
                    some.append(
                        values if start == 0 else builder.select(mask, values, everywhere(vector, start))
                    )
                some, other = [*some, first_taps(line, v, self.stride, vector)], builder.block
        vectors = []
        for values, others in zip(own, some, strict=True):
            vectors.append(builder.phi(vector))
            vectors[-1].add_incoming(values, block)
            vectors[-1].add_incoming(others, other)
        return vectors[:-1], vectors[-1]

    def at_taps(self, vectors: list[Any]) -> Iterator[Any]:
        """Yield what each window has at its taps, one after the other."""
        return at_taps(self.line.builder, vectors, self.kernel, self.stride)

    def joined(self, at: Any, v: Any, join: Join, start: float, squares: bool) -> Any:
        """Return all pixels that each window has in a line joined."""
        builder, (vectors, _) = self.line.builder, self.seen(at, v, start)
        vectors = [builder.fmul(v, v) for v in vectors] if squares else vectors
        return functools.reduce(partial(join, builder), self.at_taps(vectors))

    def largest(self, at: Any, v: Any) -> tuple[Any, Any]:
        """Return the largest pixel that each window has in a line, and its tap."""
        builder, (vectors, place) = self.line.builder, self.seen(at, v, LEAST)
        best, *others = self.at_taps(vectors)
        for tap, own in enumerate(others, 1):
            won = exceeds(builder, own, best)
            best = builder.select(won, own, best)
            place = builder.select(won, everywhere(self.vector, float(tap)), place)
        return best, place
