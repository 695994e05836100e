"""Tiles of 8, 16 or 32 pixels a side through our own FFT on a GPU, in stages (`fastconv.algorithms.staged`)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from fastconv.algorithms import fft
from fastconv.algorithms.base import Execution
from fastconv.algorithms.fft.cuda_transforms import THREADS, entering, frequencies, leaving
from fastconv.algorithms.im2col.splits import magic
from fastconv.algorithms.staged import (
    Array,
    Correlation,
    Extents,
    Geometry,
    Staged,
    Transforms,
    WeightGrad,
    pair,
)
from fastconv.cuda.compiler import Kernel
from fastconv.problem import ConvProblem, Direction

SIZES = (8, 16, 32)  # of a tile: a column of 32 complex numbers fits a thread's registers
LIMIT = 2**31  # pixels of a batch are numbered in 32 bits


class Fft(fft.Fft):
    """Stride 1, one or two axes, kernels that span at most a tile."""

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        if reason := super().reject(replace(problem, layout="nchw"), direction):
            return reason
        if len(problem.axes) > 2:
            return f"tiles have one or two axes, the problem has {len(problem.axes)}"
        if max(a.extent for a in problem.axes) > SIZES[-1]:
            spans = "x".join(str(a.extent) for a in problem.axes)
            return f"tiles have at most {SIZES[-1]} pixels a side, a kernel spans {spans}"
        if problem.n * max(prod(problem.output), prod(a.size for a in problem.axes)) >= LIMIT:
            return "a map of the whole batch has 2**31 pixels"
        return None

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return self.staged(problem, direction, limit).workspace

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        return self.staged(problem, direction, 2**62).seconds

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        return self.staged(problem, direction, limit)

    def staged(self, problem: ConvProblem, direction: Direction, limit: int) -> Staged:
        """Return the fastest tiles within the limit, or those that take the least."""
        extent = max(a.extent for a in problem.axes)
        made = [make(problem, direction, t, limit) for t in SIZES if t >= extent]
        fitting = [m for m in made if m.workspace <= limit]
        return min(fitting, key=lambda m: m.seconds) if fitting else min(made, key=lambda m: m.workspace)


@functools.lru_cache(maxsize=256)
def make(problem: ConvProblem, direction: Direction, t: int, limit: int) -> Staged:
    """Make ready to run with tiles of a size."""
    extent = pair(tuple(a.extent for a in problem.axes))
    wide = t if len(problem.axes) == 2 else 1
    steps = (t - extent[0] + 1 if wide > 1 else 1), t - extent[1] + 1
    transforms = Spectra(t, wide, steps, pair(tuple(a.dilation for a in problem.axes)), problem.dtype)
    if direction is Direction.WEIGHT_GRAD:
        return WeightGrad(problem, transforms, limit)
    return Correlation(problem, direction, transforms, limit)


@dataclass(frozen=True)
class Spectra(Transforms):
    """The domain of frequencies: three planes for each, of tiles with t rows and ``wide`` columns.

    One axis is laid upright: it becomes rows of one pixel.
    """

    t: int
    wide: int
    steps: tuple[int, int]
    dilation: tuple[int, int]
    dtype: str

    @property
    def planes(self) -> int:
        return 3 * frequencies(self.t, self.wide)

    @property
    def per_block(self) -> int:
        return THREADS // self.t

    def geometry(
        self, array: Array, groups: int, first: int, padded: Extents, covered: Extents, to_near: bool
    ) -> tuple[Geometry, int, int]:
        g, lane, blocks = super().geometry(array, groups, first, padded, covered, to_near)
        if self.wide == 1:
            one = dict(zip(("row_tiles", "row_m", "row_s"), (1, *magic(1)), strict=True))
            g = g._replace(
                step_y=g.step_x, step_x=1, lo_y=g.lo_x, lo_x=0, height=g.width, width=1, row=g.pixel, **one
            )
        return g, lane, blocks

    def _constants(self, role: str, near: bool, lane: int) -> tuple[Any, ...]:
        dilation = (1, 1) if role in ("source", "gradient", "result") else self.dilation
        return self.dtype, self.t, self.wide, role, near, lane, dilation if self.wide > 1 else dilation[::-1]

    def enter(self, role: str, near: bool, lane: int) -> Kernel:
        constants = self._constants(role, near, lane)
        return Kernel(entering, constants, (self.dtype,) * 2, Geometry, "int64", THREADS)

    def leave(self, role: str, near: bool, lane: int, activation: str, vector: bool) -> Kernel:
        constants = (*self._constants(role, near, lane), activation)
        return Kernel(leaving, constants, (self.dtype,) * 4, Geometry, "int64", THREADS)
