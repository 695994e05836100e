"""The weight gradient by an implicit GEMM on a GPU: `fastconv.algorithms.im2col.implicit_weight`.

A small result is summed over a long batch, so the sum is split; each split writes sums of its own, and a second
kernel adds them, always in the same order.  Where that was not asked for, splits add to the result as they come.
"""

from __future__ import annotations

import functools
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import Execution
from fastconv.algorithms.im2col.implicit_weight import OUTSIDE, STEPS, Geometry, Way, correlation
from fastconv.algorithms.im2col.marks import Marks, as_int32
from fastconv.algorithms.im2col.splits import SumGeometry, add_up, clear, magic
from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.gemm.cuda import TILES as FORWARD
from fastconv.gemm.cuda import Tile
from fastconv.gemm.cuda_share import Share, shared_out
from fastconv.problem import Axis, ConvProblem

MOST_SPLITS, FEWEST_STAGES = 1024, 8
MOST_LINES = 2**16  # a MB of tables

# Splits make blocks enough of any tile, so threads own 16 x 8 results: they copy twice as much at positions found once.
TILES = {
    "float32": (
        Tile(128, 128, 16), Tile(128, 64, 16, 4), Tile(64, 128, 16, 4), Tile(64, 64, 16, 8), Tile(32, 128, 16, 8),
    ),
    "float64": FORWARD["float64"],
}  # fmt: skip
# Without tables of positions each takes more registers.
UNTABLED = Tile(128, 128, blocks=1), Tile(64, 64, blocks=4), Tile(32, 128, 4, 3)


@functools.cache
def kernel(dtype: str, tile: Tile, way: Way, vector: bool, added: bool = False) -> Kernel:
    """Return the kernel of a tile."""
    pointers, constants = (dtype, dtype, "int32", dtype), (dtype, tile, way, vector, added)
    return Kernel(correlation, constants, pointers, Geometry, "uint32", tile.threads, tile.blocks)


class Blocks(NamedTuple):
    """What was chosen for a problem."""

    tile: Tile
    splits: int
    stages: int
    partial: int  # elements
    added: bool  # by the splits themselves
    workspace: int  # bytes


def share(problem: ConvProblem, limit: int) -> Share:
    """Share out the product, sums of splits within ``limit`` elements."""
    m, columns = problem.k // problem.groups, problem.c // problem.groups * prod(problem.kernel)
    steps = problem.n * prod(problem.output)
    most = min(MOST_SPLITS, steps // STEPS // FEWEST_STAGES, limit // padded(problem))
    tiles = tiles_of(problem.dtype, way_of(problem))
    return shared_out(tiles, problem.groups, m, columns, steps, most, problem.itemsize)


def tiles_of(dtype: str, way: Way) -> tuple[Tile, ...]:
    """Return the tiles to choose from, the largest first."""
    return TILES[dtype] if way.tabled or dtype == "float64" else UNTABLED


def way_of(problem: ConvProblem) -> Way:
    """Return how threads go through positions where arrays begin on 16 bytes."""
    last, channels, m = problem.layout == "nhwc", problem.c // problem.groups, problem.k // problem.groups
    x, tabled, marked = problem.last_axes(3)[-1], is_tabled(problem), marks_of(problem).are_bits
    paired = tabled and marked and not last and x.stride == 1 and x.output % 2 == 0
    return Way(tabled, marked, paired, last and channels % 4 == m % 4 == 0)


def padded(problem: ConvProblem) -> int:
    """Return the elements of one split's sums."""
    return -(-prod(problem.weight_shape) // 4) * 4


@functools.lru_cache(maxsize=256)
def plan(problem: ConvProblem, limit: int, deterministic: bool = True) -> Blocks:
    """Choose the tile and splits."""
    tile, splits, _ = share(problem, limit // problem.itemsize if deterministic else 2**62)
    added = splits > 1 and not deterministic
    partial = splits * padded(problem) if splits > 1 and deterministic else 0
    stages = -(-problem.n * prod(problem.output) // STEPS)
    return Blocks(tile, splits, stages, partial, added, partial * problem.itemsize)


def is_tabled(problem: ConvProblem) -> bool:
    """Return whether positions of an output map are few enough for tables."""
    o, p, q = (a.output for a in problem.last_axes(3))
    return o * p + q <= MOST_LINES


def marks_of(problem: ConvProblem) -> Marks:
    """Return the offsets of all taps."""
    return Marks(
        [
            [] if is_inside(a) else [r * a.dilation - a.lo for r in range(a.kernel)]
            for a in problem.last_axes(3)
        ]
    )


def is_inside(a: Axis) -> bool:
    """Return whether no tap leads outside from any position."""
    return a.lo <= 0 and (a.output - 1) * a.stride + (a.kernel - 1) * a.dilation - a.lo < a.size


def table(problem: ConvProblem, columns: int, linked: bool) -> np.ndarray:
    """Return a line for each column, those that only fill the last tile too, for each row of positions, and in a row.

    A column is (offset from the first tap's, its tap's number among `Marks`, 0, 0), a row (offset, number, bytes of an
    element, 0), and a position (offset, number, that of the next, 0): a pixel's number is the sum of both.  Without tables
    of positions a column is (offset, dz, dy, dx), and there is but one row, for its bytes.
    """
    axes, channels, marks = problem.last_axes(3), problem.c // problem.groups, marks_of(problem)
    channel, pixel = (1, problem.c) if problem.layout == "nhwc" else (prod(a.size for a in axes), 1)
    taps = list(product(*([r * a.dilation - a.lo for r in range(a.kernel)] for a in axes)))
    order = [(c, tap) for tap in taps for c in range(channels)]
    if not linked:
        order = [(c, tap) for c in range(channels) for tap in taps]
    begin, tabled = start(problem), is_tabled(problem)
    told = {tap: (marks.tap(tap), 0, 0) if tabled else tap for tap in taps}
    lines = [
        (
            c * channel + ((dz * axes[1].size + dy) * axes[2].size + dx) * pixel - begin,
            *told[dz, dy, dx],
        )
        for c, (dz, dy, dx) in order
    ]
    nowhere = (0, marks.nowhere, 0, 0) if tabled else (0, OUTSIDE, OUTSIDE, OUTSIDE)
    lines += [nowhere] * (columns - len(lines))
    if not tabled:
        return as_int32([*lines, (0, 0, problem.itemsize, 0)])
    z, y, x = (np.arange(a.output) * a.stride for a in axes)
    offsets = (z[:, None] * axes[1].size + y) * axes[2].size * pixel
    along_z, along_y, along_x = (marks.outside(i, at, axes[i].size) for i, at in enumerate((z, y, x)))
    numbers = marks.inside + along_z[:, None] + along_y
    rows = np.stack((offsets, numbers, np.full_like(offsets, problem.itemsize), offsets * 0), -1)
    places = np.stack((x * pixel, along_x, np.append(along_x[1:], 0), x * 0), -1)
    return np.concatenate((as_int32(lines), as_int32(rows.reshape(-1, 4)), as_int32(places)))


def start(problem: ConvProblem) -> int:
    """Return the offset of the first tap."""
    axes, pixel = problem.last_axes(3), problem.c if problem.layout == "nhwc" else 1
    return -((axes[0].lo * axes[1].size + axes[1].lo) * axes[2].size + axes[2].lo) * pixel


class WeightRun(Execution):
    """Multiply, and add the splits if there are any."""

    def __init__(self, problem: ConvProblem, b: Blocks) -> None:
        self.b, self.dtype, self.workspace = b, problem.dtype, b.workspace
        axes = problem.last_axes(3)
        m, columns = problem.k // problem.groups, problem.c // problem.groups * prod(problem.kernel)
        m_tiles, column_tiles = -(-m // b.tile.bm), -(-columns // b.tile.bn)
        output, sizes = [a.output for a in axes], [a.size for a in axes]
        pixels, plane, weights = prod(output), prod(output[1:]), prod(problem.weight_shape)
        last, channels, inner = problem.layout == "nhwc", problem.c // problem.groups, prod(sizes)
        self.way, self.vector, item = way_of(problem), columns % 4 == 0, problem.itemsize
        marks = marks_of(problem)
        self.tables = [
            backend().Buffer(table(problem, column_tiles * b.tile.bn, linked))
            for linked in ([False, True] if self.way.linked else [False])
        ]  # the second one for arrays that begin on 16 bytes
        # elements from one pixel, group and channel to the next, then bytes
        strides = (
            (problem.c, channels, m, 1, problem.c * inner * item, problem.k * pixels * item, problem.k * item)
            if last
            else (
                1,
                channels * inner,
                m * pixels,
                pixels,
                problem.c * inner * item,
                problem.k * pixels * item,
                item,
            )
        )
        self.geometry = Geometry(
            m, m_tiles, columns, column_tiles, b.splits, b.stages // b.splits, b.stages % b.splits,
            problem.n, pixels, *magic(pixels), plane, *magic(plane), output[2], *magic(output[2]),
            pixels // output[2], STEPS // pixels, STEPS % pixels // output[2], STEPS % pixels % output[2],
            *(a.stride for a in axes), *sizes, start(problem) % 2**32, marks.mask, marks.beyond, *strides, channels,
            0 if b.added else -(-weights // 4),
        )  # fmt: skip
        self.blocks = m_tiles * column_tiles * b.splits * problem.groups
        self.summing = SumGeometry(weights, -(-weights // 4) * 4, b.splits, 1, 1, 0, 0)

    def run(self, first, second, out, bias, activation, residual=None):
        engine, stream, b = backend(), out.stream(), self.b
        to = out.empty((b.partial,), out.dtype) if b.partial else out
        aligned = [m.pointer % 16 == 0 for m in (first, second, to)]
        linked = self.way.linked and all(aligned[:2])
        way = self.way._replace(linked=linked)
        vector = self.vector and aligned[2] and not linked and not b.added
        code = kernel(self.dtype, b.tile, way, vector, b.added)
        if b.added:
            clear(out, self.summing.count)
        engine.launch(code, self.blocks, stream, first, second, self.tables[linked], to, self.geometry)
        if b.partial:
            add_up(to, None, None, out, "none", self.summing)
