"""Windows that follow each other along rows of results, as vector code: window q + lane is a lane.

Most windows are small, and their rows long enough to fill vectors.  Then a row of pixels is loaded as it lies in
memory, and what each of its windows sees at one tap is every ``stride``-th pixel of it, which one shuffle picks.

    ================= ==========================================================================
    x, x0             the slice of pixels that the windows' first taps in depth stand on
    width             (kernel, stride, pad, pixels, windows) of a row; the first two are of `SHAPES`
    rows              (first, end) of the rows of results, written from y0 on
    spans             (begin, taps): where ``tables`` has these of each row of windows
    depth             (taps, elements from one to the next)
    step              rows of pixels from one tap to the next along the height
    ================= ==========================================================================

Pixels outside the row are masked lanes.  Sums and maxima are joined down the windows' lines of pixels first, where
they need no shuffles.  A NaN is taken whenever it is met, and of equal pixels the first, as PyTorch does.  Rows of
few results go by vectors of half the width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.algorithms.direct.depthwise.lanes import load_lanes
from fastconv.gemm.move import I32, lanes_between, masked_load, masked_store
from fastconv.gemm.tile import I64, data, element, shuffled, splat

BLOCK = 8  # rows of a wide map that a vector goes down: the masks at its edges serve all of them

Shapes = Sequence[tuple[int, int]]
# (kernel, stride) along a row, each its own code
SHAPES: Shapes = ((2, 1), (3, 1), (2, 2), (3, 2), (3, 3), (4, 4))
APART = [shape for shape in SHAPES if shape[0] == shape[1]]
SLIDING = [shape for shape in SHAPES if shape[1] == 1]
I, PAIR, TRIPLE = types.int64, types.UniTuple(types.int64, 2), types.UniTuple(types.int64, 3)
WALK = (types.UniTuple(types.int64, 5), PAIR, PAIR, PAIR, I)  # width, rows, spans, depth, step

# a vector of pixels, which of them exist, the place of lane 0's first tap of their line, and the tap
Take = Callable[[Any, Any, Any, int], Any]
Join = Callable[[Any, Any], Any]


def rolled(builder: Any, count: Any, body: Callable[[Any], None]) -> None:
    """Call ``body`` in a loop over i < count of few turns, which LLVM may not unroll as if they were many."""
    before, head, after = builder.block, builder.append_basic_block("turn"), builder.append_basic_block("on")
    builder.cbranch(builder.icmp_signed(">", count, I64(0)), head, after)
    builder.position_at_end(head)
    i = builder.phi(I64)
    i.add_incoming(I64(0), before)
    body(i)
    following = builder.add(i, I64(1))
    i.add_incoming(following, builder.block)
    turn = builder.cbranch(builder.icmp_signed("<", following, count), head, after)
    loop = builder.module.add_metadata([builder.module.add_metadata(["llvm.loop.unroll.disable"])])
    if loop not in loop.operands:
        loop.operands = (loop, *loop.operands)  # it names itself, to tell loops apart
    turn.set_metadata("llvm.loop", loop)
    builder.position_at_end(after)


def _zeros(vector: ir.VectorType) -> Any:
    return ir.Constant(vector, [0.0] * vector.count)


class _Rows:
    """The rows of windows of a slice."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        """Take the last arguments of an intrinsic: x, x0, tables and those of `WALK`."""
        x, x0, tables, width, rows, spans, depth, step = arguments
        array, table = signature.args[-8], signature.args[-6]
        self.builder, self.itemsize = builder, array.dtype.bitwidth // 8
        self.element, self.longest = element(array), machine.tile(self.itemsize).vl
        self.x = data(context, builder, array, x, x0)
        self.tables = data(context, builder, table, tables, I64(0))
        self.kernel, self.stride, self.pad, self.pixels, self.windows = cgutils.unpack_tuple(builder, width)
        self.first, self.end = cgutils.unpack_tuple(builder, rows)
        self.spans, self.depth = cgutils.unpack_tuple(builder, spans), cgutils.unpack_tuple(builder, depth)
        self.step = builder.mul(step, self.pixels)

    def each(self, emit: Callable[[Any, Any, _Windows], None], shapes: Shapes = SHAPES) -> None:
        """Call ``emit(at, lanes, windows)`` in every shape's loops, to write the results of a vector of windows."""
        builder, half = self.builder, max(2, self.longest // 2)
        few = builder.icmp_signed("<=", self.windows, I64(half))
        for kernel, stride in shapes:
            same = builder.and_(
                builder.icmp_signed("==", self.kernel, I64(kernel)),
                builder.icmp_signed("==", self.stride, I64(stride)),
            )
            with builder.if_then(same), builder.if_else(few) as (in_halves, in_wholes):
                with in_halves:
                    self._loops(emit, kernel, stride, half)
                with in_wholes:
                    self._loops(emit, kernel, stride, self.longest)

    def _loops(
        self, emit: Callable[[Any, Any, _Windows], None], kernel: int, stride: int, count: int
    ) -> None:
        """Go through the rows by vectors of ``count`` windows."""
        builder, vector = self.builder, ir.VectorType(self.element, count)
        narrow = builder.icmp_signed("<=", self.windows, I64(count))
        block = builder.select(narrow, builder.sub(self.end, self.first), I64(BLOCK))
        with (
            cgutils.for_range_slice(builder, self.first, self.end, block, I64) as (begin, _),
            cgutils.for_range_slice(builder, I64(0), self.windows, I64(count), I64) as (q, _),
        ):
            end = builder.add(begin, block)
            end = builder.select(builder.icmp_signed("<", end, self.end), end, self.end)
            lanes = lanes_between(builder, q, I64(0), self.windows, list(range(count)))

            def row(index: Any) -> None:
                p = builder.add(begin, index)
                to = builder.mul(builder.sub(p, self.first), self.windows)
                emit(builder.add(to, q), lanes, _Windows(self, p, q, kernel, stride, vector))

            rolled(builder, builder.sub(end, begin), row)

    def span(self, at: Any, p: Any) -> Any:
        """Return an entry of the tables."""
        return self.builder.load(self.builder.gep(self.tables, [self.builder.add(at, p)]))


class _Windows:
    """A vector of windows of one shape, from window q of row p on."""

    def __init__(self, rows: _Rows, p: Any, q: Any, kernel: int, stride: int, vector: ir.VectorType) -> None:
        self.rows, self.p, self.q, self.vector = rows, p, q, vector
        begin, self.taps = (rows.span(at, p) for at in rows.spans)
        self.kernel, self.stride = kernel, stride
        self.column = rows.builder.sub(rows.builder.mul(q, I64(stride)), rows.pad)
        line = rows.builder.mul(begin, rows.pixels)
        self.place = rows.builder.add(line, self.column)  # of lane 0's first tap, in the slice
        self.firsts = range(0, kernel, stride)  # taps whose pixels are loaded; those after are among them

    def exist(self, tap: int, lanes: list[int]) -> Any:
        """Return the mask of pixels at lanes after a tap of the first window that are in the row."""
        start = self.rows.builder.add(self.column, I64(tap))
        return lanes_between(self.rows.builder, start, I64(0), self.rows.pixels, lanes)

    def within(self, first: int) -> list[Any]:
        """Return the masks of vectors of pixels from a tap on that are in the row."""
        count = self.vector.count
        return [self.exist(first + part * count, list(range(count))) for part in range(self.stride)]

    def pixels(self, begin: Any, first: int, masks: list[Any]) -> list[Any]:
        """Load vectors of pixels from a tap on, zeros outside the row."""
        rows, builder, vectors = self.rows, self.rows.builder, []
        for part, mask in enumerate(masks):
            at = builder.gep(rows.x, [builder.add(begin, I64(first + part * self.vector.count))])
            bits = builder.bitcast(mask, ir.IntType(self.vector.count))
            vectors.append(load_lanes(builder, at, bits, self.vector, 1, rows.itemsize))
        return vectors

    def picked(self, vectors: list[Any], first: int) -> Iterator[tuple[int, Any]]:
        """Yield the taps among vectors of pixels from one on, and what each window has there."""
        row = _in_line(self.rows.builder, vectors)
        for tap in range(min(self.stride, self.kernel - first)):
            lanes = [tap + self.stride * lane for lane in range(self.vector.count)]
            yield first + tap, shuffled(self.rows.builder, row, row, lanes)

    def lines(self, body: Callable[[Any], None]) -> None:
        """Call ``body`` with the place of lane 0's first tap in each row of pixels that the windows see."""
        rows, builder = self.rows, self.rows.builder

        def along_depth(depth: Any) -> None:
            slice = builder.add(self.place, builder.mul(depth, rows.depth[1]))
            rolled(
                builder, self.taps, lambda height: body(builder.add(slice, builder.mul(height, rows.step)))
            )

        rolled(builder, rows.depth[0], along_depth)

    def walk(self, take: Take) -> None:
        """Call ``take`` for each tap, in row-major order."""
        masks = [self.within(first) for first in self.firsts]

        def line(begin: Any) -> None:
            for first, mask in zip(self.firsts, masks, strict=True):
                exist = dict(self.picked(mask, first))
                for tap, own in self.picked(self.pixels(begin, first, mask), first):
                    take(own, exist[tap], begin, tap)

        self.lines(line)

    def joined(self, join: Join, start: float, of: Callable[[Any], Any] = lambda pixels: pixels) -> Any:
        """Return all pixels of each window joined, or what they become; ``start`` leaves all as they are."""
        builder = self.rows.builder
        starts = ir.Constant(self.vector, [start] * self.vector.count)
        masks = [self.within(first) for first in self.firsts]
        sums = [[cgutils.alloca_once(builder, self.vector) for _ in mask] for mask in masks]
        for total in (total for some in sums for total in some):
            builder.store(starts, total)

        def line(begin: Any) -> None:
            for first, mask, some in zip(self.firsts, masks, sums, strict=True):
                for pixels, total in zip(self.pixels(begin, first, mask), some, strict=True):
                    builder.store(join(builder.load(total), of(pixels)), total)

        self.lines(line)
        result = None
        for first, mask, some in zip(self.firsts, masks, sums, strict=True):
            columns = [
                builder.select(exist, builder.load(total), starts)
                for exist, total in zip(mask, some, strict=True)
            ]
            for _, own in self.picked(columns, first):
                result = own if result is None else join(result, own)
        return result

    def write(self, gx: Any, share: Callable[[Any, int], Any]) -> None:
        """Write ``share`` of a line and tap to its pixels, where each is in one window (kernel == stride)."""
        rows, builder, count = self.rows, self.rows.builder, self.vector.count
        masks = self.within(0)

        def line(begin: Any) -> None:
            taps = _in_line(builder, [share(begin, tap) for tap in range(self.kernel)])
            for part, mask in enumerate(masks):
                places = [divmod(part * count + i, self.kernel) for i in range(count)]
                pixels = shuffled(builder, taps, taps, [tap * count + lane for lane, tap in places])
                at = builder.gep(gx, [builder.add(begin, I64(part * count))])
                masked_store(builder, pixels, at, mask, rows.itemsize)

        self.lines(line)


def _in_line(builder: Any, vectors: list[Any]) -> Any:
    """Return vectors as one, the last repeated to a power of two."""
    while len(vectors) > 1:
        vectors = vectors + vectors[-1:] * (len(vectors) % 2)
        lanes = list(range(2 * vectors[0].type.count))
        vectors = [shuffled(builder, a, b, lanes) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def _exceeds(builder: Any, values: Any, before: Any) -> Any:
    """Return which numbers are taken instead of those before."""
    return builder.or_(
        builder.fcmp_ordered(">", values, before), builder.fcmp_unordered("uno", values, values)
    )


class _Located:
    """The maxima of a vector of windows so far, and their places, counted from the first tap of lane 0."""

    def __init__(self, windows: _Windows) -> None:
        self.windows, self.builder, vector = windows, windows.rows.builder, windows.vector
        self.best = cgutils.alloca_once(self.builder, vector)
        self.builder.store(ir.Constant(vector, [float("-inf")] * vector.count), self.best)
        self.steps = [windows.stride * lane for lane in range(vector.count)]
        self.numbers = ir.VectorType(I32, vector.count)
        place = self.names(windows.place, 0)
        for tap in reversed(range(windows.kernel)):  # the first pixel that exists stands for -inf everywhere
            exist = windows.exist(tap, self.steps)
            place = self.builder.select(exist, self.names(windows.place, tap), place)
        self.place = cgutils.alloca_once(self.builder, self.numbers)
        self.builder.store(place, self.place)

    def names(self, begin: Any, tap: int) -> Any:
        """Return the places of all lanes' pixels at a tap of the line that begins there."""
        builder = self.builder
        distance = builder.trunc(builder.sub(begin, self.windows.place), I32)
        lanes = ir.Constant(self.numbers, [tap + step for step in self.steps])
        return builder.add(splat(builder, distance, self.numbers), lanes)

    def take(self, values: Any, exist: Any, begin: Any, tap: int) -> None:
        """Compare with one more pixel each."""
        builder, before = self.builder, self.builder.load(self.best)
        won = builder.and_(_exceeds(builder, values, before), exist)
        builder.store(builder.select(won, values, before), self.best)
        builder.store(builder.select(won, self.names(begin, tap), builder.load(self.place)), self.place)

    def found(self, first: Any) -> Any:
        """Return the places in a map whose pixel x0 is ``first``; -1 for windows without pixels."""
        builder, windows = self.builder, self.windows
        base = builder.trunc(builder.add(first, windows.place), I32)
        place = builder.add(builder.load(self.place), splat(builder, base, self.numbers))
        empty = builder.icmp_signed("<=", builder.mul(windows.taps, windows.rows.depth[0]), I64(0))
        return builder.select(empty, ir.Constant(place.type, [-1] * place.type.count), place)


@intrinsic
def largest(typing, y, y0, x, x0, tables, width, rows, spans, depth, step):
    """Write the maxima of rows of windows."""

    def codegen(context, builder, signature, arguments):
        y, y0, *walk = arguments
        to, rows = data(context, builder, signature.args[0], y, y0), _Rows(context, builder, signature, walk)

        def join(before: Any, values: Any) -> Any:
            return builder.select(_exceeds(builder, values, before), values, before)

        def emit(at: Any, lanes: Any, windows: _Windows) -> None:
            maxima = windows.joined(join, float("-inf"))
            masked_store(builder, maxima, builder.gep(to, [at]), lanes, rows.itemsize)

        rows.each(emit)
        return context.get_dummy_value()

    return types.void(y, I, x, I, tables, *WALK), codegen


@intrinsic
def largest_at(typing, y, y0, places, p0, first, x, x0, tables, width, rows, spans, depth, step):
    """Write the maxima of rows of windows, and where they stand in their map, whose pixel x0 is ``first``."""

    def codegen(context, builder, signature, arguments):
        y, y0, places, p0, first, *walk = arguments
        to, rows = data(context, builder, signature.args[0], y, y0), _Rows(context, builder, signature, walk)
        names, wide = data(context, builder, signature.args[2], places, p0), signature.args[2].dtype.bitwidth
        real = ir.FloatType() if wide == 32 else ir.DoubleType()  # what masked stores move

        def emit(at: Any, lanes: Any, windows: _Windows) -> None:
            maxima = _Located(windows)
            windows.walk(maxima.take)
            masked_store(builder, builder.load(maxima.best), builder.gep(to, [at]), lanes, rows.itemsize)
            found = builder.sext(maxima.found(first), ir.VectorType(ir.IntType(wide), lanes.type.count))
            found = builder.bitcast(found, ir.VectorType(real, lanes.type.count))
            name = builder.bitcast(builder.gep(names, [at]), real.as_pointer())
            masked_store(builder, found, name, lanes, wide // 8)

        rows.each(emit)
        return context.get_dummy_value()

    return types.void(y, I, places, I, I, x, I, tables, *WALK), codegen


@intrinsic
def give(typing, gx, g0, gy, y0, x, x0, tables, width, rows, spans, depth, step):
    """Write gx, where windows share no pixel: the gradient of each to the pixel that it took."""

    def codegen(context, builder, signature, arguments):
        gx, g0, gy, y0, *walk = arguments
        rows = _Rows(context, builder, signature, walk)
        to = data(context, builder, signature.args[0], gx, g0)
        source = data(context, builder, signature.args[2], gy, y0)

        def emit(at: Any, lanes: Any, windows: _Windows) -> None:
            maxima, zeros = _Located(windows), _zeros(windows.vector)
            windows.walk(maxima.take)
            taken = builder.load(maxima.place)
            own = masked_load(builder, builder.gep(source, [at]), lanes, windows.vector, rows.itemsize)

            def share(begin: Any, tap: int) -> Any:
                same = builder.icmp_signed("==", taken, maxima.names(begin, tap))
                return builder.select(same, own, zeros)

            windows.write(to, share)

        rows.each(emit, APART)
        return context.get_dummy_value()

    return types.void(gx, I, gy, I, x, I, tables, *WALK), codegen


@intrinsic
def collect(typing, gx, g0, first, places, p0, gy, y0, tables, width, rows, spans, depth, step):
    """Write the gradient by pixels, from number ``first`` of their map on: what the windows that took one gave.

    Windows here are those of results that saw a pixel.  ``places``, of 32 bits, lies as gy does, and is a vector longer
    on both sides.
    """

    def codegen(context, builder, signature, arguments):
        gx, g0, first, places, p0, *walk = arguments
        to, rows = data(context, builder, signature.args[0], gx, g0), _Rows(context, builder, signature, walk)
        names = data(context, builder, signature.args[3], places, p0)

        def emit(at: Any, lanes: Any, windows: _Windows) -> None:
            zeros, numbers = _zeros(windows.vector), ir.VectorType(I32, windows.vector.count)
            total = cgutils.alloca_once(builder, windows.vector)
            builder.store(zeros, total)
            number = splat(builder, builder.trunc(builder.add(first, at), I32), numbers)
            number = builder.add(number, ir.Constant(numbers, list(range(numbers.count))))

            def take(values: Any, exist: Any, begin: Any, tap: int) -> None:
                place = builder.gep(names, [builder.add(begin, I64(tap))])
                address = builder.bitcast(place, numbers.as_pointer())
                taken = builder.load(address, align=4)
                given = builder.select(builder.icmp_signed("==", taken, number), values, zeros)
                builder.store(builder.fadd(builder.load(total), given), total)

            windows.walk(take)
            masked_store(builder, builder.load(total), builder.gep(to, [at]), lanes, rows.itemsize)

        rows.each(emit, SLIDING)
        return context.get_dummy_value()

    return types.void(gx, I, I, places, I, gy, I, tables, *WALK), codegen


class _Counts:
    """What windows divide by: what each counts along a row, times (divisor or 0, slices, table of rows)."""

    def __init__(self, rows: _Rows, columns: Any, counted: Any) -> None:
        self.rows, self.columns = rows, columns
        self.divisor, self.slices, self.heights = cgutils.unpack_tuple(rows.builder, counted)

    def divided(self, values: Any, lanes: Any, windows: _Windows) -> Any:
        """Return a vector of windows' values divided."""
        rows, builder, vector = self.rows, self.rows.builder, windows.vector
        lines = builder.mul(self.slices, rows.span(self.heights, windows.p))
        given = builder.icmp_signed("!=", self.divisor, I64(0))
        factor = builder.sitofp(builder.select(given, self.divisor, lines), vector.element)
        at = builder.gep(self.columns, [windows.q])
        widths = masked_load(builder, at, lanes, vector, rows.itemsize)
        return builder.fdiv(values, builder.fmul(widths, splat(builder, factor, vector)))


def _emit_means(context: Any, builder: Any, signature: Any, arguments: Any, squares: bool) -> Any:
    y, y0, columns, counted, *walk = arguments
    to, rows = data(context, builder, signature.args[0], y, y0), _Rows(context, builder, signature, walk)
    counts = _Counts(rows, data(context, builder, signature.args[2], columns, I64(0)), counted)

    def emit(at: Any, lanes: Any, windows: _Windows) -> None:
        of = (lambda v: builder.fmul(v, v)) if squares else (lambda v: v)
        means = counts.divided(windows.joined(builder.fadd, 0.0, of), lanes, windows)
        if squares:
            kind = ir.FunctionType(means.type, [means.type])
            name = f"llvm.sqrt.v{means.type.count}f{8 * rows.itemsize}"
            means = builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [means])
        masked_store(builder, means, builder.gep(to, [at]), lanes, rows.itemsize)

    rows.each(emit)
    return context.get_dummy_value()


@intrinsic
def mean(typing, y, y0, columns, counted, x, x0, tables, width, rows, spans, depth, step):
    """Write the means of rows of windows; see `_Counts`."""
    return types.void(y, I, columns, TRIPLE, x, I, tables, *WALK), partial(_emit_means, squares=False)


@intrinsic
def norm(typing, y, y0, columns, counted, x, x0, tables, width, rows, spans, depth, step):
    """Write the square roots of means of squares."""
    return types.void(y, I, columns, TRIPLE, x, I, tables, *WALK), partial(_emit_means, squares=True)


@intrinsic
def give_shares(typing, gy, gy0, columns, counted, gx, x0, tables, width, rows, spans, depth, step):
    """Write to the pixels of windows that share none the gradient of each, divided as its mean was."""

    def codegen(context, builder, signature, arguments):
        gy, gy0, columns, counted, *walk = arguments
        source, rows = (
            data(context, builder, signature.args[0], gy, gy0),
            _Rows(context, builder, signature, walk),
        )
        counts = _Counts(rows, data(context, builder, signature.args[2], columns, I64(0)), counted)

        def emit(at: Any, lanes: Any, windows: _Windows) -> None:
            own = masked_load(builder, builder.gep(source, [at]), lanes, windows.vector, rows.itemsize)
            own = builder.select(lanes, counts.divided(own, lanes, windows), _zeros(windows.vector))
            windows.write(rows.x, lambda begin, tap: own)

        rows.each(emit, APART)
        return context.get_dummy_value()

    return types.void(gy, I, columns, TRIPLE, gx, I, tables, *WALK), codegen
