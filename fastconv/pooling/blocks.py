"""The kernel of windows that lie in rows (`rowwise`): a task is a block of a map, or of some.

Its lines of pixels become rows of scratch, which stay in L1 until its windows have joined them.
"""

from __future__ import annotations

import numba

from fastconv import jit
from fastconv.gemm.move import SLACK
from fastconv.gemm.schedule import span
from fastconv.pooling import tiled
from fastconv.pooling.back import back, back_to_places, give, share, share_to_largest
from fastconv.pooling.rows import (
    largest,
    largest_apart,
    largest_at,
    largest_at_apart,
    mean,
    mean_apart,
    norm,
    norm_apart,
    places,
    squares,
    sums,
)
from fastconv.pooling.rows import maxima as maxima_of_lines

MAX, MEAN, NORM = 0, 1, 2
FIELDS = 6  # of a block in the tables


@jit.kernel
def blocks(workers, kind, x, y, indices, sliding, apart, columns, scratch, geos, tables):
    """Write results y and their indices, or the gradient by x of windows that are sliding or apart: all but one are None.

    Numba leaves out the code of what is None, so that each is compiled on its own.
    """
    for worker in numba.prange(workers):
        geo, maps = geos[0], x.size // geos[0].map
        group, tasks = _tasks(geo, maps, workers)
        begin, end = span(tasks, workers, worker)
        for task in range(begin, end):
            block, s0 = _block(geo, task, group, maps), worker * geo.scratch + SLACK
            if indices is not None:
                _join(kind, x, y, indices, columns, scratch, s0, geo, tables, block)
            if sliding is not None:
                _part(kind, x, y, sliding, columns, scratch, s0, geo, tables, block)
            if apart is not None:
                _write(kind, x, y, apart, columns, geo, tables, block)


@jit.inner
def _tasks(geo, maps, workers):
    """Return the maps of a task, and how many tasks there are."""
    group = min(geo.group, -(-maps // workers)) if maps else 1
    return group, -(-maps // group) * geo.blocks_d * geo.blocks_h


@jit.inner
def _block(geo, task, group, maps):
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
    if geo.tiles and not indices.size:
        _tile(kind, x, y, scratch, s0, geo, tables, block)
        return
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
            maxima_of_lines(scratch, s0 + to, 0, x, x0, tables, length, line)
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
def _tile(kind, x, y, scratch, s0, geo, tables, block):
    """Write a block of results of windows that tile their lines."""
    first, count, depth, height = block
    rows, low, seen = (tables[height], tables[height + 1]), tables[height + 4], geo.kernel * geo.out_w
    lines = rows[1] - rows[0]
    line = (geo.kernel, geo.stride, 0, geo.size_w, seen, geo.size_w, 0)
    maps, spans = (count, geo.size_d * geo.size_h, lines * seen), (geo.begin_h, geo.taps_h, low)
    runs = 1 if lines == geo.out_d * geo.out_h else count  # of windows that follow each other
    windows = count * lines * geo.out_w // runs
    for o in range(tables[depth], tables[depth + 1]):
        x0 = first * geo.map + (tables[geo.begin_d + o] * geo.size_h + low) * geo.size_w
        along = (tables[geo.taps_d + o], geo.step_d * geo.size_h, 0)
        if kind == MEAN:
            tiled.added(scratch, s0, x, x0, tables, line, maps, rows, spans, along, geo.step_h)
        elif kind == NORM:
            tiled.squared(scratch, s0, x, x0, tables, line, maps, rows, spans, along, geo.step_h)
        else:
            tiled.joined(scratch, s0, x, x0, tables, line, maps, rows, spans, along, geo.step_h)
        for m in range(runs):
            y0 = (((first + m) * geo.out_d + o) * geo.out_h + rows[0]) * geo.out_w
            run = (geo.kernel, geo.stride, 0, 0, windows, 0, 0)
            at = s0 + m * lines * seen
            if kind == MEAN:
                tiled.means(y, y0, scratch, at, tables, run, geo.counted)
            elif kind == NORM:
                tiled.norms(y, y0, scratch, at, tables, run, 1)
            else:
                tiled.maxima(y, y0, scratch, at, tables, run, 1)


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
def _write(kind, x, gy, gx, columns, geo, tables, block):
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
