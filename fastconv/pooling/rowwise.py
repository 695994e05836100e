"""The kernels of windows that lie in rows (`rows`): pixels are read where they are, once.

Sixteen maps side by side (`cpu`) serve every window, but turning them takes longer than small windows then do.
"""

from __future__ import annotations

import functools
from math import prod
from typing import Any

import numba
import numpy as np

from fastconv import jit, machine, threads
from fastconv.arrays import Array
from fastconv.gemm.move import SLACK
from fastconv.gemm.schedule import part
from fastconv.pooling import plan
from fastconv.pooling.rows import SHAPES, collect, give, give_shares, largest, largest_at, mean, norm
from fastconv.pooling.scatter import scatter_maps
from fastconv.pooling.windows import Axes, Axis, Share

WORK = 8.0  # what a pixel costs, in the operations that threads count
MAX, MEAN, NORM = 0, 1, 2


def serves(axes: Axes, dtype: np.dtype[Any]) -> bool:
    """Whether a row has windows of a shape that has code, and enough of them for a vector."""
    axis = axes[-1]
    return (
        isinstance(axis, Axis)
        and (axis.kernel, axis.stride) in SHAPES
        and axis.dilation == 1
        and 4 * axis.output >= machine.tile(dtype.itemsize).vl
    )


def maxima(axes: Axes, x: Array, y: Array, indices: Array) -> None:
    """Write maxima, and their places if ``indices`` is as long as y."""
    _results(MAX, axes, x, y, indices, np.empty(0, x.dtype), True, 0)


def means(axes: Axes, x: Array, y: Array, count_pad: bool, divisor: int) -> None:
    """Write means."""
    columns = _columns(axes[-1], count_pad, divisor, x.dtype)
    _results(MEAN, axes, x, y, np.empty(0, np.int64), columns, count_pad, divisor)


def norms(axes: Axes, x: Array, y: Array, taps: int) -> None:
    """Write square roots of sums of squares, of which a window that lacks some of ``taps`` counts as many."""
    columns = _columns(axes[-1], True, 0, x.dtype) / x.dtype.type(taps)
    _results(NORM, axes, x, y, np.empty(0, np.int64), columns, True, 0)


def _results(
    kind: int, axes: Axes, x: Array, y: Array, indices: Array, columns: Array, count_pad: bool, divisor: int
) -> None:
    p = plan.plan(axes, False, count_pad, x.itemsize)
    threads.launch(
        _forward, WORK * (x.size + y.size), kind, x.reshape(-1), y.reshape(-1), indices.reshape(-1), columns,
        divisor, _width(axes), p.geometry, p.tables,
    )  # fmt: skip


@functools.lru_cache(512)
def _columns(axis: Axis | Share, count_pad: bool, divisor: int, dtype: np.dtype[Any]) -> Array:
    """Return by how many columns the sum of each window of a row is divided."""
    counted = axis.spans(count_pad).counted
    return (np.ones_like(counted) if divisor else counted).astype(dtype)


def gradient_of_means(axes: Axes, gy: Array, gx: Array, count_pad: bool, divisor: int) -> bool:
    """Write the gradient by x and return True, where windows share no pixel or slide by one and count the same."""
    if apart(axes):
        _give(MEAN, axes, gy, gy, gx, _columns(axes[-1], count_pad, divisor, gx.dtype), count_pad, divisor)
        return True
    if (turned := _turned(axes, gx.dtype)) is None or not (
        count_pad or divisor or not any(a.pad for a in turned)
    ):
        return False
    means(turned, gy, gx, True, divisor or prod(a.kernel for a in turned))
    return True


def gradient_of_maxima(axes: Axes, x: Array, gy: Array, gx: Array) -> None:
    """Write the gradient by x: maxima are found again, map by map."""
    if apart(axes):
        _give(MAX, axes, x, gy, gx, np.empty(0, x.dtype), True, 0)
        return
    p, turned = plan.plan(axes, False, True, x.itemsize), _turned(axes, gx.dtype)
    back = plan.plan(turned or axes, False, True, x.itemsize)
    work = WORK * (x.size + gx.size + gy.size)
    own = threads.workers(work) * (p.results + 2 * SLACK)
    threads.launch(
        _search, work, x.reshape(-1), gy.reshape(-1), gx.reshape(-1), np.empty(own, x.dtype),
        np.empty(own, np.int32), (p.pixels, p.results), _width(axes), p.geometry, p.tables, turned is not None,
        _width(turned or axes), back.geometry, back.tables,
    )  # fmt: skip


def _give(
    kind: int, axes: Axes, x: Array, gy: Array, gx: Array, columns: Array, count_pad: bool, divisor: int
) -> None:
    """Write the gradient by pixels that are in one window each."""
    p = plan.plan(axes, False, count_pad, gx.itemsize)
    threads.launch(
        _gradients, WORK * (x.size + gx.size + gy.size), kind, x.reshape(-1), gy.reshape(-1), gx.reshape(-1),
        columns, divisor, p.pixels, _covered(axes), _width(axes), p.geometry, p.tables,
    )  # fmt: skip


def apart(axes: Axes) -> bool:
    """Whether no pixel is in two windows, and none between two windows of a row."""
    *others, along = axes
    return (
        isinstance(along, Axis)
        and along.kernel == along.stride
        and all(isinstance(a, Axis) and a.stride >= a.dilation * (a.kernel - 1) + 1 for a in others)
    )


def _covered(axes: Axes) -> bool:
    """Whether windows that are apart leave out no pixel."""
    return all(
        isinstance(a, Axis) and a.kernel == a.stride and a.output * a.stride >= a.size + a.pad for a in axes
    )


def _turned(axes: Axes, dtype: np.dtype[Any]) -> tuple[Axis, ...] | None:
    """Return the windows of results that see a pixel, where those of pixels slide by one.

    Pixel h is in the windows from h + pad - (kernel - 1) to h + pad, which are a window over them.
    """
    turned = []
    for a in axes:
        if not isinstance(a, Axis) or a.stride > 1 or a.dilation > 1:
            return None
        turned.append(a._replace(size=a.output, output=a.size, pad=a.kernel - 1 - a.pad))
    return tuple(turned) if serves(tuple(turned), dtype) else None


def _width(axes: Axes) -> tuple[int, int, int, int, int]:
    axis = axes[-1]
    assert isinstance(axis, Axis)
    return axis.kernel, axis.stride, axis.pad, axis.size, axis.output


@jit.kernel
def _forward(workers, kind, x, y, indices, columns, divisor, width, geos, tables):
    rows = y.size // geos[0].out_w
    for worker in numba.prange(workers):
        first, last = part(rows, workers, worker), part(rows, workers, worker + 1)
        _rows(kind, x, y, indices, 0, columns, divisor, width, geos[0], tables, first, last)


@jit.kernel
def _search(
    workers, x, gy, gx, best, places, sizes, width, geos, tables, sliding, back_width, backs, back_tables
):  # fmt: skip
    pixels, results = sizes
    own = results + 2 * SLACK
    for worker in numba.prange(workers):
        maps, rows, begin = gx.size // pixels, results // geos[0].out_w, worker * own + SLACK
        values, found = best[begin : begin + results], places[begin : begin + results]
        for i in range(part(maps, workers, worker), part(maps, workers, worker + 1)):
            at, g0 = i * results, i * pixels
            _rows(MAX, x, values, found, at, values, 0, width, geos[0], tables, i * rows, (i + 1) * rows)
            if sliding:
                _collect(gx, g0, places, begin, gy, at, back_width, backs[0], back_tables)
            else:
                scatter_maps(gy[at : at + results], found, gx[g0 : g0 + pixels], results, pixels, True)


@jit.inner
def _collect(gx, g0, places, p0, gy, y0, width, geo, tables):
    """Write the gradient of a map by the places that its windows took."""
    for d in range(geo.out_d):
        first, line = d * geo.out_h * geo.out_w, tables[geo.begin_d + d] * geo.size_h * geo.size_w
        depth = (tables[geo.taps_d + d], geo.size_h * geo.size_w)
        collect(
            gx, g0 + first, first, places, p0 + line, gy, y0 + line, tables, width, (0, geo.out_h),
            (geo.begin_h, geo.taps_h), depth, 1,
        )  # fmt: skip


@jit.kernel
def _gradients(workers, kind, x, gy, gx, columns, divisor, pixels, covered, width, geos, tables):
    for worker in numba.prange(workers):
        geo, maps = geos[0], gx.size // pixels
        area, spans, rows = geo.size_h * geo.size_w, (geo.begin_h, geo.taps_h), (0, geo.out_h)
        for i in range(part(maps, workers, worker), part(maps, workers, worker + 1)):
            if not covered:
                gx[i * pixels : (i + 1) * pixels] = 0
            for o in range(geo.out_d):
                at = i * pixels + tables[geo.begin_d + o] * area
                y0 = (i * geo.out_d + o) * geo.out_h * geo.out_w
                depth = (tables[geo.taps_d + o], geo.step_d * area)
                if kind == MEAN:
                    counted = (divisor, tables[geo.counted_d + o], geo.counted_h)
                    give_shares(
                        gy, y0, columns, counted, gx, at, tables, width, rows, spans, depth, geo.step_h
                    )  # fmt: skip
                else:
                    give(gx, at, gy, y0, x, at, tables, width, rows, spans, depth, geo.step_h)


@jit.inner
def _rows(kind, x, y, indices, shift, columns, divisor, width, geo, tables, row, last_row):
    """Write rows of results, numbered through all maps; y and indices begin with result number ``shift``."""
    spans = (geo.begin_h, geo.taps_h)
    area = geo.size_h * geo.size_w
    while row < last_row:
        slice, p = row // geo.out_h, row % geo.out_h
        end = min(geo.out_h, p + last_row - row)
        plane, o = slice // geo.out_d, slice % geo.out_d
        first = tables[geo.begin_d + o] * area
        at, to = plane * geo.size_d * area + first, row * geo.out_w - shift
        depth = (tables[geo.taps_d + o], geo.step_d * area)
        if kind == MAX and indices.size:
            largest_at(y, to, indices, to, first, x, at, tables, width, (p, end), spans, depth, geo.step_h)
        elif kind == MAX:
            largest(y, to, x, at, tables, width, (p, end), spans, depth, geo.step_h)
        else:
            counted = (divisor, tables[geo.counted_d + o], geo.counted_h)
            if kind == MEAN:
                mean(y, to, columns, counted, x, at, tables, width, (p, end), spans, depth, geo.step_h)
            else:
                norm(y, to, columns, counted, x, at, tables, width, (p, end), spans, depth, geo.step_h)
        row += end - p
