"""Results of windows along rows.

What a window joins, it joins along each line of its pixels first, then down its lines.  Windows above each other share
lines, so these are joined once, to rows of ``scratch``, and what comes down is few loads from L1:

    ================= ==========================================================================
    `sums` ...        lines of pixels to rows of sums or maxima; `places` at which tap of the line each stands, too
    `mean` ...        rows to results
    `mean_apart` ...  lines of pixels to results, joined in registers: windows that are apart share none
    ================= ==========================================================================

A NaN is taken whenever it is met, and of equal pixels the first, as PyTorch does.  Arguments are those of `lines` and `slices`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastconv.gemm.loops import rolled
from fastconv.gemm.move import I32, masked_store
from fastconv.gemm.tile import I64, data, load, splat, store
from fastconv.pooling.lines import LEAST, LINE, SLIDING, I, Join, Line, Pixels, add, first_taps, larger, root
from fastconv.pooling.slices import FOUR, WALK, Counts, Windows


def _emit_across(
    context: Any, builder: Any, signature: Any, arguments: Any, join: Join | None, start: float, squares: bool
) -> Any:
    """Join lines; without ``join``, take the largest pixels, and write at which tap they stand, too."""
    to, t0, taps, x, x0, tables, lines, fields = arguments
    line = Line(context, builder, signature.args[3], signature.args[5], tables, fields)
    target = data(context, builder, signature.args[0], to, t0)
    found = data(context, builder, signature.args[0], to, taps)
    begin = builder.sub(x0, line.pad)

    def emit(kernel: int, stride: int, vector: ir.VectorType) -> None:
        pixels = Pixels(context, line, signature.args[3], x, (kernel, stride), vector)

        def some(i: Any, v: Any) -> None:
            at = builder.add(builder.mul(i, line.pixels), builder.mul(v, I64(stride * vector.count)))
            at, place = builder.add(begin, at), line.place(i, v, vector.count)
            if join:
                result = pixels.joined(at, v, join, start, squares)
            else:
                result, tap = pixels.largest(at, v)
                store(builder, tap, builder.gep(found, [place]), 0, line.itemsize)
            store(builder, result, builder.gep(target, [place]), 0, line.itemsize)

        rolled(builder, lines, lambda i: line.vectors(line.windows, vector.count, partial(some, i)))

    line.by_shape(emit, SLIDING)
    return context.get_dummy_value()


def _across(name: str, join: Join | None, start: float = 0.0, squares: bool = False) -> Any:
    @intrinsic
    def of_lines(typing, to, t0, taps, x, x0, tables, lines, line):
        """Join so many lines of pixels from x0 on to rows of scratch from t0 on."""
        emit = partial(_emit_across, join=join, start=start, squares=squares)
        return types.void(to, I, I, x, I, tables, I, LINE), emit

    of_lines.__name__ = name
    return of_lines


sums = _across("sums", add)
squares = _across("squares", add, squares=True)
maxima = _across("maxima", larger, LEAST)
places = _across("places", None, LEAST)


def _emit_largest(context: Any, builder: Any, signature: Any, arguments: Any, apart: bool) -> Any:
    y, y0, *walk = arguments
    to = data(context, builder, signature.args[0], y, y0)
    windows = Windows(context, builder, signature, walk)

    def emit(at: Any, lanes: Any, vector: ir.VectorType) -> None:
        if apart:
            pixels = windows.pixels(context, signature.args[-9], walk[0], vector)
            best = windows.joined_apart(pixels, larger, LEAST, False)
        else:
            best = windows.joined(larger, LEAST, vector)
        masked_store(builder, best, builder.gep(to, [at]), lanes, windows.itemsize)

    windows.each(emit, apart)
    return context.get_dummy_value()


def _largest(name: str, apart: bool = False) -> Any:
    @intrinsic
    def of_rows(typing, y, y0, scratch, s0, tables, line, maps, rows, spans, depth, step):
        """Write the maxima of rows of windows."""
        return types.void(y, I, scratch, I, tables, *WALK), partial(_emit_largest, apart=apart)

    of_rows.__name__ = name
    return of_rows


def _emit_largest_at(context: Any, builder: Any, signature: Any, arguments: Any, apart: bool) -> Any:
    y, y0, indices, first, taps, *walk = arguments
    to, windows = data(context, builder, signature.args[0], y, y0), Windows(context, builder, signature, walk)
    names, wide = data(context, builder, signature.args[2], indices, y0), signature.args[2].dtype.bitwidth
    real = ir.FloatType() if wide == 32 else ir.DoubleType()  # what masked stores move
    found = data(context, builder, signature.args[5], walk[0], taps)
    line = windows.line

    def emit(at: Any, lanes: Any, vector: ir.VectorType) -> None:
        def of_line(place: Any, _: Any) -> tuple[Any, Any]:
            at = builder.gep(found, [place])
            return windows.load(place, vector), load(builder, at, 0, vector, windows.itemsize)

        if apart:
            start = first_taps(line, windows.v, windows.kernel, vector)
            best, number, tap = windows.largest(
                vector, windows.of_pixels(context, signature, walk[0], vector), start
            )
        else:
            start = of_line(builder.add(builder.mul(windows.row, line.pitch), windows.q), None)[1]
            best, number, tap = windows.largest(vector, of_line, start)
        masked_store(builder, best, builder.gep(to, [at]), lanes, windows.itemsize)
        numbers = number.type
        column = builder.sub(builder.mul(windows.q, line.stride), line.pad)
        above = builder.mul(builder.add(builder.add(first, windows.low), windows.begin), line.pixels)
        base = splat(builder, builder.trunc(builder.add(above, column), I32), numbers)
        lane = ir.Constant(numbers, list(range(numbers.count)))
        base = builder.add(base, builder.mul(lane, splat(builder, builder.trunc(line.stride, I32), numbers)))
        width = splat(builder, builder.trunc(line.pixels, I32), numbers)
        place = builder.add(builder.add(base, builder.mul(number, width)), builder.fptosi(tap, numbers))
        empty = builder.icmp_signed("<=", builder.mul(windows.taps, windows.slices), I64(0))
        place = builder.select(empty, ir.Constant(numbers, [-1] * numbers.count), place)
        place = builder.sext(place, ir.VectorType(ir.IntType(wide), numbers.count))
        place = builder.bitcast(place, ir.VectorType(real, numbers.count))
        name = builder.bitcast(builder.gep(names, [at]), real.as_pointer())
        masked_store(builder, place, name, lanes, wide // 8)

    windows.each(emit, apart)
    return context.get_dummy_value()


def _largest_at(name: str, apart: bool = False) -> Any:
    @intrinsic
    def of_rows(
        typing, y, y0, indices, first, taps, scratch, s0, tables, line, maps, rows, spans, depth, step
    ):
        """Write maxima, and where they stand in their map, of which line ``first`` is the first of their first slice."""
        arguments = (y, I, indices, I, I, scratch, I, tables, *WALK)
        return types.void(*arguments), partial(_emit_largest_at, apart=apart)

    of_rows.__name__ = name
    return of_rows


def _emit_means(
    context: Any, builder: Any, signature: Any, arguments: Any, apart: bool, norm: bool = False
) -> Any:
    y, y0, columns, counted, *walk = arguments
    to, windows = data(context, builder, signature.args[0], y, y0), Windows(context, builder, signature, walk)
    counts = Counts(windows, data(context, builder, signature.args[2], columns, I64(0)), counted)

    def emit(at: Any, lanes: Any, vector: ir.VectorType) -> None:
        if apart:
            pixels = windows.pixels(context, signature.args[-9], walk[0], vector)
            means = windows.joined_apart(pixels, add, 0.0, norm)
        else:
            means = windows.joined(add, 0.0, vector)
        means = counts.divided(means)
        if norm:
            means = root(builder, means)
        masked_store(builder, means, builder.gep(to, [at]), lanes, windows.itemsize)

    windows.each(emit, apart)
    return context.get_dummy_value()


def _means(name: str, apart: bool = False, norm: bool = False) -> Any:
    @intrinsic
    def of_rows(typing, y, y0, columns, counted, scratch, s0, tables, line, maps, rows, spans, depth, step):
        """Write the means of rows of windows, see `Counts`, or the square roots of those of squares."""
        arguments = (y, I, columns, FOUR, scratch, I, tables, *WALK)
        return types.void(*arguments), partial(_emit_means, apart=apart, norm=norm)

    of_rows.__name__ = name
    return of_rows


# where windows are apart, scratch is x, and s0 where their first slice begins
largest, largest_apart = _largest("largest"), _largest("largest_apart", True)
largest_at, largest_at_apart = _largest_at("largest_at"), _largest_at("largest_at_apart", True)
mean, mean_apart = _means("mean"), _means("mean_apart", True)
norm, norm_apart = _means("norm", norm=True), _means("norm_apart", True, True)
