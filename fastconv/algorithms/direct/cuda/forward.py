"""Forward and input gradient by `rows`: what a thread computes, and the launch."""

from __future__ import annotations

import functools
from math import gcd, prod

import numpy as np

from fastconv.algorithms.base import Execution
from fastconv.algorithms.direct.cuda.row import TX, Phase, Row
from fastconv.algorithms.direct.cuda.rows import THREADS, Column, Geometry, correlation
from fastconv.algorithms.im2col.cuda import three
from fastconv.algorithms.im2col.splits import magic
from fastconv.algorithms.passes import AxisPass, Pass, pass_of
from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.problem import ConvProblem, Direction

SUMS, WEIGHTS = 128, 100  # bytes in the registers of a thread


@functools.cache
def rows_kernel(dtype: str, row: Row, column: Column, tm: int, ty: int, kernel_x: int, name: str) -> Kernel:
    """Return the kernel of rows, with an activation by name."""
    constants = (dtype, row, column, tm, ty, kernel_x, name)
    pointers = (dtype, dtype, "int32", dtype, dtype, dtype)
    return Kernel(correlation, constants, pointers, Geometry, "uint32", THREADS, 4)


def phases_of(axis: AxisPass, back: bool) -> tuple[tuple[Phase, ...], int, int]:
    """Return an axis's phases, and the source pixels and places in the kernel from one tap to the next."""
    ordered = [sorted(taps, key=lambda tap: tap[1]) for taps in axis.taps]
    phases = tuple(Phase(len(taps), taps[0][1], taps[0][0]) if taps else Phase(0, 0, 0) for taps in ordered)
    longest = max(ordered, key=len)
    if len(longest) < 2:
        return phases, 1, -1 if back else 1
    (index, offset), (next_index, next_offset) = longest[:2]
    return phases, next_offset - offset, next_index - index


def row_of(x: AxisPass, back: bool) -> Row:
    """Describe the last axis."""
    return Row(x.stride, *phases_of(x, back), x.source % 4 == 0, x.result % 4 == 0)


class Tiling:
    """How threads share out a pass."""

    def __init__(self, p: Pass, itemsize: int) -> None:
        _, y, x = three(p.axes)
        sums = SUMS // itemsize
        phases, gap, _ = phases_of(y, False)
        # a thread's rows stand so far apart that they share rows of the source
        self.spread, self.rows = gap // gcd(y.stride, gap), y.stride // gcd(y.stride, gap)
        self.tm = 1
        while self.tm < min(p.m, 8) and 2 * self.tm * TX * x.step <= sums:
            self.tm *= 2
        taps = max(phase.count for phase in phases)

        def touched(ty: int) -> int:
            return -(-y.outputs // (self.spread * ty)) * self.spread * ((ty - 1) * self.rows + taps + 1)

        fitting = [ty for ty in (4, 2, 1) if self.tm * ty * TX * x.step <= sums] or [1]
        self.ty = min(fitting, key=touched)
        self.tiles = (
            -(-x.outputs // TX), -(-y.outputs // (self.spread * self.ty)) * self.spread * y.step,
            three(p.axes)[0].outputs * three(p.axes)[0].step,
        )  # fmt: skip
        self.tiles_m = -(-p.m // self.tm)
        self.threads = p.n * p.groups * self.tiles_m * prod(self.tiles)


class Rows(Execution):
    """Forward or input gradient in one launch."""

    def __init__(self, problem: ConvProblem, direction: Direction) -> None:
        self.dtype = problem.dtype
        p, back = pass_of(problem, direction), direction is Direction.INPUT_GRAD
        axes, self.tiling = three(p.axes), Tiling(p, problem.itemsize)
        z, y, x = axes
        (phases_z, gap_z, skip_z), (phases_y, gap_y, skip_y) = (phases_of(a, back) for a in (z, y))
        self.row = row_of(x, back)
        lines = [(*phase, 0) for phase in (*phases_z, *phases_y)]
        self.table = backend().Buffer(np.array(lines, np.int32))
        t, kernel = self.tiling, (1, 1, *p.kernel)[-2:]
        self.geometry = Geometry(
            t.threads, *(v for tiles in t.tiles for v in (tiles, *magic(tiles))), t.tiles_m, p.groups, p.channels, p.m,
            z.step, y.step, z.source, y.source, x.source, y.outputs, z.result, y.result, x.result,
            z.stride, y.stride, gap_z, gap_y, abs(skip_z), abs(skip_y), t.spread, t.rows, *kernel,
            p.group_stride, p.row_stride, p.channel_stride, 0, 0,
        )  # fmt: skip
        counts = {phase.count for phase in phases_y}
        few = t.tm == 1 and self.row.pieces == 1 and 0 < max(counts) * kernel[1] * problem.itemsize <= WEIGHTS
        column = Column(max(counts), t.rows, len(counts) == 1) if few else Column(0, 0, False)
        self.constants = (column, t.tm, t.ty, kernel[1])
        self.blocks = -(-t.threads // THREADS)

    def run(self, first, second, out, bias, activation, residual=None):
        added = {"has_bias": int(bias is not None), "has_residual": int(residual is not None)}
        row = self.row._replace(  # callers' arrays may begin anywhere
            quads=self.row.quads and first.pointer % 16 == 0,
            whole=self.row.whole and all(m is None or m.pointer % 16 == 0 for m in (out, residual)),
        )
        kernel = rows_kernel(self.dtype, row, *self.constants, activation)
        arrays = (first, second, self.table, bias, residual, out)
        backend().launch(kernel, self.blocks, out.stream(), *arrays, self.geometry._replace(**added))
