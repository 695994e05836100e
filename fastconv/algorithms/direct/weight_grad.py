"""The weight gradient with nothing lowered: every tap reads the same transposed stripe.

    gw[k, c, tap] = sum over pixels j of  gy[k, j] * x[c, j + tap]

A task owns a block of (k, c) for all taps.  For each area of pixels it copies the stripe of its channels
(`cpu.py`), turns it to ``[pixel][channel]``, and turns gy to panels ``[pixel][mr]``.  Then each tap is a
product over the pixels whose rows of B are found through a table of pixel offsets, from where the tap
begins.  A stripe is copied and turned once for all its taps and all k of the task.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import jit, machine, threads, workspace
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.correlation import pass_of
from fastconv.algorithms.direct.cpu import area_of, fill, plan_stripe
from fastconv.algorithms.direct.dense import Stripe, describe, tables_of
from fastconv.gemm.blocking import odd_lines
from fastconv.gemm.move import SLACK, transpose
from fastconv.gemm.record import joined, record
from fastconv.gemm.schedule import next_task, part
from fastconv.gemm.splits import add_splits
from fastconv.gemm.tile import tile_indexed
from fastconv.problem import ConvProblem, Direction

COLUMNS = 256  # pixels of an area
CHANNELS = 64  # of a block: 4 vectors
TASKS = 8  # wanted at least; splits of the pixels never depend on the machine, for the result's bits' sake


class Blocks(NamedTuple):
    """How (k, c) and the pixels are cut."""

    c_blocks: int
    m_blocks: int
    splits: int
    taps: int
    ld: int  #    row length of the turned stripe
    turned: int  # where parts of a worker's scratch begin
    panel: int
    c_start: int
    scratch: int
    pixels: int  # of a full area


@jit.kernel
def accumulate(workers, counter, x, gy, partial, scratch, steps, lists, geos, tables, cuts):
    """Compute every split's partial gw; tasks are splits x groups x blocks of (k, c)."""
    for worker in numba.prange(workers):
        _work(worker, counter, x, gy, partial, scratch, steps, lists, geos[0], tables, cuts[0])


@jit.inner
def _work(worker, counter, x, gy, partial, scratch, steps, lists, geo, tables, blocks):
    segments = lists[worker * geo.segments : (worker + 1) * geo.segments]
    base = worker * blocks.scratch
    own_steps = steps[2 * worker * blocks.pixels : 2 * (worker + 1) * blocks.pixels]
    panels = -(-geo.m // geo.mr)
    vectors = -(-geo.channels // geo.vl)
    areas = geo.row_blocks * geo.q_blocks
    tasks = blocks.splits * geo.groups * blocks.c_blocks * blocks.m_blocks
    task = next_task(counter)
    while task < tasks:
        rest, m_block = task // blocks.m_blocks, task % blocks.m_blocks
        rest, c_block = rest // blocks.c_blocks, rest % blocks.c_blocks
        split, group = rest // geo.groups, rest % geo.groups
        v0, v1 = part(vectors, blocks.c_blocks, c_block), part(vectors, blocks.c_blocks, c_block + 1)
        ch0, ch1 = v0 * geo.vl, min(v1 * geo.vl, geo.channels)
        p0, p1 = part(panels, blocks.m_blocks, m_block), part(panels, blocks.m_blocks, m_block + 1)
        begin = part(geo.n * areas, blocks.splits, split)
        for i in range(begin, part(geo.n * areas, blocks.splits, split + 1)):
            area = area_of(geo, i % areas)
            plane = i // areas * geo.groups + group
            n = plan_stripe(segments, area, geo, tables)
            fill(scratch, base, x, plane * geo.channels + ch0, ch1 - ch0, geo, segments, n)
            size = geo.phases_h * geo.phases_w * geo.phase_size
            transpose(scratch, base + blocks.turned, blocks.ld, scratch, base, size, ch1 - ch0, size)
            pixels = _steps(own_steps, area, geo.pitch * blocks.ld, blocks.ld)
            for p in range(p0, p1):
                m0, m1 = part(geo.m, panels, p), part(geo.m, panels, p + 1)
                _panel(scratch, base + blocks.panel, gy, plane * geo.m + m0, m1 - m0, area, geo)
                c0 = base + blocks.c_start + (m0 - part(geo.m, panels, p0)) * blocks.taps * blocks.ld
                _multiply(
                    scratch, base, c0, own_steps, pixels, m1 - m0, v1 - v0, i > begin, geo, tables, blocks
                )
        rows = part(geo.m, panels, p1) - part(geo.m, panels, p0)
        to = (split * geo.groups + group) * geo.m + part(geo.m, panels, p0)
        to = (to * geo.channels + ch0) * blocks.taps
        _store(partial, to, scratch, base + blocks.c_start, rows, ch1 - ch0, geo, blocks)
        task = next_task(counter)


@jit.inner
def _steps(steps, area, row_step, step):
    """Tabulate where each pixel of an area stands in the turned stripe; return their number."""
    _, rows, _, columns = area
    for row in range(rows):
        for q in range(columns):
            pixel = row * columns + q
            steps[2 * pixel], steps[2 * pixel + 1] = pixel, row * row_step + q * step
    return rows * columns


@jit.inner
def _panel(scratch, a0, gy, channel, mr, area, geo):
    """Turn an area of ``mr`` channels of gy to [pixel][mr]."""
    p0, rows, q0, columns = area
    size = geo.p * geo.q
    source = channel * size + p0 * geo.q + q0
    if columns == geo.q:
        transpose(scratch, a0, mr, gy, source, size, mr, rows * columns)
    else:
        for row in range(rows):
            transpose(scratch, a0 + row * columns * mr, mr, gy, source + row * geo.q, size, mr, columns)


@jit.inner
def _multiply(scratch, base, c0, steps, pixels, mr, vectors, more, geo, tables, blocks):
    """C[mr][tap][channel] (+)= panel * turned stripe, tap by tap."""
    groups = -(-vectors // geo.nr)
    for tap in range(blocks.taps):
        b0 = base + blocks.turned + tables[tap] * blocks.ld
        for g in range(groups):
            v = part(vectors, groups, g)
            nr = part(vectors, groups, g + 1) - v
            tile_indexed(
                scratch, c0 + tap * blocks.ld + v * geo.vl, blocks.taps * blocks.ld, scratch,
                base + blocks.panel, scratch, b0 + v * geo.vl, steps, 0, pixels, mr, nr, more,
            )  # fmt: skip


@jit.inner
def _store(partial, to, c, c0, rows, channels, geo, blocks):
    """Write C[row][tap][channel] to gw[row][channel][tap]."""
    for row in range(rows):
        at = to + row * geo.channels * blocks.taps
        transpose(
            partial, at, blocks.taps, c, c0 + row * blocks.taps * blocks.ld, blocks.ld, blocks.taps, channels
        )


class WeightGrad(Execution):
    """The weight gradient from turned stripes."""

    def __init__(self, problem: ConvProblem, cache: int) -> None:
        p = pass_of(problem, Direction.FORWARD)
        itemsize = problem.itemsize
        tile = machine.tile(itemsize)
        taps = prod(p.kernel)
        vectors, panels = -(-p.channels // tile.vl), -(-p.m // tile.mr)
        # Halves of (k, c) first, while they keep 32 rows and 2 vectors; then splits of the pixels.
        c_blocks = max(-(-vectors * tile.vl // CHANNELS), min(2, vectors // 2), 1)
        ld = odd_lines(-(-vectors // c_blocks) * tile.vl, tile.vl)
        third = cache // 3 // itemsize
        m_blocks = max(-(-panels * tile.mr * taps * ld // third), min(2, p.m // 32), 1)
        m_blocks = min(panels, m_blocks)
        s = Stripe.of(p, COLUMNS, third // (2 * ld), tile.vl)
        areas = p.n * s.row_blocks * s.q_blocks
        splits = max(1, min(areas, -(-TASKS // (c_blocks * m_blocks * p.groups))))
        self.problem, self.flops = problem, p.flops
        self.pixels = s.block_rows * s.block_q
        turned = -(-(ld * s.channel_size + SLACK) // 16) * 16
        panel = 2 * turned
        c_start = -(-(panel + tile.mr * self.pixels + SLACK) // 16) * 16
        scratch = c_start + -(-panels // m_blocks) * tile.mr * taps * ld + SLACK
        scratch = -(-scratch // 16) * 16
        self.scratch, self.splits, self.segments = scratch, splits, s.segments
        self.blocks = record(
            Blocks(c_blocks, m_blocks, splits, taps, ld, turned, panel, c_start, scratch, self.pixels)
        )
        self.tables, starts = joined(offset=list(s.views(p).values()), **tables_of(s))
        self.geometry = describe(
            p,
            s,
            itemsize,
            starts,
            m_blocks=m_blocks,
            chunks=1,
            ld=ld,
            panel=panel,
            c_start=c_start,
            scratch=scratch,
        )
        self.partial = 0 if splits == 1 else -(-splits * p.groups * p.m * p.reduction // 16) * 16
        self.workspace = (self.partial + machine.machine().cores * scratch) * itemsize

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        workers = threads.workers(self.flops)
        scratch = workspace.take(self.partial + workers * self.scratch, self.problem.dtype)
        partial = scratch[: self.partial] if self.partial else flat(out)
        threads.launch(
            accumulate, self.flops, np.zeros(1, np.int64), flat(first), flat(second), partial,
            scratch[self.partial :], np.empty(2 * workers * self.pixels, np.int64),
            np.empty(workers * self.segments, np.int64),
            self.geometry, self.tables, self.blocks,
        )  # fmt: skip
        if self.partial:
            threads.launch(add_splits, float(self.partial), partial, flat(out), self.splits)
