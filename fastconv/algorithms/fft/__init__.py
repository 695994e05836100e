"""Convolution as a product of spectra, in overlap-save tiles (`tiling`), by the cheaper of two routes.

* `tiles`: tiles of 8 to 64 pixels a side, transformed by our own code and multiplied while in cache;
* `signal`: tiles of any size through ``numpy.fft``.

A rounding error spreads over its tile in proportion to the largest value there, and so does a NaN or an
infinity: small results beside large ones have fewer correct digits than a sum over their own products.

Small tiles are of one channel, many of them side by side; where channels are last, or each has kernels of its own, of many
channels side by side (`pixels`).  Their size is chosen in `cut`, the kernels are in `cpu`, `pixels`, `weight_grad` and `folded`:
`lanes` brings tiles to where a table says (`places`), `tile2d` transforms them by rows and columns, by the `codelets` that
`fourier` writes.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf, prod

from fastconv import borders
from fastconv.algorithms.base import CHANNELS_FIRST, Algorithm, Execution
from fastconv.algorithms.fft import cut, signal, tiles
from fastconv.algorithms.fft.folded import Folded
from fastconv.algorithms.frame import framed
from fastconv.problem import ConvProblem, Direction

ANY = 2**62  # bytes
LARGE = 32  # taps, of which small tiles are no longer the cheaper route for sure


class Fft(Algorithm):
    """Stride 1, any kernel, dilation, groups and rank."""

    name = "fft"

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        if not problem.unit_stride:
            return "stride > 1: a product of spectra gives every position of the kernel"
        if problem.layout == "nhwc":
            if problem.c == problem.groups != problem.k:
                return f"{problem.k} results of {problem.c} channels {CHANNELS_FIRST}"
            if _bordered(problem, direction) and not cut.suits_added(problem):
                return f"what repeats others in tiles of any size {CHANNELS_FIRST}"
        return None

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        if _bordered(problem, direction):
            if problem.layout == "nhwc":
                return _added(problem, limit).bytes(problem.itemsize)
            return self.build(problem, direction, limit).workspace
        choice = _small_tiles(problem, direction, limit)
        if choice:
            return choice.bytes(problem.itemsize)
        return signal.Signal(problem, direction, limit).blocks.bytes

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        if _bordered(problem, direction):
            if problem.layout == "nhwc":
                return _added(problem, ANY).seconds
            choice = _folded(problem, ANY)
            if choice:
                return choice.seconds
        choice = _small_tiles(problem, direction, ANY)
        return choice.seconds if choice else signal.cost(problem, direction)

    def floor(self, problem: ConvProblem, direction: Direction) -> float:
        if problem.plain and max(problem.kernel) <= 3 and len(problem.axes) <= 2:
            return inf  # tiles of real numbers multiply as few, and a kernel of one tap has none to save
        if cut.unsuited(problem):
            return signal.floor(problem, direction)
        least = cut.floor(problem, direction)
        return least if max(problem.kernel) <= LARGE else min(least, signal.floor(problem, direction))

    def error_growth(self, problem: ConvProblem, direction: Direction) -> float:
        # measured: 8 / sqrt(reduction) at most in the mean; not less than 2, for the error of a result is in
        # proportion to the largest in its tile, not to its own products
        channels, places = problem.c // problem.groups, prod(problem.kernel)
        if direction is Direction.INPUT_GRAD:
            channels = problem.k // problem.groups
        elif direction is Direction.WEIGHT_GRAD:
            channels, places = problem.n, prod(problem.output)
        return max(2.0, 8.0 / max(channels * places, 1) ** 0.5)

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        if _bordered(problem, direction):
            if problem.layout == "nhwc":
                return tiles.Spectral(problem, direction, _added(problem, limit), added=True)
            choice = _folded(problem, limit)
            execution = Folded(problem, choice) if choice else None
            if execution and execution.workspace <= limit:
                return execution
            zeros = replace(problem, padding_mode="zeros")
            choice = _small_tiles(zeros, direction, limit)
            if choice is None or choice.cut.per_channel:
                return framed(self.build(zeros, direction, limit), problem, limit)
            choice, margins = cut.covering(problem, choice)
            added = tuple([margin.edges for margin in margins[-len(problem.axes) :]])
            return framed(tiles.Spectral(zeros, direction, choice, margins), problem, limit, added)
        choice = _small_tiles(problem, direction, limit)
        return tiles.build(problem, direction, choice) if choice else signal.Signal(problem, direction, limit)


def _bordered(problem: ConvProblem, direction: Direction) -> bool:
    """Tell whether pixels of a border hand what they receive to others; all tiles turn around a circle, or none."""
    repeats = problem.padding_mode != "zeros"
    return direction is Direction.INPUT_GRAD and repeats and not cut.reads_border(problem, direction)


def _added(problem: ConvProblem, limit: int) -> cut.Choice:
    """Return the tiles of grad_output that are added up, channels last, to the gradient of the padded image.

    They are as many as those of the forward pass; more bytes than the limit where none keeps it.
    """
    back = borders.written_out(problem, turned=True)
    choice = cut.choose(back, Direction.FORWARD, limit) or cut.choose(back, Direction.FORWARD, ANY)
    assert choice
    return choice


def _folded(problem: ConvProblem, limit: int) -> cut.Choice | None:
    """Return the tiles of a depthwise input gradient that is folded, where small ones serve it.

    Others are those among zeros, to which a frame is added.  Tiles of the padded gradient are more: 7 x 7 instead of
    6 x 6 for 7x7 taps on 56 x 56 pixels.  But a frame is a product of matrices, small ones where groups have one channel.
    """
    if not problem.c == problem.k == problem.groups:
        return None
    return _small_tiles(borders.written_out(problem), Direction.FORWARD, limit)


def _small_tiles(problem: ConvProblem, direction: Direction, limit: int) -> cut.Choice | None:
    """Return the choice of small tiles where they are the cheaper route."""
    choice = cut.choose(problem, direction, limit)
    if choice is None or max(problem.kernel) <= LARGE:
        return choice
    return choice if choice.seconds <= signal.cost(problem, direction) else None
