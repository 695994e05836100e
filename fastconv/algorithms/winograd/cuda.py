"""Winograd on a GPU: F(m, r) in stages (`fastconv.algorithms.staged`), F(2x2, 3x3) in one kernel (`cuda_fused`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from fastconv.algorithms import winograd
from fastconv.algorithms.base import Execution
from fastconv.algorithms.im2col.splits import magic
from fastconv.algorithms.staged import (
    SLAB,
    Correlation,
    Geometry,
    Staged,
    Transforms,
    WeightGrad,
    correlated,
    pair,
)
from fastconv.algorithms.winograd import Tiles, cuda_fused
from fastconv.algorithms.winograd.cuda_transforms import THREADS, entering, leaving
from fastconv.algorithms.winograd.phases import Counts
from fastconv.cuda.compiler import Kernel
from fastconv.gemm.cuda_share import busy
from fastconv.problem import ConvProblem, Direction

FUSED = ((2, 3), (2, 3))
LIMIT = 2**31  # pixels of a batch are numbered in 32 bits


class Winograd(winograd.Winograd):
    """F(m, r), m chosen by cost and precision, or given: ``winograd:F(4,3)``."""

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        if reason := super().reject(replace(problem, layout="nchw"), direction):
            return str(reason)
        if not problem.plain:
            walks = ", ".join(f"{a.stride} and {a.dilation}" for a in problem.axes)
            return f"tiles need stride and dilation 1 along each axis, got {walks}"
        taps = self.given or (2, max(problem.kernel))
        if 1 not in pair(problem.kernel) and sum(taps) > 7:
            return f"tiles of more than 6x6 exceed a thread's registers, got kernels of {taps[1]} taps"
        if problem.n * max(prod(problem.output), prod(a.size for a in problem.axes)) >= LIMIT:
            return "a map of the whole batch has 2**31 pixels"
        return None

    def seconds(self, problem: ConvProblem, direction: Direction, tiles: Tiles) -> float:
        return made(problem, direction, tiles, 2**62).seconds

    def weighing(self, problem: ConvProblem, direction: Direction, found: Counts) -> Callable[[Tiles], float]:
        return functools.partial(self.seconds, problem, direction)

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return made(problem, direction, self.tiles(problem, direction), limit).workspace

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        return made(problem, direction, self.tiles(problem, direction), limit)


@functools.lru_cache(maxsize=256)
def made(problem: ConvProblem, direction: Direction, tiles: Tiles, limit: int) -> Staged:
    """Make ready to run."""
    if tiles == FUSED and problem.dtype == "float32" and direction is not Direction.WEIGHT_GRAD:
        return Fused(problem, direction)
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

    def enter(self, role: str, near: bool, lane: int) -> Kernel:
        axes = self.axes("B" if role == "source" else "G")
        return Kernel(entering, (self.dtype, *axes, lane), (self.dtype,) * 2, Geometry, "int64", THREADS)

    def leave(self, role: str, near: bool, lane: int, activation: str, vector: bool) -> Kernel:
        constants = (self.dtype, *self.axes("A"), lane, activation, vector)
        return Kernel(leaving, constants, (self.dtype,) * 4, Geometry, "int64", THREADS)


class Fused(Staged):
    """Transform weights, then do the rest in one kernel."""

    def __init__(self, problem: ConvProblem, direction: Direction) -> None:
        super().__init__(problem, Points(FUSED, problem.dtype, direction))
        self.weights, source, result = correlated(problem, direction, self.transforms.steps)
        stages = max(1, -(-source.channels // cuda_fused.CHANNELS))
        channels = stages * cuda_fused.CHANNELS
        k_blocks = -(-result.channels // cuda_fused.RESULTS)
        tile_blocks = -(-source.tiles // cuda_fused.TILES)
        padded, image_tiles = k_blocks * cuda_fused.RESULTS, prod(source.counts)
        self.padded = padded, channels
        self.near = source.near
        self.elements = problem.groups * channels * cuda_fused.POINTS * padded
        self.workspace = self.elements * problem.itemsize
        self.blocks = k_blocks * tile_blocks * problem.groups
        self.geometry = cuda_fused.Geometry(
            source.tiles, tile_blocks, source.channels, stages, result.channels, k_blocks,
            image_tiles, *magic(image_tiles), source.counts[1], *magic(source.counts[1]), *source.steps, *source.lo,
            *source.sizes, *source.strides, *result.sizes, *result.strides,
        )  # fmt: skip
        products = channels * cuda_fused.POINTS * cuda_fused.RESULTS * cuda_fused.TILES
        computing = busy(self.blocks, products, cuda_fused.BESIDE, cuda_fused.THREADS, 1)
        self.seconds = self.predicted(problem, computing, 2 * self.elements, 2)

    def run(self, first, second, out, bias, activation, residual=None):
        t, stream, (k, c) = self.transforms, out.stream(), self.padded
        u = out.empty((self.elements,), out.dtype)
        added = {"has_bias": int(bias is not None), "has_residual": int(residual is not None)}

        def weights():
            g, lane, blocks = t.geometry(self.weights, self.groups, 0, (k, c), (self.weights.tiles, c), False)
            kernel = t.enter("weights", self.weights.near, lane)
            points = cuda_fused.POINTS * SLAB  # of a channel, side by side
            places = {
                "to_group": c * cuda_fused.POINTS * k,
                "to_slab": c * points - SLAB,
                "to_channel": points,
            }
            return kernel, blocks, g._replace(plane=SLAB, **places)

        def fused():
            kernel = cuda_fused.kernel(activation, self.near)
            return kernel, self.blocks, self.geometry._replace(**added)

        self.launch("weights", weights, stream, second, u)
        self.launch((activation, *added.values()), fused, stream, first, u, bias, residual, out)
