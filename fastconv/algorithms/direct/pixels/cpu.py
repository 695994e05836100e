"""The kernel of the forward direction and of the input gradient.

A task owns an area of positions of one image and some blocks of result channels.  Where no tap leaves the
image its pixels are read in place; else the rows under the area are copied into scratch with their padding,
pixel by pixel as they are.  Every phase of the result has its own list of pixels, and each block of
weights runs through it, a tile of pixels at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from fastconv import jit
from fastconv.activations import finish
from fastconv.algorithms.direct.pixels.frame import place
from fastconv.algorithms.direct.pixels.pack import HEAD, block_start
from fastconv.gemm.gathered import pixel_rows, tile_gathered
from fastconv.gemm.move import write_row
from fastconv.gemm.schedule import next_task, part, span


class Geometry(NamedTuple):
    """A pass and its blocks, as numbers."""

    n: int
    groups: int
    channels: int  # of the source, in a group
    m: int  #         result channels in a group
    sheets: int  #    positions along the axes, of each phase
    p: int
    q: int
    source_d: int
    source_h: int
    source_w: int
    stride_d: int
    stride_h: int
    stride_w: int
    first_d: int  #   source pixel of the first tap at position 0
    first_h: int
    first_w: int
    span_h: int  #    pixels from the first tap to the last
    span_w: int
    steps_d: int  #   phases of the result
    steps_h: int
    steps_w: int
    result_d: int
    result_h: int
    result_w: int
    row_blocks: int
    block_q: int
    q_blocks: int
    m_blocks: int
    copied: bool  #   whether rows are copied
    deep: int  #      sheets of the source that are copied for a sheet of results
    sheet: int  #     elements from sheet to sheet of the copy, or of the image
    pitch: int  #     elements from row to row
    pixel: int  #     elements from pixel to pixel
    scratch: int  #   elements of a worker
    pixels: int  #    of a full area
    registers: int
    chunk: int  #     weights that stay in L2
    repeats: bool  # whether what is around the image is the image
    framed: bool  #   whether results around the image are wanted too; where it lies among them (`frame.Box`)
    front: int
    above: int
    left: int
    inner_d: int
    inner_h: int
    inner_w: int
    sheets_at: int  # in the tables: [sheet that is copied][sheet of results] -> sheet of the source, or -1
    rows_at: int  #   [coordinate - first_h] -> row of the source, or -1
    edges_at: int  #  pairs (column outside of the source, the column that it repeats)
    edges: int


@jit.kernel
def correlate(
    workers,
    counters,
    x,
    packed,
    packings,
    out,
    around,
    scratch,
    lists,
    geos,
    tables,
    start,
    plain,
    activation,
    residual,
):
    """Compute a pass; tasks are images x groups x areas x blocks of result channels."""
    for worker in numba.prange(workers):
        _work(
            worker, counters, x, packed, packings[0], out, around, scratch, lists, geos[0], tables, start, plain,
            activation,
            residual,
        )  # fmt: skip


@jit.inner
def _work(
    worker, counters, x, packed, packing, out, around, scratch, lists, geo, tables, start, plain, activation, residual
):  # fmt: skip
    base = worker * geo.scratch
    sources = lists[3 * worker * geo.pixels : (3 * worker + 1) * geo.pixels]
    targets = lists[(3 * worker + 1) * geo.pixels : (3 * worker + 2) * geo.pixels]
    rows = lists[(3 * worker + 2) * geo.pixels : (3 * worker + 3) * geo.pixels]
    source = scratch if geo.copied else x
    areas = geo.row_blocks * geo.q_blocks
    tasks = geo.n * geo.groups * geo.sheets * areas * geo.m_blocks
    task = next_task(counters, worker, tasks)
    while task < tasks:
        rest, m_block = task // geo.m_blocks, task % geo.m_blocks
        rest, area = rest // areas, rest % areas
        plane, sheet = rest // geo.sheets, rest % geo.sheets
        image, group = plane // geo.groups, plane % geo.groups
        row_block, q_block = area // geo.q_blocks, area % geo.q_blocks
        p0, p1 = span(geo.p, geo.row_blocks, row_block)
        q0 = q_block * geo.block_q
        q1 = min(q0 + geo.block_q, geo.q)
        if geo.copied:
            for depth in range(geo.deep):
                copy_rows(
                    scratch, base + depth * geo.sheet, x, first_row(image, depth, sheet, geo, tables),
                    geo.rows_at + p0 * geo.stride_h, (p1 - p0 - 1) * geo.stride_h + geo.span_h, group * geo.channels,
                    geo.channels, q0, q1, geo, tables,
                )  # fmt: skip
            at = base
        else:
            row = image * geo.source_d + sheet * geo.stride_d + geo.first_d
            row = row * geo.source_h + p0 * geo.stride_h + geo.first_h
            at = (row * geo.source_w + q0 * geo.stride_w + geo.first_w) * geo.pixel + group * geo.channels
        parts = 2 if geo.framed else 1
        for number in range(parts * geo.steps_d * geo.steps_h * geo.steps_w):
            phase, outside = number // parts, number % parts == 1
            count = _list_pixels(
                sources, targets, rows, at, image, group, phase, outside, sheet, p0, p1, q0, q1, geo
            )
            _multiply(
                around if outside else out, targets, rows, source, sources, count, packed, packing, geo, tables, start,
                group, phase, m_block, sheet, plain or outside, activation, residual,
            )  # fmt: skip
        task = next_task(counters, worker, tasks)


@jit.inner
def first_row(image, depth, sheet, geo, tables):
    """Return the first row, of all in x, of a sheet that is copied for a sheet of results; -1 outside of the image."""
    under = tables[geo.sheets_at + depth * geo.sheets + sheet]
    return (image * geo.source_d + under) * geo.source_h if under >= 0 else -1


@jit.inner
def copy_rows(scratch, base, x, row0, rows_at, rows, first, count, q0, q1, geo, tables):
    """Copy ``count`` channels of the rows under an area, with zeros outside the image or what stands there.

    They are ``tables[rows_at : rows_at + rows]``, counted from ``row0``.
    """
    left = q0 * geo.stride_w + geo.first_w
    width = (q1 - q0 - 1) * geo.stride_w + geo.span_w
    lo = min(max(0, -left), width)
    hi = max(lo, min(width, geo.source_w - left))
    channels = geo.groups * geo.channels
    for i in range(rows):
        row = tables[rows_at + i]
        to = base + i * geo.pitch
        if row < 0 or row0 < 0:
            scratch[to : to + width * geo.pixel] = 0
            continue
        scratch[to : to + lo * geo.pixel] = 0
        scratch[to + hi * geo.pixel : to + width * geo.pixel] = 0
        line = (row0 + row) * geo.source_w
        at = (line + left + lo) * channels + first
        if count == channels == geo.pixel:
            write_row(scratch, to + lo * count, x, at, (hi - lo) * count)
        else:
            for w in range(hi - lo):
                write_row(scratch, to + (lo + w) * geo.pixel, x, at + w * channels, count)
        for edge in range(geo.edges_at, geo.edges_at + 2 * geo.edges, 2):
            w = tables[edge] - left
            if 0 <= w < width:
                at = (line + tables[edge + 1]) * channels + first
                write_row(scratch, to + w * geo.pixel, x, at, count)


@jit.inner
def _list_pixels(sources, targets, rows, at, image, group, phase, outside, sheet, p0, p1, q0, q1, geo):
    """List where the pixels of a phase are read and written, in or outside of the image, and their row; return their number."""
    phase_h, phase_w = phase // geo.steps_w % geo.steps_h, phase % geo.steps_w
    width, inner = geo.groups * geo.m, geo.inner_d * geo.inner_h * geo.inner_w
    size = geo.result_d * geo.result_h * geo.result_w - inner if outside else inner
    to = image * size * width + group * geo.m
    sheet = phase // geo.steps_w // geo.steps_h + sheet * geo.steps_d
    n = 0
    if sheet >= geo.result_d:
        return n
    for p in range(p0, p1):
        row = phase_h + p * geo.steps_h
        if row >= geo.result_h:
            continue
        source = at + (p - p0) * geo.stride_h * geo.pitch
        for q in range(q0, q1):
            column = phase_w + q * geo.steps_w
            number = place(sheet, row, column, geo.result_h, geo.result_w, geo)
            if column < geo.result_w and (number < 0) == outside:
                sources[n] = source + (q - q0) * geo.stride_w * geo.pixel
                targets[n] = to + (-1 - number if outside else number) * width
                rows[n] = p
                n += 1
    return n


@jit.inner
def _rows_of_taps(tables, at, rows, sheet, first, last, geo):
    """Return which of a phase's rows of taps, from the first to the last, meet the image under some rows of a sheet."""
    lo, hi = 0, rows
    if geo.repeats:
        return lo, hi
    while lo < hi and _misses(tables, at + 2 * lo, sheet, first, last, geo):
        lo += 1
    while lo < hi and _misses(tables, at + 2 * hi - 2, sheet, first, last, geo):
        hi -= 1
    return lo, hi


@jit.inner
def _misses(tables, at, sheet, first, last, geo):
    """Tell whether a row of taps meets nothing but padding."""
    d, h = sheet * geo.stride_d + tables[at], tables[at + 1]
    return (
        d < 0 or d >= geo.source_d or last * geo.stride_h + h < 0 or first * geo.stride_h + h >= geo.source_h
    )


@jit.inner
def _multiply(
    out, targets, rows, source, sources, count, packed, packing, geo, tables, start, group, phase, m_block, sheet,
    plain, activation, residual,
):  # fmt: skip
    """Compute the listed pixels of a phase, block by block of result channels.

    Where there are tiles enough to share them, weights come to L2 in pieces: some runs, or a part of one.  Rows of
    taps that meet nothing but padding under all pixels of a tile are left out.
    """
    entry = HEAD * phase
    runs, runs_at, taps = tables[entry], tables[entry + 1], tables[entry + 2]
    before, down, down_at = tables[entry + 3], tables[entry + 4], tables[entry + 5]
    in_down = runs // max(1, down)
    length = max(1, geo.channels * (taps // max(1, runs)))
    no_bias = start[:0]
    for block in range(
        part(packing.blocks, geo.m_blocks, m_block), part(packing.blocks, geo.m_blocks, m_block + 1)
    ):
        v = part(packing.vectors, packing.blocks, block)
        nr = part(packing.vectors, packing.blocks, block + 1) - v
        tiles = -(-count // pixel_rows(geo.registers, nr))
        k = v * packing.vl
        columns = min(nr * packing.vl, geo.m - k)
        b0 = block_start(packing, group, block) + before * geo.channels * nr * packing.vl
        s0 = group * packing.vectors * packing.vl + k
        steps = geo.chunk // (nr * packing.vl) if tiles > 2 else length * runs
        parts = -(-length // max(1, steps))  # of a run, or
        chunks = max(1, -(-runs // max(1, steps // length)) if parts == 1 else runs)
        pieces = max(1, chunks * parts)
        for piece in range(pieces):
            run0, run1 = span(runs, chunks, piece // parts)
            t, t_end = span(length, parts, piece % parts)
            for i in range(tiles):
                first = part(count, tiles, i)
                mr = part(count, tiles, i + 1) - first
                lo, hi = _rows_of_taps(tables, down_at, down, sheet, rows[first], rows[first + mr - 1], geo)
                lo, hi = max(run0, lo * in_down), min(run1, hi * in_down)
                if lo < hi or piece == 0:
                    tile_gathered(
                        out, targets, k, columns, source, t, sources, first, tables, runs_at + lo, hi - lo,
                        t_end - t, packed, b0 + (lo * length + t) * nr * packing.vl,
                        start, s0, mr, nr, geo.stride_w * geo.pixel, piece > 0,
                    )  # fmt: skip
                if not plain and piece == pieces - 1:
                    for row in range(first, first + mr):
                        at = targets[row] + k
                        finish(out, at, columns, no_bias, np.int64(0), activation, residual, at)
