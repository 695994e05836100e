"""The kernels of im2col: lower a block of columns into cache, multiply, finish and store it.

Matrix B has a row for each (channel, source offset that a tap has) and a column for each position (n, row, q).  A task
owns a block of columns and of result channels.  It goes through the reduction in chunks of KC rows, and in
each through slices of B as wide as the tile: a slice is lowered into scratch (KC x NR vectors, half of L1) and
multiplied by every panel of the weights, which stream from L2.  Sums of a chunk stay in scratch; the last
chunk's tiles add them, apply bias and activation and write results to their places.  Where results are woven, all slices
wait in scratch and are written some channels at a time: rows that follow each other in memory.  Where rows of B are those of
the source (1x1), the first panel's tile lowers the slice as it reads it: waiting for memory is hidden behind products.
"""

from __future__ import annotations

from typing import NamedTuple

import numba

from fastconv import jit
from fastconv.activations import is_plain
from fastconv.gemm.move import to_boundary
from fastconv.gemm.pack import load_panels
from fastconv.gemm.result import multiply_panels
from fastconv.gemm.schedule import next_task, part, span
from fastconv.gemm.segments import SEGMENT, add_edges, add_segment, copy_channels, copy_pixels, copy_segments
from fastconv.gemm.tile import tile
from fastconv.gemm.weave import write_results


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
    source_channel: int  # elements from channel to channel, and from pixel to pixel: 1 but in images held so
    source_pixel: int
    stride: int  #    of the last axis
    outer_steps: int  # phases over all axes but the last
    step: int  #      phases of the last axis
    result_width: int
    result_size: int  # pixels of a result channel
    result_channel: int  # as of the source
    result_pixel: int
    column_blocks: int
    row_blocks: int
    chunks: int  #    of source channels
    phases: int
    ld: int  #        row length of B in scratch: a slice
    ldc: int  #       and of C for one phase: a slice, or of phases all that are woven
    panel: int  #     where in a worker's scratch panels of weights begin
    c_start: int  #   and C
    scratch: int  #   elements of a worker
    segments: int  #  numbers in the list of a slice,
    pixels: int  #    and where in it their number is, before the pixels of the border
    lists: int  #     slices whose lists a worker keeps: of a task, if there are further chunks
    phases_at: int  # where tables begin: [phase] -> (taps, where its steps begin)
    source_row_at: int  # [outer offset, row] -> row of the source, or -1
    result_row_at: int  # [outer phase, row] -> row of the result, or -1
    offset_at: int  # [inner] -> source offset
    together_at: int  # [inner] -> offsets side by side that are lowered together from here on, 0 within
    lo_at: int  #     [inner] -> first position that reads inside the source
    hi_at: int  #     [inner] -> one past the last
    edges_at: int  #  what `add_edges` reads, by inner
    near: bool  #    whether rows of B are those of x
    stream: bool  #  whether the result is written past the caches by tiles,
    past_caches: bool  # and when it is woven
    lines: int  #     where rows that begin anywhere in a line of memory wait until lines are full, for that; or 0
    vl: int
    mr: int
    nr: int


@jit.kernel
def correlate(workers, counters, x, w, views, out, scratch, lists, geos, tables, bias, activation, residual):
    """Compute a pass; tasks are blocks of columns x blocks of channels x groups."""
    for worker in numba.prange(workers):
        _work(
            worker, counters, x, w, views[0], out, scratch, lists, geos[0], tables, bias, activation, residual
        )


@jit.inner
def _work(worker, counters, x, w, view, out, scratch, lists, geo, tables, bias, activation, residual):
    own = lists[worker * geo.lists * geo.segments :]
    b0 = worker * geo.scratch
    panels = -(-geo.m // geo.mr)
    lead = -to_boundary(out, 0) % geo.vl if geo.stream else 0  # then vectors of columns are those of memory
    vectors = -(-(geo.columns + lead) // geo.vl)
    slices = -(-vectors // geo.nr)
    pixels = geo.rows * geo.q
    tasks = geo.groups * geo.column_blocks * geo.row_blocks
    task = next_task(counters, worker, tasks)
    while task < tasks:
        block = task // geo.row_blocks
        group, block = block // geo.column_blocks, block % geo.column_blocks
        p0, p1 = span(panels, geo.row_blocks, task % geo.row_blocks)
        first, last = span(slices, geo.column_blocks, block)
        m0, m1 = part(geo.m, panels, p0), part(geo.m, panels, p1)
        begin, end = part(vectors, slices, first) * geo.vl, part(vectors, slices, last) * geo.vl  # if woven
        for chunk in range(geo.chunks):
            ch0, ch1 = span(geo.channels, geo.chunks, chunk)
            load_panels(scratch, b0 + geo.panel, w, view, group, p0, p1, panels, ch0, ch1)
            waits = False  # whether the end of a slice does
            for i in range(first, last):
                j0 = max(0, part(vectors, slices, i) * geo.vl - lead)
                j1 = min(geo.columns, part(vectors, slices, i + 1) * geo.vl - lead)
                image, pixel = j0 // pixels, j0 % pixels
                within = pixel + j1 - j0 <= pixels  # one image
                source = -1
                if geo.near and within and j1 - j0 == geo.ld:  # the first panel lowers what it reads
                    source = source_at(geo, group, j0, ch0)
                else:
                    segments = own[(i - first) * geo.segments if geo.lists > 1 else 0 :]
                    if chunk == 0 or geo.lists == 1:
                        plan_rows(segments, geo, tables, j0, j1 - j0, True)
                    lower_channels(scratch, b0, x, geo, group, j0, ch0, ch1, segments)
                straight = chunk == geo.chunks - 1 and geo.phases == 1 and within and geo.result_pixel == 1
                place = (image * geo.groups * geo.m + group * geo.m + m0) * geo.result_size + pixel
                lines = -1
                if geo.lines > 0 and straight and is_plain(activation, residual):
                    lines = b0 + geo.lines
                opens, waits = not waits, lines >= 0 and i + 1 < last and pixel + 2 * geo.ld <= pixels
                kept = i - first if geo.chunks > 1 else 0
                c0 = b0 + geo.c_start + (j0 - begin if geo.phases > 1 else kept * (m1 - m0) * geo.ldc)
                ahead = 0
                if geo.near and i + 1 < last:
                    ahead = source_at(geo, group, j1, ch0)
                elif geo.near and chunk + 1 < geo.chunks:
                    ahead = source_at(geo, group, max(0, part(vectors, slices, first) * geo.vl - lead), ch1)
                elif geo.near:
                    ahead = source_at(geo, group, j0, ch0)
                done = multiply_panels(
                    x, ahead, pixels if geo.near else 0, x, source, w, view, out, scratch,
                    b0 + geo.panel, scratch, b0, c0, geo, geo.phases_at, tables, group, chunk, p0, p1, j1 - j0, straight,
                    place, lines, opens, not waits, bias, activation, residual,
                )  # fmt: skip
                if not done and geo.phases == 1:
                    store(
                        scratch, c0, out, geo, tables, group, j0, j1 - j0, m0, m1, straight, activation, residual
                    )  # fmt: skip
        for p in range(p0, p1 if geo.phases > 1 else p0):
            k0, k1 = span(geo.m, panels, p)
            c = b0 + geo.c_start + (k0 - m0) * geo.phases * geo.ldc
            columns = min(geo.columns, end) - begin
            store(scratch, c, out, geo, tables, group, begin, columns, k0, k1, False, activation, residual)
        task = next_task(counters, worker, tasks)


@jit.inner
def source_at(geo, group, j, channel):
    """Return where column j of a channel's row of B stands in x, if rows of B are those of x."""
    pixels = geo.rows * geo.q
    return ((j // pixels * geo.groups + group) * geo.channels + channel) * pixels + j % pixels


@jit.inner
def plan_rows(segments, geo, tables, j0, columns, together):
    """List the segments of a channel that its rows of B are made of.

    They are relative to the channel in the image of column j0.  First come those of two views each whose pixels are
    neighbours, if they are taken ``together``.  Behind stand how many those are, and all; where the pixels
    of the border of each view begin, then they.
    """
    views, rows, q, stride = geo.outer * geo.inner, geo.rows, geo.q, geo.stride
    width, ld, source_rows, apart = geo.source_width, geo.ld, geo.source_row_at, geo.source_pixel
    image_step = geo.groups * geo.channels * geo.source_rows * width
    counts = segments[geo.pixels :]
    pixels = counts[views + 3 :]
    begin = j0 % (rows * q)
    row0, q0 = begin // q, begin % q
    n, edges = 0, 0
    counts[0] = 0
    for kind in range(2 if together else 1, 0, -1):
        for outer in range(geo.outer):
            for inner in range(geo.inner):
                if together and tables[geo.together_at + inner] != kind:
                    continue
                offset = tables[geo.offset_at + inner]
                first, last = tables[geo.lo_at + inner], tables[geo.hi_at + inner]
                step = 1
                if kind == 2:  # in pixels of the source, of which there are width
                    first, last, step = -offset, width - offset, stride
                to = (outer * geo.inner + inner) * ld
                counts[outer * geo.inner + inner + 2] = edges
                row, column, plane, done = row0, q0, 0, 0
                while done < columns:
                    count = min(q - column, columns - done)
                    source_row = tables[source_rows + outer * rows + row]
                    line = plane + source_row * width * apart
                    lo, hi = first - column * step, last - column * step
                    if source_row < 0:
                        lo = hi = 0
                    n = add_segment(
                        segments, n, to + done, line + (column * stride + offset) * apart, count, lo, hi
                    )
                    for view in range(kind if source_row >= 0 else 0):
                        place = to + view * ld + done
                        edges = add_edges(
                            pixels, edges, place, line, column, count, tables, geo.edges_at, inner + view
                        )
                    done += count
                    column = 0
                    row += 1
                    if row == rows:
                        row = 0
                        plane += image_step
        if kind == 2:
            counts[0] = n
    counts[1], counts[views + 2] = n, edges


@jit.inner
def lower_channels(b, b0, x, geo, group, j0, ch0, ch1, segments):
    """Write the rows of B of channels ch0..ch1 for the columns from j0 on, whose segments are listed."""
    views, size = geo.outer * geo.inner, geo.source_rows * geo.source_width
    first = j0 // (geo.rows * geo.q) * geo.groups * geo.channels * size
    first += (group * geo.channels + ch0) * geo.source_channel
    counts = segments[geo.pixels :]
    pairs, n, step, count = counts[0], counts[1], views * geo.ld, ch1 - ch0
    pixels, edges = counts[views + 3 :], counts[views + 2]
    apart, stride = geo.source_channel, geo.stride * geo.source_pixel
    copy_channels(b, b0, step, x, first, apart, count, segments, pairs, 2, geo.ld)
    copy_channels(b, b0, step, x, first, apart, count, segments[SEGMENT * pairs :], n - pairs, stride)
    if edges > 0:
        for c in range(count):
            copy_pixels(b, b0 + c * step, x, first + c * apart, pixels, 0, edges)


@jit.inner
def lower(b, b0, x, geo, group, j0, t0, t1, segments):
    """Write rows t0..t1 of B for the columns from j0 on, whose segments are listed view by view."""
    views = geo.outer * geo.inner
    size = geo.source_rows * geo.source_width
    first = (j0 // (geo.rows * geo.q) * geo.groups + group) * geo.channels
    counts = segments[geo.pixels :]
    n, starts, pixels = counts[1] // max(1, views), counts[2:], counts[views + 3 :]
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
def store(c, c0, out, geo, tables, group, j0, columns, m0, m1, straight, activation, residual):
    """Write some rows of C to their places and finish them: what the tile did not do."""
    rows, q = (geo.rows, geo.q) if geo.phases > 1 else (1, geo.rows * geo.q)
    for outer in range(geo.outer_steps):
        image, row, column = j0 // (rows * q), j0 % (rows * q) // q, j0 % q
        done = 0
        while done < columns:
            count = min(q - column, columns - done)
            to, wide = column * geo.step, count * geo.step
            channels = m1 - m0
            if geo.phases > 1:
                result_row = tables[geo.result_row_at + outer * geo.rows + row]
                channels = m1 - m0 if result_row >= 0 else 0
                wide = min(wide, geo.result_width - to)
                to += result_row * geo.result_width
            to = to * geo.result_pixel + image * geo.groups * geo.m * geo.result_size
            to += (group * geo.m + m0) * geo.result_channel
            at = c0 + outer * geo.step * geo.ldc + done
            write_results(out, to, geo, geo.step, c, at, channels, wide, straight, activation, residual)
            done += count
            column = 0
            row += 1
            if row == rows:
                row = 0
                image += 1
