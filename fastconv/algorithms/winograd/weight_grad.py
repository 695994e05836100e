"""The weight gradient as F(r, m): grad_output takes the part of the kernel.

    gw = A [ sum over tiles of (G gy G^T) * (B x B^T) ] A^T        gy: m x m pixels, x: alpha x alpha pixels

At each position the sum is a matrix product over tiles, which the tile wants outermost:

    S[position][k][c] += W[panel][position][tile][mr] * V[position][tile][c]

So tiles are transformed eight channels at a time into L1, and transposed on their way out.  Runs of tiles,
whose V and W fit the last-level cache, are added one after another; where they are cut
depends on the problem, the machine and the workspace, never on the number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import jit, machine, threads, workspace
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.winograd import Tiles
from fastconv.algorithms.winograd.correlation import geometry
from fastconv.algorithms.winograd.cpu import block_part, input_block
from fastconv.algorithms.winograd.lanes import ROWS, transform_sums, unpack_filters
from fastconv.gemm.blocking import odd_lines
from fastconv.gemm.move import SLACK
from fastconv.gemm.schedule import next_task, part
from fastconv.gemm.tile import tile
from fastconv.problem import ConvProblem, Direction


class Sums(NamedTuple):
    """Where things are; steps in elements."""

    runs: int  #     of blocks of tiles
    parts_c: int  # eight channels of x each
    panels: int  #   of k
    v_row: int  #    from tile to tile of V; the row length of S
    v_step: int  #   from position to position
    w_step: int
    s_step: int
    local_step: int  # from position to position of the eight channels in L1
    local: int  #       elements of a worker


@jit.kernel
def transform_x(workers, counter, x, v, scratch, geo, sums, run, mh, rh, mw, rw):
    """Write V of a run of tiles; tasks are eight channels."""
    for worker in numba.prange(workers):
        task = next_task(counter)
        while task < geo.groups * sums.parts_c:
            group, c = task // sums.parts_c, task % sums.parts_c * 8
            to = group * geo.positions * sums.v_step + c
            transposed(
                v, to, sums.v_step, sums.v_row, x, scratch, worker * sums.local, geo, sums, run, group,
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
                worker * sums.local, geo, sums, run, group, first, last, (mh, rh, mw, rw, mh),
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
def multiply(workers, counter, s, w, v, geo, sums, run):
    """Add a run's products to S; tasks are groups x positions x halves of the panels."""
    for _ in numba.prange(workers):
        tiles = block_part(geo, part(geo.blocks, sums.runs, run + 1))
        tiles -= block_part(geo, part(geo.blocks, sums.runs, run))
        vectors = -(-geo.c // geo.vl)
        columns = -(-vectors // geo.nr)
        task = next_task(counter)
        while task < 2 * geo.groups * geo.positions:
            group, position = task // 2 // geo.positions, task // 2 % geo.positions
            b0 = (group * geo.positions + position) * sums.v_step
            for panel in range(part(sums.panels, 2, task % 2), part(sums.panels, 2, task % 2 + 1)):
                row = part(geo.k, sums.panels, panel)
                rows = part(geo.k, sums.panels, panel + 1) - row
                a0 = ((group * sums.panels + panel) * geo.positions + position) * sums.w_step
                c0 = (group * geo.positions + position) * sums.s_step + row * sums.v_row
                for column in range(columns):
                    j = part(vectors, columns, column)
                    tile(
                        s, c0 + j * geo.vl, sums.v_row, w, a0, v, b0 + j * geo.vl, sums.v_row,
                        tiles, rows, part(vectors, columns, column + 1) - j, run > 0,
                    )  # fmt: skip
            task = next_task(counter)


@jit.kernel
def transform_back(workers, counter, gw, s, scratch, geo, sums, mh, rh, mw, rw):
    """Write gw; tasks are its rows k."""
    for worker in numba.prange(workers):
        t0 = worker * sums.local
        task = next_task(counter)
        while task < geo.groups * geo.k:
            at = (task // geo.k * geo.positions) * sums.s_step + task % geo.k * sums.v_row
            transform_sums(scratch, t0, sums.v_row, s, at, sums.s_step, geo.c, (mh, rh, mw, rw))
            to = task * geo.c * geo.taps
            for c in range(geo.c):
                for tap in range(geo.taps):
                    gw[to + c * geo.taps + tap] = scratch[t0 + tap * sums.v_row + c]
            task = next_task(counter)


class WeightGrad(Execution):
    """The weight gradient by runs of tiles whose V and W take at most ``most`` bytes."""

    def __init__(self, problem: ConvProblem, tiles: Tiles, most: int) -> None:
        self.problem = problem
        self.variant = tuple((0,) * length for axis in tiles for length in axis)
        unit, cores = machine.tile(problem.itemsize), machine.machine().cores
        g = geometry(problem, Direction.FORWARD, tiles, False, unit.nr, 0)
        ld = -(-g.ld // ROWS) * ROWS
        g = g._replace(ld=ld, v_step=ROWS * ld + unit.vl)
        v_row = odd_lines(g.c, unit.vl)
        rows = -(-g.k // g.panels)
        per_tile = problem.groups * g.positions * (v_row + g.k) * problem.itemsize
        runs = min(g.blocks, -(-g.blocks * g.ld * per_tile // max(1, most)))
        capacity = -(-g.blocks // runs) * g.ld + ROWS  # the last tile's eight lanes may pass its row's end
        v_step, w_step = capacity * v_row + unit.vl, capacity * rows + unit.vl
        local = max(g.positions * g.v_step, g.taps * v_row) + SLACK
        self.geometry = g
        self.gradient = g._replace(c=g.k, h=g.p, w=g.q, lo_h=0, lo_w=0)
        s_step = g.k * v_row + unit.vl
        self.sums = Sums(runs, -(-g.c // ROWS), g.panels, v_row, v_step, w_step, s_step, g.v_step, local)
        self.sizes = (
            g.groups * g.positions * v_step,
            g.groups * g.panels * g.positions * w_step,
            g.groups * g.positions * s_step + SLACK,
        )
        self.workspace = (sum(self.sizes) + cores * local) * problem.itemsize

    def run(self, first: Array, second: Array, out: Array, bias: Array, activation: Any) -> None:
        scratch = workspace.take(sum(self.sizes) + threads.count() * self.sums.local, self.problem.dtype)
        v, w, s, scratch = np.split(scratch, np.cumsum(self.sizes))
        geo, sums, flops = self.geometry, self.sums, self.problem.flops / self.sums.runs

        def launch(kernel: Any, *arguments: Any) -> None:
            threads.launch(kernel, flops, np.zeros(1, np.int64), *arguments)

        for run in range(sums.runs):
            launch(transform_x, flat(first), v, scratch, geo, sums, run, *self.variant)
            launch(transform_gy, flat(second), w, scratch, self.gradient, sums, run, *self.variant)
            launch(multiply, s, w, v, geo, sums, run)
        launch(transform_back, flat(out), s, scratch, geo, sums, *self.variant)


def weight_grad(problem: ConvProblem, tiles: Tiles, limit: int) -> WeightGrad:
    """Return the one with the longest runs that stays within the limit, or that with the shortest."""
    most = machine.machine().l3 // 2
    execution = WeightGrad(problem, tiles, most)
    while execution.workspace > limit and most:
        most //= 2
        execution = WeightGrad(problem, tiles, most)
    return execution
