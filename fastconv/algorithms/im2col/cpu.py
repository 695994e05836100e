"""The kernels of im2col: lower a block of columns into cache, multiply, finish and store it.

Matrix B has a row per (channel, source offset that a tap has) and a column per position (n, row, q).  A task owns a block of
columns and of result channels.  It goes through the reduction in chunks of KC rows: the chunk of B is
lowered into the worker's scratch (KC x NC, a fifth of L2) and multiplied by every panel of the weights,
each panel staying in L1 while B streams from L2.  C stays in scratch as well until bias and activation
are applied and it is written to its place once.
"""

from __future__ import annotations

from typing import NamedTuple

import numba

from fastconv import jit
from fastconv.activations import finish
from fastconv.gemm.move import stream_row, weave_row
from fastconv.gemm.pack import load_panel
from fastconv.gemm.schedule import next_task, part
from fastconv.gemm.segments import SEGMENT, add_edges, add_segment, copy_pixels, copy_segments
from fastconv.gemm.tile import tile, tile_indexed


class Geometry(NamedTuple):
    """A pass and its blocks, as numbers; the tables begin with the steps of its phases."""

    groups: int
    channels: int  # of the source, in a group
    m: int  #         result channels in a group
    outer: int  #     source offsets over all axes but the last
    inner: int  #     source offsets on the last axis
    rows: int  #      rows of an image and phase: positions over all axes but the last
    q: int  #         positions in a row
    columns: int  #   n * rows * q
    source_rows: int
    source_width: int
    stride: int  #    of the last axis
    outer_steps: int  # phases over all axes but the last
    step: int  #      phases of the last axis
    result_width: int
    result_size: int  # pixels of a result channel
    column_blocks: int
    row_blocks: int
    chunks: int  #    of source channels
    ld: int  #        row length of B, and of C for one phase, in scratch
    panel: int  #     where the panel of weights and C begin in a worker's scratch
    c_start: int
    scratch: int  #   elements of a worker
    segments: int  #  numbers in its list,
    pixels: int  #    and where the pixels of the border begin in it
    phases_at: int  # where tables begin: [phase] -> (taps, where its steps begin)
    source_row_at: int  # [outer offset, row] -> row of the source, or -1
    result_row_at: int  # [outer phase, row] -> row of the result, or -1
    offset_at: int  # [inner] -> source offset
    lo_at: int  #     [inner] -> first position that reads inside the source
    hi_at: int  #     [inner] -> one past the last
    edges_at: int  #  what `add_edges` reads, by inner
    stream: bool  #  whether the result is written past the caches
    vl: int
    mr: int
    nr: int


@jit.kernel
def correlate(workers, counter, x, w, views, out, scratch, lists, geos, tables, bias, activation, residual):
    """Compute a pass; tasks are blocks of columns x blocks of channels x groups."""
    for worker in numba.prange(workers):
        _work(
            worker, counter, x, w, views[0], out, scratch, lists, geos[0], tables, bias, activation, residual
        )


@jit.inner
def _work(worker, counter, x, w, view, out, scratch, lists, geo, tables, bias, activation, residual):
    segments = lists[worker * geo.segments : (worker + 1) * geo.segments]
    b0 = worker * geo.scratch
    c0 = b0 + geo.c_start
    panels = -(-geo.m // geo.mr)
    vectors = -(-geo.columns // geo.vl)
    phases = geo.outer_steps * geo.step
    tasks = geo.groups * geo.column_blocks * geo.row_blocks
    task = next_task(counter)
    while task < tasks:
        block = task // geo.row_blocks
        group, block = block // geo.column_blocks, block % geo.column_blocks
        p0 = part(panels, geo.row_blocks, task % geo.row_blocks)
        p1 = part(panels, geo.row_blocks, task % geo.row_blocks + 1)
        j0 = part(vectors, geo.column_blocks, block)
        j1 = part(vectors, geo.column_blocks, block + 1)
        columns = min(j1 * geo.vl, geo.columns) - j0 * geo.vl
        per_channel = geo.outer * geo.inner
        n = plan_rows(segments, geo, tables, j0 * geo.vl, columns)
        for chunk in range(geo.chunks):
            ch0, ch1 = part(geo.channels, geo.chunks, chunk), part(geo.channels, geo.chunks, chunk + 1)
            t0, t1 = ch0 * per_channel, ch1 * per_channel
            lower(scratch, b0, x, geo, group, j0 * geo.vl, t0, t1, segments, n)
            for p in range(p0, p1):
                load_panel(scratch, b0 + geo.panel, w, view, group, p, panels, ch0, ch1)
                m0 = part(geo.m, panels, p)
                at = c0 + (m0 - part(geo.m, panels, p0)) * phases * geo.ld
                mr = part(geo.m, panels, p + 1) - m0
                for phase in range(phases):
                    length = (ch1 - ch0) * tables[geo.phases_at + 2 * phase]
                    steps = tables[geo.phases_at + 2 * phase + 1]
                    _multiply_phase(
                        scratch, at + phase * geo.ld, b0 + geo.panel, b0, phases * geo.ld, geo, tables, steps,
                        j1 - j0, length, mr, chunk > 0,
                    )  # fmt: skip
        store(
            scratch,
            c0,
            out,
            geo,
            tables,
            group,
            j0 * geo.vl,
            columns,
            p0,
            p1,
            panels,
            bias,
            activation,
            residual,
        )
        task = next_task(counter)


@jit.inner
def plan_rows(segments, geo, tables, j0, columns):
    """List the segments of a channel that its rows of B are made of; return their number in each row.

    They are relative to the channel in the image of column j0.  The pixels of the border are listed behind: where
    those of each view begin, then they.
    """
    starts = segments[geo.pixels :]
    pixels = starts[geo.outer * geo.inner + 1 :]
    edges = 0
    image_step = geo.groups * geo.channels * geo.source_rows * geo.source_width
    n = 0
    for outer in range(geo.outer):
        for inner in range(geo.inner):
            first, last = tables[geo.lo_at + inner], tables[geo.hi_at + inner]
            to = (outer * geo.inner + inner) * geo.ld
            row, q = (j0 % (geo.rows * geo.q)) // geo.q, j0 % geo.q
            plane, done = 0, 0
            starts[outer * geo.inner + inner] = edges
            while done < columns:
                count = min(geo.q - q, columns - done)
                source_row = tables[geo.source_row_at + outer * geo.rows + row]
                source = (
                    plane + source_row * geo.source_width + q * geo.stride + tables[geo.offset_at + inner]
                )
                lo, hi = (first - q, last - q) if source_row >= 0 else (0, 0)
                n = add_segment(segments, n, to + done, source, count, lo, hi)
                if source_row >= 0:
                    line = plane + source_row * geo.source_width
                    edges = add_edges(pixels, edges, to + done, line, q, count, tables, geo.edges_at, inner)
                done += count
                q = 0
                row += 1
                if row == geo.rows:
                    row = 0
                    plane += image_step
    starts[geo.outer * geo.inner] = edges
    return n // max(1, geo.outer * geo.inner)


@jit.inner
def lower(b, b0, x, geo, group, j0, t0, t1, segments, n):
    """Write rows t0..t1 of B for the columns from j0 on, whose rows have ``n`` segments."""
    views = geo.outer * geo.inner
    size = geo.source_rows * geo.source_width
    first = (j0 // (geo.rows * geo.q) * geo.groups + group) * geo.channels
    starts = segments[geo.pixels :]
    pixels = starts[views + 1 :]
    t = t0
    while t < t1:
        channel, view = t // views, t % views
        count = min(views - view, t1 - t)
        own = segments[SEGMENT * n * view :]
        to, source = b0 + (channel * views - t0) * geo.ld, (first + channel) * size
        copy_segments(b, to, x, source, own, n * count, geo.stride)
        copy_pixels(b, to, x, source, pixels, starts[view], starts[view + count])
        t += count


@jit.inner
def multiply(scratch, c0, a0, b0, ld, geo, vectors, length, mr, more):
    """C (+)= panel * B, for rows of B and C that are ``ld`` apart."""
    groups = -(-vectors // geo.nr)
    for g in range(groups):
        v = part(vectors, groups, g)
        nr = part(vectors, groups, g + 1) - v
        at = v * geo.vl
        tile(scratch, c0 + at, ld, scratch, a0, scratch, b0 + at, ld, length, mr, nr, more)


@jit.inner
def _multiply_phase(scratch, c0, a0, b0, ldc, geo, tables, steps, vectors, length, mr, more):
    """C (+)= panel * B, by the steps of one phase."""
    groups = -(-vectors // geo.nr)
    for g in range(groups):
        v = part(vectors, groups, g)
        nr = part(vectors, groups, g + 1) - v
        at = v * geo.vl
        tile_indexed(
            scratch, c0 + at, ldc, scratch, a0, scratch, b0 + at, tables, steps, length, mr, nr, more
        )


@jit.inner
def store(c, c0, out, geo, tables, group, j0, columns, p0, p1, panels, bias, activation, residual):
    """Finish the rows of C, weave their phases and write them to their places in the result.

    With a residual they are finished there, where its elements stand in the same order.
    """
    per_image = geo.rows * geo.q
    first, last = part(geo.m, panels, p0), part(geo.m, panels, p1)
    at = c0
    for m in range(first, last):
        channel = group * geo.m + m
        for phase in range(geo.outer_steps):
            for i in range(0 if residual.size else geo.step):
                finish(c, at + i * geo.ld, columns, bias, channel, activation, residual, 0)
            image, row, q = j0 // per_image, (j0 % per_image) // geo.q, j0 % geo.q
            done = 0
            while done < columns:
                count = min(geo.q - q, columns - done)
                result_row = tables[geo.result_row_at + phase * geo.rows + row]
                if result_row >= 0:
                    plane = (image * geo.groups * geo.m + channel) * geo.result_size
                    to = plane + result_row * geo.result_width + q * geo.step
                    wide = min(count * geo.step, geo.result_width - q * geo.step)
                    if geo.stream and not residual.size:
                        stream_row(out, to, c, at + done, wide)
                    else:
                        weave_row(out, to, c, at + done, geo.ld, geo.step, wide)
                    if residual.size:
                        finish(out, to, wide, bias, channel, activation, residual, to)
                done += count
                q = 0
                row += 1
                if row == geo.rows:
                    row = 0
                    image += 1
            at += geo.step * geo.ld
