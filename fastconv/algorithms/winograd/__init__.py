"""Winograd convolution: kernels of 2 to 7 taps an axis by fewer multiplications, of up to 14 at stride 2.

    y = A [ (G w G^T) * (B d B^T) ] A^T       for each tile d of the input (`transforms.py`)

The products at each of the alpha x alpha positions of a tile, summed over channels, are one matrix
product over all tiles.  F(4x4, 3x3) multiplies 36 times where the definition does 144 times; what it
pays are transforms, more memory, and rounding, which grows with alpha (`GROWTH`).

The input gradient is the same correlation of grad_output with turned filters; the weight gradient is
F(r, m) of the same tiles: m x m pixels of grad_output take the part of the kernel (`weight_grad.py`).
Stride 2 becomes phases at stride 1 (`phases.py`), dilation images of every d-th pixel (`dilated.py`).

A pass is cut into blocks (`correlation.py`, `areas.py`), which kernels go through (`cpu.py`, `weight_grad.py`).  Their
transforms take tiles as lanes (`lanes.py`), as many as a vector has (`strips.py`); or channels, in `pixels/`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from math import prod

from fastconv import borders, machine
from fastconv.algorithms.base import Algorithm, Execution
from fastconv.algorithms.winograd import areas
from fastconv.algorithms.winograd.folding import added, fold, left, spare
from fastconv.algorithms.winograd.phases import Counts, counts, share, undilated
from fastconv.algorithms.winograd.transforms import ROWS, Tiles
from fastconv.gemm.blocking import within
from fastconv.problem import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Axis, ConvProblem, Direction
from fastconv.roofline import computed, computing, multiply, rates, seconds, with_frame

# Outputs of a tile that 'winograd' chooses from, by kernel size.  alpha = m + r - 1 is 4 or 6, as F(6, 3)
# and the like err four times as much; only kernels of 6 and 7 have to take 8, which others do by name.
CHOICES = {1: (1,), 2: (3,), 3: (2, 4), 4: (3,), 5: (2,), 6: (3,), 7: (2,)}
# forward at stride 2 V has four times the channels: of F(4x4, 2x2) it leaves L2
STRIDED_CHOICES = {FORWARD: CHOICES | {2: (2,)}, INPUT_GRAD: CHOICES | {2: (2, 4)}}
LONG_CHOICES = {2: (3, 5), 3: (2, 4, 6), 4: (3, 5), 5: (2, 4), 6: (3,), 7: (2,)}  # along one axis alone

APART = 40  # cycles of a vector, or of what a row has, that is copied between an image and those of every d-th pixel
TRANSFORM = 6  # cycles to transform a vector of any operand at one position of a tile, at the least

# rms error over that of naive summation with 32 channels of normal numbers, measured along one axis;
# those of two axes multiply.  First as F(m, r), then as F(r, m) in the weight gradient.
GROWTH = {
    (1, 1): (1.0, 1.0), (2, 2): (1.1, 1.1), (4, 2): (1.8, 1.3), (3, 2): (1.0, 0.85), (2, 3): (0.85, 1.0), (5, 2): (2.0, 1.2), (4, 3): (1.5, 1.3),
    (3, 4): (1.4, 1.5), (2, 5): (1.3, 1.9), (1, 6): (1.4, 3.0), (7, 2): (4.0, 2.3), (6, 3): (3.3, 2.2),
    (5, 4): (3.0, 2.3), (4, 5): (2.4, 2.6), (3, 6): (2.5, 3.0), (2, 7): (2.6, 5.0),
}  # fmt: skip


class Winograd(Algorithm):
    """F(m, r), m chosen by cost and precision, or given: ``winograd:F(6,3)``."""

    name = "winograd"

    def __init__(self, given: tuple[int, int] | None = None) -> None:
        self.given = given

    def variant(self, suffix: str) -> Algorithm:
        match = re.fullmatch(r"F\((\d+),\s*(\d+)\)", suffix)
        given = (int(match[1]), int(match[2])) if match else None
        if given not in GROWTH or given == (1, 1):
            names = ", ".join(f"F({m},{r})" for m, r in sorted(GROWTH, key=lambda f: f[::-1]) if r > 1)
            raise ValueError(f"winograd has the variants {names}, got 'winograd:{suffix}'")
        return type(self)(given)

    def reject(self, problem, direction):
        if len(problem.axes) > 2:
            return f"tiles have one or two axes, the problem has {len(problem.axes)}"
        problem = undilated(problem, direction)
        if not problem.plain:
            most = 2 if direction is not WEIGHT_GRAD and problem.layout == "nchw" else 1
            for _, _, stride, dilation, _, _ in problem.axes:
                if stride > most:
                    of = "1 or 2" if most == 2 else "1"
                    return f"tiles need stride {of}, got " + "x".join(str(a.stride) for a in problem.axes)
                if dilation not in (1, stride):
                    return "tiles need dilation 1, or 2 at stride 2, got " + "x".join(
                        str(a.dilation) for a in problem.axes
                    )
        taps = (1, 1) if prod(problem.kernel) == 1 else counts(problem, direction).taps
        of = "" if problem.plain else " in a phase"
        if taps == (1, 1):
            return f"a kernel of one tap{of} has no multiplications to save"
        if taps[0] <= 7 >= taps[1] and (self.given is None or set(taps) <= {1, self.given[1]}):
            return None
        size = "x".join(map(str, taps[-len(problem.axes) :])) + of
        if max(taps) > 7:
            return f"kernels of more than 7 taps need tiles whose rounding error is too large, got {size}"
        return f"F({self.given[0]},{self.given[1]}) is for kernels of {self.given[1]} taps, got {size}"

    def tiles(self, problem: ConvProblem, direction: Direction) -> Tiles:
        """Return the cheapest admissible tiles."""
        problem = undilated(problem, direction)
        found = counts(problem, direction)
        pairs = _pairs(found.taps, self.given, None if problem.plain else direction)
        return pairs[0] if len(pairs) == 1 else min(pairs, key=self.weighing(problem, direction, found))

    def weighing(self, problem: ConvProblem, direction: Direction, found: Counts) -> Callable[[Tiles], float]:
        """Return what weighs tiles against each other: transforms, products and filters of each position, roughly."""
        c, k, _, _, (p, q) = found
        transforms, products = problem.n * 8 * (c + k), problem.n * 0.7 * c * k
        filters = (15 if problem.plain else 30) * c * k

        def weigh(tiles: Tiles) -> float:
            (mh, rh), (mw, rw) = tiles
            each = transforms + products * share(problem, tiles)
            return (mh + rh - 1) * (mw + rw - 1) * (-(-p // mh) * -(-q // mw) * each + filters)

        return weigh

    def error_growth(self, problem, direction):
        served = undilated(self.holding(problem, direction), direction)
        return growth(served, direction, self.tiles(served, direction))

    def cost(self, problem, direction):
        wide = self.holding(problem, direction)
        served = undilated(wide, direction)
        predicted = self.seconds(served, direction, self.tiles(served, direction))
        if served is problem:
            return predicted
        predicted += copying(served)
        return predicted if wide is not problem else with_frame(predicted, problem, direction)

    def holding(self, problem: ConvProblem, direction: Direction) -> ConvProblem:
        """Return the dilated problem of a wider image, with what borders add, if tiles hold it almost as they do this one.

        A frame multiplies twice as much where borders reflect.  Of larger dilations images are put together pixel by pixel.
        """
        if not borders.framed(problem, direction) or undilated(problem, direction) is problem:
            return problem
        if max([a.dilation for a in problem.axes]) > 2:
            return problem
        axes = tuple([borders.widened(a, max(0, a.lo), max(0, a.hi)) for a in problem.axes])
        tiles, most = self.tiles(problem, direction), 1.25 if problem.padding_mode == "reflect" else 1.0
        vl = machine.tile(problem.itemsize).vl
        strips, more = (-(-problem.n * _tiles(some, tiles) // vl) for some in (problem.axes, axes))
        return replace(problem, axes=axes, padding_mode="zeros") if more <= most * strips else problem

    def seconds(self, problem: ConvProblem, direction: Direction, tiles: Tiles) -> float:
        """Predict the time with given tiles."""
        if not borders.framed(problem, direction):
            return seconds(_kind(problem, direction), problem, work(problem, direction, tiles))
        kind, folded, near = _kind(problem, direction), fold(problem, direction, tiles), 0
        if not folded:
            problem = computed(problem, direction)
        parts, again = work(problem, direction, tiles), 0.0
        if folded:
            near = 1 if folded.step == 2 else max(problem.kernel)
        elif around := spare(problem, tiles):
            near = max(map(max, around))
            parts["result"] += problem.elements[0] / machine.tile(problem.itemsize).vl / 2  # written
            again = rates().launch  # once more
        return with_frame(again + seconds(kind, problem, parts), problem, direction, left(problem, near))

    def floor(self, problem, direction):
        # all transforms; depthwise layers, whose products are fewer, are those that ask another first
        problem = undilated(problem, direction)
        r, s = counts(problem, direction).taps
        positions = (r + 5) * (s + 5) / 36  # of each pixel: F(6, r) has the fewest
        vectors = problem.bytes * 8 / machine.simd().bits
        return TRANSFORM * positions * vectors / (rates().clock * machine.machine().cores)

    def preparing(self, problem):
        problem, forward = undilated(problem, FORWARD), FORWARD
        filters = work(problem, forward, self.tiles(problem, forward))["filters"]
        return computing(_kind(problem, forward), problem, {"filters": filters})

    def workspace(self, problem, direction, limit):
        return self.build(problem, direction, limit).workspace

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        served, tiles = undilated(problem, direction), self.tiles(problem, direction)
        if problem.layout == "nchw" and borders.framed(problem, direction):
            return self.bordered(problem, direction, tiles, limit)
        if served is not problem:
            from fastconv.algorithms.winograd.dilated import Dilated

            return Dilated(problem, direction, functools.partial(self.build, served, direction), limit)
        if direction is WEIGHT_GRAD:
            from fastconv.algorithms.winograd.weight_grad import weight_grad

            return within(limit, functools.partial(weight_grad, problem, tiles))
        if problem.layout == "nhwc":
            from fastconv.algorithms.winograd.pixels.correlation import correlation

            return correlation(problem, direction, tiles, limit)
        from fastconv.algorithms.winograd.correlation import correlation

        return correlation(problem, direction, tiles, limit)

    def bordered(self, problem: ConvProblem, direction: Direction, tiles: Tiles, limit: int) -> Execution:
        """Build an input gradient whose borders tiles fold, or hold, as far as they can; a frame adds what is left."""
        from fastconv.algorithms.frame import framed
        from fastconv.algorithms.held import Held
        from fastconv.algorithms.winograd.correlation import correlation
        from fastconv.algorithms.winograd.dilated import Dilated

        zeros = replace(problem, padding_mode="zeros")
        if undilated(problem, direction) is not problem:
            wide = self.holding(problem, direction)
            if wide is problem:
                return framed(self.build(zeros, direction, limit), problem, limit)
            make = functools.partial(self.build, undilated(wide, direction), direction)
            edges = tuple([borders.edges(a, problem.padding_mode) for a in problem.axes])
            return framed(Dilated(wide, direction, make, limit, problem), problem, limit, edges)
        if folded := fold(problem, direction, tiles):
            inner, pairs = correlation(problem, direction, tiles, limit), added(problem, folded)
            whole = pairs == tuple(borders.edges(a, problem.padding_mode) for a in problem.axes)
            return inner if whole else framed(inner, problem, limit, pairs)
        if around := spare(problem, tiles):
            axes = tuple([borders.widened(a, *ends) for a, ends in zip(problem.axes, around, strict=True)])
            held = Held(correlation(replace(zeros, axes=axes), direction, tiles, limit), problem, around)
            if held.workspace <= limit:
                return framed(held, problem, limit, held.added)
        return framed(correlation(zeros, direction, tiles, limit), problem, limit)


@functools.cache
def _pairs(kernel: tuple[int, int], given: tuple[int, int] | None, strided: Direction | None) -> list[Tiles]:
    """Return the tiles that 'winograd' chooses from; those of a square kernel are square."""
    table = LONG_CHOICES if 1 in kernel else STRIDED_CHOICES[strided] if strided else CHOICES

    def choices(r: int) -> tuple[tuple[int, int], ...]:
        if r == 1:
            return ((1, 1),)
        return (given,) if given else tuple((m, r) for m in table[r])

    pairs = product(*map(choices, kernel))
    return [pair for pair in pairs if kernel[0] != kernel[1] or pair[0] == pair[1]]


def growth(problem: ConvProblem, direction: Direction, tiles: Tiles) -> float:
    """Return the error over that of naive summation: few terms hide less of the transforms' error."""
    if direction is WEIGHT_GRAD:
        pixels = min(prod(problem.output), prod(a.size for a in problem.axes))  # the others meet zeros
        terms, column = problem.n * pixels / prod(m for m, _ in tiles), 1
    else:
        terms, column = counts(problem, direction).source, 0
    few = max(1.0, 32 / max(1, terms)) ** 0.28
    return few * prod(GROWTH[t][column] for t in tiles)


def _kind(problem: ConvProblem, direction: Direction) -> str:
    if direction is WEIGHT_GRAD:
        return "winograd weight_grad"
    if problem.layout == "nhwc":
        return "winograd pixels"
    return "winograd" if problem.plain else "winograd phases"


def _tiles(axes: tuple[Axis, ...], tiles: Tiles) -> int:
    """Return how many tiles the input gradient has, of all images of every d-th pixel."""
    pairs = zip(axes, tiles[-len(axes) :], strict=True)
    positions = [(a.dilation, -(-a.size // a.dilation), m) for a, (m, _) in pairs]
    return prod([d * -(-p // m) for d, p, m in positions])


def copying(problem: ConvProblem) -> float:
    """Predict how long it takes to copy images of every d-th pixel apart, and the result together."""
    r, vl = rates(), machine.tile(problem.itemsize).vl
    vectors = 0
    for *rows, pixels in (problem.input_shape, problem.output_shape):
        vectors += prod(rows) * -(-pixels // vl)
    return 2 * r.launch + APART * vectors / (r.clock * machine.machine().cores)


def work(problem: ConvProblem, direction: Direction, tiles: Tiles) -> dict[str, float]:
    """Count vectors transformed at each position of a tile, and the products of every position."""
    if direction is WEIGHT_GRAD:
        return areas.work(problem, tiles)
    itemsize, g, n = problem.itemsize, problem.groups, problem.n
    vl = machine.tile(itemsize).vl
    source, result, phases, _, (p, q) = counts(problem, direction)
    (mh, rh), (mw, rw) = tiles
    count, positions = n * -(-p // mh) * -(-q // mw), g * (mh + rh - 1) * (mw + rw - 1)
    filters = problem.c // g * (problem.k // g) * phases / vl
    if problem.layout == "nhwc":  # lanes are channels
        beyond = filters * positions * vl * itemsize > machine.machine().l2
        return {
            "products": positions * multiply(count, -(-result // vl), source, itemsize),
            "source": positions * count * -(-source // vl),
            "result": positions * count * -(-result // vl),
            "filters": filters * (positions + g * rh * rw),
            "filters in memory": filters * positions if beyond else 0,
        }
    strips, reached = -(-count // vl), share(problem, tiles)
    return {
        "products": reached * positions * multiply(result, strips, source, itemsize),
        "source": (reached if direction is FORWARD else 1) * positions * strips * source,
        "result": positions * strips * result,
        "filters": filters * (positions + g * rh * rw),
        "filters in memory": filters * positions,
    }


MADE = 3  # between 2 (128 -> 256 channels, 2 x 56 x 56: U first) and 5 (512 -> 512, 2 x 14 x 14: V first), measured


def filters_first(count: int, source: int, result: int, positions: int, most: int, itemsize: int) -> bool:
    """Tell whether U of all filters, rather than V of all tiles, is made beforehand and streams by.

    U streams once for each block of tiles, of at ``most`` so many vectors, V once for each chunk of U that fits L2; what is
    made beforehand goes to memory and back as well, which counts as MADE of these passes.
    """
    unit, m = machine.tile(itemsize), machine.machine()
    vectors, rows = -(-count // unit.vl), min(unit.mr, ROWS)
    blocks = max(-(-vectors // most), min(vectors, m.cores))
    chunk = max(1, m.l2 // 2 // (positions * source * rows * itemsize)) * rows
    chunks = max(-(-result // chunk), min(-(-result // rows), 2 * m.cores))
    return (blocks + MADE) * result < (chunks + MADE) * vectors * unit.vl
