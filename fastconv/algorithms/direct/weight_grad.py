"""The weight gradient with nothing lowered: every tap reads the same pixels from another beginning.

    gw[k, tap, c] = sum over pixels of  gy[pixel, k] * x[pixel*stride + offset(tap), c]

A step of the tile is a pixel: it broadcasts channels of gy, wherever they stand, against vectors of channels of
x, which have to be neighbours.  So they are in images held pixel by pixel; others are turned area by area
(`gemm/turn.py`).  A task owns a block of (k, c) for all taps, and a part of the pixels.  In a volume it has the taps
of one sheet of the kernel: with them, a sheet of gy meets one sheet of x.

Where few channels would leave lanes idle, the taps of a row of the kernel, whose pixels are neighbours, are taken
for channels: (s, c) together; or those of several groups are, and of all their products the ones within a group kept.
Of images held pixel by pixel, gy has its channels side by side, too: where these fill vectors better, the others are broadcast.
"""

from __future__ import annotations

import functools
from math import prod
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import jit, machine, threads, workspace
from fastconv.algorithms.base import Execution, flat, pixels
from fastconv.algorithms.direct.cost import PIXELS, TASKS, cut, mergeable, over_results
from fastconv.algorithms.direct.pixels.correlation import leaves
from fastconv.algorithms.direct.pixels.cpu import copy_rows
from fastconv.algorithms.passes import ONE_ROW, AxisPass, Pass, combined, pass_of
from fastconv.gemm.gathered import tile_over_pixels
from fastconv.gemm.move import SLACK
from fastconv.gemm.record import joined as joined_tables
from fastconv.gemm.record import record
from fastconv.gemm.schedule import next_task, part, span
from fastconv.gemm.splits import add_splits
from fastconv.gemm.transposition import transpose
from fastconv.gemm.turn import turn_area
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array


class Geometry(NamedTuple):
    """A weight gradient and its blocks, as numbers."""

    n: int
    groups: int
    channels: int  # of x, in a group
    m: int  #         channels of gy in a group
    deep: int  #      sheets of the kernel
    sheets: int  #    of results
    p: int  #         rows in a sheet
    q: int
    source_h: int  #  rows of all sheets
    source_w: int
    stride_h: int
    stride_w: int
    first_w: int  #   pixel of the first tap at position 0
    span_h: int
    span_w: int
    row_blocks: int
    block_q: int
    q_blocks: int
    c_blocks: int
    m_blocks: int
    splits: int
    taps: int  #      of a sheet of the kernel
    runs: int  #      of taps: rows of the kernel, or each tap
    joined: bool  #   whether a run is a row of the kernel
    over_k: bool  #   whether lanes are channels of gy, and (s, c) are broadcast
    high: int  #      rows of C: channels of gy; or of a run
    vectors: int  #   of channels, or of (s, c); or of channels of gy
    merged: int  #    groups taken for one
    planar: bool  #   whether images are held channel by channel
    copied: bool
    pitch: int
    pixel: int
    row_step: int  #  rows of a copied area from one row of results to the next
    rows_at: (
        int  # behind the offsets of runs: [sheet of the kernel][of results][row under it] -> row of x, or -1
    )
    under: int  #   rows under a sheet of results
    edges_at: int  #  pairs (column outside of x, the column that it repeats)
    edges: int
    ld: int  #        row length of C,
    c_row: int  #     and elements from row to row, and from run to run
    c_run: int
    apart: int  #     elements between channels of what is broadcast,
    a_step: int  #    and between pixels of it, and of what is vectors
    b_step: int
    c_start: int
    scratch: int
    rows: int  #      of a full area
    mr: int
    nr: int
    vl: int


@jit.kernel
def accumulate(workers, counters, x, gy, partial, scratch, lists, geos, tables):
    """Compute every split's partial gw; tasks are splits x groups x sheets of the kernel x blocks of (k, c)."""
    for worker in numba.prange(workers):
        _work(worker, counters, x, gy, partial, scratch, lists, geos[0], tables)


@jit.inner
def _work(worker, counters, x, gy, partial, scratch, lists, geo, tables):
    base = worker * geo.scratch
    c0 = base + geo.c_start
    rows = lists[2 * worker * geo.rows : 2 * (worker + 1) * geo.rows]
    source = scratch if geo.planar or geo.copied else x
    a, b = (source, gy) if geo.over_k else (gy, source)
    of_x, of_gy = (0, 1) if geo.over_k else (1, 0)
    panels = -(-geo.high // geo.mr)
    areas = geo.row_blocks * geo.q_blocks
    tasks = geo.splits * geo.groups * geo.deep * geo.c_blocks * geo.m_blocks
    task = next_task(counters, worker, tasks)
    while task < tasks:
        rest, m_block = task // geo.m_blocks, task % geo.m_blocks
        rest, c_block = rest // geo.c_blocks, rest % geo.c_blocks
        rest, depth = rest // geo.deep, rest % geo.deep
        split, group = rest // geo.groups, rest % geo.groups
        v0, v1 = span(geo.vectors, geo.c_blocks, c_block)
        ch0 = v0 * geo.vl
        channels = geo.channels if geo.c_blocks == 1 else min(v1 * geo.vl, geo.channels) - ch0
        first, last = span(panels, geo.m_blocks, m_block)
        k0, k1 = part(geo.high, panels, first), part(geo.high, panels, last)
        every = geo.n * geo.sheets * areas
        begin = part(every, geo.splits, split)
        for i in range(begin, part(every, geo.splits, split + 1)):
            image, row_block, q_block = i // areas, i % areas // geo.q_blocks, i % geo.q_blocks
            image, sheet = image // geo.sheets, image % geo.sheets
            p0, p1 = span(geo.p, geo.row_blocks, row_block)
            q0 = q_block * geo.block_q
            q1 = min(q0 + geo.block_q, geo.q)
            right = q0 * geo.stride_w + geo.first_w
            under = geo.rows_at + (depth * geo.sheets + sheet) * geo.under + p0 * geo.row_step
            high = (p1 - p0 - 1) * geo.row_step + geo.span_h
            if i > begin and geo.deep > 1 and _misses(tables, under, high):
                continue
            x0 = base
            if geo.planar:
                plane = ((image * geo.groups + group) * geo.channels + ch0) * geo.source_h * geo.source_w
                turn_area(
                    scratch, base, geo.pitch, geo.pixel, x, plane, channels, geo.source_h, geo.source_w, tables,
                    under, high, geo.edges_at, geo.edges, right, (q1 - q0 - 1) * geo.stride_w + geo.span_w,
                )  # fmt: skip
            elif geo.copied:
                copy_rows(
                    scratch, base, x, image * geo.source_h, under, high, group * geo.channels + ch0, channels, q0, q1,
                    geo, tables,
                )  # fmt: skip
            else:
                row = image * geo.source_h + tables[under]
                x0 = (row * geo.source_w + right) * geo.pixel + group * geo.channels + ch0
            for p in range(p0, p1):
                if geo.planar:
                    at = ((image * geo.groups + group) * geo.m * geo.sheets + sheet) * geo.p + p
                    at = at * geo.q + q0
                else:
                    at = ((image * geo.sheets + sheet) * geo.p + p) * geo.q + q0
                    at = (at * geo.groups + group) * geo.m
                rows[2 * (p - p0) + of_gy] = at
                rows[2 * (p - p0) + of_x] = x0 + (p - p0) * geo.row_step * geo.pitch
            for panel in range(first, last):
                m0 = part(geo.high, panels, panel)
                mr = part(geo.high, panels, panel + 1) - m0
                _multiply(
                    scratch, c0 + (m0 - k0) * geo.c_row, a, m0 * geo.apart, b, rows, p1 - p0, q1 - q0, mr, v1 - v0,
                    i > begin, geo, tables,
                )  # fmt: skip
        _store(partial, split, group, depth, k0, ch0, scratch, c0, k1 - k0, channels, geo)
        task = next_task(counters, worker, tasks)


@jit.inner
def _misses(rows, first, count):
    """Tell whether rows of x are all outside of it, as those of a sheet are."""
    met = 0
    for row in rows[first : first + count]:
        met += row >= 0
    return met == 0


@jit.inner
def _multiply(c, c0, a, a0, b, rows, count, length, mr, vectors, more, geo, tables):
    """C[run][mr][vectors] (+)= a * b over the rows of an area, run by run: one of the two is x, from where a run begins."""
    blocks = -(-vectors // geo.nr)
    for run in range(geo.runs):
        a_run, b_run = (tables[run], 0) if geo.over_k else (0, tables[run])
        for block in range(blocks):
            v = part(vectors, blocks, block)
            nr = part(vectors, blocks, block + 1) - v
            tile_over_pixels(
                c, c0 + run * geo.c_run + v * geo.vl, geo.c_row, a, a0 + a_run, geo.apart, geo.a_step, b,
                b_run + v * geo.vl, geo.b_step, rows, count, length, mr, nr, more, None,
            )  # fmt: skip


@jit.inner
def _store(partial, split, group, depth, k0, ch0, scratch, c0, rows, channels, geo):
    """Write C[row][run][channel], or C[run][channel][row], to gw[row][channel][tap]; of merged groups the row's own channels."""
    across, own, every = geo.taps // geo.runs, geo.channels // geo.merged, geo.deep * geo.taps
    if geo.over_k:
        for channel in range(channels):
            to = ((split * geo.groups + group) * geo.m * own + channel) * every + depth * geo.taps
            source = c0 + channel * geo.ld
            transpose(partial, to, own * every, scratch, source, channels * geo.ld, geo.taps, geo.m)
        return
    for row in range(rows):
        to = (((split * geo.groups + group) * geo.m + k0 + row) * own + ch0) * every + depth * geo.taps
        source = c0 + row * geo.runs * geo.ld
        if geo.joined:
            for run in range(geo.runs):
                transpose(
                    partial, to + run * across, every, scratch, source + run * geo.ld, channels, across,
                    channels,
                )  # fmt: skip
        elif geo.merged > 1:
            source += (k0 + row) * geo.merged // geo.m * own
            transpose(partial, to, every, scratch, source, geo.ld, geo.taps, own)
        else:
            transpose(partial, to, every, scratch, source, geo.ld, geo.taps, channels)


def geometry(problem: ConvProblem, p: Pass, cache: int) -> Geometry:
    """Choose blocks for ``cache`` bytes: an area of x may fill a third, C another."""
    planar, tile = problem.layout != "nhwc", machine.tile(problem.itemsize)
    vl, third = tile.vl, cache // 3 // problem.itemsize
    merged = mergeable(p.groups, p.channels, vl)
    groups, channels, m = p.groups // merged, p.channels * merged, p.m * merged
    n, sheets, rows, last = _axes(p, planar)
    deep, across = len(sheets.taps[0]), len(last.taps[0])
    taps = len(rows.taps[0]) * across
    joined = _joins(last, channels, p.groups, vl)
    width = across * channels if joined else channels
    over_k = (
        not planar
        and merged == 1
        and taps * channels * m <= third
        and over_results(m, width, problem.itemsize)
    )
    high, vectors = (width, m // vl) if over_k else (m, -(-width // vl))
    runs = len(rows.taps[0]) if joined else len(rows.taps[0]) * across
    turned = p.columns * rows.stride * last.stride
    c_blocks, m_blocks = (
        (1, 1)
        if over_k
        else cut(m, vectors, taps, p.columns, turned, groups, joined or merged > 1, planar, third, tile)
    )
    ld, panels = -(-vectors // c_blocks) * vl, -(-high // tile.mr)

    parts = not over_k and (joined or channels % vl > 0)  # vectors that are not all of a pixel's channels
    copied = planar or leaves(sheets) or leaves(rows) or leaves(last) or parts
    pixel = (channels if joined or over_k else ld) if copied else groups * channels
    span_h, span_w = (a.offsets[-1] - a.offsets[0] + 1 for a in (rows, last))
    row_step = 1 if planar and span_h == 1 else rows.stride
    area = max(1, min(PIXELS, third // (max(1, last.stride * row_step) * pixel if copied else 1)))
    q_blocks = -(-last.outputs // area)
    block_q = -(-last.outputs // q_blocks)
    row_blocks = -(-rows.outputs // max(1, area // block_q))
    block_rows = -(-rows.outputs // row_blocks)
    areas = n * sheets.outputs * row_blocks * q_blocks

    pitch = ((block_q - 1) * last.stride + span_w) * pixel if copied else last.source * pixel
    stripe = ((block_rows - 1) * row_step + span_h) * pitch if copied else 0
    c_start = -(-(stripe + tile.nr * vl + SLACK) // 16) * 16
    scratch = c_start + -(-panels // m_blocks) * tile.mr * runs * ld + SLACK
    under = (rows.outputs - 1) * row_step + span_h  # rows of x, all areas one below the other
    of_x = 1, last.stride * pixel
    of_gy = (p.columns // n, 1) if planar else (1, groups * m)
    (apart, a_step), (_, b_step) = (of_x, of_gy) if over_k else (of_gy, of_x)
    return Geometry(
        n=n, groups=groups, channels=channels, m=m, deep=deep, sheets=sheets.outputs, p=rows.outputs,
        q=last.outputs, source_h=sheets.source * rows.source, source_w=last.source,
        stride_h=rows.stride, stride_w=last.stride, 
        first_w=last.offsets[0], span_h=span_h, span_w=span_w, row_blocks=row_blocks, block_q=block_q,
        q_blocks=q_blocks, c_blocks=c_blocks, m_blocks=m_blocks,
        splits=max(1, min(areas, -(-TASKS // (c_blocks * m_blocks * groups * deep)))), taps=taps, runs=runs,
        joined=joined, over_k=over_k, high=high, vectors=vectors, merged=merged, planar=planar, copied=copied, pitch=pitch, pixel=pixel,
        row_step=row_step, rows_at=runs, under=under, edges_at=runs + deep * sheets.outputs * under,
        edges=len(last.border), ld=ld, c_row=ld if over_k else runs * ld,
        c_run=width * ld if over_k else ld, apart=apart, a_step=a_step, b_step=b_step, c_start=c_start,
        scratch=-(-scratch // 16) * 16, rows=block_rows, mr=tile.mr, nr=tile.nr, vl=vl,
    )  # fmt: skip


def _axes(p: Pass, planar: bool) -> tuple[int, AxisPass, AxisPass, AxisPass]:
    """Return the images and three axes; images that are a row of pixels each are one row if pixels are neighbours."""
    sheets, rows, last = (ONE_ROW, ONE_ROW, *p.axes)[-3:]
    if not planar and len(p.axes) == 1 and last.is_identity:
        pixels = p.n * last.outputs
        return 1, sheets, rows, AxisPass(pixels, pixels, pixels, 1, last.taps)
    return p.n, sheets, rows, last


def _joins(axis: AxisPass, channels: int, groups: int, vl: int) -> bool:
    """Tell whether the taps of a row of the kernel are channels side by side: where they fill fewer vectors so.

    Channels of one vector or less always are: several taps share the scalars that a step broadcasts (0.8 to 0.9
    of the time with 16 channels).
    """
    taps = axis.taps[0]
    if groups > 1 or len(taps) == 1 or taps[1][1] - taps[0][1] > 1:
        return False
    return channels <= vl or -(-len(taps) * channels // vl) < len(taps) * -(-channels // vl)


class WeightGrad(Execution):
    """The weight gradient; blocks for ``cache`` bytes."""

    def __init__(self, problem: ConvProblem, cache: int) -> None:
        self.walk = p = pass_of(problem, Direction.FORWARD)
        self.geometry = g = geometry(problem, p, cache)
        self.dtype, self.flops, cores = problem.dtype, p.flops, machine.machine().cores
        weights = p.groups * p.m * p.channels * prod(p.kernel)
        self.partial = 0 if g.splits == 1 else -(-g.splits * weights // 16) * 16
        self.workspace = (self.partial + cores * g.scratch) * problem.itemsize + 16 * cores * g.rows

    @functools.cached_property
    def described(self) -> tuple[Array, Array]:
        """Geometry and tables: where runs of taps begin, rows of x, and what columns outside of it repeat."""
        g = self.geometry
        _, sheets, rows, last = _axes(self.walk, g.planar)
        (first_h, first_w), heads = (
            (rows.offsets[0], last.offsets[0]),
            last.taps[0][: 1 if g.joined else None],
        )
        runs = [(h - first_h) * g.pitch + (w - first_w) * g.pixel for _, h in rows.taps[0] for _, w in heads]
        under = rows.sources(first_h + rows.stride // g.row_step * np.arange(g.under))
        read = [[offset + sheets.stride * i for i in range(g.sheets)] for offset in sheets.offsets]
        of_sheets = combined(sheets.sources(np.array(read)).reshape(1, -1), under.reshape(1, -1), rows.source)
        tables, _ = joined_tables(runs=runs, rows=of_sheets, edges=last.border)
        return record(g), tables

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        geo, workers = self.geometry, threads.workers(self.flops)
        view = flat if geo.planar else pixels
        scratch = workspace.take(self.partial + workers * geo.scratch, self.dtype)
        partial = scratch[: self.partial] if self.partial else flat(out)
        threads.share_out(
            self.typed[accumulate], self.flops, view(first), view(second), partial,
            scratch[self.partial :], np.empty(2 * workers * geo.rows, np.int64), *self.described,
        )  # fmt: skip
        if self.partial:
            threads.launch(self.typed[add_splits], float(self.partial), partial, flat(out), geo.splits)
