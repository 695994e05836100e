"""Tiles of 8, 16 or 32 pixels a side through our own FFT on a GPU, in stages (`fastconv.algorithms.staged`)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from math import log2, prod
from typing import Any

from fastconv.algorithms import fft
from fastconv.algorithms.base import Execution
from fastconv.algorithms.fft.cuda_depthwise import SECOND, Pair, correlating, filtering
from fastconv.algorithms.fft.cuda_tile import THREADS, frequencies
from fastconv.algorithms.fft.cuda_transforms import entering, leaving
from fastconv.algorithms.im2col.splits import magic
from fastconv.algorithms.staged import (
    Array,
    Correlation,
    Extents,
    Geometry,
    Staged,
    Transforms,
    WeightGrad,
    correlated,
    opposed,
    pair,
)
from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.gemm import batched
from fastconv.problem import ConvProblem, Direction

SIZES = (8, 16, 32)  # of a tile: a column of 32 complex numbers fits a thread's registers
BLOCKS = 4  # on a multiprocessor, that a depthwise weight gradient is split into
SPEED = 15e12  # operations of transforms in float32, a second: a guess
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
    depthwise = problem.groups == problem.c == problem.k
    if direction is Direction.WEIGHT_GRAD:
        return (DepthwiseWeightGrad if depthwise else WeightGrad)(problem, transforms, limit)
    if depthwise:
        return Depthwise(problem, direction, transforms)
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
    rate = 1.5e12  # on their way through shared memory

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

    def pair(self, array: Array, second: Array, channels: int) -> tuple[Any, int, int]:
        """Describe two arrays with the same tiles and their own channels; return lanes and blocks, too."""
        g, lane, blocks = self.geometry(
            replace(array, channels=channels), 1, 0, (1, 1), (array.tiles, channels), array.near
        )
        other = self.geometry(second, 1, 0, (1, 1), (1, 1), False)[0]
        return Pair(*g, *(getattr(other, name) for name in SECOND), 1, 0), lane, blocks

    def transforming(self, tiles: int) -> float:
        """Return the seconds in which so many tiles are transformed there and back."""
        pixels, slower = self.t * self.wide, 2 if self.dtype == "float64" else 1
        return slower * 10 * tiles * pixels * log2(pixels) / SPEED


class Depthwise(Staged):
    """Forward or input gradient of one channel a group, in one kernel after the weights."""

    transforms: Spectra

    def __init__(self, problem: ConvProblem, direction: Direction, transforms: Spectra) -> None:
        super().__init__(problem, transforms)
        self.weights, self.source, self.result = correlated(problem, direction, transforms.steps)
        self.geometry, self.lane, self.blocks = transforms.pair(self.source, self.result, problem.c)
        self.workspace = self.batches * problem.itemsize
        computing = transforms.transforming(self.source.tiles * problem.c)
        self.seconds = self.predicted(problem, computing, 2 * self.batches, 2)

    def run(self, first, second, out, bias, activation, residual=None):
        t, stream = self.transforms, out.stream()
        u = out.empty((self.batches,), out.dtype)
        added = {"has_bias": int(bias is not None), "has_residual": int(residual is not None)}

        def weights():
            g, lane, blocks = t.geometry(self.weights, self.groups, 0, (1, 1), (1, 1), False)
            kernel = t.enter("weights", self.weights.near, lane)
            return kernel, blocks, g._replace(plane=1, to_group=t.planes)  # a channel's spectrum side by side

        def filtered():
            constants = self.dtype, t.t, t.wide, self.source.near, self.lane, activation
            kernel = Kernel(filtering, constants, (self.dtype,) * 5, Pair, "int64", THREADS)
            return kernel, self.blocks, self.geometry._replace(**added)

        self.launch("weights", weights, stream, second, u)
        self.launch((activation, *added.values()), filtered, stream, first, u, bias, residual, out)


class DepthwiseWeightGrad(Staged):
    """The weight gradient of one channel a group: sums of spectra in registers, then over blocks."""

    transforms: Spectra

    def __init__(self, problem: ConvProblem, transforms: Spectra, limit: int) -> None:
        super().__init__(problem, transforms)
        self.source, self.gradient, self.result = opposed(problem, transforms.steps)
        g, self.lane, _ = transforms.pair(self.source, self.gradient, problem.c)
        sweep = transforms.per_block // self.lane
        wanted = -(-BLOCKS * backend().processors() // g.channel_blocks)
        splits = min(wanted, -(-g.tiles // sweep), limit // (self.batches * problem.itemsize))
        splits = max(1, splits)
        slots = splits * sweep
        self.geometry = g._replace(tile_blocks=splits, slots=slots, rounds=-(-g.tiles // slots))
        self.p = batched.Product(batched.SMALL[0], 1, 1, splits)
        self.workspace = splits * self.batches * problem.itemsize
        computing = transforms.transforming(self.source.tiles * problem.c)
        self.seconds = self.predicted(problem, computing, 2 * splits * self.batches, 2)

    def run(self, first, second, out, bias, activation, residual=None):
        m = out.empty((self.p.splits * self.batches,), out.dtype)

        def sums():
            constants = self.dtype, self.transforms.t, self.transforms.wide, self.source.near, self.lane
            kernel = Kernel(correlating, constants, (self.dtype,) * 3, Pair, "int64", THREADS)
            return kernel, self.geometry.channel_blocks * self.geometry.tile_blocks, self.geometry

        self.launch("sums", sums, out.stream(), first, second, m)
        self.leave("weights", self.result, 0, self.p, m, out)
