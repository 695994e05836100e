"""The weight gradient by an implicit GEMM on a GPU: `fastconv.algorithms.im2col.implicit.weight`.

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
from fastconv.algorithms.im2col.implicit.marks import Marks, as_int32
from fastconv.algorithms.im2col.implicit.weight import STEPS, Geometry, Way, correlation
from fastconv.algorithms.im2col.splits import SumGeometry, add_up, clear, magic
from fastconv.config import current
from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.gemm.cuda import TILES as FORWARD
from fastconv.gemm.cuda import Tile
from fastconv.gemm.cuda_share import Share, shared_out
from fastconv.problem import Axis, ConvProblem

MOST_SPLITS, FEWEST_STAGES = 1024, 8
FLAT = 2**16  # positions in an output map: a MB of lines
MOST_LINES = 2**24  # of a table

# Splits make blocks enough of any tile, so threads own 16 x 8 results: they copy twice as much at positions found once.
TILES = {
    "float32": (
        Tile(128, 128, 16), Tile(128, 64, 16, 4), Tile(64, 128, 16, 4), Tile(64, 64, 16, 8), Tile(32, 128, 16, 8),
    ),
    "float64": FORWARD["float64"],
}  # fmt: skip


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
    return shared_out(TILES[problem.dtype], problem.groups, m, columns, steps, most, problem.itemsize)


def way_of(problem: ConvProblem) -> Way:
    """Return how threads go through positions where arrays begin on 16 bytes."""
    last, channels, m = problem.layout == "nhwc", problem.c // problem.groups, problem.k // problem.groups
    x, marked = problem.last_axes(3)[-1], marks_of(problem).are_bits
    pairs = 0 if last or x.output % 2 else 2 if x.stride == 1 else 1
    return Way(is_flat(problem), marked, pairs, last and channels % 4 == m % 4 == 0)


def padded(problem: ConvProblem) -> int:
    """Return the elements of one split's sums."""
    return -(-prod(problem.weight_shape) // 4) * 4


def plan(problem: ConvProblem, limit: int) -> Blocks:
    """Choose the tile and splits, and who adds them up."""
    return blocks(problem, limit, current().deterministic)


@functools.lru_cache(maxsize=256)
def blocks(problem: ConvProblem, limit: int, deterministic: bool) -> Blocks:
    """Choose the tile and splits, which add to the result themselves unless that is to be deterministic."""
    tile, splits, _ = share(problem, limit // problem.itemsize if deterministic else 2**62)
    added = splits > 1 and not deterministic
    partial = splits * padded(problem) if splits > 1 and deterministic else 0
    stages = -(-problem.n * prod(problem.output) // STEPS)
    return Blocks(tile, splits, stages, partial, added, partial * problem.itemsize)


def is_flat(problem: ConvProblem) -> bool:
    """Return whether positions of an output map are few enough for a line each."""
    return prod(problem.output) <= FLAT


def are_too_many(problem: ConvProblem) -> bool:
    """Return whether tables of positions would be too large."""
    *rows, row = problem.output
    return not is_flat(problem) and max(prod(rows), row) >= MOST_LINES


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
    """Return a line for each column, those that only fill the last tile too, one for bytes, and those of positions.

    A column is (offset from the first tap's, its tap's number among `Marks`, 0, 0), a position (offset, number, those of
    the next): of all in a map, or of those in a row and then of rows, whose sums tell of both.
    """
    axes, channels, marks = problem.last_axes(3), problem.c // problem.groups, marks_of(problem)
    sizes = [a.size for a in axes]
    channel, pixel = (1, problem.c) if problem.layout == "nhwc" else (prod(sizes), 1)
    taps = list(product(*([r * a.dilation - a.lo for r in range(a.kernel)] for a in axes)))
    order = [(c, tap) for tap in taps for c in range(channels)]
    if not linked:
        order = [(c, tap) for c in range(channels) for tap in taps]
    begin, numbers = start(problem), {tap: marks.tap(tap) for tap in taps}
    lines = [
        (c * channel + ((dz * sizes[1] + dy) * sizes[2] + dx) * pixel - begin, numbers[dz, dy, dx], 0, 0)
        for c, (dz, dy, dx) in order
    ]
    lines += [(0, marks.nowhere, 0, 0)] * (columns - len(lines)) + [(problem.itemsize, 0, 0, 0)]
    z, y, x = (np.arange(a.output) * a.stride for a in axes)
    along_z, along_y, along_x = (marks.outside(i, at, sizes[i]) for i, at in enumerate((z, y, x)))
    rows = ((z[:, None] * sizes[1] + y) * sizes[2] * pixel, marks.inside + along_z[:, None] + along_y)
    image = problem.c * prod(sizes)
    if is_flat(problem):
        whole = (own[..., None] + along for own, along in zip(rows, (x * pixel, along_x), strict=True))
        positions = with_next(*whole, image)
    else:
        positions = np.concatenate((with_next(x * pixel, along_x, 0), with_next(*rows, image)))
    return np.concatenate((as_int32(lines), positions))


def with_next(offsets: np.ndarray, numbers: np.ndarray, onward: int) -> np.ndarray:
    """Return lines (offset, number, those of the next); the next to the last is the first, ``onward`` elements on."""
    both = np.stack((offsets.ravel(), numbers.ravel()), -1)
    following = np.roll(both, -1, 0)
    following[-1, 0] += onward
    return as_int32(np.concatenate((both, following), -1))


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
        pixels, weights = prod(problem.output), prod(problem.weight_shape)
        last, channels, inner = (
            problem.layout == "nhwc",
            problem.c // problem.groups,
            prod(a.size for a in axes),
        )
        row = pixels if is_flat(problem) else problem.output[-1]
        self.way, self.vector, item = way_of(problem), columns % 4 == 0, problem.itemsize
        marks = marks_of(problem)
        self.tables = [
            backend().Buffer(table(problem, column_tiles * b.tile.bn, linked))
            for linked in ([False, True] if self.way.linked else [False])
        ]  # the second one for arrays that begin on 16 bytes
        # elements from one group and channel to the next, then bytes from one image and pixel to the next
        strides = (channels, m, 1) if last else (channels * inner, m * pixels, pixels)
        strides += problem.c * inner * item, problem.k * pixels * item, problem.k * item if last else item
        self.geometry = Geometry(
            m, m_tiles, columns, column_tiles, b.splits, b.stages // b.splits, b.stages % b.splits,
            problem.n * pixels, pixels, *magic(pixels), row, *magic(row), pixels // row,
            STEPS // pixels, STEPS % pixels // row, STEPS % pixels % row, pixels if last else problem.k * pixels,
            start(problem) % 2**32, marks.mask, marks.beyond, *strides, channels, 0 if b.added else -(-weights // 4),
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
