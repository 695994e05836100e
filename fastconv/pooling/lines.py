"""Lines of pixels and the windows over them, as vector code: window q + lane is a lane.

    ================= ==========================================================================
    line              (kernel, stride, pad, pixels, windows, pitch, masks) of a row; the first two are of `SHAPES`
    pitch             elements from one row of scratch to the next: whole vectors
    masks             place in ``tables`` of an entry for each vector of windows: whether all pixels exist that they see, and
                      of each vector of pixels that they are picked from which do, as bits
    maps              (count, rows of scratch from one to the next, results likewise): windows lie alike in them
    rows              (first, end) of the rows of results, written from y0 on
    spans             (begin, taps, low): where ``tables`` has these of each row of windows; scratch begins at line ``low``
    depth             (taps, rows of scratch from one to the next, lines of the map likewise)
    step              lines from one tap to the next along the height
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
from fastconv.gemm.move import I1, I32, lanes_between, masked_store
from fastconv.gemm.tile import I64, data, element, load, prefetch, shuffled, splat

AHEAD = 2**13  # bytes from what is read or written to what is asked for: maps come from beyond L2
LEAST = float("-inf")
Shapes = Sequence[tuple[int, int]]
# (kernel, stride) along a row, each its own code
SHAPES: Shapes = ((2, 1), (3, 1), (2, 2), (3, 2), (3, 3), (4, 4))
APART = [shape for shape in SHAPES if shape[0] == shape[1]]
SLIDING = [shape for shape in SHAPES if shape not in APART]
I = types.int64
PAIR, TRIPLE, FOUR = (types.UniTuple(I, count) for count in (2, 3, 4))
LINE = types.UniTuple(types.int64, 7)
WALK = (LINE, TRIPLE, PAIR, TRIPLE, TRIPLE, I)  # line, maps, rows, spans, depth, step

Join = Callable[[Any, Any, Any], Any]
OfLine = Callable[
    [Any, Any], tuple[Any, Any]
]  # maxima and taps of a line, by its place in scratch and number


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


class Windows:
    """The rows of windows of a slice, a vector of them at a time."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        """Take the last arguments of an intrinsic: scratch, s0, tables and those of `WALK`."""
        scratch, s0, tables, line, maps, rows, spans, depth, step = arguments
        array, table = signature.args[-9], signature.args[-7]
        self.line = Line(context, builder, array, table, tables, line)
        self.builder, self.itemsize = builder, self.line.itemsize
        self.scratch, self.origin = data(context, builder, array, scratch, s0), s0
        self.first, self.end = cgutils.unpack_tuple(builder, rows)
        self.begins, self.counts, self.low = cgutils.unpack_tuple(builder, spans)
        self.slices, self.apart, self.between = cgutils.unpack_tuple(builder, depth)
        self.maps, self.above, self.results = cgutils.unpack_tuple(builder, maps)
        self.step = step

    def each(self, emit: Callable[[Any, Any, ir.VectorType], None], apart: bool = False) -> None:
        """Call ``emit(at, lanes, vector)`` for each vector of windows: where its results are, and which exist.

        Those that are ``apart`` by shape, of which ``kernel`` then tells.
        """
        builder, line = self.builder, self.line

        def loops(vector: ir.VectorType) -> None:
            def some(at: Any, v: Any) -> None:
                self.v, self.q = v, builder.mul(v, I64(vector.count))
                lanes = lanes_between(builder, self.q, I64(0), line.windows, list(range(vector.count)))
                emit(builder.add(at, self.q), lanes, vector)

            def row(m: Any, i: Any) -> None:
                self.p = builder.add(self.first, i)
                self.taps = line.entry(self.counts, self.p)
                begin = builder.sub(line.entry(self.begins, self.p), self.low)
                some_taps = builder.icmp_signed(">", self.taps, I64(0))
                self.begin = builder.select(some_taps, begin, I64(0))
                self.row = builder.add(self.begin, builder.mul(m, self.above))  # after line ``low`` of map 0
                at = builder.add(builder.mul(m, self.results), builder.mul(i, line.windows))
                line.vectors(line.windows, vector.count, partial(some, at))

            rows = builder.sub(self.end, self.first)
            rolled(builder, self.maps, lambda m: rolled(builder, rows, partial(row, m)))

        def of_shape(kernel: int, _: int, vector: ir.VectorType) -> None:
            self.kernel = kernel
            loops(vector)

        line.by_shape(of_shape, APART) if apart else line.by_length(loops)

    def lines(self, body: Callable[[Any, Any], None]) -> None:
        """Call ``body`` with the place in scratch of each line of a vector of windows, and its number from their first."""
        builder = self.builder

        def along_depth(d: Any) -> None:
            def along_height(h: Any) -> None:
                down = builder.mul(h, self.step)
                line = builder.add(builder.add(self.row, down), builder.mul(d, self.apart))
                place = builder.add(builder.mul(line, self.line.pitch), self.q)
                body(place, builder.add(builder.mul(d, self.between), down))

            rolled(builder, self.taps, along_height)

        rolled(builder, self.slices, along_depth)

    def load(self, place: Any, vector: ir.VectorType) -> Any:
        """Load a vector of scratch."""
        return load(self.builder, self.builder.gep(self.scratch, [place]), 0, vector, self.itemsize)

    def of_pixels(self, context: Any, signature: Any, x: Any, vector: ir.VectorType) -> OfLine:
        """Return what tells the maxima and taps of a line of windows that are apart."""
        pixels = self.pixels(context, signature.args[-9], x, vector)
        return lambda _, number: pixels.largest(self.pixel(number), self.v)

    def pixels(self, context: Any, array: types.Array, x: Any, vector: ir.VectorType) -> Pixels:
        """Return the pixels of windows that are apart."""
        return Pixels(context, self.line, array, x, (self.kernel, self.kernel), vector)

    def pixel(self, number: Any) -> Any:
        """Return where in x, of which a slice begins at s0, the pixels of a line of windows that are apart begin."""
        builder, line = self.builder, self.line
        row = builder.add(builder.add(self.row, self.low), number)
        column = builder.sub(builder.mul(self.q, I64(self.kernel)), line.pad)
        return builder.add(self.origin, builder.add(builder.mul(row, line.pixels), column))

    def joined_apart(self, pixels: Pixels, join: Join, start: float, squares: bool) -> Any:
        """Return the pixels of a vector of windows that are apart joined: down their lines, then along them."""
        builder, starts = self.builder, everywhere(pixels.vector, start)
        totals = [cgutils.alloca_once(builder, pixels.vector) for _ in pixels.firsts]
        for total in totals:
            builder.store(starts, total)

        def take(_: Any, number: Any) -> None:
            vectors, _ = pixels.seen(self.pixel(number), self.v, start)
            for own, total in zip(vectors, totals, strict=True):
                own = builder.fmul(own, own) if squares else own
                builder.store(join(builder, builder.load(total), own), total)

        self.lines(take)
        return functools.reduce(
            partial(join, builder), pixels.at_taps([builder.load(total) for total in totals])
        )

    def joined(self, join: Join, start: float, vector: ir.VectorType) -> Any:
        """Return the lines of a vector of windows joined."""
        total = cgutils.alloca_once(self.builder, vector)
        self.builder.store(everywhere(vector, start), total)

        def take(place: Any, number: Any) -> None:
            own = self.load(place, vector)
            self.builder.store(join(self.builder, self.builder.load(total), own), total)

        self.lines(take)
        return self.builder.load(total)

    def largest(self, vector: ir.VectorType, of_line: OfLine, first_tap: Any) -> tuple[Any, Any, Any]:
        """Return maxima, the lines they are of, and their taps, from what ``of_line`` tells of a line."""
        builder, numbers = self.builder, ir.VectorType(I32, vector.count)
        best, line, tap = (cgutils.alloca_once(builder, kind) for kind in (vector, numbers, vector))
        builder.store(everywhere(vector, LEAST), best)
        builder.store(ir.Constant(numbers, [0] * vector.count), line)
        builder.store(first_tap, tap)

        def take(place: Any, number: Any) -> None:
            own, own_tap = of_line(place, number)
            before = builder.load(best)
            won = exceeds(builder, own, before)
            builder.store(builder.select(won, own, before), best)
            number = splat(builder, builder.trunc(number, I32), numbers)
            builder.store(builder.select(won, number, builder.load(line)), line)
            builder.store(builder.select(won, own_tap, builder.load(tap)), tap)

        self.lines(take)
        return builder.load(best), builder.load(line), builder.load(tap)


class Counts:
    """What windows divide by: what each counts along a row, times (divisor or 0, slices, table of rows).

    Powers of two are multiplied by, which is as exact: a fourth field tells that ``columns`` has their inverses.
    """

    def __init__(self, windows: Windows, columns: Any, counted: Any) -> None:
        self.windows, self.columns = windows, columns
        self.divisor, self.slices, self.heights, powers = cgutils.unpack_tuple(windows.builder, counted)
        self.powers = windows.builder.icmp_signed("!=", powers, I64(0))

    def divided(self, values: Any) -> Any:
        """Return a vector of windows' values divided."""
        windows, builder, vector = self.windows, self.windows.builder, values.type
        lines = builder.mul(self.slices, windows.line.entry(self.heights, windows.p))
        given = builder.icmp_signed("!=", self.divisor, I64(0))
        factor = builder.sitofp(builder.select(given, self.divisor, lines), vector.element)
        widths = load(builder, builder.gep(self.columns, [windows.q]), 0, vector, windows.itemsize)
        with builder.if_else(self.powers) as (exact, other):
            with exact:
                inverse = splat(builder, builder.fdiv(vector.element(1.0), factor), vector)
                product, first = builder.fmul(values, builder.fmul(widths, inverse)), builder.block
            with other:
                quotient = builder.fdiv(values, builder.fmul(widths, splat(builder, factor, vector)))
                second = builder.block
        result = builder.phi(vector)
        result.add_incoming(product, first)
        result.add_incoming(quotient, second)
        return result
