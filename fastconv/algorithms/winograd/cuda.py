"""Winograd on a GPU, in stages (`fastconv.algorithms.staged`)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from math import prod

from fastconv.algorithms import winograd
from fastconv.algorithms.base import Execution
from fastconv.algorithms.staged import Correlation, Geometry, Staged, Transforms, WeightGrad, pair
from fastconv.algorithms.winograd import Tiles
from fastconv.algorithms.winograd.cuda_transforms import THREADS, entering, leaving
from fastconv.cuda.compiler import Kernel
from fastconv.problem import ConvProblem, Direction

LIMIT = 2**31  # pixels of a batch are numbered in 32 bits


class Winograd(winograd.Winograd):
    """F(m, r), m chosen by cost and precision, or given: ``winograd:F(4,3)``."""

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        if reason := super().reject(replace(problem, layout="nchw"), direction):
            return str(reason)
        taps = self.given or (2, max(problem.kernel))
        if 1 not in pair(problem.kernel) and sum(taps) > 7:
            return f"tiles of more than 6x6 exceed a thread's registers, got kernels of {taps[1]} taps"
        if problem.n * max(prod(problem.output), prod(a.size for a in problem.axes)) >= LIMIT:
            return "a map of the whole batch has 2**31 pixels"
        return None

    def seconds(self, problem: ConvProblem, direction: Direction, tiles: Tiles) -> float:
        return made(problem, direction, tiles, 2**62).seconds

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return made(problem, direction, self.tiles(problem, direction), limit).workspace

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        return made(problem, direction, self.tiles(problem, direction), limit)


@functools.lru_cache(maxsize=256)
def made(problem: ConvProblem, direction: Direction, tiles: Tiles, limit: int) -> Staged:
    """Make ready to run."""
    transforms = Points(tiles, problem.dtype, direction)
    if direction is Direction.WEIGHT_GRAD:
        return WeightGrad(problem, transforms, limit)
    return Correlation(problem, direction, transforms, limit)


@dataclass(frozen=True)
class Points(Transforms):
    """The domain of F(m, r): values of polynomials at alpha x alpha points."""

    tiles: Tiles
    dtype: str
    direction: Direction
    per_block = THREADS

    @property
    def planes(self) -> int:
        return prod(m + r - 1 for m, r in self.tiles)

    @property
    def steps(self) -> tuple[int, int]:
        return self.tiles[0][0], self.tiles[1][0]

    def axes(self, which: str) -> tuple[tuple[str, int, int], ...]:
        """Name the matrices of both axes; a weight gradient is F(r, m), whose B is that of F(m, r)."""
        if self.direction is Direction.WEIGHT_GRAD:
            return tuple((which, r, m) for m, r in self.tiles)
        return tuple((which, m, r) for m, r in self.tiles)

    def enter(self, role: str, lane: int) -> Kernel:
        axes = self.axes("B" if role == "source" else "G")
        return Kernel(entering, (self.dtype, *axes, lane), (self.dtype,) * 2, Geometry, "int64", THREADS)

    def leave(self, role: str, lane: int, activation: str, vector: bool) -> Kernel:
        constants = (self.dtype, *self.axes("A"), lane, activation, vector)
        return Kernel(leaving, constants, (self.dtype,) * 4, Geometry, "int64", THREADS)
