"""Which tiles the route of small tiles takes: their size, how many at once, the scratch and the seconds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from fastconv import borders, machine
from fastconv.algorithms.fft import cost
from fastconv.algorithms.fft.codelets import CHANNEL_COLUMNS, DENSE_COLUMNS, SIZES
from fastconv.algorithms.fft.tile2d import frequencies, scratch_size
from fastconv.algorithms.fft.tiling import whole
from fastconv.problem import INPUT_GRAD, WEIGHT_GRAD, Axis, ConvProblem, Direction
from fastconv.roofline import CYCLES, rates, seconds

BLOCKS = (16, 32, 64, 128)  # tiles summed at once in a dense weight gradient


def unsuited(problem: ConvProblem) -> str | None:
    """Return why small tiles cannot serve a problem, or None."""
    if len(problem.axes) > 2:
        return "more than two axes"
    if not problem.plain:
        return "a stride or a dilation > 1"
    if max(problem.kernel) > SIZES[-1]:
        return f"a kernel of more than {SIZES[-1]} pixels"
    if problem.n == 0:
        return "no images"
    return None


def suits_added(problem: ConvProblem) -> bool:
    """Tell whether small tiles serve a gradient whose tiles are added up: other routes cannot."""
    high = (CHANNEL_COLUMNS if problem.c == problem.groups else DENSE_COLUMNS)[-1]
    return not unsuited(problem) and (1, *problem.kernel)[-2] <= high


class Cut(NamedTuple):
    """A problem cut into tiles of one size, as numbers."""

    groups: int
    c: int  # channels of a group in the source
    k: int  # and in the result
    size: tuple[int, int]  # of a tile
    step: tuple[int, int]  # results of a tile
    count: tuple[int, int]  # tiles of an image
    tiles: int  # of all images
    bins: int  # frequencies of a tile
    lanes: int
    vectors: int  # of tiles in a block; for a dense weight gradient, or channels last: tiles
    scratch: int  # elements for one vector of tiles
    per_channel: bool  # lanes are channels
    near: bool  # so they are of dense layers, channels last (`pixels`), but for the weight gradient
    itemsize: int


class Choice(NamedTuple):
    """A size of tiles, and what follows from it."""

    cut: Cut
    shared: int  # elements of scratch that all workers see: U
    worker: int  # elements of scratch of one worker
    seconds: float
    between: int = 0  # elements of scratch with row spectra that workers share out anew

    @property
    def flops(self) -> float:
        """Work, by which a launch decides on its workers."""
        return self.seconds * rates().flops()

    def bytes(self, itemsize: int) -> int:
        """Scratch in all."""
        return (self.shared + self.between + machine.machine().cores * self.worker) * itemsize


class Margin(NamedTuple):
    """What is around the image along an axis that tiles of its gradient hold besides."""

    before: int = 0  # pixels
    after: int = 0
    edges: borders.Edges = ()  # those that repeat others

    def with_image(self, axis: Axis) -> Axis:
        """Return the axis of the image with its margin."""
        return borders.widened(axis, self.before, self.after)


def covering(problem: ConvProblem, choice: Choice) -> tuple[Choice, tuple[Margin, Margin]]:
    """Return tiles of an input gradient among zeros that hold what is around the image, too, where as many can.

    What pixels receive that repeat others is added up within a tile.
    """
    steps, margins = [], []
    for axis, length, count in zip(problem.last_axes(2), choice.cut.size, choice.cut.count, strict=True):
        edges = borders.edges(axis, problem.padding_mode)
        for total in range(min(length, axis.lo + axis.hi), -1, -1):
            before, after = borders.room(axis, total)
            margin = Margin(before, after, borders.among(edges, axis.size, before, after))
            wide = margin.with_image(axis)
            step = Side(axis.kernel, whole(wide), wide.size).step(length)
            together = all((at + before) // step == (pixel + before) // step for at, pixel in margin.edges)
            if -(-wide.size // step) == count and together:
                break
        steps.append(step)
        margins.append(margin)
    return choice._replace(cut=choice.cut._replace(step=tuple(steps))), tuple(margins)


Fitting = list[tuple[int, int]]  # sizes, and the tiles that each needs along its axis


class Side(NamedTuple):
    """An axis, as tiles are fitted to it."""

    extent: int
    whole: int
    results: int

    def step(self, length: int) -> int:
        """Return how many results a tile gives."""
        return self.results if length >= self.whole else min(length - self.extent + 1, self.results)


class Fitted(NamedTuple):
    """An axis without dilation, and the tiles that serve it."""

    side: Side
    sizes: Fitting  # that hold a kernel, up to the first that needs but one tile, and the tiles each needs
    samples: int  #   of all tiles along the axis, at the least


def _fitted(problem: ConvProblem, direction: Direction, per_channel: bool) -> tuple[Fitted, Fitted]:
    """Fit tiles to both axes."""
    back, repeats = direction is INPUT_GRAD, reads_border(problem, direction)
    above, beside = problem.last_axes(2)
    columns = (1,) if above.kernel == 1 else CHANNEL_COLUMNS if per_channel else DENSE_COLUMNS
    return _fitting(above, back, repeats, columns), _fitting(beside, back, repeats, SIZES)


@functools.lru_cache(maxsize=256)  # the axes of an image are alike, and those of many layers
def _fitting(axis: Axis, back: bool, repeats: bool, sizes: tuple[int, ...]) -> Fitted:
    """Fit tiles to an axis: of a border they hold all, which may be longer than a lone tile's end."""
    results = axis.size if back else axis.output
    side = Side(axis.kernel, results + axis.kernel - 1 if repeats else whole(axis), results)
    fitting = []
    for a in sizes:
        if a >= side.extent:
            fitting.append((a, -(-results // side.step(a))))
            if fitting[-1][1] == 1:
                break
    return Fitted(side, fitting, min([a * tiles for a, tiles in fitting], default=0))


def reads_border(problem: ConvProblem, direction: Direction) -> bool:
    """Tell whether what a direction reads is repeated beside itself: grad_output where all axes are circles."""
    mode = problem.padding_mode
    if direction is not INPUT_GRAD or mode == "zeros":
        return mode != "zeros"
    return mode == "circular" and all(borders.circle(a, mode) for a in problem.axes)


def choose(problem: ConvProblem, direction: Direction, limit: int) -> Choice | None:
    """Return the size of least work, or else the cheapest that stays within the limit, or None."""
    if unsuited(problem):
        return None
    back, n, g = direction is INPUT_GRAD, problem.n, problem.groups
    c, k = (problem.k, problem.c) if back else (problem.c, problem.k)
    per_channel = _by_channel(problem, direction)
    near = problem.layout == "nhwc" and not per_channel and direction is not WEIGHT_GRAD
    unit = machine.tile(problem.itemsize)
    blocks: Sequence[int] = (1,)  # tiles to be taken at once, the fewest first
    share = 1  # those that make one
    if direction is WEIGHT_GRAD and not per_channel:
        blocks = BLOCKS
    elif near:
        blocks = _passes(c // g, k // g, unit, problem.itemsize)
    elif not per_channel:
        blocks, share = range(1, unit.nr + 1), unit.vl * machine.machine().cores
    (down, high, _), (along, wide, _) = _fitted(problem, direction, per_channel)
    if not (high and wide):
        return None
    c, k = c // g, k // g

    def choice(ah: int, aw: int, block: int) -> Choice:
        step = down.step(ah), along.step(aw)
        count = -(-down.results // step[0]), -(-along.results // step[1])
        cut = Cut(
            g, c, k, (ah, aw), step, count, n * count[0] * count[1], frequencies(ah, aw), unit.vl, block,
            scratch_size(ah, aw, unit.vl), per_channel, near, problem.itemsize,
        )  # fmt: skip
        return _choice(problem, direction, cut)

    ah, aw, tiles = _cheapest(high, wide, n, c + k, c * k)
    # the more tiles share a load of U, or of the sums, the better
    first = choice(ah, aw, next((b for b in blocks if b * share >= tiles), blocks[-1]))
    if first.bytes(problem.itemsize) <= limit:
        return first
    every = [choice(ah, aw, block) for ah, _ in high for aw, _ in wide for block in blocks]
    within = [o for o in every if o.bytes(problem.itemsize) <= limit]
    return min(within, key=lambda o: o.seconds, default=None)


def _by_channel(problem: ConvProblem, direction: Direction) -> bool:
    """Tell whether lanes are channels: each result is of one channel of the source, channels last of one of its own."""
    if problem.layout == "nhwc" and problem.c != problem.k:
        return False
    if direction is INPUT_GRAD:
        several = reads_border(problem, direction)  # results of a channel of the source
        return problem.k == problem.groups and (several or problem.c == problem.k)
    return problem.c == problem.groups


def _cheapest(high: Fitting, wide: Fitting, n: int, channels: int, kernels: int) -> tuple[int, int, int]:
    """Return the tile of least work, and the number of them.

    Transforms of tiles and of kernels, products, and kernels in memory are weighed roughly: there are many
    sizes, so rows and columns are chosen after one another.
    """

    def best(sides: Fitting, other: int, count: int) -> tuple[int, int]:
        least, found = inf, (0, 0)
        for a, t in sides:
            tiles, samples = n * t * count, a * other
            levels = 10 + 10 * cost.LEVEL * (samples.bit_length() - 1)
            work = samples * (levels * (tiles * channels + 1.5 * kernels) + (tiles + 6) * kernels)
            if work < least:
                least, found = work, (a, t)
        return found

    aw, tw = best(wide, *high[len(high) // 2])
    ah, th = best(high, aw, tw)
    return ah, aw, n * th * tw


def floor(problem: ConvProblem, direction: Direction) -> float:
    """Return less seconds than any tiles take: transforms of the smallest over the fewest samples, products and kernels."""
    r, grad, per_channel = rates(), direction is WEIGHT_GRAD, _by_channel(problem, direction)
    down, along = _fitted(problem, direction, per_channel)
    if not (down.sizes and along.sizes):
        return inf
    samples, pairs = problem.n * down.samples * along.samples, problem.c // problem.groups * problem.k
    if per_channel:
        kind = CYCLES["fft depthwise weight_grad" if grad else "fft depthwise"]
        kernel = products = 0.0
    else:  # half a spectrum, each of it multiplied three times
        kind = CYCLES["fft weight_grad" if grad else "fft pixels" if problem.layout == "nhwc" else "fft"]
        kernel = cost.of_tile(down.sizes[0][0], along.sizes[0][0]) * kind["transform" if grad else "filters"]
        products = 1.5 * samples * kind["products"] / r.units
    cycles = (problem.c + problem.k) * samples * cost.SHORTEST * kind["transform"] + pairs * (
        products + kernel
    )
    cycles /= machine.tile(problem.itemsize).vl * machine.machine().cores
    return cycles / r.clock + kind["memory"] * problem.bytes / r.bandwidth


def _choice(problem: ConvProblem, direction: Direction, cut: Cut) -> Choice:
    """Work out what follows from a cut."""
    g, grad = cut, direction is WEIGHT_GRAD
    if g.per_channel:
        kind, parts = cost.per_channel(g, grad)
        shared = 0 if grad else -(-g.groups * g.k // g.lanes) * g.bins * 2 * g.lanes
        worker = g.scratch + g.bins * 2 * g.lanes * (3 if grad else 1)
    elif grad:
        kind, parts = "fft weight_grad", cost.gradient(g)
        shared = sum(gradient_parts(g))
        worker = g.scratch + g.bins * 3 * g.lanes
    elif g.near:
        kind, parts = "fft pixels", cost.pixels(g)
        shared = g.groups * g.bins * 3 * (g.k * g.c + g.lanes)
        worker = max(g.scratch + g.bins * 3 * g.lanes, _column_size(g.size, g.vectors, g.c, g.k, g.lanes))
        between = rows_of_source(g) + g.vectors * -(-g.k // g.lanes) * g.scratch
        return Choice(g, shared, worker, seconds(kind, problem, parts), between)
    else:
        kind, parts = "fft", cost.dense(g)
        shared = g.groups * g.bins * 3 * (g.k * g.c + g.lanes)
        worker = g.scratch + g.bins * max(3 * (g.c + g.k) * g.vectors * g.lanes + 2 * g.lanes, 3 * g.lanes)
    return Choice(g, shared, worker, seconds(kind, problem, parts))


def gradient_parts(g: Cut) -> tuple[int, int, int]:
    """Elements of A, V and M of a dense weight gradient."""
    width, b = -(-g.c // g.lanes) * g.lanes, g.vectors
    sizes = (3 * (g.k * b + g.lanes), 3 * b * width + g.lanes, 3 * g.k * width + g.lanes)
    return tuple(g.bins * size for size in sizes)  # type: ignore[return-value]


def rows_of_source(g: Cut) -> int:
    """Elements of the row spectra of a source, channels last."""
    return g.vectors * -(-g.c // g.lanes) * g.scratch


def _column_size(size: tuple[int, int], tiles: int, c: int, k: int, lanes: int) -> int:
    """Elements of V and M of a column of row spectra."""
    bins = size[0] if size[0] > 1 else size[1] // 2 + 1
    return bins * (3 * tiles * (-(-c // lanes) + -(-k // lanes)) + 2) * lanes


def _passes(c: int, k: int, unit: machine.Tile, itemsize: int) -> Sequence[int]:
    """Return how many tiles may be multiplied at once, channels last: V and M of a column of 16 stay in a quarter of L2."""
    most = machine.machine().l2 // 4 // itemsize
    return [b for b in BLOCKS if _column_size((16, 16), b, c, k, unit.vl) <= most] or BLOCKS[:1]
