"""The weight gradient by `weight_rows`: blocks of taps, splits of the positions, and the launches."""

from __future__ import annotations

import functools
from math import prod
from typing import NamedTuple

from fastconv.algorithms.base import Execution
from fastconv.algorithms.direct.cuda.row import LONGEST, SPAN, TX, equal_piece
from fastconv.algorithms.direct.cuda.rows import THREADS
from fastconv.algorithms.direct.cuda.weight_rows import Geometry, Taps, correlation
from fastconv.algorithms.im2col.splits import SumGeometry, add_up, clear, magic
from fastconv.config import current
from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.problem import ConvProblem

WARP = 32
SUMS = 28  # in the registers of a thread
MOST_SPLITS, RESIDENT, LEAST = 256, 8, 8  # blocks on a multiprocessor, tiles of a thread


@functools.cache
def kernel(dtype: str, taps: Taps, added: bool = False) -> Kernel:
    """Return the kernel of a block of taps."""
    return Kernel(correlation, (dtype, taps, added), (dtype,) * 3, Geometry, "uint32", THREADS, 4)


def block_of(problem: ConvProblem) -> tuple[int, int, int, int]:
    """Return the rows and columns of a block of taps, and how many blocks there are of both."""
    _, y, x = problem.last_axes(3)
    sb = equal_piece(x.kernel, x.dilation, (TX - 1) * x.stride + 1, LONGEST, SPAN)
    blocks_x = -(-x.kernel // sb)
    blocks_y = -(-y.kernel // max(1, SUMS // sb))
    return -(-y.kernel // blocks_y), sb, blocks_y, blocks_x


def lanes(problem: ConvProblem) -> int:
    """Return the channels of the output that a thread block has."""
    return WARP if problem.layout == "nhwc" else 1


def pairs(problem: ConvProblem) -> int:
    """Return the number of thread blocks without splits."""
    _, _, blocks_y, blocks_x = block_of(problem)
    blocks = -(-problem.k // lanes(problem)) * (problem.c // problem.groups) * blocks_y * blocks_x
    return blocks * problem.last_axes(3)[0].kernel


def passes(problem: ConvProblem) -> float:
    """Return how often both arrays are read."""
    again = pairs(problem) // -(-problem.k // lanes(problem))
    return (again + problem.k // problem.groups * again // (problem.c // problem.groups)) / 2


def tiles(problem: ConvProblem) -> int:
    """Return how many times TX positions there are in the batch."""
    z, y, x = problem.last_axes(3)
    return problem.n * z.output * y.output * -(-x.output // TX)


def most_blocks(problem: ConvProblem) -> int:
    """Return the largest number that must have 31 bits."""
    return max(tiles(problem), pairs(problem) * MOST_SPLITS, prod(problem.weight_shape))


class Split(NamedTuple):
    """How the positions are shared out."""

    splits: int
    share: int  # tiles of one
    partial: int  # elements
    added: bool  # by the splits themselves
    workspace: int  # bytes


def plan(problem: ConvProblem, limit: int) -> Split:
    """Choose splits, and who adds them up."""
    return split(problem, limit, current().deterministic)


@functools.lru_cache(maxsize=256)
def split(problem: ConvProblem, limit: int, deterministic: bool) -> Split:
    """Choose splits that fill the GPU twice, and add to the result themselves unless that is to be deterministic."""
    total, weights = tiles(problem), prod(problem.weight_shape)
    wanted = 2 * backend().processors() * RESIDENT // pairs(problem)
    most = min(MOST_SPLITS, total * lanes(problem) // (THREADS * LEAST))
    if deterministic:
        most = min(most, limit // (weights * problem.itemsize))
    share = -(-total // max(1, min(wanted, most)))
    count = -(-total // share)
    partial = count * weights if count > 1 and deterministic else 0
    return Split(count, share, partial, count > 1 and not deterministic, partial * problem.itemsize)


def turns(problem: ConvProblem) -> int:
    """Return how many tiles follow each other in a thread, of all blocks that a multiprocessor has in turn."""
    split = plan(problem, 2**62)
    rounds = -(-pairs(problem) * split.splits // (RESIDENT * backend().processors()))
    return rounds * -(-split.share * lanes(problem) // THREADS)


class WeightRows(Execution):
    """Multiply, and add the splits if there are any."""

    def __init__(self, problem: ConvProblem, split: Split) -> None:
        self.dtype, self.split, self.workspace = problem.dtype, split, split.workspace
        z, y, x = problem.last_axes(3)
        rb, sb, blocks_y, blocks_x = block_of(problem)
        first = lanes(problem) == 1
        low = -x.lo if first and blocks_x == 1 else 0
        quads, whole = first and blocks_x == 1 and x.size % 4 == 0, first and x.output % 4 == 0
        self.taps = Taps(rb, sb, x.stride, x.dilation, low, quads, whole, lanes(problem))
        columns, weights = -(-x.output // TX), prod(problem.weight_shape)
        self.geometry = Geometry(
            tiles(problem), columns, *magic(columns), y.output, *magic(y.output), z.output, *magic(z.output),
            split.splits, split.share, blocks_y, blocks_x, problem.c, problem.c // problem.groups, problem.k,
            problem.k // problem.groups, z.size, y.size, x.size, x.output, z.stride, y.stride, z.dilation, y.dilation,
            z.kernel, y.kernel, x.kernel, *(lo % 2**32 for lo in (z.lo, y.lo, x.lo + low)),
            0 if split.added else weights,
        )  # fmt: skip
        self.blocks = pairs(problem) * split.splits
        self.summing = SumGeometry(weights, weights, split.splits, 1, 1, 0, 0)

    def run(self, first, second, out, bias, activation, residual=None):
        engine, stream = backend(), out.stream()
        to = out.empty((self.split.partial,), out.dtype) if self.split.partial else out
        taps = self.taps._replace(  # callers' arrays may begin anywhere
            quads=self.taps.quads and first.pointer % 16 == 0,
            whole=self.taps.whole and second.pointer % 16 == 0,
        )
        if self.split.added:
            clear(out, self.summing.count)
        engine.launch(
            kernel(self.dtype, taps, self.split.added), self.blocks, stream, first, second, to, self.geometry
        )
        if self.split.partial:
            add_up(to, None, None, out, "none", self.summing)
