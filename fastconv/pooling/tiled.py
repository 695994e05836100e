"""Results of windows that tile short lines: joined down their columns of pixels first, then along one long line.

Where windows are apart, and all whole, a row of scratch is just the pixels that a row of windows sees.  So rows of many maps are
one line of windows after another, which fills vectors however short a row is, and needs no masks:

    ================= ==========================================================================
    `added` ...       lines of pixels to rows of scratch, joined down; their ``line`` has pixels for windows
    `means` ...       so many windows from scratch to results
    ================= ==========================================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv.algorithms.direct.depthwise.lanes import load_lanes
from fastconv.gemm.move import lanes_between, masked_store
from fastconv.gemm.tile import I64, data, load, prefetch, splat, store
from fastconv.pooling.lines import (
    AHEAD,
    APART,
    LEAST,
    LINE,
    I,
    Join,
    Line,
    add,
    at_taps,
    everywhere,
    larger,
    root,
)
from fastconv.pooling.slices import WALK, Windows


def _emit_down(
    context: Any, builder: Any, signature: Any, arguments: Any, join: Join, start: float, squares: bool
) -> Any:
    to, t0, *walk = arguments
    target = data(context, builder, signature.args[0], to, t0)
    windows = Windows(context, builder, signature, walk)

    def emit(at: Any, lanes: Any, vector: ir.VectorType) -> None:
        total = cgutils.alloca_once(builder, vector)
        builder.store(everywhere(vector, start), total)
        bits = builder.bitcast(lanes, ir.IntType(vector.count))  # the last row of all has none after it

        def take(place: Any, _: Any) -> None:
            here = builder.gep(windows.scratch, [place])
            prefetch(builder, builder.gep(here, [I64(AHEAD // windows.itemsize)]))
            own = load_lanes(builder, here, bits, vector, 1, windows.itemsize)
            own = builder.fmul(own, own) if squares else own
            builder.store(join(builder, builder.load(total), own), total)

        windows.lines(take)
        # lanes behind the row's end are written again, by the next row
        store(builder, builder.load(total), builder.gep(target, [at]), 0, windows.itemsize)

    windows.each(emit)
    return context.get_dummy_value()


def _down(name: str, join: Join, start: float = 0.0, squares: bool = False) -> Any:
    @intrinsic
    def of_lines(typing, to, t0, x, x0, tables, line, maps, rows, spans, depth, step):
        """Join the lines of rows of windows to rows of scratch from t0 on."""
        emit = partial(_emit_down, join=join, start=start, squares=squares)
        return types.void(to, I, x, I, tables, *WALK), emit

    of_lines.__name__ = name
    return of_lines


def _emit_along(
    context: Any, builder: Any, signature: Any, arguments: Any, join: Join, finish: Callable[[Any, Any, Any], Any]
) -> Any:  # fmt: skip
    y, y0, scratch, s0, tables, fields, counted = arguments
    line = Line(context, builder, signature.args[2], signature.args[4], tables, fields)
    target = data(context, builder, signature.args[0], y, y0)
    source = data(context, builder, signature.args[2], scratch, s0)

    def emit(kernel: int, _: int, vector: ir.VectorType) -> None:
        def some(v: Any) -> None:
            q = builder.mul(v, I64(vector.count))
            here = builder.gep(source, [builder.mul(q, I64(kernel))])
            pixels = [load(builder, here, k * vector.count, vector, line.itemsize) for k in range(kernel)]
            result = functools.reduce(partial(join, builder), at_taps(builder, pixels, kernel, kernel))
            lanes = lanes_between(builder, q, I64(0), line.windows, list(range(vector.count)))
            at = builder.gep(target, [q])
            prefetch(builder, builder.gep(at, [I64(AHEAD // line.itemsize)]), write=True)
            masked_store(builder, finish(builder, result, counted), at, lanes, line.itemsize)

        line.vectors(line.windows, vector.count, some)

    line.by_shape(emit, APART)
    return context.get_dummy_value()


def _along(name: str, join: Join, finish: Callable[[Any, Any, Any], Any]) -> Any:
    @intrinsic
    def of_line(typing, y, y0, scratch, s0, tables, line, counted):
        """Write the windows of a line of scratch, which count so many pixels."""
        return types.void(y, I, scratch, I, tables, LINE, I), partial(_emit_along, join=join, finish=finish)

    of_line.__name__ = name
    return of_line


def _divided(builder: Any, total: Any, counted: Any) -> Any:
    """Return means; a power of two is multiplied by, which is as exact."""
    vector = total.type
    factor = builder.sitofp(counted, vector.element)
    power = builder.icmp_signed("==", builder.and_(counted, builder.sub(counted, I64(1))), I64(0))
    with builder.if_else(power) as (exact, other):
        with exact:
            product = builder.fmul(total, splat(builder, builder.fdiv(vector.element(1.0), factor), vector))
            first = builder.block
        with other:
            quotient, second = builder.fdiv(total, splat(builder, factor, vector)), builder.block
    result = builder.phi(vector)
    result.add_incoming(product, first)
    result.add_incoming(quotient, second)
    return result


added, squared, joined = (
    _down("added", add),
    _down("squared", add, squares=True),
    _down("joined", larger, LEAST),
)
means, norms = (
    _along("means", add, _divided),
    _along("norms", add, lambda builder, total, _: root(builder, total)),
)
maxima = _along("maxima", larger, lambda builder, total, _: total)
