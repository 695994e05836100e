"""The weight gradient as F(r, m): grad_output takes the part of the kernel.

    gw = A [ sum over tiles of (G gy G^T) * (B x B^T) ] A^T        gy: m x m pixels, x: alpha x alpha pixels

At each position the sum is a matrix product over tiles, which the tile wants outermost:

    S[position][k][c] += W[panel][position][tile][mr] * V[chunk of c][position][tile][c in chunk]

So tiles are transformed eight channels at a time into L1, and transposed on their way out.  A task of the
product owns a chunk of k and c whose S at all positions stays in L2, and transforms it back from there.

Where V and W of all tiles are too large, runs of tiles are added one after another and S goes through memory.
Where they are cut depends on the problem, the machine and the workspace, never on the number of threads.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import jit, machine, threads, workspace
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.winograd.correlation import geometry
from fastconv.algorithms.winograd.cpu import block_part, input_block
from fastconv.algorithms.winograd.lanes import ROWS, transform_sums, unpack_filters
from fastconv.algorithms.winograd.transforms import Tiles
from fastconv.gemm.move import SLACK
from fastconv.gemm.schedule import next_task, part
from fastconv.gemm.tile import tile
from fastconv.problem import ConvProblem, Direction


class Sums(NamedTuple):
    """Where things are; steps in elements."""

    runs: int  #     of blocks of tiles
    parts_c: int  # eight channels of x each
    panels: int  #   of k
    chunks_k: int  # of panels
    chunks_c: int
    width: int  #    of a chunk of c: the row length of V and S
    v_step: int  #   from position to position
    w_step: int
    s_step: int
    s_chunk: int  #  elements of a chunk
    t_start: int  #  where the transformed rows of a chunk begin in a worker's scratch
    scratch: int  #  elements of a worker


@jit.kernel
def transform_x(workers, counter, x, v, scratch, geo, sums, run, mh, rh, mw, rw):
    """Write V of a run of tiles; tasks are eight channels."""
    for worker in numba.prange(workers):
        task = next_task(counter)
        while task < geo.groups * sums.parts_c:
            group, c = task // sums.parts_c, task % sums.parts_c * 8
            to = (group * sums.chunks_c + c // sums.width) * geo.positions * sums.v_step + c % sums.width
            transposed(
                v, to, sums.v_step, sums.width, x, scratch, worker * sums.scratch, geo, sums, run, group,
                c, min(c + 8, geo.c), (mh, rh, mw, rw),
            )  # fmt: skip
            task = next_task(counter)


@jit.kernel
def transform_gy(workers, counter, gy, w, scratch, geo, sums, run, mh, rh, mw, rw):
    """Write W of a run of tiles; tasks are panels.  ``geo`` has grad_output as its source."""
    for worker in numba.prange(workers):
        task = next_task(counter)
        while task < geo.groups * sums.panels:
            group, panel = task // sums.panels, task % sums.panels
            first, last = part(geo.c, sums.panels, panel), part(geo.c, sums.panels, panel + 1)
            transposed(
                w, task * geo.positions * sums.w_step, sums.w_step, last - first, gy, scratch,
                worker * sums.scratch, geo, sums, run, group, first, last, (mh, rh, mw, rw, mh),
            )  # fmt: skip
            task = next_task(counter)


@jit.inner
def transposed(to, to0, step, row, x, local, local0, geo, sums, run, group, c0, c1, variant):
    """Transform channels c0..c1 (at most eight) of a run of tiles; write tile after tile, ``row`` apart."""
    first = part(geo.blocks, sums.runs, run)
    start = block_part(geo, first)
    for block in range(first, part(geo.blocks, sums.runs, run + 1)):
        t0, t1 = block_part(geo, block), block_part(geo, block + 1)
        input_block(local, local0 - c0 * geo.ld, x, geo, group, block, c0, c1, variant)
        for position in range(geo.positions):
            at = local0 + position * geo.v_step
            place = to0 + position * step + (t0 - start) * row
            for t in range(0, t1 - t0, 8):
                unpack_filters(
                    to, place + t * row, row, local, at + t, geo.ld, c1 - c0,
                    ((0,), (0,), (0,), (0, 0, 0, 0, 0, 0, 0, 0)),
                )  # fmt: skip


@jit.kernel
def multiply(workers, counter, gw, s, w, v, scratch, geo, sums, run, mh, rh, mw, rw):
    """Add a run's products to S, the last one's to gw; tasks are groups x chunks of k x chunks of c."""
    for worker in numba.prange(workers):
        tiles = block_part(geo, part(geo.blocks, sums.runs, run + 1))
        tiles -= block_part(geo, part(geo.blocks, sums.runs, run))
        task = next_task(counter)
        while task < geo.groups * sums.chunks_k * sums.chunks_c:
            rest, chunk_c = task // sums.chunks_c, task % sums.chunks_c
            group, chunk_k = rest // sums.chunks_k, rest % sums.chunks_k
            p0, p1 = part(sums.panels, sums.chunks_k, chunk_k), part(sums.panels, sums.chunks_k, chunk_k + 1)
            c0, c1 = chunk_c * sums.width, min((chunk_c + 1) * sums.width, geo.c)
            v0 = (group * sums.chunks_c + chunk_c) * geo.positions * sums.v_step
            to, s0 = (scratch, worker * sums.scratch) if sums.runs == 1 else (s, task * sums.s_chunk)
            add_products(to, s0, w, v, v0, geo, sums, group, p0, p1, c1 - c0, tiles, run > 0)
            if run == sums.runs - 1:
                t0 = worker * sums.scratch + sums.t_start
                transform_back(gw, to, s0, scratch, t0, geo, sums, group, p0, p1, c0, c1, (mh, rh, mw, rw))
            task = next_task(counter)


@jit.inner
def add_products(s, s0, w, v, v0, geo, sums, group, p0, p1, channels, tiles, more):
    """S (+)= W V for panels p0..p1 of k and a chunk of c."""
    first = part(geo.k, sums.panels, p0)
    vectors = -(-channels // geo.vl)
    columns = -(-vectors // geo.nr)
    for position in range(geo.positions):
        b0 = v0 + position * sums.v_step
        for panel in range(p0, p1):
            row = part(geo.k, sums.panels, panel)
            rows = part(geo.k, sums.panels, panel + 1) - row
            a0 = ((group * sums.panels + panel) * geo.positions + position) * sums.w_step
            c0 = s0 + position * sums.s_step + (row - first) * sums.width
            for column in range(columns):
                j = part(vectors, columns, column)
                tile(
                    s, c0 + j * geo.vl, sums.width, w, a0, v, b0 + j * geo.vl, sums.width,
                    tiles, rows, part(vectors, columns, column + 1) - j, more,
                )  # fmt: skip


@jit.inner
def transform_back(gw, s, s0, t, t0, geo, sums, group, p0, p1, c0, c1, variant):
    """Write gw of panels p0..p1 and channels c0..c1."""
    first = part(geo.k, sums.panels, p0)
    for k in range(first, part(geo.k, sums.panels, p1)):
        transform_sums(t, t0, sums.width, s, s0 + (k - first) * sums.width, sums.s_step, c1 - c0, variant)
        to = ((group * geo.k + k) * geo.c + c0) * geo.taps
        for c in range(c1 - c0):
            for tap in range(geo.taps):
                gw[to + c * geo.taps + tap] = t[t0 + tap * sums.width + c]


class WeightGrad(Execution):
    """The weight gradient by runs of tiles whose V and W take at most ``most`` bytes."""

    def __init__(self, problem: ConvProblem, tiles: Tiles, most: int) -> None:
        self.problem = problem
        self.variant = tuple((0,) * length for axis in tiles for length in axis)
        unit, cores = machine.tile(problem.itemsize), machine.machine().cores
        g = geometry(problem, Direction.FORWARD, tiles, False, unit.nr, 0)
        ld = -(-g.ld // ROWS) * ROWS
        g = g._replace(ld=ld, v_step=ROWS * ld + unit.vl)
        rows = -(-g.k // g.panels)
        lines = max(unit.vl, ROWS)
        chunks_c = -(-g.c // (2 * unit.nr * lines))
        width = -(-g.c // (chunks_c * lines)) * lines
        chunks_c = -(-g.c // width)
        most_rows = machine.machine().l2 // 2 // (g.positions * width * problem.itemsize)
        chunks_k = max(-(-g.k // max(1, most_rows)), -(-4 * cores // (g.groups * chunks_c)))
        chunks_k = min(g.panels, chunks_k)

        per_tile = problem.groups * g.positions * (chunks_c * width + g.k) * problem.itemsize
        runs = min(g.blocks, -(-g.blocks * g.ld * per_tile // max(1, most)))
        capacity = -(-g.blocks // runs) * g.ld + ROWS  # the last tile's eight lanes may pass its row's end
        v_step, w_step = capacity * width + unit.vl, capacity * rows + unit.vl
        s_step = -(-g.panels // chunks_k) * rows * width + unit.vl
        s_chunk = g.positions * s_step
        t_start = s_chunk if runs == 1 else 0
        scratch = max(g.positions * g.v_step, t_start + g.taps * width) + SLACK
        self.geometry = g
        self.gradient = g._replace(c=g.k, h=g.p, w=g.q, lo_h=0, lo_w=0)
        self.sums = Sums(
            runs, -(-g.c // ROWS), g.panels, chunks_k, chunks_c, width, v_step, w_step, s_step, s_chunk,
            t_start, scratch,
        )  # fmt: skip
        self.sizes = (
            g.groups * chunks_c * g.positions * v_step,
            g.groups * g.panels * g.positions * w_step,
            0 if runs == 1 else g.groups * chunks_k * chunks_c * s_chunk,
        )
        self.workspace = (sum(self.sizes) + cores * scratch) * problem.itemsize

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        geo, sums, flops = self.geometry, self.sums, self.problem.flops / self.sums.runs
        scratch = workspace.take(sum(self.sizes) + threads.count() * sums.scratch, self.problem.dtype)
        v, w, s, scratch = np.split(scratch, np.cumsum(self.sizes))

        def launch(kernel: Any, *arguments: Any) -> None:
            threads.launch(kernel, flops, np.zeros(1, np.int64), *arguments, *self.variant)

        for run in range(sums.runs):
            launch(transform_x, flat(first), v, scratch, geo, sums, run)
            launch(transform_gy, flat(second), w, scratch, self.gradient, sums, run)
            launch(multiply, flat(out), s, w, v, scratch, geo, sums, run)


def weight_grad(problem: ConvProblem, tiles: Tiles, limit: int) -> WeightGrad:
    """Return the one with the best runs that stays within the limit, or that with the shortest.

    V and W of a run come from the last-level cache (4 MB of 32 were best), but should not be smaller than S,
    which every run reads and writes.
    """
    positions = prod(m + r - 1 for m, r in tiles)
    most = max(
        machine.machine().l3 // 8, positions * problem.k * problem.c * problem.itemsize // problem.groups
    )
    execution = WeightGrad(problem, tiles, most)
    while execution.workspace > limit and most:
        most //= 2
        execution = WeightGrad(problem, tiles, most)
    return execution
