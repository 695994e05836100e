"""The weight gradient of images held pixel by pixel: both operands are multiplied as they stand.

    gw[k, tap, c] = sum over pixels of  gy[pixel, k] * x[pixel + tap, c]

A step of the tile is a pixel: it broadcasts channels of gy against vectors of channels of x.  A task owns
a block of (k, c) for all taps, and a part of the pixels.  Where few channels would leave lanes idle, the
taps of a row of the kernel, whose pixels are neighbours, are taken for channels: (s, c) together.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import jit, machine, threads, workspace
from fastconv.algorithms.base import Array, Execution, flat, pixels
from fastconv.algorithms.correlation import AxisPass, pass_of
from fastconv.algorithms.direct.pixels.correlation import ONE_ROW, leaves
from fastconv.algorithms.direct.pixels.cpu import copy_rows
from fastconv.gemm.gathered import tile_over_pixels
from fastconv.gemm.move import SLACK, transpose
from fastconv.gemm.record import record
from fastconv.gemm.schedule import next_task, part
from fastconv.gemm.splits import add_splits
from fastconv.problem import ConvProblem, Direction

PIXELS = 256  # of an area: C passes through L2 once for as many steps
TASKS = 8  # wanted at least; splits of the pixels never depend on the machine, for the result's bits' sake


class Geometry(NamedTuple):
    """A weight gradient and its blocks, as numbers."""

    n: int
    groups: int
    channels: int  # of x, in a group
    m: int  #         channels of gy in a group
    p: int
    q: int
    source_h: int
    source_w: int
    stride_h: int
    stride_w: int
    first_h: int  #   pixel of the first tap at position 0
    first_w: int
    span_h: int
    span_w: int
    row_blocks: int
    block_q: int
    q_blocks: int
    c_blocks: int
    m_blocks: int
    splits: int
    taps: int  #      of the kernel
    runs: int  #      of taps: rows of the kernel, or each tap
    joined: bool  #   whether a run is a row of the kernel
    vectors: int  #   of channels, or of (s, c)
    copied: bool
    pitch: int
    pixel: int
    ld: int  #        row length of C
    c_start: int
    scratch: int
    rows: int  #      of a full area
    mr: int
    nr: int
    vl: int


@jit.kernel
def accumulate(workers, counter, x, gy, partial, scratch, lists, geos, offsets):
    """Compute every split's partial gw; tasks are splits x groups x blocks of (k, c)."""
    for worker in numba.prange(workers):
        _work(worker, counter, x, gy, partial, scratch, lists, geos[0], offsets)


@jit.inner
def _work(worker, counter, x, gy, partial, scratch, lists, geo, offsets):
    base = worker * geo.scratch
    c0 = base + geo.c_start
    rows = lists[2 * worker * geo.rows : 2 * (worker + 1) * geo.rows]
    source = scratch if geo.copied else x
    panels = -(-geo.m // geo.mr)
    areas = geo.row_blocks * geo.q_blocks
    width = geo.groups * geo.m
    task = next_task(counter)
    while task < geo.splits * geo.groups * geo.c_blocks * geo.m_blocks:
        rest, m_block = task // geo.m_blocks, task % geo.m_blocks
        rest, c_block = rest // geo.c_blocks, rest % geo.c_blocks
        split, group = rest // geo.groups, rest % geo.groups
        v0, v1 = part(geo.vectors, geo.c_blocks, c_block), part(geo.vectors, geo.c_blocks, c_block + 1)
        ch0 = v0 * geo.vl
        channels = geo.channels if geo.joined else min(v1 * geo.vl, geo.channels) - ch0
        first, last = part(panels, geo.m_blocks, m_block), part(panels, geo.m_blocks, m_block + 1)
        k0, k1 = part(geo.m, panels, first), part(geo.m, panels, last)
        begin = part(geo.n * areas, geo.splits, split)
        for i in range(begin, part(geo.n * areas, geo.splits, split + 1)):
            image, row_block, q_block = i // areas, i % areas // geo.q_blocks, i % geo.q_blocks
            p0, p1 = part(geo.p, geo.row_blocks, row_block), part(geo.p, geo.row_blocks, row_block + 1)
            q0 = q_block * geo.block_q
            q1 = min(q0 + geo.block_q, geo.q)
            if geo.copied:
                copy_rows(scratch, base, x, image, group * geo.channels + ch0, channels, p0, p1, q0, q1, geo)
                b0 = base
            else:
                row = image * geo.source_h + p0 * geo.stride_h + geo.first_h
                b0 = (row * geo.source_w + q0 * geo.stride_w + geo.first_w) * geo.pixel
                b0 += group * geo.channels + ch0
            for p in range(p0, p1):
                rows[2 * (p - p0)] = ((image * geo.p + p) * geo.q + q0) * width + group * geo.m
                rows[2 * (p - p0) + 1] = (p - p0) * geo.stride_h * geo.pitch
            for panel in range(first, last):
                m0 = part(geo.m, panels, panel)
                at = c0 + (m0 - k0) * geo.runs * geo.ld
                mr = part(geo.m, panels, panel + 1) - m0
                _multiply(
                    scratch, at, gy, m0, source, b0, rows, p1 - p0, q1 - q0, mr, v1 - v0, i > begin, geo,
                    offsets,
                )  # fmt: skip
        to = (
            ((split * geo.groups + group) * geo.m + k0) * geo.channels + (0 if geo.joined else ch0)
        ) * geo.taps
        _store(partial, to, scratch, c0, k1 - k0, channels, geo)
        task = next_task(counter)


@jit.inner
def _multiply(c, c0, gy, m0, x, b0, rows, count, length, mr, vectors, more, geo, offsets):
    """C[mr][run][channel] (+)= gy * x over the rows of an area, run by run."""
    blocks = -(-vectors // geo.nr)
    for run in range(geo.runs):
        for block in range(blocks):
            v = part(vectors, blocks, block)
            nr = part(vectors, blocks, block + 1) - v
            tile_over_pixels(
                c, c0 + run * geo.ld + v * geo.vl, geo.runs * geo.ld, gy, m0, 1, geo.groups * geo.m, x,
                b0 + offsets[run] + v * geo.vl, geo.stride_w * geo.pixel, rows, count, length, mr, nr, more,
            )  # fmt: skip


@jit.inner
def _store(partial, to, c, c0, rows, channels, geo):
    """Write C[row][run][channel] to gw[row][channel][tap]."""
    across = geo.taps // geo.runs
    for row in range(rows):
        at, source = to + row * geo.channels * geo.taps, c0 + row * geo.runs * geo.ld
        if geo.joined:
            for run in range(geo.runs):
                transpose(
                    partial, at + run * across, geo.taps, c, source + run * geo.ld, channels, across, channels
                )
        else:
            transpose(partial, at, geo.taps, c, source, geo.ld, geo.taps, channels)


class WeightGrad(Execution):
    """The weight gradient; blocks for ``cache`` bytes."""

    def __init__(self, problem: ConvProblem, cache: int) -> None:
        p = pass_of(problem, Direction.FORWARD)
        tile, cores = machine.tile(problem.itemsize), machine.machine().cores
        n = p.n
        rows, last = (ONE_ROW, *p.axes)[-2:]
        if len(p.axes) == 1 and last.is_identity:  # images are one row of pixels
            count = n * last.outputs
            n, last = 1, AxisPass(count, count, count, 1, last.taps)
        taps_h, taps_w = rows.taps[0], last.taps[0]
        vl, across = tile.vl, len(taps_w)
        adjacent = across > 1 and taps_w[1][1] - taps_w[0][1] == 1 and p.groups == 1
        joined = adjacent and -(-across * p.channels // vl) < across * -(-p.channels // vl)
        vectors = -(-(across * p.channels if joined else p.channels) // vl)
        runs = len(taps_h) if joined else len(taps_h) * across
        panels = -(-p.m // tile.mr)
        # Halves of (k, c) first, while they keep 32 rows and 2 vectors; then splits of the pixels.
        c_blocks = 1 if joined else max(-(-vectors // (2 * tile.nr)), min(2, vectors // 2), 1)
        ld = -(-vectors // c_blocks) * vl
        third = cache // 3 // problem.itemsize
        m_blocks = min(panels, max(-(-panels * tile.mr * runs * ld // third), min(2, p.m // 32), 1))

        copied = leaves(rows) or leaves(last) or joined or p.channels % vl > 0
        pixel = (p.channels if joined else ld) if copied else p.groups * p.channels
        span_h, span_w = (a.offsets[-1] - a.offsets[0] + 1 for a in (rows, last))
        area = max(1, min(PIXELS, third // (max(1, last.stride * rows.stride) * pixel if copied else 1)))
        q_blocks = -(-last.outputs // area)
        block_q = -(-last.outputs // q_blocks)
        row_blocks = -(-rows.outputs // max(1, area // block_q))
        block_rows = -(-rows.outputs // row_blocks)
        areas = n * row_blocks * q_blocks
        splits = max(1, min(areas, -(-TASKS // (c_blocks * m_blocks * p.groups))))

        pitch = ((block_q - 1) * last.stride + span_w) * pixel if copied else last.source * pixel
        stripe = ((block_rows - 1) * rows.stride + span_h) * pitch if copied else 0
        c_start = -(-(stripe + tile.nr * vl + SLACK) // 16) * 16
        scratch = c_start + -(-panels // m_blocks) * tile.mr * runs * ld + SLACK
        self.scratch = -(-scratch // 16) * 16
        heads = taps_w[:1] if joined else taps_w
        self.offsets = np.array(
            [
                (h - rows.offsets[0]) * pitch + (w - last.offsets[0]) * pixel
                for _, h in taps_h
                for _, w in heads
            ],
            np.int64,
        )
        self.rows, self.splits, self.flops, self.dtype = block_rows, splits, p.flops, problem.dtype
        self.geometry = record(
            Geometry(
                n=n, groups=p.groups, channels=p.channels, m=p.m, p=rows.outputs, q=last.outputs,
                source_h=rows.source, source_w=last.source, stride_h=rows.stride, stride_w=last.stride,
                first_h=rows.offsets[0], first_w=last.offsets[0], span_h=span_h, span_w=span_w,
                row_blocks=row_blocks, block_q=block_q, q_blocks=q_blocks, c_blocks=c_blocks,
                m_blocks=m_blocks, splits=splits, taps=prod(p.kernel), runs=runs, joined=joined,
                vectors=vectors, copied=copied, pitch=pitch, pixel=pixel, ld=ld, c_start=c_start,
                scratch=self.scratch, rows=block_rows, mr=tile.mr, nr=tile.nr, vl=vl,
            )
        )  # fmt: skip
        weights = p.groups * p.m * p.channels * prod(p.kernel)
        self.partial = 0 if splits == 1 else -(-splits * weights // 16) * 16
        self.workspace = (self.partial + cores * self.scratch) * problem.itemsize + 16 * cores * block_rows

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        workers = threads.workers(self.flops)
        scratch = workspace.take(self.partial + workers * self.scratch, self.dtype)
        partial = scratch[: self.partial] if self.partial else flat(out)
        threads.launch(
            accumulate, self.flops, np.zeros(1, np.int64), pixels(first), pixels(second), partial,
            scratch[self.partial :], np.empty(2 * workers * self.rows, np.int64), self.geometry, self.offsets,
        )  # fmt: skip
        if self.partial:
            threads.launch(add_splits, float(self.partial), partial, flat(out), self.splits)
