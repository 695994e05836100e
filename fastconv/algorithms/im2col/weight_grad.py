"""The weight gradient as a product reduced over pixels, im2col's way.

    gw[k, t] = sum over j = (n, p, q) of  gy[k, j] * B[t, j],     t = (c, r, s), B the lowered input

Both operands lie with j fastest but the tile wants it slowest, so each is transposed on its way into
cache: a panel of gy to ``[j][mr]``, a lowered block of B to ``[j][t]``.  A task owns a block of gw.
Where gw has too few blocks to share out, the pixels are cut into ``splits`` as well, a number that
depends on the problem alone; their partial sums are added in one fixed order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import jit, machine, threads, workspace
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.correlation import pass_of
from fastconv.algorithms.im2col import LoweredPass, lists_of
from fastconv.algorithms.im2col.cpu import lower, multiply, plan_rows
from fastconv.gemm.blocking import odd_lines
from fastconv.gemm.move import SLACK, transpose, write_row
from fastconv.gemm.record import record
from fastconv.gemm.schedule import next_task, part
from fastconv.gemm.splits import add_splits
from fastconv.problem import ConvProblem, Direction

KC = 192  # pixels of a chunk
WIDTH = 256  # columns of gw in a block: with KC, three blocks of 200 KB in a 1 MB L2
TASKS = 8  # wanted at least, by splitting the pixels: never taken from the machine, for its bits' sake


class Blocks(NamedTuple):
    """How gw and the pixels are cut."""

    t_blocks: int
    m_blocks: int
    splits: int
    kc: int
    ld: int  #       row length of B and C
    identity: bool  # whether B is x itself
    lowered: int  #  where parts of a worker's scratch begin
    panel: int
    c_start: int
    scratch: int


@jit.kernel
def accumulate(workers, counter, x, gy, partial, scratch, lists, geos, tables, cuts):
    """Compute every split's partial gw; tasks are splits x groups x blocks of gw."""
    for worker in numba.prange(workers):
        _work(worker, counter, x, gy, partial, scratch, lists, geos[0], tables, cuts[0])


@jit.inner
def _work(worker, counter, x, gy, partial, scratch, lists, geo, tables, blocks):
    segments = lists[worker * geo.segments : (worker + 1) * geo.segments]
    b0 = worker * blocks.scratch
    c0 = b0 + blocks.c_start
    length = geo.channels * geo.outer * geo.inner
    panels = -(-geo.m // geo.mr)
    vectors = -(-length // geo.vl)
    tasks = blocks.splits * geo.groups * blocks.t_blocks * blocks.m_blocks
    chunks = -(-geo.columns // blocks.kc)
    task = next_task(counter)
    while task < tasks:
        rest, m_block = task // blocks.m_blocks, task % blocks.m_blocks
        rest, t_block = rest // blocks.t_blocks, rest % blocks.t_blocks
        split, group = rest // geo.groups, rest % geo.groups
        v0, v1 = part(vectors, blocks.t_blocks, t_block), part(vectors, blocks.t_blocks, t_block + 1)
        t0, t1 = v0 * geo.vl, min(v1 * geo.vl, length)
        p0, p1 = part(panels, blocks.m_blocks, m_block), part(panels, blocks.m_blocks, m_block + 1)
        first, last = part(geo.m, panels, p0), part(geo.m, panels, p1)
        begin = part(chunks, blocks.splits, split) * blocks.kc
        end = min(part(chunks, blocks.splits, split + 1) * blocks.kc, geo.columns)
        for j in range(begin, end, blocks.kc):
            count = min(blocks.kc, end - j)
            _transposed_block(scratch, b0, x, geo, tables, blocks, group, j, count, t0, t1, segments)
            for p in range(p0, p1):
                m0, m1 = part(geo.m, panels, p), part(geo.m, panels, p + 1)
                _panel(scratch, b0 + blocks.panel, gy, geo, group, j, count, m0, m1)
                at = c0 + (m0 - first) * blocks.ld
                multiply(
                    scratch, at, b0 + blocks.panel, b0, blocks.ld, geo, v1 - v0, count, m1 - m0, j > begin
                )
        for m in range(first, last):
            to = ((split * geo.groups + group) * geo.m + m) * length + t0
            write_row(partial, to, scratch, c0 + (m - first) * blocks.ld, t1 - t0)
        task = next_task(counter)


@jit.inner
def _transposed_block(scratch, b0, x, geo, tables, blocks, group, j, count, t0, t1, segments):
    """Write columns t0..t1 of B^T for pixels j..j + count."""
    pixels = geo.rows * geo.q
    image, pixel = j // pixels, j % pixels
    if blocks.identity and pixel + count <= pixels:
        source = ((image * geo.groups + group) * geo.channels + t0) * pixels + pixel
        transpose(scratch, b0, blocks.ld, x, source, pixels, t1 - t0, count)
    else:
        lowered = b0 + blocks.lowered
        n = plan_rows(segments, geo, tables, j, count)
        lower(scratch, lowered, x, geo, group, j, t0, t1, segments, n)
        transpose(scratch, b0, blocks.ld, scratch, lowered, geo.ld, t1 - t0, count)


@jit.inner
def _panel(scratch, a0, gy, geo, group, j, count, m0, m1):
    """Write rows m0..m1 of gy, transposed, for pixels j..j + count, image by image."""
    pixels = geo.rows * geo.q
    done = 0
    while done < count:
        image, pixel = (j + done) // pixels, (j + done) % pixels
        run = min(pixels - pixel, count - done)
        source = ((image * geo.groups + group) * geo.m + m0) * pixels + pixel
        transpose(scratch, a0 + done * (m1 - m0), m1 - m0, gy, source, pixels, m1 - m0, run)
        done += run


class WeightGrad(Execution):
    """The weight gradient by lowered blocks."""

    def __init__(self, problem: ConvProblem, cache: int) -> None:
        p = pass_of(problem, Direction.FORWARD)
        geometry, self.tables = LoweredPass(p, problem.itemsize, cache).values()
        unit = machine.tile(problem.itemsize)
        self.problem = problem
        self.flops = p.flops
        vectors = -(-p.reduction // unit.vl)
        panels = -(-p.m // unit.mr)
        width = min(WIDTH, cache // 5 // (KC * problem.itemsize))  # 256 in a 1 MB L2
        t_blocks = -(-vectors // max(1, width // unit.vl))
        m_blocks = -(-panels // max(1, width // unit.mr))
        chunks = max(1, -(-p.columns // KC))
        splits = min(chunks, -(-TASKS // (t_blocks * m_blocks * p.groups)))
        if splits > 1 and problem.reduction * problem.k > 2**20:  # partial sums would not stay in L2
            m_blocks, splits = min(panels, m_blocks * splits), 1
        kc = min(KC, max(1, p.columns))
        kc_ld = odd_lines(-(-kc // unit.vl) * unit.vl, unit.vl)
        ld = odd_lines(-(-vectors // t_blocks) * unit.vl, unit.vl)
        block = kc_ld * ld + SLACK
        identity = len(p.axes) == 1 and p.axes[0].is_identity
        panel = 2 * block
        c_start = panel + unit.mr * kc_ld + SLACK
        scratch = -(-(c_start + -(-panels // m_blocks) * unit.mr * ld + SLACK) // 16) * 16
        pixels, self.segments = lists_of(p, kc)
        self.geometry = record(geometry._replace(ld=kc_ld, segments=self.segments, pixels=pixels))
        self.scratch, self.splits = scratch, splits
        self.blocks = record(
            Blocks(t_blocks, m_blocks, splits, kc, ld, identity, block, panel, c_start, scratch)
        )
        self.partial = 0 if splits == 1 else -(-splits * p.groups * p.m * p.reduction // 16) * 16
        self.workspace = (self.partial + machine.machine().cores * scratch) * problem.itemsize

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        size = self.partial + threads.workers(self.flops) * self.scratch
        scratch = workspace.take(size, self.problem.dtype)
        partial = scratch[: self.partial] if self.partial else flat(out)
        threads.launch(
            accumulate, self.flops, np.zeros(1, np.int64), flat(first), flat(second), partial,
            scratch[self.partial :], np.empty(threads.workers(self.flops) * self.segments, np.int64),
            self.geometry, self.tables, self.blocks,
        )  # fmt: skip
        if self.partial:
            threads.launch(add_splits, float(self.partial), partial, flat(out), self.splits)
