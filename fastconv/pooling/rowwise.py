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
from fastconv.gemm.move import SLACK, stream_row
from fastconv.gemm.schedule import part
from fastconv.pooling import plan
from fastconv.pooling.rows import SHAPES, collect, give, give_shares, largest, largest_at, mean
from fastconv.pooling.scatter import scatter_maps
from fastconv.pooling.windows import Axes, Axis, Share

WORK = 8.0  # what a pixel costs, in the operations that threads count
MAX, MEAN = 0, 1


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
    p = plan.plan(axes, False, True, x.itemsize)
    threads.launch(
        _forward, WORK * (x.size + y.size), MAX, x.reshape(-1), y.reshape(-1), indices.reshape(-1),
        _buffers(y, 0 if indices.size else p.results), np.empty(0, x.dtype), 0, _width(axes), p.geometry,
        p.tables,
    )  # fmt: skip


def means(axes: Axes, x: Array, y: Array, count_pad: bool, divisor: int) -> None:
    """Write means."""
    p = plan.plan(axes, False, count_pad, x.itemsize)
    threads.launch(
        _forward, WORK * (x.size + y.size), MEAN, x.reshape(-1), y.reshape(-1), np.empty(0, np.int64),
        _buffers(y, p.results), _columns(axes[-1], count_pad, divisor, x.dtype), divisor, _width(axes),
        p.geometry, p.tables,
    )  # fmt: skip


@functools.lru_cache(512)
def _columns(axis: Axis | Share, count_pad: bool, divisor: int, dtype: np.dtype[Any]) -> Array:
    """Return by how many columns the sum of each window of a row is divided."""
    counted = axis.spans(count_pad).counted
    return (np.ones_like(counted) if divisor else counted).astype(dtype)


def gradient_of_means(axes: Axes, gy: Array, gx: Array, count_pad: bool, divisor: int) -> bool:
    """Write the gradient by x and return True, where windows share no pixel or slide by one and count the same."""
    if apart(axes):
        p = plan.plan(axes, False, count_pad, gx.itemsize)
        threads.launch(
            _give_shares, WORK * (gx.size + gy.size), gy.reshape(-1), gx.reshape(-1), _buffers(gx, p.pixels),
            _columns(axes[-1], count_pad, divisor, gx.dtype), divisor, p.pixels, _covered(axes), _width(axes),
            p.geometry, p.tables,
        )  # fmt: skip
        return True
    if (turned := _turned(axes, gx.dtype)) is None or not (
        count_pad or divisor or not any(a.pad for a in turned)
    ):
        return False
    means(turned, gy, gx, True, divisor or prod(a.kernel for a in turned))
    return True


def gradient_of_maxima(axes: Axes, x: Array, gy: Array, gx: Array) -> None:
    """Write the gradient by x: maxima are found again, map by map."""
    p = plan.plan(axes, False, True, x.itemsize)
    work = WORK * (x.size + gx.size + gy.size)
    workers, own = threads.workers(work), p.results + 2 * SLACK
    arrays = (x.reshape(-1), gy.reshape(-1), gx.reshape(-1), _buffers(gx, p.pixels))
    if apart(axes):
        threads.launch(_give, work, *arrays, p.pixels, _covered(axes), _width(axes), p.geometry, p.tables)
        return
    turned = _turned(axes, gx.dtype)
    back = plan.plan(turned or axes, False, True, x.itemsize)
    threads.launch(
        _search, work, *arrays, np.empty(workers * own, x.dtype), np.empty(workers * own, np.int32),
        (p.pixels, p.results), _width(axes), p.geometry, p.tables, turned is not None, _width(turned or axes),
        back.geometry, back.tables,
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


def _buffers(written: Array, own: int) -> Array:
    """Return memory for a map of each thread, if maps are to go past the caches, where none would be found again."""
    l2, count = machine.machine().l2, threads.count()
    past = written.nbytes > l2 * count and 2 * own * written.itemsize < l2
    return np.empty(count * own if past else 0, written.dtype)


@jit.kernel
def _forward(workers, kind, x, y, indices, buffers, columns, divisor, width, geos, tables):
    for worker in numba.prange(workers):
        geo = geos[0]
        if buffers.size == 0:
            rows = y.size // geo.out_w
            first, last = part(rows, workers, worker), part(rows, workers, worker + 1)
            _rows(kind, x, y, indices, 0, columns, divisor, width, geo, tables, first, last)
        else:
            rows = geo.out_d * geo.out_h
            own = rows * geo.out_w
            maps, at = y.size // own, worker * own
            for i in range(part(maps, workers, worker), part(maps, workers, worker + 1)):
                shift, first, end = i * own - at, i * rows, (i + 1) * rows
                _rows(kind, x, buffers, indices, shift, columns, divisor, width, geo, tables, first, end)
                stream_row(y, i * own, buffers, at, own)


@jit.kernel
def _search(
    workers, x, gy, gx, buffers, best, places, sizes, width, geos, tables, sliding, back_width, backs, back_tables
):  # fmt: skip
    pixels, results = sizes
    own = results + 2 * SLACK
    to = buffers if buffers.size else gx
    for worker in numba.prange(workers):
        maps, rows, begin = gx.size // pixels, results // geos[0].out_w, worker * own + SLACK
        values, found = best[begin : begin + results], places[begin : begin + results]
        for i in range(part(maps, workers, worker), part(maps, workers, worker + 1)):
            at = i * results
            _rows(MAX, x, values, found, at, values, 0, width, geos[0], tables, i * rows, (i + 1) * rows)
            g0 = worker * pixels if buffers.size else i * pixels
            if sliding:
                _collect(to, g0, places, begin, gy, at, back_width, backs[0], back_tables)
            else:
                scatter_maps(gy[at : at + results], found, to[g0 : g0 + pixels], results, pixels, True)
            _deliver(gx, buffers, pixels, i, worker)


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
def _give(workers, x, gy, gx, buffers, pixels, covered, width, geos, tables):
    to = buffers if buffers.size else gx
    for worker in numba.prange(workers):
        geo, maps = geos[0], gx.size // pixels
        area, spans = geo.size_h * geo.size_w, (geo.begin_h, geo.taps_h)
        for i in range(part(maps, workers, worker), part(maps, workers, worker + 1)):
            g0 = worker * pixels if buffers.size else i * pixels
            if not covered:
                to[g0 : g0 + pixels] = 0
            for o in range(geo.out_d):
                line, y0 = tables[geo.begin_d + o] * area, (i * geo.out_d + o) * geo.out_h * geo.out_w
                depth = (tables[geo.taps_d + o], geo.step_d * area)
                give(
                    to, g0 + line, gy, y0, x, i * pixels + line, tables, width, (0, geo.out_h), spans, depth,
                    geo.step_h,
                )  # fmt: skip
            _deliver(gx, buffers, pixels, i, worker)


@jit.kernel
def _give_shares(workers, gy, gx, buffers, columns, divisor, pixels, covered, width, geos, tables):
    to = buffers if buffers.size else gx
    for worker in numba.prange(workers):
        geo, maps = geos[0], gx.size // pixels
        area, spans = geo.size_h * geo.size_w, (geo.begin_h, geo.taps_h)
        for i in range(part(maps, workers, worker), part(maps, workers, worker + 1)):
            g0 = worker * pixels if buffers.size else i * pixels
            if not covered:
                to[g0 : g0 + pixels] = 0
            for o in range(geo.out_d):
                line, y0 = tables[geo.begin_d + o] * area, (i * geo.out_d + o) * geo.out_h * geo.out_w
                counted = (divisor, tables[geo.counted_d + o], geo.counted_h)
                depth = (tables[geo.taps_d + o], geo.step_d * area)
                give_shares(
                    gy, y0, columns, counted, to, g0 + line, tables, width, (0, geo.out_h), spans, depth, geo.step_h
                )  # fmt: skip
            _deliver(gx, buffers, pixels, i, worker)


@jit.inner
def _deliver(gx, buffers, pixels, i, worker):
    """Bring a map from its buffer to where it belongs."""
    if buffers.size:
        stream_row(gx, i * pixels, buffers, worker * pixels, pixels)


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
        if kind == MEAN:
            mean(
                y, to, columns, (divisor, tables[geo.counted_d + o], geo.counted_h), x, at, tables, width, (p, end),
                spans, depth, geo.step_h,
            )  # fmt: skip
        elif indices.size:
            largest_at(y, to, indices, to, first, x, at, tables, width, (p, end), spans, depth, geo.step_h)
        else:
            largest(y, to, x, at, tables, width, (p, end), spans, depth, geo.step_h)
        row += end - p
