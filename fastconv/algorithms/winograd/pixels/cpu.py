"""The kernels of Winograd convolution with channels as lanes.

A task is a block of tiles of one group.  V of the block stays in the worker's L2 and the transformed weights
stream by, a panel of at most four vectors of result channels at a time, whose M is transformed back at once.
A tile that leaves the image, that folds (`winograd/folding.py`), or whose channels end within a vector, goes through a
patch in scratch, so that transforms meet nothing but whole tiles of whole vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from fastconv import jit
from fastconv.activations import finish
from fastconv.algorithms.direct.pixels.frame import place
from fastconv.algorithms.winograd.filters import unpack_filters
from fastconv.algorithms.winograd.pixels.lanes import transform_filters, transform_pixels, transform_results
from fastconv.algorithms.winograd.transforms import LANES
from fastconv.gemm.gathered import pixel_rows, tile_gathered
from fastconv.gemm.move import add_row, subtract_row, write_row
from fastconv.gemm.schedule import finish_stage, next_task, part, span


class Geometry(NamedTuple):
    """A correlation and its blocks, as numbers."""

    groups: int
    c: int  #  source channels of a group
    k: int  #  result channels of a group
    h: int  #  source
    w: int
    p: int  #  result, and where the image lies in it (`frame.Box`)
    q: int
    front: int
    above: int
    left: int
    inner_d: int
    inner_h: int
    inner_w: int
    top: int  #    first rows, and columns, of the tiles at the ends that fold
    bottom: int
    left_end: int
    right_end: int
    columns_at: int  # in the table of where padded rows lie, and columns behind them; by a tile's kind,
    added_at: int  #       which of its pixels are added to each other,
    subtracted_at: int  #  and which of its results are subtracted
    lo_h: int
    lo_w: int
    mh: int  # outputs of a tile
    mw: int
    high: int  # its inputs, alpha
    wide: int
    tiles_h: int
    tiles_w: int
    tiles: int  #  n * tiles_h * tiles_w
    taps: int
    w_group: int  #   of the weight array: from group to group, in elements,
    w_row: int  #     from result channel to result channel,
    w_channel: int  # from source channel to source channel
    flipped: bool
    blocks: int  #  of tiles
    most: int  #    tiles of a block
    vectors: int  # of result channels
    panels: int  #  of at most four such vectors
    v_row: int  #   elements from tile to tile
    v_step: int  #  from position to position
    m_row: int
    m_step: int
    u_step: int
    t_step: int  #  from tap to tap of the unpacked filters
    m_start: int  # where M, a patch and the unpacked filters begin in a worker's scratch; V is first
    patch: int
    t_start: int
    scratch: int
    vl: int
    registers: int


UNPACKED = 8  # channels of unpacked filters: 9 taps x 8 x 64 floats are 18 KB of L1


@jit.kernel
def transform_weights(workers, counters, w, u, scratch, geos, mh, rh, mw, rw):
    """Transform all filters; tasks are panels."""
    for worker in numba.prange(workers):
        geo = geos[0]
        t0 = worker * geo.scratch + geo.t_start
        tasks = geo.groups * geo.panels
        task = next_task(counters, worker, tasks)
        while task < tasks:
            _weight_panel(u, w, geo, task // geo.panels, task % geo.panels, scratch, t0, (mh, rh, mw, rw))
            task = next_task(counters, worker, tasks)


@jit.inner
def _weight_panel(u, w, geo, group, panel, t, t0, variant):
    """Write a panel of U: unpack some channels' filters side by side, then transform them."""
    first = part(geo.vectors, geo.panels, panel) * geo.vl
    width = part(geo.vectors, geo.panels, panel + 1) * geo.vl - first
    u0 = (group * geo.panels + panel) * geo.high * geo.wide * geo.u_step
    w0 = group * geo.w_group + first * geo.w_row
    rows = min(width, geo.k - first)
    begin = t0 + (geo.taps - 1) * geo.t_step if geo.flipped else t0
    step = -geo.t_step if geo.flipped else geo.t_step
    for c in range(0, geo.c, UNPACKED):
        channels = min(UNPACKED, geo.c - c)
        for i in range(channels):
            for k in range(0, rows, LANES):
                at = w0 + (c + i) * geo.w_channel + k * geo.w_row
                unpack_filters(
                    t, begin + i * width + k, step, w, at, geo.w_row, min(LANES, rows - k), variant
                )
        transform_filters(u, u0 + c * width, geo.u_step, t, t0, geo.t_step, channels * width, variant)


@jit.kernel
def convolve(
    workers, counters, x, w, u, y, around, scratch, lists, positions, start, border, plain, activation, residual, given, geos,
    mh, rh, mw, rw,
):  # fmt: skip
    """Transform all filters, unless U is ``given``, then compute all; tasks are panels, then groups x blocks of tiles."""
    for worker in numba.prange(workers):
        geo = geos[0]
        base = worker * geo.scratch
        sources = lists[2 * worker * geo.most : (2 * worker + 1) * geo.most]
        targets = lists[(2 * worker + 1) * geo.most : (2 * worker + 2) * geo.most]
        for i in range(geo.most):
            sources[i] = base + i * geo.v_row
            targets[i] = base + geo.m_start + i * geo.m_row
        tasks = 0 if given else geo.groups * geo.panels
        task, done = next_task(counters, worker, tasks), 0
        while task < tasks:
            group, panel = task // geo.panels, task % geo.panels
            _weight_panel(u, w, geo, group, panel, scratch, base + geo.t_start, (mh, rh, mw, rw))
            task, done = next_task(counters, worker, tasks), done + 1
        finish_stage(counters, done, tasks)
        tasks = geo.groups * geo.blocks
        task = next_task(counters, worker, tasks, 1)
        while task < tasks:
            group, block = task // geo.blocks, task % geo.blocks
            t0, t1 = span(geo.tiles, geo.blocks, block)
            _input_block(scratch, base, x, border, geo, group, t0, t1, (mh, rh, mw, rw))
            for panel in range(geo.panels):
                _multiply(scratch, sources, targets, u, positions, start, geo, group, panel, t1 - t0)
                _output_block(
                    y, around, scratch, base, start, border, geo, group, panel, t0, t1, plain, activation, residual,
                    (mh, rh, mw, rw),
                )  # fmt: skip
            task = next_task(counters, worker, tasks, 1)


@jit.inner
def _tile_at(geo, t):
    """Return (image, first result row, first result column) of a tile."""
    image, rest = t // (geo.tiles_h * geo.tiles_w), t % (geo.tiles_h * geo.tiles_w)
    return image, rest // geo.tiles_w * geo.mh, rest % geo.tiles_w * geo.mw


@jit.inner
def _kind(geo, row, column):
    """Return the kind of the tile that begins there (`folding.moves`)."""
    down = 1 if row == geo.top else 2 if row == geo.bottom else 0
    return 3 * down + (1 if column == geo.left_end else 2 if column == geo.right_end else 0)


@jit.inner
def _input_block(scratch, base, x, border, geo, group, t0, t1, variant):
    """Write V of some tiles; ``border`` has the row, and the column, where each of the padded image is, or -1."""
    channels, at = geo.groups * geo.c, base
    for t in range(t0, t1):
        image, first_row, first_column = _tile_at(geo, t)
        row, column = first_row - geo.lo_h, first_column - geo.lo_w
        inside = row >= 0 and row + geo.high <= geo.h and column >= 0 and column + geo.wide <= geo.w
        kind = geo.added_at + _kind(geo, first_row, first_column)
        inside = inside and border[kind] == border[kind + 1]
        begin = ((image * geo.h + row) * geo.w + column) * channels + group * geo.c
        if inside and geo.c % geo.vl == 0:
            transform_pixels(
                scratch, at, geo.v_step, x, begin, geo.w * channels, channels, geo.c, variant
            )  # fmt: skip
        else:
            patch = base + geo.patch
            for r in range(geo.high):
                row = border[first_row + r]
                for s in range(geo.wide):
                    to = patch + (r * geo.wide + s) * geo.v_row
                    column = border[geo.columns_at + first_column + s]
                    if row >= 0 and column >= 0:
                        pixel = (image * geo.h + row) * geo.w + column
                        write_row(scratch, to, x, pixel * channels + group * geo.c, geo.c)
                    else:
                        scratch[to : to + geo.c] = 0
            for i in range(border[kind], border[kind + 1], 2):
                to, source = patch + border[i] * geo.v_row, patch + border[i + 1] * geo.v_row
                add_row(scratch, to, scratch, source, geo.c)
            transform_pixels(
                scratch, at, geo.v_step, scratch, patch, geo.wide * geo.v_row, geo.v_row, geo.c, variant
            )
        at += geo.v_row


@jit.inner
def _multiply(scratch, sources, targets, u, positions, zeros, geo, group, panel, tiles):
    """M = V U of a panel, position by position."""
    first = part(geo.vectors, geo.panels, panel)
    nr = part(geo.vectors, geo.panels, panel + 1) - first
    parts = -(-tiles // pixel_rows(geo.registers, nr))
    u0 = (group * geo.panels + panel) * geo.high * geo.wide * geo.u_step
    for position in range(geo.high * geo.wide):
        for i in range(parts):
            at = part(tiles, parts, i)
            tile_gathered(
                scratch, targets, position * geo.m_step, nr * geo.vl, scratch, 0, sources, at, positions,
                position, 1, geo.c, u, u0 + position * geo.u_step, zeros, 0,
                part(tiles, parts, i + 1) - at, nr, geo.v_row, False,
            )  # fmt: skip


@jit.inner
def _output_block(
    y, around, scratch, base, start, border, geo, group, panel, t0, t1, plain, activation, residual, variant
):  # fmt: skip
    """Transform M of a panel back, and write it to its place."""
    first = part(geo.vectors, geo.panels, panel) * geo.vl
    width = part(geo.vectors, geo.panels, panel + 1) * geo.vl - first
    count = min(width, geo.k - first)
    channels = geo.groups * geo.k
    s0 = geo.m_row + group * geo.vectors * geo.vl + first  # behind the zeros that sums begin with
    m0 = base + geo.m_start
    size = geo.inner_h * geo.inner_w
    for t in range(t0, t1):
        image, row, column = _tile_at(geo, t)
        i, j = row - geo.above, column - geo.left
        inside = i >= 0 and i + geo.mh <= geo.inner_h and j >= 0 and j + geo.mw <= geo.inner_w
        begin = (image * size + i * geo.inner_w + j) * channels + group * geo.k + first
        kind = geo.subtracted_at + _kind(geo, row, column)
        folds = border[kind] < border[kind + 1]
        whole = inside and count == width and not folds
        if whole:
            transform_results(
                y, begin, geo.inner_w * channels, channels, scratch, m0, geo.m_step, start, s0, count, variant
            )
        else:
            patch, begins = base + geo.patch, 0 if folds else s0
            transform_results(
                scratch, patch, geo.mw * width, width, scratch, m0, geo.m_step, start, begins, count, variant
            )
            for i in range(border[kind], border[kind + 1], 2):
                to, source = patch + border[i] * width, patch + border[i + 1] * width
                subtract_row(scratch, to, scratch, source, count)
        if not (whole and plain):
            for r in range(min(geo.mh, geo.p - row)):
                for s in range(min(geo.mw, geo.q - column)):
                    at, source = (
                        place(0, row + r, column + s, geo.p, geo.q, geo),
                        base + geo.patch + (r * geo.mw + s) * width,
                    )
                    if at < 0:
                        to = image * (geo.p * geo.q - size) - 1 - at
                        write_row(around, to * channels + group * geo.k + first, scratch, source, count)
                        continue
                    to = (image * size + at) * channels + group * geo.k + first
                    if folds:
                        add_row(scratch, source, start, s0, count)
                    if not whole:
                        write_row(y, to, scratch, source, count)
                    if not plain:
                        finish(y, to, count, start[:0], np.int64(0), activation, residual, to)
        m0 += geo.m_row
