"""The kernels of direct convolution: the tile runs over shifted views of a padded stripe of the input.

A task owns some result rows of one image and a block of result channels.  For each chunk of channels it
copies the source rows it needs into scratch once, with the padding and split by phase of the stride, so that
pixel (row, q) of every tap is at ``row*pitch + q`` from where the tap begins:

    stripe[channel][row phase][column phase][row][pitch]     source pixel of (phase, i) = i*stride + phase + first

A result of a volume reads several sheets of the source: the row phases of all of them count as row phases.
Where a block of results reads no padding and at stride 1, that is the source itself, which is then read in place.  Images
held pixel by pixel are turned to rows as they are copied, and results as they are stored: where those have few channels.
Nothing is lowered: the rows of matrix B are these views, found through a table of steps for each phase of
the result (`passes`).  A tile's columns run on from row to row where that wastes fewer lanes (``runs = 1``: the
pitch - q pixels between rows are computed and dropped), else each row is a run of its own.  Each slice of a run, as wide as the
tile, is multiplied by every panel of the weights: its views stay in L1 while the weights stream from L2.
"""

from __future__ import annotations

from typing import NamedTuple

import numba

from fastconv import jit
from fastconv.gemm.move import to_boundary
from fastconv.gemm.pack import load_panels
from fastconv.gemm.result import multiply_panels
from fastconv.gemm.schedule import next_task, part, span
from fastconv.gemm.segments import add_edges, add_segment, copy_channels, copy_pixels, copy_segments
from fastconv.gemm.weave import write_results


class Geometry(NamedTuple):
    """A pass and its blocks, as numbers; the tables begin with the steps of its phases."""

    n: int
    groups: int
    channels: int  # of the source, in a group
    m: int  #         result channels in a group
    sheets: int  #    of results along the first of three axes, of a phase
    p: int  #         result rows in a sheet and columns of a phase
    q: int
    source_h: int  #  rows of all sheets
    source_w: int
    source_channel: int  # elements from channel to channel, and from pixel to pixel: 1 but in images held so
    source_pixel: int
    stride_h: int
    stride_w: int
    first_h: int  #   source row of (phase 0, row 0) for result row 0
    first_w: int
    phases_h: int  #  phases of the stride that taps use, of each sheet that they reach
    phases_w: int
    split: bool  #    whether one pass over a row splits it
    stripe_rows: int  # rows of a phase in the stripe of a full block
    pitch: int
    phase_size: int  # rows * pitch, and what the last row writes too much
    channel_size: int  # of all phases
    block_rows: int  # result rows of a task, and columns: a long row is cut
    block_q: int
    flattened: bool  # whether tiles run on from row to row
    row_blocks: int
    q_blocks: int
    m_blocks: int
    chunks: int  #    of channels
    steps_h: int  #   phases of the result
    steps_w: int
    result_w: int
    result_size: int
    result_channel: int  # as of the source
    result_pixel: int
    phases: int
    ld: int  #        columns of a slice
    ldc: int  #       row length of C for one phase: a slice, or of phases all that are woven
    panel: int  #     where panels of weights begin in a worker's scratch
    c_start: int  #   and C
    scratch: int
    segments: int  #  numbers in a worker's list,
    pixels: int  #    and where their number and the pixels of the border begin in it
    phases_at: int  # where tables begin: [phase of the result, or in place] -> (taps, where its steps begin)
    phase_h_at: int  # [phase in use] -> where its rows begin in a sheet's table
    phase_w_at: int
    source_row_at: int  # [sheet of results][row of each sheet that it reads] -> row of the source, or -1
    sheet_rows: int  # of a sheet of results in this table
    edges_at: int  #      what `add_edges` reads, by column phase
    result_row_at: int  # [phase, sheet and row] -> row of the result, or -1
    near: bool  #    whether blocks within the source read it in place
    stream: bool  #  whether the result is written past the caches by tiles,
    past_caches: bool  # and when it is woven
    vl: int
    mr: int
    nr: int


@jit.kernel
def correlate(workers, counters, x, w, views, out, scratch, lists, geos, tables, bias, activation, residual):
    """Compute a pass; tasks are images x groups x sheets x row blocks x channel blocks."""
    for worker in numba.prange(workers):
        _work(
            worker, counters, x, w, views[0], out, scratch, lists, geos[0], tables, bias, activation, residual
        )


@jit.inner
def _work(worker, counters, x, w, view, out, scratch, lists, geo, tables, bias, activation, residual):
    segments = lists[worker * geo.segments : (worker + 1) * geo.segments]
    b0 = worker * geo.scratch
    panels = -(-geo.m // geo.mr)
    blocks = geo.sheets * geo.row_blocks * geo.q_blocks
    lead = -to_boundary(out, 0) % geo.vl if geo.stream else 0  # then vectors of columns are those of memory
    tasks = geo.n * geo.groups * blocks * geo.m_blocks
    task = next_task(counters, worker, tasks)
    while task < tasks:
        block, m_block = task // geo.m_blocks, task % geo.m_blocks
        plane, block = block // blocks, block % blocks
        image, group = plane // geo.groups, plane % geo.groups
        if geo.source_pixel > 1:  # which all groups share
            plane, group = task // geo.m_blocks // geo.groups, task // geo.m_blocks % geo.groups
            image, block = plane // blocks, plane % blocks
        result = (image * geo.groups * geo.result_size + group * geo.result_channel) * geo.m
        area = area_of(geo, block)
        p0, p1 = span(panels, geo.m_blocks, m_block)
        m0, m1 = part(geo.m, panels, p0), part(geo.m, panels, p1)
        runs, width = runs_of(geo, area)
        vectors = -(-(width + lead) // geo.vl)
        whole = vectors * geo.vl
        slices = -(-vectors // geo.nr)
        near = geo.near > 0 and is_within(geo, area, width)
        n = 0 if near else plan_stripe(segments, area, geo, tables)
        for chunk in range(geo.chunks):
            ch0, ch1 = span(geo.channels, geo.chunks, chunk)
            source = image * geo.groups * geo.channels * geo.source_h * geo.source_w
            source += (group * geo.channels + ch0) * geo.source_channel
            if near:
                begin = source + (area[0] + geo.first_h) * geo.source_w + area[2] + geo.first_w
            else:
                begin = b0
                fill(scratch, b0, x, source, ch1 - ch0, geo, segments, n)
            load_panels(scratch, b0 + geo.panel, w, view, group, p0, p1, panels, ch0, ch1)
            for i in range(runs * slices):
                run, j = i // slices, i % slices
                j0 = max(0, part(vectors, slices, j) * geo.vl - lead)
                columns = min(width, part(vectors, slices, j + 1) * geo.vl - lead) - j0
                beyond = j0 + -(-columns // geo.vl) * geo.vl - width
                if near and beyond > 0:  # again what is before, so that whole vectors end with the source
                    j0 -= beyond
                    columns += beyond
                row, q = (j0 // geo.pitch, j0 % geo.pitch) if geo.flattened else (run, j0)
                straight = chunk == geo.chunks - 1 and geo.phases == 1 and q + columns <= area[3]
                straight = straight and geo.result_pixel == 1
                place = result + m0 * geo.result_channel
                kept = i if geo.chunks > 1 else 0
                c0 = b0 + geo.c_start + (run * whole + j0 if geo.phases > 1 else kept * (m1 - m0) * geo.ldc)
                done = multiply_panels(
                    None, geo.ld if near else 0, 0, None, 0, w, view, out, scratch, b0 + geo.panel, x if near else scratch,
                    begin + run * geo.pitch + j0, c0, geo, geo.phases_at + 2 * near, tables, group, chunk, p0, p1, columns,
                    straight, place + (area[0] + row) * geo.result_w + area[2] + q, -1, True, True, bias, activation, residual,
                )  # fmt: skip
                if not done and geo.phases == 1:
                    store(
                        scratch, c0, out, geo, tables, place, m1 - m0, area, row, q, columns, straight,
                        activation, residual,
                    )  # fmt: skip
        # some channels at a time: of each what follows in memory, for pieces of rows take three times as long
        for p in range(p0, p1 if geo.phases > 1 else p0):
            k0, k1 = span(geo.m, panels, p)
            for run in range(runs):
                c = b0 + geo.c_start + (k0 - m0) * geo.phases * geo.ldc + run * whole
                place = result + k0 * geo.result_channel
                store(
                    scratch, c, out, geo, tables, place, k1 - k0, area, run, 0, width,
                    False, activation, residual,
                )  # fmt: skip
        task = next_task(counters, worker, tasks)


@jit.inner
def area_of(geo, block):
    """Return (first row, rows, first column, columns) of a block of results."""
    row_block, q_block = block // geo.q_blocks, block % geo.q_blocks
    sheet, row_block = row_block // geo.row_blocks, row_block % geo.row_blocks
    p0 = part(geo.p, geo.row_blocks, row_block)
    rows = part(geo.p, geo.row_blocks, row_block + 1) - p0
    q0 = q_block * geo.block_q
    return sheet * geo.p + p0, rows, q0, min(geo.block_q, geo.q - q0)


@jit.inner
def is_within(geo, area, width):
    """Tell whether an area reads source pixels alone, in rows as far apart as the stripe's; runs are whole vectors wide."""
    top, left = area[0] + geo.first_h, area[2] + geo.first_w
    bottom, right = top + area[1] + geo.stripe_rows - geo.block_rows, left + area[3] + geo.pitch - geo.block_q
    inside = min(top, left) >= 0 and bottom <= geo.source_h and right <= geo.source_w
    return inside and width >= geo.nr * geo.vl and (bottom - top == 1 or geo.pitch == geo.source_w)


@jit.inner
def plan_stripe(segments, area, geo, tables):
    """List the segments of a channel, and the pixels of its border, of the stripe under an area of results."""
    p0, rows, q0, _ = area
    sheet, p0 = p0 // geo.p, p0 % geo.p
    pixels, split = segments[geo.pixels + 1 :], geo.split > 0
    n = m = 0
    for i in range(geo.phases_h):
        for k in range(1 if split else geo.phases_w):
            to = (i * geo.phases_w + k) * geo.phase_size
            # in pixels of the source if split, else in positions of this phase
            first = geo.first_w + q0 * geo.stride_w + tables[geo.phase_w_at + k]
            stride = 1 if split else geo.stride_w
            lo, hi = max(0, -(first // stride)), (geo.source_w - 1 - first) // stride + 1
            row_at = geo.source_row_at + sheet * geo.sheet_rows + tables[geo.phase_h_at + i]
            for row in range(rows + geo.stripe_rows - geo.block_rows):
                h = tables[row_at + (p0 + row) * geo.stride_h]
                line = h * geo.source_w * geo.source_pixel
                source = 0 if h < 0 else line + first * geo.source_pixel
                n = add_segment(segments, n, to, source, geo.pitch, lo, lo if h < 0 else hi)
                for phase in range(k, geo.phases_w if split else k + 1):
                    if h >= 0:
                        at = to + (phase - k) * geo.phase_size
                        m = add_edges(pixels, m, at, line, q0, geo.pitch, tables, geo.edges_at, phase)
                to += geo.pitch
    segments[geo.pixels] = m
    return n


@jit.inner
def fill(b, b0, x, source, channels, geo, segments, n):
    """Copy the segments of some channels, and the pixels of their border, into the stripe."""
    pixels, edges, step = segments[geo.pixels + 1 :], segments[geo.pixels], geo.channel_size
    if geo.source_pixel > 1:
        copy_channels(b, b0, step, x, source, 1, channels, segments, n, geo.stride_w * geo.source_pixel)
    for c in range(channels):
        at, begin = b0 + c * step, source + c * geo.source_channel
        if geo.source_pixel == 1:
            copy_segments(b, at, x, begin, segments, n, geo.stride_w, geo.phase_size if geo.split else 0)
        copy_pixels(b, at, x, begin, pixels, 0, edges)


@jit.inner
def runs_of(geo, area):
    """Return in how many runs tiles go over an area, and how many columns a run has."""
    _, rows, _, columns = area
    return (1, (rows - 1) * geo.pitch + columns) if geo.flattened else (rows, columns)


@jit.inner
def store(c, c0, out, geo, tables, place, channels, area, row, q, columns, straight, activation, residual):
    """Weave the phases of some rows of C and write them to their places, unless they are there already.

    ``place`` is that of the first channel's first pixel; their columns begin at ``q`` of an area's ``row``.
    """
    done = 0
    while done < columns:
        count = min(columns - done, area[3] - q)  # less than one between rows
        to_w = (area[2] + q) * geo.steps_w
        wide = min(count * geo.steps_w, geo.result_w - to_w)
        for phase in range(geo.steps_h if wide > 0 else 0):
            result_row = tables[geo.result_row_at + phase * geo.sheets * geo.p + area[0] + row]
            to = place + (result_row * geo.result_w + to_w) * geo.result_pixel
            at = c0 + phase * geo.steps_w * geo.ldc + done
            some = channels if result_row >= 0 else 0
            write_results(out, to, geo, geo.steps_w, c, at, some, wide, straight, activation, residual)
        done += geo.pitch - q
        q = 0
        row += 1
