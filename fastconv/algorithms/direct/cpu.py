"""The kernels of direct convolution: the tile runs over shifted views of a padded stripe of the input.

A task owns some result rows of one image and a block of result channels.  For each chunk of channels it
copies the source rows it needs into scratch once, with the padding and split by phase of the stride, so that pixel (row, q) of every tap is at ``row*pitch + q`` from where the tap begins:

    stripe[channel][row phase][column phase][row][pitch]     source pixel of (phase, i) = i*stride + phase + first

Nothing is lowered: the rows of matrix B are these views, found through a table of steps for each phase of
the result (`correlation`).  A tile's columns run on from row to row where that wastes fewer lanes (``runs = 1``: the pitch - q pixels
between rows are computed and dropped), else each row is a run of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numba

from fastconv import jit
from fastconv.activations import finish
from fastconv.gemm.move import stream_row, weave_row
from fastconv.gemm.pack import load_panel
from fastconv.gemm.schedule import next_task, part
from fastconv.gemm.segments import add_edges, add_segment, copy_pixels, copy_segments
from fastconv.gemm.tile import tile_indexed


class Geometry(NamedTuple):
    """A pass and its blocks, as numbers; the tables begin with the steps of its phases."""

    n: int
    groups: int
    channels: int  # of the source, in a group
    m: int  #         result channels in a group
    p: int  #         result rows and columns of a phase
    q: int
    source_h: int
    source_w: int
    stride_h: int
    stride_w: int
    first_h: int  #   source row of (phase 0, row 0) for result row 0
    first_w: int
    phases_h: int  #  phases of the stride that taps use
    phases_w: int
    stripe_rows: int  # rows of a phase in the stripe of a full block
    pitch: int
    phase_size: int  # rows * pitch, and what the last row writes too much
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
    ld: int  #        row length of C for one phase
    panel: int  #     where the panel of weights and C begin in a worker's scratch
    c_start: int
    scratch: int
    segments: int  #  numbers in a worker's list,
    pixels: int  #    and where their number and the pixels of the border begin in it
    phases_at: int  # where tables begin: [phase of the result] -> (taps, where its steps begin)
    phase_h_at: int  # [phase in use] -> phase
    phase_w_at: int
    source_row_at: int  # [row, counted from the first] -> row of the source, or -1
    edges_at: int  #      what `add_edges` reads, by column phase
    result_row_at: int  # [phase, row] -> row of the result, or -1
    stream: bool  #  whether the result is written past the caches
    vl: int
    mr: int
    nr: int


@jit.kernel
def correlate(workers, counter, x, w, views, out, scratch, lists, geos, tables, bias, activation, residual):
    """Compute a pass; tasks are images x groups x row blocks x channel blocks."""
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
    blocks = geo.row_blocks * geo.q_blocks
    ldc = geo.steps_h * geo.steps_w * geo.ld
    tasks = geo.n * geo.groups * blocks * geo.m_blocks
    task = next_task(counter)
    while task < tasks:
        block, m_block = task // geo.m_blocks, task % geo.m_blocks
        plane, block = block // blocks, block % blocks
        image, group = plane // geo.groups, plane % geo.groups
        area = area_of(geo, block)
        first = part(panels, geo.m_blocks, m_block)
        last = part(panels, geo.m_blocks, m_block + 1)
        n = plan_stripe(segments, area, geo, tables)
        for chunk in range(geo.chunks):
            ch0, ch1 = part(geo.channels, geo.chunks, chunk), part(geo.channels, geo.chunks, chunk + 1)
            source = (image * geo.groups + group) * geo.channels + ch0
            fill(scratch, b0, x, source, ch1 - ch0, geo, segments, n)
            for p in range(first, last):
                load_panel(scratch, b0 + geo.panel, w, view, group, p, panels, ch0, ch1)
                m0 = part(geo.m, panels, p)
                at = c0 + (m0 - part(geo.m, panels, first)) * ldc
                mr = part(geo.m, panels, p + 1) - m0
                multiply(scratch, at, b0 + geo.panel, b0, geo, tables, area, ch1 - ch0, mr, chunk > 0)
        store(
            scratch, c0, out, geo, tables, image, group, area, first, last, panels, bias, activation, residual
        )
        task = next_task(counter)


@jit.inner
def area_of(geo, block):
    """Return (first row, rows, first column, columns) of a block of results."""
    row_block, q_block = block // geo.q_blocks, block % geo.q_blocks
    p0 = part(geo.p, geo.row_blocks, row_block)
    q0 = q_block * geo.block_q
    return p0, part(geo.p, geo.row_blocks, row_block + 1) - p0, q0, min(geo.block_q, geo.q - q0)


@jit.inner
def plan_stripe(segments, area, geo, tables):
    """List the segments of a channel, and the pixels of its border, of the stripe under an area of results."""
    p0, rows, q0, _ = area
    split = geo.stride_w == geo.phases_w == 2
    pixels = segments[geo.pixels + 1 :]
    n = m = 0
    for i in range(geo.phases_h):
        for k in range(1 if split else geo.phases_w):
            to = (i * geo.phases_w + k) * geo.phase_size
            # in pixels of the source if split, else in positions of this phase
            first = geo.first_w + q0 * geo.stride_w + tables[geo.phase_w_at + k]
            stride = 1 if split else geo.stride_w
            lo, hi = max(0, -(first // stride)), (geo.source_w - 1 - first) // stride + 1
            for row in range(rows + geo.stripe_rows - geo.block_rows):
                h = tables[geo.source_row_at + (p0 + row) * geo.stride_h + tables[geo.phase_h_at + i]]
                source = 0 if h < 0 else h * geo.source_w + first
                n = add_segment(segments, n, to, source, geo.pitch, lo, lo if h < 0 else hi)
                for phase in range(k, geo.phases_w if split else k + 1):
                    if h >= 0:
                        at = to + (phase - k) * geo.phase_size
                        m = add_edges(
                            pixels, m, at, h * geo.source_w, q0, geo.pitch, tables, geo.edges_at, phase
                        )
                to += geo.pitch
    segments[geo.pixels] = m
    return n


@jit.inner
def fill(b, b0, x, source, channels, geo, segments, n):
    """Copy the segments of some channels, and the pixels of their border, into the stripe."""
    pixels = segments[geo.pixels + 1 :]
    split = geo.stride_w == geo.phases_w == 2
    size, step = geo.source_h * geo.source_w, geo.phases_h * geo.phases_w * geo.phase_size
    for c in range(channels):
        at = b0 + c * step
        copy_segments(
            b, at, x, (source + c) * size, segments, n, geo.stride_w, geo.phase_size if split else 0
        )
        copy_pixels(b, at, x, (source + c) * size, pixels, 0, segments[geo.pixels])


@jit.inner
def multiply(scratch, c0, a0, b0, geo, tables, area, channels, mr, more):
    """C (+)= panel * the stripe, for every phase."""
    _, rows, _, columns = area
    runs = 1 if geo.flattened else rows
    width = (rows - 1) * geo.pitch + columns if geo.flattened else columns
    vectors = -(-width // geo.vl)
    groups = -(-vectors // geo.nr)
    phases = geo.steps_h * geo.steps_w
    for phase in range(phases):
        length, steps = channels * tables[geo.phases_at + 2 * phase], tables[geo.phases_at + 2 * phase + 1]
        for run in range(runs):
            for g in range(groups):
                v = part(vectors, groups, g)
                nr = part(vectors, groups, g + 1) - v
                tile_indexed(
                    scratch, c0 + phase * geo.ld + (run * vectors + v) * geo.vl, phases * geo.ld, scratch, a0,
                    scratch, b0 + run * geo.pitch + v * geo.vl, tables, steps, length, mr, nr, more,
                )  # fmt: skip


@jit.inner
def store(c, c0, out, geo, tables, image, group, area, first, last, panels, bias, activation, residual):
    """Finish the rows of C, weave their phases and write them to their places in the result.

    With a residual they are finished there, where its elements stand in the same order.
    """
    p0, rows, q0, columns = area
    pitch = geo.pitch if geo.flattened else -(-columns // geo.vl) * geo.vl
    top = part(geo.m, panels, first)
    phases = geo.steps_h * geo.steps_w
    at = c0
    to_w = q0 * geo.steps_w
    count = min(columns * geo.steps_w, geo.result_w - to_w)
    for m in range(top, part(geo.m, panels, last)):
        channel = group * geo.m + m
        plane = (image * geo.groups * geo.m + channel) * geo.result_size
        for _ in range(phases):
            if not residual.size:
                finish(c, at, (rows - 1) * pitch + columns, bias, channel, activation, residual, 0)
            at += geo.ld
        for phase in range(geo.steps_h):
            phase_at = at + (phase - geo.steps_h) * geo.steps_w * geo.ld
            for row in range(rows):
                result_row = tables[geo.result_row_at + phase * geo.p + p0 + row]
                if result_row >= 0:
                    to = plane + result_row * geo.result_w + to_w
                    if geo.stream and not residual.size:
                        stream_row(out, to, c, phase_at + row * pitch, count)
                    else:
                        weave_row(out, to, c, phase_at + row * pitch, geo.ld, geo.steps_w, count)
                    if residual.size:
                        finish(out, to, count, bias, channel, activation, residual, to)
