"""The kernels of Winograd convolution: transformed tiles and filters, multiplied position by position.

    V[position][c][tile] = B d B^T      U[panel][position][c][mr] = G g G^T      M[position][k][tile] = U V

Of a strided convolution c runs over the phases of the source as well, or k over those of the result (`phases.py`):
V[position][phase, c][tile], U[panel][phase of the result][position][phase of the source, c][mr],
M[position][phase][k][tile].  Where a phase lacks the last tap or the first, U is zero at infinity or at the point 0
of that axis: such products are left out.

Tiles are numbered through rows and images, so that vectors of M and V are full however small a map is.
A transform takes a strip of them at a time, a vector (`strips.py`); strips are cut into blocks of at most ``ld`` tiles.

There are two ways through the work, with the same sums:

* by tiles: a task is a block of tiles.  Its V and M stay in the worker's L2; U, transformed beforehand, streams by.
* by outputs: a task is a chunk of result channels, whose filters it transforms into its own L2; V of all
  tiles, transformed beforehand, streams by.  For few tiles, where U is the larger: it never goes to memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numba

from fastconv import jit
from fastconv.activations import finish
from fastconv.algorithms.winograd.filters import unpack_pair
from fastconv.algorithms.winograd.lanes import transform_input, transform_output
from fastconv.algorithms.winograd.pixels.lanes import transform_pair
from fastconv.algorithms.winograd.transforms import LANES
from fastconv.gemm.schedule import finish_stage, next_task, part, span
from fastconv.gemm.tile import tile


class Geometry(NamedTuple):
    """A correlation and its blocks, as numbers."""

    groups: int
    c: int  #  source channels of a group
    k: int  #  result channels of a group
    h: int  #  source
    w: int
    p: int  #  result
    q: int
    stride_h: int  # source lines from position to position
    sources_h: int  # phases of the source that are read
    sources_w: int
    steps_h: int  # phases of the result,
    steps_w: int
    filled: int  #  and which of all phases have taps, a bit each
    reached_at: int  # behind the places of taps: [position] -> which phases are not zero there, a bit each
    c_chunks: int  #   of source channels, that V's rows of one stay in L1
    mh: int  # outputs of a tile
    mw: int
    tiles_h: int
    tiles_w: int
    top: int  #    rows of tiles at the ends of an image, where they have something to fold, or -1
    bottom: int
    rows: int  #   of tiles, of all images
    strips: int
    period: int  #   after which they begin with a row again
    positions: int  # alpha_h * alpha_w
    taps: int  #     of a filter, and of a tile's
    tile_taps: int
    w_group: int  #   of the weight array: from group to group, in elements,
    w_row: int  #     from result channel to result channel,
    w_channel: int  # from source channel to source channel
    by_tiles: bool
    blocks: int  # of strips
    ld: int  #      tiles of the largest block
    panels: int  #  of result channels, in a group
    chunks: int  #  of panels
    channel_parts: int  # into which the input transform is cut when it runs on its own
    v_step: int  #  between positions
    m_step: int
    m_phase: int  # between phases
    u_step: int
    u_phase: int  # between phases of the source
    m_start: int  # where M, U and the unpacked filters begin in a worker's scratch; V is first
    u_start: int
    t_start: int
    scratch: int
    zeros_at: int  # in the table, behind [line of the padded source] -> where it begins in its plane, or -1
    sources_at: int  # strip of a period -> where its pixels are described
    results_at: int  #  and its results
    vl: int
    mr: int
    nr: int


@jit.kernel
def transform_weights(workers, counters, w, u, places, scratch, geos, mh, rh, mw, rw):
    """Transform all filters; tasks are panels."""
    for worker in numba.prange(workers):
        geo = geos[0]
        tasks = geo.groups * geo.panels
        task = next_task(counters, worker, tasks)
        while task < tasks:
            u0 = task * geo.steps_h * geo.steps_w * geo.positions * geo.u_step
            weight_panel(
                u, u0, w, places, geo, task // geo.panels, task % geo.panels, scratch, worker * geo.scratch,
                (mh, rh, mw, rw),
            )  # fmt: skip
            task = next_task(counters, worker, tasks)


@jit.kernel
def convolve(
    workers, counters, x, w, u, v, y, places, scratch, border, bias, activation, residual, plain, given, geos, mh,
    rh, mw, rw, down, along, woven, fold,
):  # fmt: skip
    """Transform, multiply and transform back; U may be ``given``.

    What all tasks read, U by tiles and V by outputs, is made first, in tasks that are panels of filters, or parts of
    the channels of a block.  One launch: Python between two of them, cold, takes 30 us.  Parts of a kernel are compiled
    once more for every function that they are called through, so there is none between.
    """
    for worker in numba.prange(workers):
        geo = geos[0]
        before, after = (mh, rh, mw, rw, down, along, fold), (mh, rh, mw, rw, down, along, woven, fold)
        base = worker * geo.scratch
        m0, u0, t0 = base + geo.m_start, base + geo.u_start, base + geo.t_start
        panel_size = geo.steps_h * geo.steps_w * geo.positions * geo.u_step
        v_size = geo.positions * geo.v_step
        shared = geo.panels if geo.by_tiles else geo.blocks * geo.channel_parts
        tasks = 0 if geo.by_tiles and given else geo.groups * shared
        task, done = next_task(counters, worker, tasks), 0
        while task < tasks:
            if geo.by_tiles:
                at = task * panel_size
                group, panel = task // geo.panels, task % geo.panels
                weight_panel(u, at, w, places, geo, group, panel, scratch, t0, (mh, rh, mw, rw))
            else:
                block, channels = task // geo.channel_parts, task % geo.channel_parts
                c0, c1 = span(geo.c, geo.channel_parts, channels)
                group, number = block // geo.blocks, block % geo.blocks
                input_block(v, block * v_size, x, border, geo, group, number, c0, c1, before)
            task, done = next_task(counters, worker, tasks), done + 1
        finish_stage(counters, done, tasks)
        fused = not given and not geo.by_tiles
        per_group = geo.blocks if geo.by_tiles else geo.chunks
        tasks = geo.groups * per_group
        task = next_task(counters, worker, tasks, 1)
        while task < tasks:
            group, number = task // per_group, task % per_group
            chunk, last_chunk = (0, geo.chunks) if geo.by_tiles else (number, number + 1)
            block, last_block = (number, number + 1) if geo.by_tiles else (0, geo.blocks)
            if geo.by_tiles:
                input_block(scratch, base, x, border, geo, group, number, 0, geo.c, before)
            for i in range(chunk, last_chunk):
                p0, p1 = span(geo.panels, geo.chunks, i)
                if fused:
                    for p in range(p0, p1):
                        at = u0 + (p - p0) * panel_size
                        weight_panel(scratch, at, w, places, geo, group, p, scratch, t0, (mh, rh, mw, rw))
                a, a0 = (scratch, u0) if fused else (u, (group * geo.panels + p0) * panel_size)
                for j in range(block, last_block):
                    b, b0 = (scratch, base) if geo.by_tiles else (v, (group * geo.blocks + j) * v_size)
                    multiply(scratch, m0, a, a0, b, b0, places, geo, j, p0, p1)
                    output_block(
                        y, scratch, m0, border, geo, group, j, p0, p1, bias, activation, residual, plain, after
                    )  # fmt: skip
            task = next_task(counters, worker, tasks, 1)


@jit.inner
def weight_panel(u, u0, w, places, geo, group, panel, t, t0, variant):
    """Write a panel of U: unpack the filters of two channels side by side, and transform them phase by phase.

    No more at a time: shuffles and sums then go on while lines of U are waited for.  Each channel's last lanes are
    the next one's first, or nothing's.
    """
    row = part(geo.k, geo.panels, panel)
    rows = part(geo.k, geo.panels, panel + 1) - row
    w0 = group * geo.w_group + row * geo.w_row
    sources = geo.sources_h * geo.sources_w
    phases = geo.steps_h * geo.steps_w * sources
    if phases > 1:  # taps that a phase lacks stay zeros
        t[t0 : t0 + phases * geo.tile_taps * LANES] = 0
    for c in range(0, geo.c, 2):
        second = geo.w_channel if c + 1 < geo.c else 0
        unpack_pair(t, t0, places, geo.taps, w, w0 + c * geo.w_channel, geo.w_row, rows, second)
        for phase in range(phases):
            if geo.filled >> phase & 1:
                to = phase // sources * geo.positions * geo.u_step + phase % sources * geo.u_phase + c * rows
                taps = t0 + phase * geo.tile_taps * LANES
                transform_pair(u, u0 + to, geo.u_step, t, taps, rows, variant)


@jit.inner
def input_block(v, v0, x, border, geo, group, block, c0, c1, variant):
    """Write channels c0..c1 of a block of V."""
    strip, last = span(geo.strips, geo.blocks, block)
    image_step = geo.groups * geo.c * geo.h * geo.w
    for c in range(c0, c1):
        plane = (group * geo.c + c) * geo.h * geo.w
        for s in range(strip, last):
            i = s * geo.vl // geo.tiles_w
            transform_input(
                v, v0 + c * geo.ld + (s - strip) * geo.vl, geo.v_step, geo.c * geo.ld,
                x, plane + i // geo.tiles_h * image_step, image_step, border,
                geo.mh * geo.stride_h, geo.rows - i, geo.tiles_h, i % geo.tiles_h, geo.zeros_at,
                border[geo.sources_at + s % geo.period], geo.top, geo.bottom, variant,
            )  # fmt: skip


@jit.inner
def multiply(m, m0, u, u0, v, v0, places, geo, block, p0, p1):
    """M = U V for panels p0..p1 and a block of tiles, position by position.

    Some channels of a phase at a time, whose rows of V stay in L1 from panel to panel, and their U in L2 from column to column.
    """
    begin, end = span(geo.strips, geo.blocks, block)
    vectors = end - begin
    columns = -(-vectors // geo.nr)
    top = part(geo.k, geo.panels, p0)
    sources, phases = geo.sources_h * geo.sources_w, geo.steps_h * geo.steps_w
    for position in range(geo.positions):
        reached = places[geo.reached_at + position]
        for chunk in range(sources * geo.c_chunks):
            source = chunk // geo.c_chunks
            c0, c1 = span(geo.c, geo.c_chunks, chunk % geo.c_chunks)
            for column in range(columns):
                j, j1 = span(vectors, columns, column)
                row1 = top
                for p in range(p0, p1):
                    row, row1 = row1, part(geo.k, geo.panels, p + 1)
                    for phase in range(phases):
                        there = reached >> phase * sources + source & 1
                        if chunk > 0 and not there:  # of the first, zeros are written
                            continue
                        panel = ((p - p0) * phases + phase) * geo.positions + position
                        tile(
                            m, m0 + position * geo.m_step + phase * geo.m_phase + (row - top) * geo.ld + j * geo.vl, geo.ld,
                            u, u0 + panel * geo.u_step + source * geo.u_phase + c0 * (row1 - row),
                            v, v0 + position * geo.v_step + (source * geo.c + c0) * geo.ld + j * geo.vl, geo.ld,
                            c1 - c0 if there else 0, row1 - row, j1 - j, chunk > 0,
                        )  # fmt: skip


@jit.inner
def output_block(y, m, m0, border, geo, group, block, p0, p1, bias, activation, residual, plain, variant):
    """Transform a block of M back, finish it and write it to its place."""
    strip, last = span(geo.strips, geo.blocks, block)
    image_step = geo.groups * geo.k * geo.p * geo.q
    first = part(geo.k, geo.panels, p0)
    for number in range((part(geo.k, geo.panels, p1) - first) * geo.steps_h):
        k, phase = number // geo.steps_h, number % geo.steps_h
        channel = group * geo.k + first + k
        lines = -(-(geo.p - phase) // geo.steps_h)
        plane, pitch = channel * geo.p * geo.q + phase * geo.q, geo.q * geo.steps_h
        for s in range(strip, last):
            i = s * geo.vl // geo.tiles_w
            transform_output(
                y, plane + i // geo.tiles_h * image_step, image_step, pitch, lines, m,
                m0 + phase * geo.steps_w * geo.m_phase + k * geo.ld + (s - strip) * geo.vl, geo.m_step, geo.m_phase, border,
                geo.rows - i, geo.tiles_h, i % geo.tiles_h, border[geo.results_at + s % geo.period],
                geo.top, geo.bottom, variant,
            )  # fmt: skip
            if not plain:
                for row in range(i, min(((s + 1) * geo.vl - 1) // geo.tiles_w + 1, geo.rows)):
                    tile = s * geo.vl - row * geo.tiles_w
                    column = max(tile, 0) * geo.mw * geo.steps_w
                    columns = max(min((tile + geo.vl) * geo.mw * geo.steps_w, geo.q) - column, 0)
                    line = row % geo.tiles_h * geo.mh
                    at = plane + row // geo.tiles_h * image_step + line * pitch + column
                    for _ in range(min(geo.mh, lines - line)):
                        finish(y, at, columns, bias, channel, activation, residual, at)
                        at += pitch
