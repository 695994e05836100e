"""Gradients of windows along rows: the way back of `rows`.

================= ==========================================================================
`share`           the gradient of each window to the rows of scratch that it joined, or to the one it took
`back`            rows of scratch to lines of pixels: what all the windows give that see them
`give`            both at once, where windows share no pixel
================= ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastconv.gemm.loops import rolled
from fastconv.gemm.move import I32, masked_load
from fastconv.gemm.tile import I64, data, load, splat, store
from fastconv.pooling.lines import LINE, SLIDING, I, Line, everywhere, first_taps
from fastconv.pooling.slices import FOUR, WALK, Counts, Windows


def _give(windows: Windows, to: Any, own: Any, takes: Callable[[Any], Any] | None) -> None:
    """Add a vector of windows' gradients to their lines ``to``, or to those that each of them ``takes``."""
    builder, zeros = windows.builder, everywhere(own.type, 0.0)

    def give(place: Any, number: Any) -> None:
        at = builder.gep(to, [place])
        given = builder.select(takes(number), own, zeros) if takes else own
        before = load(builder, at, 0, own.type, windows.itemsize)
        store(builder, builder.fadd(before, given), at, 0, windows.itemsize)

    windows.lines(give)


@intrinsic
def share_to_largest(typing, a0, gy, y0, scratch, s0, tables, line, maps, rows, spans, depth, step):
    """Add the gradient of each window to its line of scratch from a0 on that has the largest pixel."""

    def codegen(context, builder, signature, arguments):
        a0, gy, y0, *walk = arguments
        source = data(context, builder, signature.args[1], gy, y0)
        windows = Windows(context, builder, signature, walk)
        to = data(context, builder, signature.args[3], walk[0], a0)

        def emit(at: Any, lanes: Any, vector: ir.VectorType) -> None:
            own = masked_load(builder, builder.gep(source, [at]), lanes, vector, windows.itemsize)
            zeros = everywhere(vector, 0.0)  # for taps, which `back` reads
            _, line, _ = windows.largest(vector, lambda place, _: (windows.load(place, vector), zeros), zeros)

            def takes(number: Any) -> Any:
                return builder.icmp_signed("==", line, splat(builder, builder.trunc(number, I32), line.type))

            _give(windows, to, own, takes)

        windows.each(emit)
        return context.get_dummy_value()

    return types.void(I, gy, I, scratch, I, tables, *WALK), codegen


@intrinsic
def share(typing, gy, y0, columns, counted, scratch, s0, tables, line, maps, rows, spans, depth, step):
    """Add the gradient of each window, divided as its mean was, to its lines of scratch."""

    def codegen(context, builder, signature, arguments):
        gy, y0, columns, counted, *walk = arguments
        source = data(context, builder, signature.args[0], gy, y0)
        windows = Windows(context, builder, signature, walk)
        counts = Counts(windows, data(context, builder, signature.args[2], columns, I64(0)), counted)

        def emit(at: Any, lanes: Any, vector: ir.VectorType) -> None:
            own = masked_load(builder, builder.gep(source, [at]), lanes, vector, windows.itemsize)
            _give(windows, windows.scratch, counts.divided(own), None)

        windows.each(emit)
        return context.get_dummy_value()

    return types.void(gy, I, columns, FOUR, scratch, I, tables, *WALK), codegen


def _emit_back(context: Any, builder: Any, signature: Any, arguments: Any, located: bool) -> Any:
    """Pixel  stride*(v*count + lane) + phase - pad  is tap  phase + j*stride  of the window j before that lane's."""
    gx, g0, scratch, s0, taps, tables, lines, fields = arguments
    line = Line(context, builder, signature.args[0], signature.args[5], tables, fields)
    target = builder.gep(data(context, builder, signature.args[0], gx, g0), [builder.neg(line.pad)])
    given = data(context, builder, signature.args[2], scratch, s0)
    found = data(context, builder, signature.args[2], scratch, taps)

    def emit(kernel: int, stride: int, vector: ir.VectorType) -> None:
        count = vector.count

        def received(place: Any, phase: int) -> Any:
            total = None
            for j, tap in enumerate(range(phase, kernel, stride)):
                own = load(builder, builder.gep(given, [place]), -j, vector, line.itemsize)
                if located:
                    taken = load(builder, builder.gep(found, [place]), -j, vector, line.itemsize)
                    same = builder.fcmp_ordered("==", taken, everywhere(vector, float(tap)))
                    own = builder.select(same, own, everywhere(vector, 0.0))
                total = own if total is None else builder.fadd(total, own)
            return total

        def some(i: Any, v: Any) -> None:
            place = line.place(i, v, count)
            to = builder.add(builder.mul(i, line.pixels), builder.mul(v, I64(stride * count)))
            line.write(
                builder.gep(target, [to]), [received(place, phase) for phase in range(stride)], kernel, v
            )

        reach = builder.add(line.pixels, line.pad)
        rolled(builder, lines, lambda i: line.vectors(reach, stride * count, partial(some, i)))

    line.by_shape(emit, SLIDING)
    return context.get_dummy_value()


@intrinsic
def back(typing, gx, g0, scratch, s0, taps, tables, lines, line):
    """Write lines of pixels: what all the windows give that see them."""
    return types.void(gx, I, scratch, I, I, tables, I, LINE), partial(_emit_back, located=False)


@intrinsic
def back_to_places(typing, gx, g0, scratch, s0, taps, tables, lines, line):
    """Write lines of pixels: what the windows give whose largest pixel they are, by rows of taps from ``taps`` on."""
    return types.void(gx, I, scratch, I, I, tables, I, LINE), partial(_emit_back, located=True)


@intrinsic
def give(typing, kind, gx, gy, y0, columns, counted, x, x0, tables, line, maps, rows, spans, depth, step):
    """Write gx, where windows share no pixel and leave none out; their first slice begins at x0.

    The gradient of each goes to its largest pixel, or for ``kind`` 1, divided as its mean was, to all.
    """

    def codegen(context, builder, signature, arguments):
        kind, gx, gy, y0, columns, counted, *walk = arguments
        windows = Windows(context, builder, signature, walk)
        target = data(context, builder, signature.args[1], gx, I64(0))
        source = data(context, builder, signature.args[2], gy, y0)
        counts = Counts(windows, data(context, builder, signature.args[4], columns, I64(0)), counted)

        def emit(at: Any, lanes: Any, vector: ir.VectorType) -> None:
            own = masked_load(builder, builder.gep(source, [at]), lanes, vector, windows.itemsize)
            line, kernel, zeros = windows.line, windows.kernel, everywhere(vector, 0.0)

            def write(number: Any, phases: list[Any]) -> None:
                line.write(builder.gep(target, [windows.pixel(number)]), phases, kernel, windows.v)

            with builder.if_else(builder.icmp_signed("==", kind, I64(1))) as (to_all, to_largest):
                with to_all:
                    shares = [counts.divided(own)] * kernel
                    windows.lines(lambda _, number: write(number, shares))
                with to_largest:
                    of_line = windows.of_pixels(context, signature, walk[0], vector)
                    start = first_taps(line, windows.v, kernel, vector)
                    _, number_of, tap = windows.largest(vector, of_line, start)

                    def share(_: Any, number: Any) -> None:
                        here = splat(builder, builder.trunc(number, I32), number_of.type)
                        given = builder.select(builder.icmp_signed("==", number_of, here), own, zeros)
                        taken = [
                            builder.fcmp_ordered("==", tap, everywhere(vector, float(t)))
                            for t in range(kernel)
                        ]
                        write(number, [builder.select(t, given, zeros) for t in taken])

                    windows.lines(share)

        windows.each(emit, apart=True)
        return context.get_dummy_value()

    return types.void(I, gx, gy, I, columns, FOUR, x, I, tables, *WALK), codegen
