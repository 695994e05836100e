"""The kernels of pooling: sixteen planes side by side, so that every window is a few vector operations.

A plane's rows are short and its windows lie anywhere: vectors along a row would waste lanes, and need shuffles for
strides.  Instead a task turns a block of `LANES` planes (`plan`) to ``[pixel][plane]``, goes through its windows
(`lanes`), and turns the results back.  Turning costs about half a cycle a pixel; after it no size, stride,
dilation or padding is a special case.
"""

from __future__ import annotations

import numba
import numpy as np

from fastconv import jit, threads, workspace
from fastconv.gemm.schedule import next_task
from fastconv.gemm.transposition import transpose
from fastconv.pooling import plan
from fastconv.pooling.lanes import give_shares, give_to_largest, largest, largest_at, mean
from fastconv.pooling.plan import LANES
from fastconv.pooling.windows import Axes
from fastconv.typing import Array

WORK = 30.0  # what turning a pixel costs, in the operations that threads count
FIELDS = 6  # of a block in the tables
MAX, MEAN = 0, 1
norms = None  # means of squares do


def maxima(axes: Axes, x: Array, y: Array, indices: Array) -> None:
    """Write maxima, and their places if ``indices`` is as long as y."""
    _results(MAX, axes, x, y, indices)


def means(axes: Axes, x: Array, y: Array, count_pad: bool, divisor: int) -> None:
    """Write means."""
    _results(MEAN, axes, x, y, np.empty(0, np.int64), count_pad, divisor)


def gradient_of_maxima(axes: Axes, x: Array, gy: Array, gx: Array) -> None:
    """Write the gradient by x; maxima are found again."""
    _gradient(MAX, axes, x, gy, gx)


def gradient_of_means(axes: Axes, gy: Array, gx: Array, count_pad: bool, divisor: int) -> None:
    """Write the gradient by x."""
    _gradient(MEAN, axes, gx, gy, gx, count_pad, divisor)


def _results(
    kind: int, axes: Axes, x: Array, y: Array, indices: Array, count_pad: bool = True, divisor: int = 0
) -> None:
    p = plan.plan(axes, False, count_pad, x.itemsize)
    work = WORK * (x.size + y.size)
    workers = threads.workers(work)
    found = np.empty(workers * p.found if indices.size else 0, np.int32)
    scratch = workspace.take(workers * p.scratch, x.dtype.char)
    threads.share_out(
        _forward, work, y.size // p.results, kind, divisor, x.reshape(-1), y.reshape(-1),
        indices.reshape(-1), scratch, found, p.geometry, p.tables,
    )  # fmt: skip


def _gradient(
    kind: int, axes: Axes, x: Array, gy: Array, gx: Array, count_pad: bool = True, divisor: int = 0
) -> None:
    p = plan.plan(axes, True, count_pad, gx.itemsize)
    work = WORK * (x.size + gx.size + gy.size)
    scratch = workspace.take(threads.workers(work) * p.scratch, gx.dtype.char)
    threads.share_out(
        _backward, work, gy.size // p.results, kind, divisor, x.reshape(-1), gy.reshape(-1),
        gx.reshape(-1), scratch, p.geometry, p.tables,
    )  # fmt: skip


@jit.kernel
def _forward(workers, counters, planes, kind, divisor, x, y, indices, scratch, found, geos, tables):
    """Write maxima or means, and where maxima stand if ``indices`` is as long as y."""
    for worker in numba.prange(workers):
        _write(worker, counters, planes, kind, divisor, x, y, indices, scratch, found, geos[0], tables)


@jit.inner
def _write(worker, counters, planes, kind, divisor, x, y, indices, scratch, found, geo, tables):
    pixels = worker * geo.scratch
    results, places = pixels + geo.pixels, worker * geo.results
    tasks = -(-planes // LANES) * geo.blocks_d * geo.blocks_h
    task = next_task(counters, worker, tasks)
    while task < tasks:
        plane, count, depth, height = _task(tables, geo, planes, task)
        d_range, h_range = (depth[4], depth[5]), (height[4], height[5])
        _turn_in(scratch, pixels, x, plane, count, (geo.size_d, geo.size_h, geo.size_w), d_range, h_range)
        rows = h_range[1] - h_range[0]
        at = 0
        for o in range(depth[0], depth[1]):
            for p in range(height[0], height[1]):
                for q in range(geo.out_w):
                    d, h, w, taps, counted = _window(tables, geo, o, p, q)
                    source = pixels + (((d - d_range[0]) * rows + h - h_range[0]) * geo.size_w + w) * LANES
                    if kind == MEAN:
                        counted = divisor if divisor else counted
                        mean(scratch, results + at, counted, scratch, source, taps, _steps(geo, rows))
                    elif indices.size:
                        strides = (geo.step_d * geo.size_h * geo.size_w, geo.step_h * geo.size_w, geo.step_w)
                        first = (d * geo.size_h + h) * geo.size_w + w
                        largest_at(
                            scratch, results + at, found, places + at, scratch, source, taps,
                            _steps(geo, rows), strides, first,
                        )  # fmt: skip
                    else:
                        largest(scratch, results + at, scratch, source, taps, _steps(geo, rows))
                    at += LANES
        outs, held = (geo.out_d, geo.out_h, geo.out_w), (depth[0], height[0], height[1] - height[0])
        _turn_out(y, plane, count, scratch, results, outs, (depth[0], depth[1]), (height[0], height[1]), held)
        if indices.size:
            _names_out(indices, plane, count, found, places, outs, depth, height)
        task = next_task(counters, worker, tasks)


@jit.kernel
def _backward(workers, counters, planes, kind, divisor, x, gy, gx, scratch, geos, tables):
    """Give each window's gradient to the pixel that it took, or a share to each of its pixels."""
    for worker in numba.prange(workers):
        _give(worker, counters, planes, kind, divisor, x, gy, gx, scratch, geos[0], tables)


@jit.inner
def _give(worker, counters, planes, kind, divisor, x, gy, gx, scratch, geo, tables):
    sizes, outs = (geo.size_d, geo.size_h, geo.size_w), (geo.out_d, geo.out_h, geo.out_w)
    gradients = worker * geo.scratch
    pixels, results = gradients + geo.pixels, gradients + 2 * geo.pixels
    tasks = -(-planes // LANES) * geo.blocks_d * geo.blocks_h
    task = next_task(counters, worker, tasks)
    while task < tasks:
        plane, count, depth, height = _task(tables, geo, planes, task)
        d_range, h_range = (depth[4], depth[5]), (height[4], height[5])
        rows = h_range[1] - h_range[0]
        if kind == MAX:
            _turn_in(scratch, pixels, x, plane, count, sizes, d_range, h_range)
        _turn_in(scratch, results, gy, plane, count, outs, (depth[2], depth[3]), (height[2], height[3]))
        size = (d_range[1] - d_range[0]) * rows * geo.size_w * LANES
        scratch[gradients : gradients + size] = 0
        at = results
        for o in range(depth[2], depth[3]):
            for p in range(height[2], height[3]):
                for q in range(geo.out_w):
                    d, h, w, taps, counted = _window(tables, geo, o, p, q)
                    to = (((d - d_range[0]) * rows + h - h_range[0]) * geo.size_w + w) * LANES
                    if kind == MEAN:
                        counted = divisor if divisor else counted
                        give_shares(scratch, gradients + to, scratch, at, counted, taps, _steps(geo, rows))
                    else:
                        give_to_largest(
                            scratch,
                            gradients + to,
                            scratch,
                            at,
                            scratch,
                            pixels + to,
                            taps,
                            _steps(geo, rows),
                        )
                    at += LANES
        held = (d_range[0], h_range[0], rows)
        _turn_out(
            gx, plane, count, scratch, gradients, sizes, (depth[0], depth[1]), (height[0], height[1]), held
        )
        task = next_task(counters, worker, tasks)


@jit.inner
def _task(tables, geo, planes, task):
    """Return a task's first plane, its planes, and its blocks of depth and height."""
    rest, block_h = task // geo.blocks_h, task % geo.blocks_h
    plane = rest // geo.blocks_d * LANES
    depth = _block(tables, geo.block_d + FIELDS * (rest % geo.blocks_d))
    return plane, min(LANES, planes - plane), depth, _block(tables, geo.block_h + FIELDS * block_h)


@jit.inner
def _block(tables, at):
    """Return begin, end, first, last, low and high of a block of an axis."""
    return tables[at], tables[at + 1], tables[at + 2], tables[at + 3], tables[at + 4], tables[at + 5]


@jit.inner
def _window(tables, geo, o, p, q):
    """Return a window's first pixel, its taps along each axis, and how many pixels its mean counts."""
    taps = (tables[geo.taps_d + o], tables[geo.taps_h + p], tables[geo.taps_w + q])
    counted = tables[geo.counted_d + o] * tables[geo.counted_h + p] * tables[geo.counted_w + q]
    return tables[geo.begin_d + o], tables[geo.begin_h + p], tables[geo.begin_w + q], taps, counted


@jit.inner
def _steps(geo, rows):
    """Return the elements from one tap to the next in a block of so many rows a slice."""
    return geo.step_d * rows * geo.size_w * LANES, geo.step_h * geo.size_w * LANES, geo.step_w * LANES


@jit.inner
def _turn_in(scratch, to, x, plane, planes, sizes, d_range, h_range):
    """Copy slices and rows of some planes to ``[pixel][plane]``."""
    depth, height, width = sizes
    run = (h_range[1] - h_range[0]) * width
    for d in range(d_range[0], d_range[1]):
        source = ((plane * depth + d) * height + h_range[0]) * width
        transpose(scratch, to, LANES, x, source, depth * height * width, planes, run)
        to += run * LANES


@jit.inner
def _turn_out(y, plane, planes, scratch, source, sizes, d_range, h_range, held):
    """Copy slices and rows back from a block that holds rows of slices from some slice and row on."""
    depth, height, width = sizes
    first_d, first_h, rows = held
    run = (h_range[1] - h_range[0]) * width
    for d in range(d_range[0], d_range[1]):
        to = ((plane * depth + d) * height + h_range[0]) * width
        at = source + ((d - first_d) * rows + h_range[0] - first_h) * width * LANES
        transpose(y, to, depth * height * width, scratch, at, LANES, run, planes)


@jit.inner
def _names_out(indices, plane, planes, found, source, outs, depth, height):
    """Copy places back as 64-bit indices."""
    run = (height[1] - height[0]) * outs[2]
    for d in range(depth[0], depth[1]):
        for i in range(planes):
            to = (((plane + i) * outs[0] + d) * outs[1] + height[0]) * outs[2]
            at = source + (d - depth[0]) * run * LANES + i
            for j in range(run):
                indices[to + j] = found[at + j * LANES]
