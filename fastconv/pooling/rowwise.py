"""The kernels of windows that lie in rows (`rows`): pixels are read where they are, once.

A task is a block of a map (`plan`): its lines of pixels become rows of scratch, which stay in L1 until its windows have
joined them.  Sixteen maps side by side (`cpu`) serve every window, but turning them takes longer than small windows then do.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import jit, machine, threads, workspace
from fastconv.arrays import Array
from fastconv.gemm.move import SLACK
from fastconv.gemm.schedule import part
from fastconv.pooling import plan
from fastconv.pooling.back import back, back_to_places, give, share, share_to_largest
from fastconv.pooling.lines import SHAPES, vector_length
from fastconv.pooling.rows import (
    largest,
    largest_apart,
    largest_at,
    largest_at_apart,
    maxima,
    mean,
    mean_apart,
    norm,
    norm_apart,
    places,
    squares,
    sums,
)
from fastconv.pooling.windows import Axes, Axis

WORK = 8.0  # what a pixel costs, in the operations that threads count
MAX, MEAN, NORM = 0, 1, 2
FIELDS = 6  # of a block in the tables
SCRATCH = 2**13  # bytes of rows that maps of a task have together
NOWHERE = np.empty(0, np.int64)


class RowPlan(NamedTuple):
    """All that a kernel is handed beside the arrays."""

    geometry: Array
    tables: Array
    columns: Array
    scratch: int  # elements of a worker


def serves(axes: Axes, dtype: np.dtype[Any]) -> bool:
    """Whether a row has windows of a shape that has code, and enough of them for a vector."""
    axis = axes[-1]
    return (
        isinstance(axis, Axis)
        and (axis.kernel, axis.stride) in SHAPES
        and axis.dilation == 1
        and 4 * axis.output >= machine.tile(dtype.itemsize).vl
    )


@functools.lru_cache(512)
def _plan(
    axes: Axes, backward: bool, count_pad: bool, divisor: int, itemsize: int, scale: float = 1.0
) -> RowPlan:
    """Add to a plan what rows need; ``scale`` divides what windows count along a row."""
    p, axis = plan.plan(axes, backward, count_pad, itemsize, 1), axes[-1]
    assert isinstance(axis, Axis)
    length = vector_length(axis.output, itemsize)
    vectors = max(-(-axis.output // length), -(-(axis.size + axis.pad) // (axis.stride * length)))
    reach = (axis.kernel - 1) // axis.stride  # zeros between two rows, where `back` looks for windows before
    pitch = length * max(-(-(axis.output + reach) // length), vectors)
    counted = np.ones(axis.output) if divisor else axis.spans(count_pad).counted
    factors = [divisor] if divisor else [a.spans(count_pad).counted for a in axes[:-1]]
    powers = scale == 1 and all(np.all(np.log2(np.maximum(f, 1)) % 1 == 0) for f in [*factors, counted])
    columns = np.ones(pitch, f"f{itemsize}")
    columns[: axis.output] = 1 / counted if powers else counted / scale
    geometry = dict(zip(p.geometry.dtype.names, p.geometry[0], strict=True))
    alike = p.tasks == 1 and p.lines * axis.size == p.pixels  # lines of maps follow each other
    group = max(1, SCRATCH // (p.lines * pitch * itemsize)) if alike else 1  # maps of a task
    area = SLACK + group * p.lines * pitch + SLACK
    areas = 3 if backward else 0 if axis.kernel == axis.stride else 2  # for gradients, maxima and their taps
    geometry |= {
        "kernel": axis.kernel, "stride": axis.stride, "pad": axis.pad, "pitch": pitch, "masks": p.tables.size,
        "divisor": divisor, "powers": powers, "area": area, "scratch": areas * area, "map": p.pixels, "group": group, "apart": axis.kernel == axis.stride,
    }  # fmt: skip
    fields = [(name, np.int64) for name in geometry]
    numbers = np.array([tuple(geometry.values())], fields)
    return RowPlan(numbers, np.concatenate([p.tables, _masks(axis, vectors, length)]), columns, areas * area)


def _masks(axis: Axis, vectors: int, length: int) -> Array:
    """Return for each vector of windows whether all pixels exist that it sees, and which exist of those that it loads."""
    begin = np.arange(vectors)[:, None] * length * axis.stride - axis.pad
    groups = -(-axis.kernel // axis.stride)  # of ``stride`` vectors, a stride apart
    lanes = np.arange(groups * axis.stride * length)
    group, lane = divmod(lanes, axis.stride * length)
    pixel = begin + group * axis.stride + lane
    exist = ((pixel >= 0) & (pixel < axis.size)).reshape(vectors, -1, length)
    last = np.minimum(np.arange(1, vectors + 1) * length, axis.output) - 1
    whole = (begin[:, 0] >= 0) & (last * axis.stride - axis.pad + axis.kernel <= axis.size)
    return np.hstack([whole[:, None], (exist << np.arange(length)).sum(2)]).reshape(-1)


def maxima_of(axes: Axes, x: Array, y: Array, indices: Array) -> None:
    """Write maxima, and their places if ``indices`` is as long as y."""
    _results(MAX, _plan(axes, False, True, 0, x.itemsize), x, y, indices)


def means(axes: Axes, x: Array, y: Array, count_pad: bool, divisor: int) -> None:
    """Write means."""
    _results(MEAN, _plan(axes, False, count_pad, divisor, x.itemsize), x, y, NOWHERE)


def norms(axes: Axes, x: Array, y: Array, taps: int) -> None:
    """Write square roots of sums of squares, of which a window that lacks some of ``taps`` counts as many."""
    _results(NORM, _plan(axes, False, True, 0, x.itemsize, float(taps)), x, y, NOWHERE)


def gradient_of_means(axes: Axes, gy: Array, gx: Array, count_pad: bool, divisor: int) -> bool:
    """Write the gradient by x and return True, but where windows share pixels down their rows alone."""
    return _gradient(MEAN, axes, (count_pad, divisor), gx, gy, gx)


def gradient_of_maxima(axes: Axes, x: Array, gy: Array, gx: Array) -> bool:
    """Likewise; maxima are found again."""
    return _gradient(MAX, axes, (True, 0), x, gy, gx)


@functools.lru_cache(512)
def _way_back(axes: Axes) -> tuple[Any, bool]:
    """Return the kernel of a gradient, None for none, and whether pixels are left out that no window sees."""
    *others, along = axes
    if along.kernel > along.stride:
        return _backward, False
    if not all(isinstance(a, Axis) and a.stride >= a.dilation * (a.kernel - 1) + 1 for a in others):
        return None, False
    return _apart, not all(
        isinstance(a, Axis) and a.kernel == a.stride and a.output * a.stride >= a.size + a.pad for a in axes
    )


def _results(kind: int, p: RowPlan, x: Array, y: Array, indices: Array) -> None:
    work = WORK * (x.size + y.size)
    scratch = workspace.take(threads.workers(work) * p.scratch, x.dtype.char)
    threads.launch(
        _forward, work, kind, x.reshape(-1), y.reshape(-1), indices.reshape(-1), p.columns, scratch, p.geometry,
        p.tables,
    )  # fmt: skip


def _gradient(kind: int, axes: Axes, counting: tuple[bool, int], x: Array, gy: Array, gx: Array) -> bool:
    kernel, leaves = _way_back(axes)
    if kernel is None:
        return False
    if leaves:
        gx.fill(0)
    p = _plan(axes, kernel is _backward, *counting, gx.itemsize)
    work = WORK * (x.size + gx.size + gy.size)
    scratch = workspace.take(threads.workers(work) * p.scratch, gx.dtype.char)
    threads.launch(
        kernel, work, kind, x.reshape(-1), gy.reshape(-1), gx.reshape(-1), p.columns, scratch, p.geometry, p.tables,
    )  # fmt: skip
    return True


@jit.kernel
def _forward(workers, kind, x, y, indices, columns, scratch, geos, tables):
    for worker in numba.prange(workers):
        geo, maps = geos[0], x.size // geos[0].map
        group, tasks = _tasks(geo, maps, workers)
        for task in range(part(tasks, workers, worker), part(tasks, workers, worker + 1)):
            block = _block(geo, tables, task, group, maps)
            _join(kind, x, y, indices, columns, scratch, worker * geo.scratch + SLACK, geo, tables, block)


@jit.kernel
def _backward(workers, kind, x, gy, gx, columns, scratch, geos, tables):
    for worker in numba.prange(workers):
        geo, maps = geos[0], gx.size // geos[0].map
        group, tasks = _tasks(geo, maps, workers)
        for task in range(part(tasks, workers, worker), part(tasks, workers, worker + 1)):
            block = _block(geo, tables, task, group, maps)
            _part(kind, x, gy, gx, columns, scratch, worker * geo.scratch + SLACK, geo, tables, block)


@jit.kernel
def _apart(workers, kind, x, gy, gx, columns, scratch, geos, tables):
    for worker in numba.prange(workers):
        geo, maps = geos[0], gx.size // geos[0].map
        group, tasks = _tasks(geo, maps, workers)
        for task in range(part(tasks, workers, worker), part(tasks, workers, worker + 1)):
            block = _block(geo, tables, task, group, maps)
            _write(kind, x, gy, gx, columns, scratch, worker * geo.scratch + SLACK, geo, tables, block)


@jit.inner
def _tasks(geo, maps, workers):
    """Return the maps of a task, and how many tasks there are."""
    group = min(geo.group, -(-maps // workers)) if maps else 1
    return group, -(-maps // group) * geo.blocks_d * geo.blocks_h


@jit.inner
def _block(geo, tables, task, group, maps):
    """Return a task's first map, its maps, and where tables have its blocks of depth and height."""
    first, depth, height = task, 0, 0
    if geo.blocks_h > 1:
        first, height = first // geo.blocks_h, first % geo.blocks_h
    if geo.blocks_d > 1:
        first, depth = first // geo.blocks_d, first % geo.blocks_d
    first *= group
    return first, min(group, maps - first), geo.block_d + FIELDS * depth, geo.block_h + FIELDS * height


@jit.inner
def _line(geo):
    return geo.kernel, geo.stride, geo.pad, geo.size_w, geo.out_w, geo.pitch, geo.masks


@jit.inner
def _runs(geo, maps, lines, slices):
    """Return how many runs of lines a block is that lie one after the other in memory, and the lines of each."""
    return (1, maps * slices * lines) if lines == geo.size_h else (slices, lines)


@jit.inner
def _slice(geo, tables, o, low_d, lines):
    """Return the first line of a slice of windows in its map, in scratch, and the ``depth`` of `rows`."""
    taps = tables[geo.taps_d + o]
    begin = tables[geo.begin_d + o] if taps > 0 else low_d
    return begin, begin - low_d, (taps, geo.step_d * lines, geo.step_d * geo.size_h)


@jit.inner
def _join(kind, x, y, indices, columns, scratch, s0, geo, tables, block):
    """Write a block of results."""
    first, count, depth, height = block
    low_d, slices = tables[depth + 4], tables[depth + 5] - tables[depth + 4]
    low, lines = tables[height + 4], tables[height + 5] - tables[height + 4]
    line, taps = _line(geo), s0 + geo.area
    runs, length = _runs(geo, count, lines, slices)
    for i in range(0 if geo.apart else runs):
        x0 = first * geo.map + ((low_d + i) * geo.size_h + low) * geo.size_w
        to = i * length * geo.pitch
        if kind == MEAN:
            sums(scratch, s0 + to, 0, x, x0, tables, length, line)
        elif kind == NORM:
            squares(scratch, s0 + to, 0, x, x0, tables, length, line)
        elif indices.size:
            places(scratch, s0 + to, taps + to, x, x0, tables, length, line)
        else:
            maxima(scratch, s0 + to, 0, x, x0, tables, length, line)
    maps = (count, slices * lines, geo.out_d * geo.out_h * geo.out_w)
    rows, spans, step = (tables[height], tables[height + 1]), (geo.begin_h, geo.taps_h, low), geo.step_h
    for o in range(tables[depth], tables[depth + 1]):
        begin, down, along = _slice(geo, tables, o, low_d, lines)
        y0 = ((first * geo.out_d + o) * geo.out_h + rows[0]) * geo.out_w
        at = down * lines * geo.pitch
        counted = (geo.divisor, tables[geo.counted_d + o], geo.counted_h, geo.powers)
        x0 = first * geo.map + begin * geo.size_h * geo.size_w
        if geo.apart and kind == MEAN:
            mean_apart(y, y0, columns, counted, x, x0, tables, line, maps, rows, spans, along, step)
        elif geo.apart and kind == NORM:
            norm_apart(y, y0, columns, counted, x, x0, tables, line, maps, rows, spans, along, step)
        elif geo.apart and indices.size:
            above = begin * geo.size_h
            largest_at_apart(y, y0, indices, above, 0, x, x0, tables, line, maps, rows, spans, along, step)
        elif geo.apart:
            largest_apart(y, y0, x, x0, tables, line, maps, rows, spans, along, step)
        elif kind == MEAN:
            mean(y, y0, columns, counted, scratch, s0 + at, tables, line, maps, rows, spans, along, step)
        elif kind == NORM:
            norm(y, y0, columns, counted, scratch, s0 + at, tables, line, maps, rows, spans, along, step)
        elif indices.size:
            above, tap0 = begin * geo.size_h, taps + at
            largest_at(
                y, y0, indices, above, tap0, scratch, s0 + at, tables, line, maps, rows, spans, along, step
            )  # fmt: skip
        else:
            largest(y, y0, scratch, s0 + at, tables, line, maps, rows, spans, along, step)


@jit.inner
def _part(kind, x, gy, gx, columns, scratch, s0, geo, tables, block):
    """Write a block of the gradient by pixels: what the windows give that touch it."""
    first, count, depth, height = block
    low_d, slices = tables[depth + 4], tables[depth + 5] - tables[depth + 4]
    low, lines = tables[height + 4], tables[height + 5] - tables[height + 4]
    line, best, taps = _line(geo), s0 + geo.area, s0 + 2 * geo.area
    scratch[s0 - SLACK : s0 + count * slices * lines * geo.pitch + SLACK] = 0
    if kind == MAX:
        runs, length = _runs(geo, count, lines, slices)
        for i in range(runs):
            x0 = first * geo.map + ((low_d + i) * geo.size_h + low) * geo.size_w
            to = i * length * geo.pitch
            places(scratch, best + to, taps + to, x, x0, tables, length, line)
    maps = (count, slices * lines, geo.out_d * geo.out_h * geo.out_w)
    rows, spans, step = (tables[height + 2], tables[height + 3]), (geo.begin_h, geo.taps_h, low), geo.step_h
    for o in range(tables[depth + 2], tables[depth + 3]):
        _, down, along = _slice(geo, tables, o, low_d, lines)
        y0 = ((first * geo.out_d + o) * geo.out_h + rows[0]) * geo.out_w
        at = down * lines * geo.pitch
        if kind == MAX:
            share_to_largest(
                s0 + at, gy, y0, scratch, best + at, tables, line, maps, rows, spans, along, step
            )
        else:
            counted = (geo.divisor, tables[geo.counted_d + o], geo.counted_h, geo.powers)
            share(gy, y0, columns, counted, scratch, s0 + at, tables, line, maps, rows, spans, along, step)
    begin_d, begin, end = tables[depth], tables[height], tables[height + 1]
    runs, length = _runs(geo, count, end - begin, tables[depth + 1] - begin_d)
    for i in range(runs):
        at = ((begin_d + i - low_d) * lines + begin - low) * geo.pitch
        g0 = first * geo.map + ((begin_d + i) * geo.size_h + begin) * geo.size_w
        if kind == MAX:
            back_to_places(gx, g0, scratch, s0 + at, taps + at, tables, length, line)
        else:
            back(gx, g0, scratch, s0 + at, 0, tables, length, line)


@jit.inner
def _write(kind, x, gy, gx, columns, scratch, s0, geo, tables, block):
    """Write the pixels of a block of windows that share none."""
    first, count, depth, height = block
    low_d, slices = tables[depth + 4], tables[depth + 5] - tables[depth + 4]
    low, lines = tables[height + 4], tables[height + 5] - tables[height + 4]
    line = _line(geo)
    maps = (count, slices * lines, geo.out_d * geo.out_h * geo.out_w)
    rows, spans, step = (tables[height], tables[height + 1]), (geo.begin_h, geo.taps_h, low), geo.step_h
    for o in range(tables[depth], tables[depth + 1]):
        begin, _, along = _slice(geo, tables, o, low_d, lines)
        y0 = ((first * geo.out_d + o) * geo.out_h + rows[0]) * geo.out_w
        g0 = first * geo.map + begin * geo.size_h * geo.size_w
        counted = (geo.divisor, tables[geo.counted_d + o], geo.counted_h, geo.powers)
        give(kind, gx, gy, y0, columns, counted, x, g0, tables, line, maps, rows, spans, along, step)
