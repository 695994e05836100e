"""Rows of windows of some maps, as vector code: each joins its lines (`lines`), down the height and the depth.

================= ==========================================================================
maps              (count, rows of scratch from one to the next, results likewise): windows lie alike in them
rows              (first, end) of the rows of results, written from y0 on
spans             (begin, taps, low): where ``tables`` has these of each row of windows; scratch begins at line ``low``
depth             (taps, rows of scratch from one to the next, lines of the map likewise)
step              lines from one tap to the next along the height
================= ==========================================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from fastconv.gemm.loops import rolled
from fastconv.gemm.move import I32, lanes_between
from fastconv.gemm.tile import I64, data, load, splat
from fastconv.pooling.lines import APART, LEAST, LINE, I, Join, Line, Pixels, everywhere, exceeds

PAIR, TRIPLE, FOUR = (types.UniTuple(I, count) for count in (2, 3, 4))
WALK = (LINE, TRIPLE, PAIR, TRIPLE, TRIPLE, I)  # line, maps, rows, spans, depth, step

# maxima and taps of a line, by its place in scratch and number
OfLine = Callable[[Any, Any], tuple[Any, Any]]


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
