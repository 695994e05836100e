"""The weight gradient by an implicit GEMM on a GPU: `fastconv.algorithms.im2col.implicit_weight`.

A small result is summed over a long batch, so the sum is split until the GPU is full; each split writes sums of
its own, and a second kernel adds them, first to last, always alike.
"""

from __future__ import annotations

import functools
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import Execution
from fastconv.algorithms.im2col.implicit import OUTSIDE
from fastconv.algorithms.im2col.implicit_weight import Geometry, correlation
from fastconv.algorithms.im2col.splits import THREADS, SumGeometry, magic, sum_kernel
from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.gemm.cuda import BK, TILES, Tile
from fastconv.problem import Axis, ConvProblem

MOST_SPLITS, FEWEST_STAGES = 256, 16


@functools.cache
def kernel(dtype: str, tile: Tile, deep: bool, vector: bool, linked: bool = False) -> Kernel:
    """Return the kernel of a tile."""
    pointers = (dtype, dtype, "int32", dtype)
    return Kernel(
        correlation,
        (dtype, tile, deep, vector, linked),
        pointers,
        Geometry,
        "uint32",
        tile.threads,
        tile.blocks,
    )


def tiles(dtype: str) -> tuple[Tile, ...]:
    """Return the tiles to choose from: 128 x 128 needs more registers than two blocks leave it."""
    return tuple(t for t in TILES[dtype] if t.bm * t.bn < 128 * 128)


class Blocks(NamedTuple):
    """What was chosen for a problem."""

    tile: Tile
    splits: int
    stages: int
    partial: int  # elements
    workspace: int  # bytes


@functools.lru_cache(maxsize=256)
def plan(problem: ConvProblem, limit: int) -> Blocks:
    """Choose the tile that wastes least, and splits that fill the GPU twice."""
    m, columns = problem.k // problem.groups, problem.c // problem.groups * prod(problem.kernel)

    def area(tile: Tile) -> float:
        return (
            -(-m // tile.bm) * tile.bm * -(-columns // tile.bn) * tile.bn * (1 + 16 / tile.bm + 16 / tile.bn)
        )

    tile = min(tiles(problem.dtype), key=area)
    blocks = problem.groups * -(-m // tile.bm) * -(-columns // tile.bn)
    stages = -(-problem.n * prod(problem.output) // BK)
    padded = -(-prod(problem.weight_shape) // 4) * 4
    wanted = 2 * backend().processors() * tile.blocks // blocks
    splits = min(MOST_SPLITS, wanted, stages // FEWEST_STAGES, limit // (padded * problem.itemsize))
    splits = max(1, splits)
    partial = splits * padded if splits > 1 else 0
    return Blocks(tile, splits, stages, partial, partial * problem.itemsize)


def table(problem: ConvProblem, columns: int, linked: bool) -> np.ndarray:
    """Return (offset, dz, dy, dx) of each column, and of those that only fill the last tile."""
    axes, channels = three(problem), problem.c // problem.groups
    channel, pixel = (1, problem.c) if problem.layout == "nhwc" else (prod(a.size for a in axes), 1)
    taps = list(product(*([r * a.dilation - a.lo for r in range(a.kernel)] for a in axes)))
    order = [(c, tap) for tap in taps for c in range(channels)]
    if not linked:
        order = [(c, tap) for c in range(channels) for tap in taps]
    lines = [
        (c * channel + ((dz * axes[1].size + dy) * axes[2].size + dx) * pixel, dz, dy, dx)
        for c, (dz, dy, dx) in order
    ]
    lines += [(-1, OUTSIDE, OUTSIDE, OUTSIDE)] * (columns - len(lines))
    return np.array(lines, np.int32)


def three(problem: ConvProblem) -> tuple[Axis, ...]:
    """Return three axes, those that are missing of one pixel."""
    return (*[Axis(1, 1)] * (3 - len(problem.axes)), *problem.axes)


class WeightRun(Execution):
    """Multiply, and add the splits if there are any."""

    def __init__(self, problem: ConvProblem, b: Blocks) -> None:
        self.b, self.dtype, self.workspace = b, problem.dtype, b.workspace
        axes = three(problem)
        m, columns = problem.k // problem.groups, problem.c // problem.groups * prod(problem.kernel)
        m_tiles, column_tiles = -(-m // b.tile.bm), -(-columns // b.tile.bn)
        output, sizes = [a.output for a in axes], [a.size for a in axes]
        pixels, plane, weights = prod(output), prod(output[1:]), prod(problem.weight_shape)
        last, channels, inner = problem.layout == "nhwc", problem.c // problem.groups, prod(sizes)
        self.linked = last and channels % 4 == m % 4 == 0
        self.tables = [
            backend().Buffer(table(problem, column_tiles * b.tile.bn, way))
            for way in ([False, True] if self.linked else [False])
        ]  # the second one for arrays that begin on 16 bytes
        # elements from one pixel, group and image to the next, and in the gradient from one channel
        source = (problem.c, channels) if last else (1, channels * inner)
        gradient = (
            (problem.k, m, problem.k * pixels, 1) if last else (1, m * pixels, problem.k * pixels, pixels)
        )
        self.geometry = Geometry(
            m, m_tiles, columns, column_tiles, b.splits, b.stages // b.splits, b.stages % b.splits,
            problem.n * pixels, pixels, *magic(pixels), plane, *magic(plane), output[2], *magic(output[2]),
            *(a.stride for a in axes), *sizes, *source, problem.c * inner, *gradient, channels, -(-weights // 4),
        )  # fmt: skip
        self.deep, self.vector = sizes[0] > 1 or axes[0].kernel > 1 or axes[0].lo != 0, columns % 4 == 0
        self.blocks = m_tiles * column_tiles * b.splits * problem.groups
        self.summing = SumGeometry(weights, -(-weights // 4) * 4, b.splits, 1, 1, 0, 0)

    def run(self, first, second, out, bias, activation, residual=None):
        engine, stream, b = backend(), out.stream(), self.b
        to = out.empty((b.partial,), out.dtype) if b.partial else out
        aligned = [m.pointer % 16 == 0 for m in (first, second, to)]
        linked = self.linked and all(aligned[:2])
        code = kernel(self.dtype, b.tile, self.deep, self.vector and aligned[2] and not linked, linked)
        engine.launch(code, self.blocks, stream, first, second, self.tables[linked], to, self.geometry)
        if b.partial:
            blocks = -(-self.summing.count // THREADS)
            engine.launch(sum_kernel(self.dtype, "none"), blocks, stream, to, None, None, out, self.summing)
