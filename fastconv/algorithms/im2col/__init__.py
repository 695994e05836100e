"""Convolution as a matrix product: every result pixel a column of the pixels its kernel covers.

    y[k, j] = sum over t of  w[k, t] * B[t, j]        t = (c, r, s), a tap of a channel,   j = (n, p, q), a result pixel

    B[t, j] = x[n, c, p*stride + r*dilation - lo, q*stride + s*dilation - lo]

B is R*S times as large as the input, so it never exists as a whole: blocks of its columns are lowered
into cache and multiplied there (`cpu.py`).  A 1x1 convolution is the same product with B = x.  Where much of B would be
padding, taps are taken one by one (`by_tap.py`); of an input gradient of few channels they are rows of the product (`col2im.py`).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import product
from math import inf, prod, sqrt

import numpy as np

from fastconv import borders, machine
from fastconv.algorithms.base import Algorithm, Execution
from fastconv.algorithms.correlation import BlockedPass, Correlation
from fastconv.algorithms.im2col.by_tap import TapPass
from fastconv.algorithms.im2col.cost import adds, by_tap, cost, few, kind, share
from fastconv.algorithms.im2col.cpu import Geometry, correlate
from fastconv.algorithms.passes import AxisPass, Pass, phase_tables, result_rows, source_rows
from fastconv.gemm.blocking import odd_lines, streams, within
from fastconv.gemm.move import SLACK
from fastconv.gemm.record import joined, record
from fastconv.gemm.segments import SEGMENT
from fastconv.problem import WEIGHT_GRAD, ConvProblem, Direction
from fastconv.roofline import least, multiply
from fastconv.typing import Array

ALONE = 10  # times as long as a row's products takes what is lowered for that row alone


class Im2col(Algorithm):
    """Blockwise lowering and GEMM; serves everything."""

    name = "im2col"
    exact = True

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return self.build(problem, direction, limit).workspace

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        return cost(problem, direction)

    def floor(self, problem: ConvProblem, direction: Direction) -> float:
        part = 1.0 if direction is WEIGHT_GRAD else share(problem, direction)
        if problem.groups == problem.c == problem.k:
            part *= ALONE
        return least("im2col added" if few(problem, direction) else kind(problem, direction), problem, part)

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        return within(limit, functools.partial(_make, problem, direction))


@functools.lru_cache(maxsize=256)
def _make(problem: ConvProblem, direction: Direction, cache: int) -> Execution:
    """Make ready to run with blocks for ``cache`` bytes."""
    if direction is WEIGHT_GRAD:
        from fastconv.algorithms.im2col.weight_grad import WeightGrad

        return WeightGrad(problem, cache)
    if adds(problem, direction):
        from fastconv.algorithms.im2col.col2im import Col2im

        return Col2im(problem, cache)
    if borders.framed(problem, direction):
        from fastconv.algorithms.frame import framed

        return framed(_make(replace(problem, padding_mode="zeros"), direction, cache), problem, cache)
    # packed weights take scratch: not where it is scarce
    taps = cache == machine.machine().l2 and problem.layout != "nhwc" and by_tap(problem, direction)
    return Correlation(problem, direction, TapPass if taps else LoweredPass, cache)


KC = 160  # rows of B in a chunk: a slice of NR vectors takes 30 KB of L1
LOWER, LOAD = 4, 0.5  # cycles to lower a vector of B, and to load a weight that is not in L2
WEAVE, FIRST = (
    12,
    20,
)  # to weave a vector of the result; and more where what is before it was not just written
TASKS = 16  # for each core, where columns and panels give as many: two cores are seldom equally fast


class LoweredPass(BlockedPass):
    """A pass over any number of axes, ready to run."""

    kernel = correlate

    def __init__(self, p: Pass, itemsize: int, cache: int) -> None:
        super().__init__(p, itemsize)
        tile = machine.tile(itemsize)
        outer, last = p.axes[:-1], p.axes[-1]
        rows = prod(a.outputs for a in outer)
        views = {offset: i for i, offset in enumerate(product(*(a.offsets for a in p.axes)))}

        lowered, phases = len(views), p.phases
        chunks = max(1, min(p.channels, -(-p.channels * lowered // KC)))
        per_chunk = -(-p.channels // chunks)
        past = not p.last and streams(p.results, itemsize)  # the caches
        stream = phases == 1 and past and prod(a.result for a in p.axes) % tile.vl == 0
        by_lines = phases == 1 and past and not stream
        width = tile.nr * tile.vl
        panels = -(-p.m // tile.mr)
        row_blocks, column_blocks = self._divide(p, itemsize, cache, lowered, chunks)
        slices = -(-(p.columns + (tile.vl - 1) * stream) // width)
        slices = -(-slices // column_blocks)
        ldc = odd_lines(slices * width, tile.vl) if phases > 1 else width
        sums = -(-panels // row_blocks) * tile.mr * phases * ldc
        sizes = {
            "b": per_chunk * lowered * width + SLACK,
            "panel": -(-panels // row_blocks) * tile.mr * per_chunk * prod(p.kernel) + SLACK if self.loads else 0,
            "c_start": (slices if chunks > 1 and phases == 1 else 1) * sums + SLACK,
            "lines": -(-panels // row_blocks) * tile.mr * (width + tile.vl) if by_lines else 0,
        }  # fmt: skip
        starts = np.cumsum([0] + [-(-size // 16) * 16 for size in sizes.values()])
        places = dict(zip(sizes, starts.tolist(), strict=False))
        self.scratch = int(starts[-1])
        pixels, listed = lists_of(p, width)
        source, result = (prod(sizes) for sizes in zip(*((a.source, a.result) for a in p.axes), strict=True))
        source_channel, source_pixel = p.steps_of(p.channels, source)
        result_channel, result_pixel = p.steps_of(p.m, result)
        kept = slices if chunks > 1 else 1
        self.segments = kept * listed

        def values() -> tuple[Geometry, Array]:
            edges = last.edges(last.offsets, source_pixel)
            lo, hi = last.meeting()
            tables, starts = joined(
                **phase_tables(p, {o: i * width for o, i in views.items()}, per_chunk, lowered * width),
                source_row=source_rows(outer), result_row=result_rows(outer), offset=last.offsets,
                together=together(last) if source_pixel == 1 else [1] * len(last.offsets), lo=lo, hi=hi, edges=edges,
            )  # fmt: skip
            geometry = Geometry(
                groups=p.groups, channels=p.channels, m=p.m, outer=lowered // max(1, len(last.offsets)),
                inner=len(last.offsets), rows=rows, q=last.outputs, columns=p.columns,
                source_rows=prod(a.source for a in outer), source_width=last.source, stride=last.stride,
                source_channel=source_channel, source_pixel=source_pixel,
                outer_steps=phases // last.step, step=last.step, result_width=last.result,
                result_size=result, result_channel=result_channel, result_pixel=result_pixel, column_blocks=column_blocks,
                row_blocks=row_blocks, chunks=chunks, phases=phases, ld=width, ldc=ldc, panel=places["panel"],
                c_start=places["c_start"], scratch=self.scratch, segments=listed, pixels=pixels, lists=kept, phases_at=starts["phases"], source_row_at=starts["source_row"],
                result_row_at=starts["result_row"], offset_at=starts["offset"],
                together_at=starts["together"], lo_at=starts["lo"],
                hi_at=starts["hi"], edges_at=starts["edges"], near=source_pixel == 1 and all(a.is_read_in_place for a in p.axes), stream=stream, past_caches=phases > 1 and past, lines=places["lines"] if by_lines else 0,
                vl=tile.vl, mr=tile.mr, nr=tile.nr,
            )  # fmt: skip
            return geometry, tables

        def described() -> tuple[Array, Array]:
            geometry, tables = values()
            return record(geometry), tables

        self.values, self.describe = values, described

    def _divide(self, p: Pass, itemsize: int, cache: int, lowered: int, chunks: int) -> tuple[int, int]:
        """Return into how many blocks of panels and of columns the work is cut: what takes the fewest cycles.

        A chunk of a task's weights, which each slice of B reads again, may fill a quarter of L2, and so may
        the sums that wait for the next chunk, or to be woven.
        """
        tile, cores = machine.tile(itemsize), machine.machine().cores
        quarter, woven = cache // 4 // itemsize, p.phases > 1
        width, panels, q = tile.nr * tile.vl, -(-p.m // tile.mr), p.axes[-1].outputs
        slices = max(1, -(-p.columns // width))
        weights = p.channels * prod(p.kernel)  # of a row of A
        row_blocks = min(panels, -(-panels * tile.mr * weights // (chunks * quarter)))
        stay = p.m * weights <= 3 * quarter  # in L2 from task to task
        lower = LOWER * p.channels * lowered * tile.nr * (-(-q // tile.vl) * tile.vl / max(1, q))
        stores = woven * p.phases * tile.nr
        row = multiply(p.m, tile.nr, p.reduction, itemsize) / p.m + stores * WEAVE  # of a slice
        best = (inf, 1, 1)
        while row_blocks <= panels:
            rows, tasks = -(-panels // row_blocks) * tile.mr, p.groups * row_blocks
            slice_cycles = max(1, lower + rows * row)
            # of a task, whatever its slices
            begin = rows * (stores * FIRST + (0 if stay else LOAD * weights))
            # so many slices that the work shared out, and half of a task that one core is late, are the least
            in_task = sqrt(2 * tasks * slices * begin / (cores * slice_cycles)) if cores > 1 else slices
            in_task = max(round(in_task), -(-slices * tasks // (TASKS * cores)), 1)
            if chunks > 1 or woven:
                in_task = min(in_task, max(1, quarter // (rows * p.phases * width)))
            self.column_blocks = column_blocks = -(-slices // in_task)
            if self.loads:  # read and written
                begin += rows * LOAD * weights * (1 + stay)
            cycles = tasks * (slices * slice_cycles + column_blocks * begin) / cores
            cycles += (in_task * slice_cycles + begin) / 2 if cores > 1 else 0
            best = min(best, (cycles, row_blocks, column_blocks))
            row_blocks *= 2
        _, row_blocks, self.column_blocks = best
        return row_blocks, self.column_blocks


def lists_of(p: Pass, columns: int) -> tuple[int, int]:
    """Return the numbers in the list of segments for ``columns`` columns, and those with the pixels behind."""
    last = p.axes[-1]
    views, rows = prod(len(a.offsets) for a in p.axes), columns // max(1, last.outputs) + 2
    segments = SEGMENT * views * rows
    return segments, segments + views + 3 + 2 * views * rows * len(last.border)


def together(axis: AxisPass) -> list[int]:
    """Return for each offset how many are lowered together from there on: two neighbours, at stride 2, by one load."""
    found, offsets = [], axis.offsets
    while len(found) < len(offsets):
        i = len(found)
        pair = axis.stride == 2 and offsets[i] + 1 in offsets[i + 1 : i + 2]
        found += [2, 0] if pair else [1]
    return found
