"""The implicit GEMM on a GPU: forward and input gradient as one correlation, and the weight gradient.

Weights are packed first, [group][row][m] with m in whole tiles, which turns them for the input gradient and
makes their loads 16 bytes wide.  Where the tiles of the result leave processors idle, the rows are split; each
split writes sums of its own, and a second kernel adds them, always in the same order.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import Algorithm, Execution
from fastconv.algorithms.im2col import cuda_weight
from fastconv.algorithms.im2col.implicit.correlation import correlation
from fastconv.algorithms.im2col.implicit.geometry import Copies, Geometry, Traits
from fastconv.algorithms.im2col.implicit.marks import BITS, Marks, as_int32
from fastconv.algorithms.im2col.splits import THREADS, SumGeometry, add_up, magic
from fastconv.algorithms.passes import AxisPass, Pass, pass_of
from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import DTYPES, cuda, int64
from fastconv.gemm.cuda import BK, TILES, Tile
from fastconv.gemm.cuda_share import Share, shared_out
from fastconv.problem import ConvProblem, Direction

LIMIT = 2**31  # offsets inside an image and numbers of positions have 32 bits; images have 64-bit addresses
SMALL_LAST = Tile(32, 128, blocks=6, steps=2 * BK)
FAR = 2**29  # a coordinate stays below 2**31 with any offset
MOST_SPLITS, FEWEST_STAGES = 64, 8  # a split shorter than that is mostly its beginning and end


class PackGeometry(NamedTuple):
    """Packed elements, and how the weight array is read."""

    count: int
    m: int
    m_ld: int
    rows: int
    group_stride: int
    row_stride: int


def packing(dtype):
    """Make the kernel that packs weights; ``taps`` [row] is where a row's weights begin, or -1 for none."""
    zero = DTYPES[dtype](0)

    def pack_weights(weight, taps, packed, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            m, rest = at % g.m_ld, at // g.m_ld
            tap = int64(taps[rest % g.rows])
            value = zero
            if m < g.m and tap >= 0:
                value = weight[rest // g.rows * g.group_stride + m * g.row_stride + tap]
            packed[at] = value

    return pack_weights


@functools.cache
def gemm_kernel(dtype: str, tile: Tile, traits: Traits, name: str) -> Kernel:
    """Return the kernel of a tile."""
    pointers = (dtype, dtype, "int32", dtype, dtype, dtype)
    return Kernel(
        correlation, (dtype, tile, traits, name), pointers, Geometry, "uint32", tile.threads, tile.blocks
    )


@functools.cache
def pack_kernel(dtype: str) -> Kernel:
    """Return the kernel that packs weights."""
    return Kernel(packing, (dtype,), (dtype, "int32", dtype), PackGeometry, "int64", THREADS)


class Im2col(Algorithm):
    """Implicit GEMM in registers; nothing is lowered in memory."""

    name = "im2col"
    exact = True

    def variant(self, suffix: str) -> Algorithm:
        """Return ``im2col:explicit``."""
        if suffix != "explicit":
            raise ValueError(
                f"algorithm im2col has the variant 'im2col:explicit' on a GPU, got 'im2col:{suffix}'"
            )
        from fastconv.algorithms.im2col.explicit import Explicit

        return Explicit()

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        p = pass_of(problem, Direction.FORWARD if direction is Direction.WEIGHT_GRAD else direction)
        image = max(prod(s[1:]) for s in (problem.input_shape, problem.output_shape))
        far = farthest(p) * (p.groups * p.channels if problem.layout == "nhwc" else 1)
        if max(image + far, p.columns, prod(problem.weight_shape), 16 * p.m) >= LIMIT:
            return "an image with its borders, the positions in the batch or the weights have 2**31 elements"
        if sum(problem.kernel) > BITS and not marks_of(three(p.axes)).fit:
            return f"the numbers of {'x'.join(map(str, problem.kernel))} taps want more than 31 bits"
        if direction is Direction.WEIGHT_GRAD and (image + far) * problem.itemsize >= 2 * LIMIT:
            return "an image with its borders has 2**32 bytes"
        if direction is Direction.WEIGHT_GRAD and cuda_weight.are_too_many(problem):
            return "an output map has 2**24 rows or positions in a row"
        return None

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        if direction is Direction.WEIGHT_GRAD:
            return cuda_weight.plan(problem, limit).workspace
        return plan(problem, direction, limit).workspace

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        # An H100 copies 3e12 bytes a second; the share of that is a guess.
        if direction is Direction.WEIGHT_GRAD:
            seconds = cuda_weight.share(problem, 2**62).seconds
        else:
            seconds = share(problem, pass_of(problem, direction)).seconds
        return 1e-5 + max(seconds, problem.bytes / 2e12)

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        if direction is Direction.WEIGHT_GRAD:
            return cuda_weight.WeightRun(problem, cuda_weight.plan(problem, limit))
        return Run(problem, plan(problem, direction, limit))


def farthest(p: Pass) -> int:
    """Return how far from the first pixel of a channel taps reach, with the border; or LIMIT if it is very far."""
    far, inner = 0, 1
    for a in reversed(p.axes):
        reach = a.stride * a.outputs + max((abs(o) for o in a.offsets), default=0)
        far, inner = far + reach * inner, inner * a.source
        if reach >= FAR:
            return LIMIT
    return far


def marks_of(axes: tuple[AxisPass, ...]) -> Marks:
    """Return the offsets of all taps along axes on which any leads outside."""
    return Marks([[] if a.met == 1 else a.offsets for a in axes])


def tables(p: Pass, tile: Tile, even: bool, last: bool, item: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the kernel's table, the taps of the packed rows, and their number.

    It has a line for each phase, (first row, stages, 0, 0), for each row, (source offset, its tap among `Marks`, bytes of
    an element, 0), and the lines of `Marks`.  Rows that are not `even` stand by two, without the bytes.  Those that only
    fill a stage lead nowhere.
    """
    axes = three(p.axes)
    marks = marks_of(axes)
    sizes = [a.source for a in axes]
    channel, pixel = (1, p.groups * p.channels) if last else (prod(sizes), 1)
    lines, rows, taps = [], [], []
    nowhere = (0, marks.nowhere, item, 0)
    # of a stage: where channels stand behind the pixels, those that a thread loads are neighbours
    own = Copies.of(tile).loads
    stage = [row * own % BK + row * own // BK for row in range(BK)] if last else range(BK)
    for phase in product(*(a.taps for a in axes)):
        found = [
            (int(np.ravel_multi_index([r for r, _ in tap][-len(p.kernel):], p.kernel)), offsets, marks.tap(offsets))
            for tap in product(*phase)
            for offsets in [[o for _, o in tap]]
        ]  # fmt: skip
        if even:
            order = [(b + c, tap) for b in range(0, p.channels, BK) for tap in found for c in stage]
        else:
            order = [(c, tap) for c in range(p.channels) for tap in found]
        begin = len(rows)
        for c, (index, (dz, dy, dx), tap) in order:
            at = c * channel + ((dz * sizes[1] + dy) * sizes[2] + dx) * pixel
            rows.append((at, tap, item, 0))
            taps.append(c * p.channel_stride + index)
        spare = -len(order) % tile.steps
        rows += [nowhere] * spare
        taps += [-1] * spare
        lines.append((begin, (len(rows) - begin) // tile.steps, 0, 0))
    if not rows:  # no tap at all: something to point at
        rows, taps = [nowhere] * tile.steps, [-1] * tile.steps
    if not even:  # two rows share a line
        rows = [(*rows[i][:2], *rows[i + 1][:2]) for i in range(0, len(rows), 2)]
    return as_int32(lines + rows + marks.lines()), np.array(taps, np.int32), len(taps)


def three(axes: tuple[AxisPass, ...]) -> tuple[AxisPass, ...]:
    """Return three axes, those that are missing of one pixel."""
    return (*[AxisPass(1, 1, 1, 1, (((0, 0),),))] * (3 - len(axes)), *axes)


class Blocks(NamedTuple):
    """What was chosen for a problem."""

    p: Pass
    tile: Tile
    traits: Traits
    splits: int
    table: np.ndarray
    taps: np.ndarray
    rows: int
    m_ld: int
    packed: int  # elements
    partial: int
    workspace: int  # bytes


def share(problem: ConvProblem, p: Pass) -> Share:
    """Share out the product."""
    steps = p.reduction // p.phases
    most = min(MOST_SPLITS, steps // BK // FEWEST_STAGES)
    batches = p.groups * p.phases
    tiles = tiles_of(problem.dtype, problem.layout == "nhwc")
    return shared_out(tiles, batches, p.m, p.columns, steps, most, problem.itemsize)


def tiles_of(dtype: str, last: bool) -> tuple[Tile, ...]:
    """Return the tiles to choose from: with channels last, pixels wait in registers that 16 x 8 results would need."""
    return TILES[dtype] if dtype == "float64" or not last else (*TILES[dtype][:4], SMALL_LAST)


@functools.lru_cache(maxsize=256)
def plan(problem: ConvProblem, direction: Direction, limit: int) -> Blocks:
    """Choose tile and splits, and describe the problem."""
    p = pass_of(problem, direction)
    axes = three(p.axes)
    pixels = prod(a.outputs for a in axes)
    identity, last = all(a.is_identity for a in p.axes), problem.layout == "nhwc"
    even = p.channels % BK == 0
    traits = Traits(
        marked=marks_of(axes).are_bits,
        even=even,
        dense=even if last else identity and even and pixels % 4 == 0,
        plain=p.phases == 1,
        vector=p.m % 4 == 0 if last else p.phases == 1 and pixels % 4 == 0,
        last=last,
    )
    tile, splits, _ = share(problem, p)
    if traits.dense and p.channels % tile.steps:  # a stage is read without looking where channels end
        tile = replace(tile, steps=BK)
    table, taps, rows = tables(p, tile, even, last, problem.itemsize)
    m_ld = -(-p.m // tile.bm) * tile.bm
    packed = p.groups * rows * m_ld
    padded = -(-p.results // 4) * 4
    if (packed + splits * padded) * problem.itemsize > limit:
        splits = 1
    partial = splits * padded if splits > 1 else 0
    return Blocks(
        p, tile, traits, splits, table, taps, rows, m_ld, packed, partial, (packed + partial) * problem.itemsize
    )  # fmt: skip


class Run(Execution):
    """Pack, multiply, and add the splits if there are any."""

    def __init__(self, problem: ConvProblem, b: Blocks) -> None:
        self.b, self.dtype, self.workspace = b, problem.dtype, b.workspace
        self.table, self.taps = backend().Buffer(b.table), backend().Buffer(b.taps)
        p, axes = b.p, three(b.p.axes)
        positions = [a.outputs for a in axes]
        sources, results = [a.source for a in axes], [a.result for a in axes]
        pixels, plane = prod(positions), prod(positions[1:])
        last, inner, outer = b.traits.last, prod(sources), prod(results)
        channels, m = p.groups * p.channels, p.groups * p.m
        # elements from one pixel, group, image and channel to the next
        source = (
            (channels, p.channels, channels * inner, 1)
            if last
            else (1, p.channels * inner, channels * inner, inner)
        )
        result = (p.m, m * outer, 1, m) if last else (p.m * outer, m * outer, outer, 1)
        column_tiles, m_tiles = -(-p.columns // b.tile.bn), b.m_ld // b.tile.bm
        self.geometry = Geometry(
            p.m, b.m_ld, m_tiles, column_tiles, p.phases, b.splits, b.rows, p.columns, pixels, *magic(pixels),
            plane, *magic(plane), positions[2], *magic(positions[2]), *(a.stride for a in axes), *sources,
            *source, *result, *results,
            *(a.step for a in axes), -(-p.results // 4), len(marks_of(axes).lines()), 0, 0,
        )  # fmt: skip
        self.blocks = m_tiles * column_tiles * b.splits * p.phases * p.groups
        self.packing = PackGeometry(b.packed, p.m, b.m_ld, b.rows, p.group_stride, p.row_stride)
        self.summing = SumGeometry(p.results, -(-p.results // 4) * 4, b.splits, 1 if last else outer, m, 0, 0)

    def run(self, first, second, out, bias, activation, residual=None):
        engine, stream, b, dtype = backend(), out.stream(), self.b, self.dtype
        scratch = out.empty((b.packed + b.partial,), out.dtype)
        partial = scratch.part(b.packed, b.partial)
        engine.launch(
            pack_kernel(dtype), -(-b.packed // THREADS), stream, second, self.taps, scratch, self.packing
        )
        added = {"has_bias": int(bias is not None), "has_residual": int(residual is not None)}
        to, name = (partial, "none") if b.partial else (out, activation)
        aligned = all(m is None or m.pointer % 16 == 0 for m in (to, residual))
        traits = b.traits._replace(  # callers' arrays may begin anywhere
            dense=b.traits.dense and first.pointer % 16 == 0, vector=b.traits.vector and aligned
        )
        kernel = gemm_kernel(dtype, b.tile, traits, name)
        arrays = (first, scratch, self.table)
        if b.partial:
            engine.launch(kernel, self.blocks, stream, *arrays, None, None, partial, self.geometry)
            add_up(partial, bias, residual, out, activation, self.summing._replace(**added))
        else:
            geometry = self.geometry._replace(**added)
            engine.launch(kernel, self.blocks, stream, *arrays, bias, residual, out, geometry)
