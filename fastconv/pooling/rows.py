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

Pixels outside the row are masked lanes, -inf to a maximum and 0 to a mean.  A NaN is taken whenever it is met, and
of equal pixels the first, as PyTorch does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

Take = Callable[[Any, Any], None]  # a vector of pixels, and the place of lane 0's counted from x0


class _Rows:
    """The rows of windows of a slice."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        """Take the last arguments of an intrinsic: x, x0, tables and those of `WALK`."""
        x, x0, tables, width, rows, spans, depth, step = arguments
        array, table = signature.args[-8], signature.args[-6]
        self.builder, self.itemsize = builder, array.dtype.bitwidth // 8
        self.vector = ir.VectorType(element(array), machine.tile(self.itemsize).vl)
        self.x = data(context, builder, array, x, x0)
        self.tables = data(context, builder, table, tables, I64(0))
        self.kernel, self.stride, self.pad, self.pixels, self.windows = cgutils.unpack_tuple(builder, width)
        self.first, self.end = cgutils.unpack_tuple(builder, rows)
        self.spans, self.depth = cgutils.unpack_tuple(builder, spans), cgutils.unpack_tuple(builder, depth)
        self.step = builder.mul(step, self.pixels)

    def each(self, emit: Callable[[Any, Any, _Windows], None], shapes: Shapes = SHAPES) -> None:
        """Call ``emit(at, lanes, windows)`` in every shape's loops, to write the results of a vector of windows."""
        builder, count = self.builder, self.vector.count
        narrow = builder.icmp_signed("<=", self.windows, I64(count))
        block = builder.select(narrow, builder.sub(self.end, self.first), I64(BLOCK))
        for kernel, stride in shapes:
            same = builder.and_(
                builder.icmp_signed("==", self.kernel, I64(kernel)),
                builder.icmp_signed("==", self.stride, I64(stride)),
            )
            with (
                builder.if_then(same),
                cgutils.for_range_slice(builder, self.first, self.end, block, I64) as (begin, _),
                cgutils.for_range_slice(builder, I64(0), self.windows, I64(count), I64) as (q, _),
            ):
                end = builder.add(begin, block)
                end = builder.select(builder.icmp_signed("<", end, self.end), end, self.end)
                lanes = lanes_between(builder, q, I64(0), self.windows, list(range(count)))
                with cgutils.for_range_slice(builder, begin, end, I64(1), I64) as (p, _):
                    to = builder.mul(builder.sub(p, self.first), self.windows)
                    emit(builder.add(to, q), lanes, _Windows(self, p, q, kernel, stride))

    def span(self, at: Any, p: Any) -> Any:
        """Return an entry of the tables."""
        return self.builder.load(self.builder.gep(self.tables, [self.builder.add(at, p)]))


class _Windows:
    """A vector of windows of one shape, from window q of row p on."""

    def __init__(self, rows: _Rows, p: Any, q: Any, kernel: int, stride: int) -> None:
        self.rows, self.p, self.q = rows, p, q
        begin, self.taps = (rows.span(at, p) for at in rows.spans)
        self.kernel, self.stride = kernel, stride
        self.column = rows.builder.sub(rows.builder.mul(q, I64(stride)), rows.pad)
        line = rows.builder.mul(begin, rows.pixels)
        self.place = rows.builder.add(line, self.column)  # of lane 0's first tap, in the slice
        self.wide = ir.VectorType(rows.vector.element, stride * rows.vector.count)

    def exist(self, tap: int, lanes: list[int]) -> Any:
        """Return the mask of pixels at lanes after a tap of the first window that are in the row."""
        start = self.rows.builder.add(self.column, I64(tap))
        return lanes_between(self.rows.builder, start, I64(0), self.rows.pixels, lanes)

    def lines(self, body: Callable[[Any], None]) -> None:
        """Call ``body`` with the place of lane 0's first tap in each row of pixels that the windows see."""
        rows, builder = self.rows, self.rows.builder
        with (
            cgutils.for_range(builder, rows.depth[0], intp=I64) as depth,
            cgutils.for_range(builder, self.taps, intp=I64) as height,
        ):
            slice = builder.add(self.place, builder.mul(depth.index, rows.depth[1]))
            body(builder.add(slice, builder.mul(height.index, rows.step)))

    def walk(self, take: Take, outside: float) -> None:
        """Call ``take`` for each tap, in row-major order; ``outside`` is what lies outside the row."""
        rows, builder, wide = self.rows, self.rows.builder, self.wide
        # taps whose pixels are loaded; those after are among them
        firsts = range(0, self.kernel, self.stride)
        masks = [self.exist(first, list(range(wide.count))) for first in firsts]
        border = ir.Constant(wide, [outside] * wide.count)

        def line(begin: Any) -> None:
            for first, mask in zip(firsts, masks, strict=True):
                place = builder.add(begin, I64(first))
                bits = builder.bitcast(mask, ir.IntType(wide.count))
                pixels = load_lanes(builder, builder.gep(rows.x, [place]), bits, wide, 1, rows.itemsize)
                pixels = builder.select(mask, pixels, border)
                for tap in range(min(self.stride, self.kernel - first)):
                    picks = [tap + self.stride * lane for lane in range(rows.vector.count)]
                    take(shuffled(builder, pixels, pixels, picks), builder.add(place, I64(tap)))

        self.lines(line)

    def write(self, gx: Any, share: Callable[[Any], Any]) -> None:
        """Write ``share`` of a tap's place to its pixels, where each is in one window (kernel == stride)."""
        rows, builder, count = self.rows, self.rows.builder, self.rows.vector.count
        mask = self.exist(0, list(range(self.wide.count)))
        order = [tap * count + lane for lane in range(count) for tap in range(self.kernel)]

        def line(begin: Any) -> None:
            parts = [share(builder.add(begin, I64(tap))) for tap in range(self.kernel)]
            while len(parts) > 1:  # side by side, then in the order of pixels
                parts += parts[-1:] * (len(parts) % 2)
                length = range(2 * parts[0].type.count)
                parts = [
                    shuffled(builder, a, b, list(length))
                    for a, b in zip(parts[::2], parts[1::2], strict=True)
                ]
            pixels = shuffled(builder, parts[0], parts[0], order)
            masked_store(builder, pixels, builder.gep(gx, [begin]), mask, rows.itemsize)

        self.lines(line)


class _Largest:
    """The maxima of a vector of windows so far."""

    def __init__(self, builder: Any, vector: ir.VectorType) -> None:
        self.builder, self.vector = builder, vector
        self.best = cgutils.alloca_once(builder, vector)
        builder.store(ir.Constant(vector, [float("-inf")] * vector.count), self.best)

    def take(self, values: Any, place: Any) -> Any:
        """Compare with one more pixel each; return which were taken."""
        builder, before = self.builder, self.builder.load(self.best)
        won = builder.or_(
            builder.fcmp_ordered(">", values, before), builder.fcmp_unordered("uno", values, values)
        )
        builder.store(builder.select(won, values, before), self.best)
        return won


class _Located(_Largest):
    """The same, with the places that they stand at, counted from the first tap of lane 0."""

    def __init__(self, windows: _Windows) -> None:
        super().__init__(windows.rows.builder, windows.rows.vector)
        self.windows, builder, count = windows, self.builder, self.vector.count
        steps = [windows.stride * lane for lane in range(count)]
        self.lanes = ir.Constant(ir.VectorType(I32, count), steps)
        place = self.lanes
        for tap in reversed(range(windows.kernel)):  # the first pixel that exists stands for -inf everywhere
            place = builder.select(windows.exist(tap, steps), self.after(I64(tap)), place)
        self.place = cgutils.alloca_once(builder, self.lanes.type)
        builder.store(place, self.place)

    def after(self, distance: Any) -> Any:
        """Return the places of all lanes' pixels so far after their first taps."""
        return self.builder.add(
            splat(self.builder, self.builder.trunc(distance, I32), self.lanes.type), self.lanes
        )

    def names(self, place: Any) -> Any:
        """Return the places of all lanes' pixels, given that of lane 0's in the slice."""
        return self.after(self.builder.sub(place, self.windows.place))

    def take(self, values: Any, place: Any) -> Any:
        builder, won = self.builder, super().take(values, place)
        builder.store(builder.select(won, self.names(place), builder.load(self.place)), self.place)
        return won

    def found(self, first: Any) -> Any:
        """Return the places in a map whose pixel x0 is ``first``; -1 for windows without pixels."""
        builder, windows = self.builder, self.windows
        base = builder.trunc(builder.add(first, windows.place), I32)
        place = builder.add(builder.load(self.place), splat(builder, base, self.lanes.type))
        empty = builder.icmp_signed("<=", builder.mul(windows.taps, windows.rows.depth[0]), I64(0))
        return builder.select(empty, ir.Constant(place.type, [-1] * place.type.count), place)


@intrinsic
def largest(typing, y, y0, x, x0, tables, width, rows, spans, depth, step):
    """Write the maxima of rows of windows."""

    def codegen(context, builder, signature, arguments):
        y, y0, *walk = arguments
        to, rows = data(context, builder, signature.args[0], y, y0), _Rows(context, builder, signature, walk)

        def emit(at: Any, lanes: Any, windows: _Windows) -> None:
            maxima = _Largest(builder, rows.vector)
            windows.walk(maxima.take, float("-inf"))
            masked_store(builder, builder.load(maxima.best), builder.gep(to, [at]), lanes, rows.itemsize)

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
            windows.walk(maxima.take, float("-inf"))
            masked_store(builder, builder.load(maxima.best), builder.gep(to, [at]), lanes, rows.itemsize)
            found = builder.sext(maxima.found(first), ir.VectorType(ir.IntType(wide), rows.vector.count))
            found = builder.bitcast(found, ir.VectorType(real, rows.vector.count))
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
        zeros = ir.Constant(rows.vector, [0.0] * rows.vector.count)

        def emit(at: Any, lanes: Any, windows: _Windows) -> None:
            maxima = _Located(windows)
            windows.walk(maxima.take, float("-inf"))
            taken = builder.load(maxima.place)
            own = masked_load(builder, builder.gep(source, [at]), lanes, rows.vector, rows.itemsize)

            def share(place: Any) -> Any:
                return builder.select(builder.icmp_signed("==", taken, maxima.names(place)), own, zeros)

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
        names, vector = data(context, builder, signature.args[3], places, p0), rows.vector
        count, zeros = vector.count, ir.Constant(vector, [0.0] * vector.count)
        numbers = ir.VectorType(I32, count)

        def emit(at: Any, lanes: Any, windows: _Windows) -> None:
            total = cgutils.alloca_once(builder, vector)
            builder.store(zeros, total)
            number = splat(builder, builder.trunc(builder.add(first, at), I32), numbers)
            number = builder.add(number, ir.Constant(numbers, list(range(count))))

            def take(values: Any, place: Any) -> None:
                address = builder.bitcast(builder.gep(names, [place]), numbers.as_pointer())
                taken = builder.load(address, align=4)
                given = builder.select(builder.icmp_signed("==", taken, number), values, zeros)
                builder.store(builder.fadd(builder.load(total), given), total)

            windows.walk(take, 0.0)
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
        rows, builder, vector = self.rows, self.rows.builder, self.rows.vector
        lines = builder.mul(self.slices, rows.span(self.heights, windows.p))
        given = builder.icmp_signed("!=", self.divisor, I64(0))
        factor = builder.sitofp(builder.select(given, self.divisor, lines), vector.element)
        at = builder.gep(self.columns, [windows.q])
        widths = masked_load(builder, at, lanes, vector, rows.itemsize)
        return builder.fdiv(values, builder.fmul(widths, splat(builder, factor, vector)))


@intrinsic
def mean(typing, y, y0, columns, counted, x, x0, tables, width, rows, spans, depth, step):
    """Write the means of rows of windows; see `_Counts`."""

    def codegen(context, builder, signature, arguments):
        y, y0, columns, counted, *walk = arguments
        to, rows = data(context, builder, signature.args[0], y, y0), _Rows(context, builder, signature, walk)
        vector = rows.vector
        counts = _Counts(rows, data(context, builder, signature.args[2], columns, I64(0)), counted)

        def emit(at: Any, lanes: Any, windows: _Windows) -> None:
            total = cgutils.alloca_once(builder, vector)
            builder.store(ir.Constant(vector, [0.0] * vector.count), total)
            windows.walk(
                lambda values, place: builder.store(builder.fadd(builder.load(total), values), total), 0.0
            )
            means = counts.divided(builder.load(total), lanes, windows)
            masked_store(builder, means, builder.gep(to, [at]), lanes, rows.itemsize)

        rows.each(emit)
        return context.get_dummy_value()

    return types.void(y, I, columns, TRIPLE, x, I, tables, *WALK), codegen


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
            own = masked_load(builder, builder.gep(source, [at]), lanes, rows.vector, rows.itemsize)
            zeros = ir.Constant(rows.vector, [0.0] * rows.vector.count)
            own = builder.select(lanes, counts.divided(own, lanes, windows), zeros)
            windows.write(rows.x, lambda place: own)

        rows.each(emit, APART)
        return context.get_dummy_value()

    return types.void(gy, I, columns, TRIPLE, gx, I, tables, *WALK), codegen
