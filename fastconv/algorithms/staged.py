"""Convolution by transformed tiles on a GPU, in stages: what Winograd and FFT have in common.

Weights and source become ``planes`` numbers for each tile and channel, planes are multiplied like matrices
(`fastconv.gemm.batched`), and products become pixels again::

    forward       M[plane][group][k][t] = sum over c   U[plane][group][c][k] * V[plane][group][c][t]
    weight_grad   M[plane][group][k][c] = sum over t   W[plane][group][t][k] * V[plane][group][t][c]

An array is read by strides, so that one kernel takes images channel by channel, pixel by pixel, and weights,
turned or not, whose "tiles" are whole kernels, one an image.  Tiles t are taken in blocks as large as the
workspace admits; a weight gradient adds the blocks in M.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from fastconv.algorithms.base import Execution
from fastconv.algorithms.im2col.splits import magic
from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import U, divided, inline, int64
from fastconv.gemm import batched
from fastconv.gemm.cuda import BK
from fastconv.problem import ConvProblem, Direction


class Geometry(NamedTuple):
    """How a kernel walks an array and its transformed tiles; ``_m`` and ``_s`` are a divisor's multiplier and shift."""

    tiles: int  # in all
    first: int  # of this block
    tiles_covered: (
        int  # tiles of this block that are transformed: with those past the end that are summed over
    )
    channels: int  # of a group
    channels_covered: int
    tile_blocks: int  # of threads
    channel_blocks: int
    image_tiles: int
    image_m: int
    image_s: int
    row_tiles: int
    row_m: int
    row_s: int
    step_y: int  # pixels from tile to tile
    step_x: int
    lo_y: int
    lo_x: int
    height: int
    width: int
    group: int  # elements of the array from group to group, and so on
    image: int
    channel: int
    row: int
    pixel: int
    start: int
    plane: int  # elements of the transformed array from plane to plane, and so on
    to_group: int
    to_channel: int
    to_tile: int
    to_slab: int = 0  # and more from SLAB tiles to SLAB tiles
    splits: int = 1
    split: int = 0
    has_bias: int = 0
    has_residual: int = 0


SLAB = 64
OUTSIDE = 0x40000000  # a coordinate that no offset brings back


@inline
def place_of(t, g):
    """Return (image, y, x) of a tile's corner."""
    n, rest = divided(t, U(g.image_tiles), U(g.image_m), g.image_s)
    y, x = divided(rest, U(g.row_tiles), U(g.row_m), g.row_s)
    return int64(n), int64(y) * g.step_y - g.lo_y, int64(x) * g.step_x - g.lo_x


@dataclass(frozen=True, slots=True)
class Array:
    """An array in memory, cut into tiles."""

    images: int
    channels: int  # of a group
    counts: tuple[int, int]  # tiles of an image
    steps: tuple[int, int]
    lo: tuple[int, int]
    sizes: tuple[int, int]
    strides: tuple[int, int, int, int, int]  # group, image, channel, row, pixel
    near: bool = False  # whether channels are nearer in memory than tiles
    start: int = 0

    @property
    def tiles(self) -> int:
        """Tiles in all."""
        return self.images * prod(self.counts)


def pair(values: tuple[int, ...], missing: int = 1) -> tuple[int, int]:
    """Return two axes, the first of which may be missing."""
    first, second = (missing, *values)[-2:]
    return first, second


def image(
    problem: ConvProblem, of_input: bool, steps: tuple[int, int], counts: tuple[int, int], lo: tuple[int, int]
) -> Array:
    """Return the images of one side of a problem, cut into tiles."""
    shape = problem.input_shape if of_input else problem.output_shape
    channels, (h, w) = shape[1], pair(shape[2:])
    near = problem.layout == "nhwc"
    channel, pixel = (1, channels) if near else (h * w, 1)
    own = channels // problem.groups
    return Array(
        problem.n, own, counts, steps, lo, (h, w), (own * channel, channels * h * w, channel, w * pixel, pixel), near
    )  # fmt: skip


def weights(problem: ConvProblem, turned: bool) -> Array:
    """Return the weights (k, c, r, s) with k as tiles and c as channels; turned: in the other's place, and kernels reversed."""
    (r, s), taps = pair(problem.kernel), prod(problem.kernel)
    c, k = problem.c // problem.groups, problem.k // problem.groups
    group = k * c * taps
    if turned:
        return Array(c, k, (1, 1), (r, s), (0, 0), (r, s), (group, taps, c * taps, -s, -1), False, taps - 1)
    return Array(k, c, (1, 1), (r, s), (0, 0), (r, s), (group, c * taps, taps, s, 1), True)


def correlated(
    problem: ConvProblem, direction: Direction, steps: tuple[int, int]
) -> tuple[Array, Array, Array]:
    """Return weights, source and result of forward, or of the input gradient: grad_output with turned kernels."""
    turned = direction is Direction.INPUT_GRAD
    lo = pair(tuple(a.extent - 1 - a.lo if turned else a.lo for a in problem.axes), 0)
    sizes = pair(tuple(a.size if turned else a.output for a in problem.axes))
    counts = -(-sizes[0] // steps[0]), -(-sizes[1] // steps[1])
    source = image(problem, not turned, steps, counts, lo)
    return weights(problem, turned), source, image(problem, turned, steps, counts, (0, 0))


def opposed(problem: ConvProblem, steps: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Return input, grad_output and, with channels c in the place of tiles, weights of the weight gradient."""
    output = pair(problem.output)
    counts = -(-output[0] // steps[0]), -(-output[1] // steps[1])
    source = image(problem, True, steps, counts, pair(tuple(a.lo for a in problem.axes), 0))
    gradient = image(problem, False, steps, counts, (0, 0))
    (group, k, c, row, pixel), kernel = weights(problem, False).strides, pair(problem.kernel)
    strides = group, c, k, row, pixel
    result = Array(source.channels, gradient.channels, (1, 1), kernel, (0, 0), kernel, strides)
    return source, gradient, result


Extents = tuple[int, int]  # tiles, channels
Launch = tuple[Kernel, int, Any]  # with blocks and geometry


class Transforms(ABC):
    """A domain where convolution is a product: what turns tiles into planes and back."""

    planes: int
    steps: tuple[int, int]  # results of a tile along each axis
    rate = 2e12  # bytes a second that they read and write: of an H100's 3.3e12, a guess
    per_block: int  # tiles times channels that one block of threads transforms

    @abstractmethod
    def enter(self, role: str, near: bool, lane: int) -> Kernel:
        """Return the kernel (array, planes, Geometry) for "weights", "source" or, of a weight gradient, "gradient"."""

    @abstractmethod
    def leave(self, role: str, near: bool, lane: int, activation: str, vector: bool) -> Kernel:
        """Return the kernel (planes, bias, residual, array, Geometry) for "result" or "weights"."""

    def geometry(
        self, array: Array, groups: int, first: int, padded: Extents, covered: Extents, to_near: bool
    ) -> tuple[Geometry, int, int]:
        """Describe the launch for tiles from ``first`` on, and return lanes and blocks of it.

        ``padded`` are (tiles, channels) of the transformed array, of which those ``covered`` matter;
        ``to_near``: channels lie side by side there.  Lanes are how many neighbouring threads have channels of one
        tile, so that whole sectors of memory are touched on both sides.
        """
        lane = {(False, False): 1, (True, True): 32}.get((array.near, to_near), 8)
        lane = min(lane, self.per_block)
        tile_blocks, channel_blocks = -(-covered[0] // (self.per_block // lane)), -(-covered[1] // lane)
        to_channel, to_tile = (1, padded[1]) if to_near else (padded[0], 1)
        image_tiles = prod(array.counts)
        g = Geometry(
            array.tiles, first, covered[0], array.channels, covered[1], tile_blocks, channel_blocks,
            image_tiles, *magic(image_tiles), array.counts[1], *magic(array.counts[1]), *array.steps, *array.lo,
            *array.sizes, *array.strides, array.start, groups * prod(padded), prod(padded), to_channel, to_tile,
        )  # fmt: skip
        return g, lane, tile_blocks * channel_blocks * groups


class Staged(Execution):
    """Blocks and launches, each described once and kept for the next call."""

    def __init__(self, problem: ConvProblem, transforms: Transforms) -> None:
        self.dtype, self.groups, self.transforms = problem.dtype, problem.groups, transforms
        self.batches = transforms.planes * problem.groups
        self._kept: dict[Hashable, Launch] = {}

    def predicted(self, problem: ConvProblem, computing: float, moved: float, launches: int) -> float:
        """Return the seconds of arithmetic, of elements moved and of launches: stages follow each other."""
        moving = (problem.bytes + problem.itemsize * moved) / self.transforms.rate
        return 3e-6 * launches + computing + moving

    def launch(self, key: Hashable, describe: Callable[[], Launch], stream: int, *arrays: Any) -> None:
        """Start what ``describe`` returned when the key was new."""
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = describe()
        kernel, blocks, geometry = found
        backend().launch(kernel, blocks, stream, *arrays, geometry)

    def enter(
        self, role: str, array: Array, first: int, padded: Extents, covered: Extents, to_near: bool, source: Any,
        to: Any,
    ) -> None:  # fmt: skip
        """Transform tiles of an array."""

        def describe() -> Launch:
            g, lane, blocks = self.transforms.geometry(array, self.groups, first, padded, covered, to_near)
            return self.transforms.enter(role, array.near, lane), blocks, g

        self.launch((role, first), describe, to.stream(), source, to)

    def leave(
        self, role: str, array: Array, first: int, p: batched.Product, products: Any, out: Any, bias: Any = None,
        residual: Any = None, activation: str = "none",
    ) -> None:  # fmt: skip
        """Transform products back."""
        aligned = all(m is None or m.pointer % 16 == 0 for m in (out, residual))
        added = {"has_bias": int(bias is not None), "has_residual": int(residual is not None)}

        def describe() -> Launch:
            covered = min(p.n, array.tiles - first), array.channels
            g, lane, blocks = self.transforms.geometry(array, self.groups, first, (p.n, p.m), covered, False)
            vector = aligned and array.steps[1] == 4 and array.sizes[1] % 4 == 0 and array.strides[4] == 1
            kernel = self.transforms.leave(role, array.near, lane, activation, vector)
            return kernel, blocks, g._replace(splits=p.splits, split=self.batches * p.m * p.n, **added)

        key = "back", first, activation, aligned, *added.values()
        self.launch(key, describe, out.stream(), products, bias, residual, out)

    def product(self, p: batched.Product, rows: int, a: Any, b: Any, out: Any, add: bool = False) -> None:
        """Multiply planes."""

        def describe() -> Launch:
            return batched.described(self.dtype, p, self.batches, rows, add)

        self.launch(("product", add), describe, out.stream(), a, b, out)


def shortened(total: int, unit: int, fixed: int, each: int, limit: int) -> tuple[int, int]:
    """Return runs and tiles of a run: as many as take ``fixed + each * tiles`` elements within the limit, but a unit."""
    most = max(unit, (limit - fixed) // each // unit * unit)
    runs = max(1, -(-total // most))
    return runs, max(1, -(-total // (runs * unit))) * unit


class Correlation(Staged):
    """Forward, or the input gradient as the correlation of grad_output with turned kernels."""

    def __init__(
        self, problem: ConvProblem, direction: Direction, transforms: Transforms, limit: int
    ) -> None:
        super().__init__(problem, transforms)
        self.weights, self.source, self.result = correlated(problem, direction, transforms.steps)
        self.rows = -(-self.source.channels // BK) * BK
        p = batched.choose(self.dtype, self.result.channels, self.source.tiles, self.rows, self.batches)
        most, fixed = limit // problem.itemsize, self.batches * self.rows * p.m
        if fixed + self.batches * (self.rows + p.splits * p.m) * p.n > most:
            p = p._replace(splits=1)
        each = self.batches * (self.rows + p.splits * p.m)
        self.runs, self.tiles = shortened(p.n, p.tile.bn, fixed, each, most)
        self.p = p._replace(n=self.tiles)
        self.sizes = fixed, self.batches * self.rows * self.tiles, self.batches * p.splits * p.m * self.tiles
        self.workspace = sum(self.sizes) * problem.itemsize
        moved = 2 * sum(self.sizes[1:]) * self.runs + 2 * fixed
        self.seconds = self.predicted(problem, p.seconds, moved, 1 + 3 * self.runs)

    def run(self, first, second, out, bias, activation, residual=None):
        scratch = out.empty((sum(self.sizes),), out.dtype)
        u, v, m = parts(scratch, self.sizes)
        covered = self.weights.tiles, self.rows
        self.enter("weights", self.weights, 0, (self.p.m, self.rows), covered, False, second, u)
        for begin in range(0, self.source.tiles, self.tiles):
            covered = min(self.tiles, self.source.tiles - begin), self.rows
            self.enter("source", self.source, begin, (self.tiles, self.rows), covered, False, first, v)
            self.product(self.p, self.rows, u, v, m)
            self.leave("result", self.result, begin, self.p, m, out, bias, residual, activation)


class WeightGrad(Staged):
    """The weight gradient: kernels of grad_output's pixels, sums over tiles."""

    def __init__(self, problem: ConvProblem, transforms: Transforms, limit: int) -> None:
        super().__init__(problem, transforms)
        self.source, self.gradient, self.result = opposed(problem, transforms.steps)
        total = -(-self.source.tiles // BK) * BK
        p = batched.choose(self.dtype, self.gradient.channels, self.source.channels, total, self.batches)
        most, each = limit // problem.itemsize, self.batches * (p.m + p.n)
        if self.batches * p.splits * p.m * p.n + each * total > most:
            p = p._replace(splits=1)
        self.p, fixed = p, self.batches * p.splits * p.m * p.n
        self.runs, self.tiles = shortened(total, BK, fixed, each, most)
        self.sizes = self.batches * self.tiles * p.m, self.batches * self.tiles * p.n, fixed
        self.workspace = sum(self.sizes) * problem.itemsize
        moved = 2 * (sum(self.sizes[:2]) + fixed) * self.runs
        self.seconds = self.predicted(problem, p.seconds, moved, 1 + 3 * self.runs)

    def run(self, first, second, out, bias, activation, residual=None):
        scratch = out.empty((sum(self.sizes),), out.dtype)
        w, v, m = parts(scratch, self.sizes)
        for begin in range(0, max(1, self.source.tiles), self.tiles):
            for role, array, channels, source, to in (
                ("gradient", self.gradient, self.p.m, second, w), ("source", self.source, self.p.n, first, v),
            ):  # fmt: skip
                covered = self.tiles, array.channels
                self.enter(role, array, begin, (self.tiles, channels), covered, True, source, to)
            self.product(self.p, self.tiles, w, v, m, add=begin > 0)
        self.leave("weights", self.result, 0, self.p, m, out)


def parts(memory: Any, sizes: tuple[int, ...]) -> list[Any]:
    """Cut memory into parts."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [memory.part(start, size) for start, size in zip(starts, sizes, strict=True)]
