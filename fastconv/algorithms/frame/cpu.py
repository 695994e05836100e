"""The kernel that adds a frame: it fills B by lists, multiplies piece by piece, and adds C by lists.

A task owns channels of an image and adds all pieces to them one after the other, so the order of its sums is always the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numba

from fastconv import jit
from fastconv.algorithms.frame.tables import SECONDS
from fastconv.gemm.move import add_row, add_seconds, subtract_row
from fastconv.gemm.pack import load_panel, panel_at
from fastconv.gemm.schedule import next_task, part, span
from fastconv.gemm.segments import add_pixels, copy_channels, copy_pixels, subtract_pixels
from fastconv.gemm.tile import tile_indexed


class Geometry(NamedTuple):
    """The frame and its blocks, as numbers."""

    n: int
    groups: int
    channels: int  # of grad_output, in a group
    m: int  #         of the result, in a group
    source_size: int
    source_channel: int  # elements from channel to channel, and from pixel to pixel: 1 but in images held so
    source_pixel: int
    result_size: int
    result_channel: int
    m_blocks: int
    chunks: int  #  of channels
    panel: int  #   where the panel of weights and C begin in a worker's scratch
    c_start: int
    ldc: int
    scratch: int
    vl: int
    mr: int
    nr: int


@jit.kernel
def add_frame(workers, counters, gy, w, views, gx, scratch, geos, batches, tables):
    """Add the frame's gradient; tasks are images x groups x blocks of channels."""
    for worker in numba.prange(workers):
        _work(worker, counters, gy, w, views[0], gx, scratch, geos[0], batches, tables)


@jit.inner
def _work(worker, counters, gy, w, view, gx, scratch, geo, batches, tables):
    b0 = worker * geo.scratch
    c0 = b0 + geo.c_start
    panel = w if view.packed else scratch
    panels = -(-geo.m // geo.mr)
    tasks = geo.n * geo.groups * geo.m_blocks
    task = next_task(counters, worker, tasks)
    while task < tasks:
        plane, m_block = task // geo.m_blocks, task % geo.m_blocks
        image, group = plane // geo.groups, plane % geo.groups
        source = image * geo.groups * geo.channels * geo.source_size
        result = image * geo.groups * geo.m * geo.result_size
        first, last = span(panels, geo.m_blocks, m_block)
        top = part(geo.m, panels, first)
        for number in range(batches.size):
            batch = batches[number]
            for chunk in range(geo.chunks):
                ch0, ch1 = span(geo.channels, geo.chunks, chunk)
                _fill(
                    scratch,
                    b0,
                    gy,
                    source + (group * geo.channels + ch0) * geo.source_channel,
                    ch1 - ch0,
                    geo,
                    batch,
                    tables,
                )
                for p in range(first, last):
                    m0, m1 = part(geo.m, panels, p), part(geo.m, panels, p + 1)
                    a0 = b0 + geo.panel
                    if view.packed:
                        a0, _, _ = panel_at(view, 0, group, m0, m0, m1 - m0, ch0, ch1)
                    else:
                        load_panel(scratch, a0, w, view, group, p, panels, ch0, ch1)
                    at = c0 + (m0 - top) * geo.ldc
                    _multiply(scratch, at, panel, a0, b0, geo, batch, tables, ch1 - ch0, m1 - m0, chunk > 0)
            for m in range(top, part(geo.m, panels, last)):
                to, at = result + (group * geo.m + m) * geo.result_channel, c0 + (m - top) * geo.ldc
                for row in range(batch.rows_at, batch.rows_at + 4 * batch.rows, 4):
                    begin, count, less = at + tables[row + 1], tables[row + 2], tables[row + 3]
                    if less == SECONDS:
                        add_seconds(gx, to + tables[row], scratch, begin, count)
                        continue
                    add_row(gx, to + tables[row], scratch, begin, count)
                    if less >= 0:
                        subtract_row(gx, to + less, scratch, begin, count)
                add_pixels(gx, to, scratch, at, tables[batch.targets_at :], 0, batch.targets)
                subtract_pixels(gx, to, scratch, at, tables[batch.less_at :], 0, batch.less)
        task = next_task(counters, worker, tasks)


@jit.inner
def _fill(b, b0, gy, source, channels, geo, batch, tables):
    """Write the rows of B of some channels: runs of pixels along a row and along a column, then single ones."""
    step, along = geo.source_channel, geo.source_pixel
    rows, columns = tables[batch.segments_at :], tables[batch.columns_at :]
    copy_channels(b, b0, batch.size, gy, source, step, channels, rows, batch.segments, along)
    copy_channels(b, b0, batch.size, gy, source, step, channels, columns, batch.columns, batch.pitch * along)
    for c in range(channels):
        to, at = b0 + c * batch.size, source + c * geo.source_channel
        copy_pixels(b, to, gy, at, tables[batch.pixels_at :], 0, batch.pixels)
        for i in range(batch.sums_at, batch.sums_at + 3 * batch.sums, 3):
            add_row(b, to + tables[i], b, to + tables[i + 1], tables[i + 2])


@jit.inner
def _multiply(scratch, c0, a, a0, b0, geo, batch, tables, channels, mr, more):
    """C (+)= panel * B, piece by piece."""
    for piece in range(batch.pieces_at, batch.pieces_at + 4 * batch.pieces, 4):
        length, steps, column, vectors = (
            channels * tables[piece],
            tables[piece + 1],
            tables[piece + 2],
            tables[piece + 3],
        )
        groups = -(-vectors // geo.nr)
        for g in range(groups):
            v = part(vectors, groups, g)
            tile_indexed(
                scratch, c0 + column + v * geo.vl, geo.ldc, a, a0, scratch, b0 + v * geo.vl, tables, steps,
                length, mr, part(vectors, groups, g + 1) - v, more,
            )  # fmt: skip
