"""Input gradients where borders reflect or replicate the image: what is around it is never computed.

Along an axis the gradient of the padded image is a product of polynomials, G(t) = F(t) Y(t) of filter and grad_output.
What stands at t**-k is added to the pixel that it repeats, t**0 of replicate and t**k of reflect:

    gx = G + sum over k of g[-k] (t**to - t**-k)

D = 1 - t of replicate, or 1 - t**2 of one reflected pixel, divides all these brackets and leaves negative powers alone:

    gx / D = F (Y / D) - (negative powers)

So the first tile of a line divides its pixels by D, ``d[i] += d[i - step]`` from left to right, is multiplied as any other tile,
and its results are multiplied by D, ``y[j] -= y[j - step]``.  The last tile does the same from the right.  There are as many
tiles as with zeros.  Of reflected pixels further away 1 - t**2 leaves powers that are not negative:

    t**k - t**-k = -t**-k (1 - t**2) (1 + t**2 + ... + t**(2k - 2))

t**(k - 2) and every second one below it: tiles add what stands k pixels away to pixel k mod 2.  From there a frame
takes it to the pixel that is repeated (`frame`).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from fastconv.algorithms.winograd.phases import count
from fastconv.algorithms.winograd.strips import Strips, lanes
from fastconv.algorithms.winograd.transforms import Tiles
from fastconv.borders import Around, Edges, room, widened
from fastconv.problem import INPUT_GRAD, Axis, ConvProblem, Direction

STEPS = {"replicate": 1, "reflect": 2}


class Ends(NamedTuple):
    """Which tiles of an axis are divided, by number, or -1; and how many results of the last one are pixels."""

    first: int = -1
    last: int = -1
    rest: int = 0


class Fold(NamedTuple):
    """The power of t in D, or 0, and the tiles of both axes."""

    step: int = 0
    rows: Ends = Ends()
    columns: Ends = Ends()

    def __bool__(self) -> bool:
        return self.step > 0


NO_ENDS, NO_FOLD = Ends(), Fold()


def fold(problem: ConvProblem, direction: Direction, tiles: Tiles) -> Fold:
    """Return what tiles fold: nothing of zeros, nor where one cannot hold all it takes."""
    step = STEPS.get(problem.padding_mode, 0)
    if direction is not INPUT_GRAD or not step or not problem.plain:
        return NO_FOLD
    alone = step == 2 and problem.layout == "nhwc"  # no frame moves there what tiles leave
    along = [NO_ENDS]
    for axis, (m, r) in zip(problem.axes, tiles[-len(problem.axes) :], strict=True):
        ends = _ends(axis, m, min(r - 1, 1) if alone else r - 1, step)
        if not ends:
            return NO_FOLD
        along.append(ends)
    return Fold(step, *along[-2:])


def added(problem: ConvProblem, fold: Fold) -> tuple[Edges, ...]:
    """Return of each axis to which pixel tiles add each of those around the image."""
    if not fold:
        return ()
    found = []
    for a in problem.axes:
        before = [(-k, k % fold.step) for k in range(a.lo, 0, -1)]
        after = [(a.size - 1 + k, a.size - 1 - k % fold.step) for k in range(1, a.hi + 1)]
        found.append((*before, *after))
    return tuple(found)


def spare(problem: ConvProblem, tiles: Tiles) -> Around:
    """Return how many pixels around the image tiles hold besides, if that is half of them at least; of no axis else."""
    if problem.layout == "nhwc":
        return ()
    axes = problem.axes
    around = tuple([_spare(axis, m) for axis, (m, _) in zip(axes, tiles[-len(axes) :], strict=True)])
    return around if 2 * sum(map(sum, around)) >= sum([a.lo + a.hi for a in axes]) else ()


@functools.lru_cache(maxsize=256)  # as of `_ends`
def _spare(axis: Axis, m: int) -> tuple[int, int]:
    taps, _, positions = count(axis, axis.output, True)
    found = room(axis, -(-positions // m) * m * min(axis.stride, axis.size) - axis.size)
    return found if count(widened(axis, *found), axis.output, True)[0] == taps else (0, 0)


def left(problem: ConvProblem, within: int) -> float:
    """Return which part of the frame's time is left if so many pixels at each end have no need of it.

    Of a padding of w the pixel k is mostly reached by w + 1 - k taps: half of the time goes with products, half with pixels.
    """
    widest = max([max(a.lo, a.hi) for a in problem.axes])
    rest = widest - within
    if rest <= 0:
        return 0.0
    return rest / widest * (1 + (rest + 1) / (widest + 1)) / 2


@functools.lru_cache(maxsize=256)  # the axes of an image are alike, and those of many layers
def _ends(axis: Axis, m: int, most: int, step: int) -> Ends | None:
    """Return which tiles of an axis fold paddings of at ``most`` so many pixels.

    Those at both ends have to be two, to see all of grad_output that is there, and to have the pixels that are repeated.
    """
    size, lo, hi = axis.size, axis.lo, axis.hi
    last = (size - 1) // m
    rest = size - last * m
    if (
        max(lo, hi) > most
        or (lo and min(m, size) < step)
        or (hi and rest < step)
        or (lo and hi and last == 0)
    ):
        return None
    return Ends(0 if lo else -1, last if hi else -1, rest)


def masks(strips: Strips, fold: Fold, m: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return the lanes of tiles at the ends, as bits, for the tables of pixels and of results of each strip.

    Of pixels: at the left, at the right.  Of results: in each row that the strip touches; at the left, and at the right for
    each result that another is subtracted from.
    """
    if not fold:
        return [[]] * len(strips.rows), [[]] * len(strips.rows)
    first, last, rest = fold.columns
    sides = [[lanes(places == tile) for tile in (first, last)] for places in strips.places]
    results = [
        [
            *(lanes(rows == row) for row in range(rows[-1] + 1)),
            left,
            *(right if j < rest else 0 for j in range(fold.step, m)),
        ]
        for rows, (left, right) in zip(strips.rows, sides, strict=True)
    ]
    return sides, results


Moves = list[tuple[int, int]]  # (to, from), one after the other


def moves(fold: Fold, tiles: Tiles) -> tuple[list[list[int]], list[list[int]]]:
    """Return which pixel of a tile is added to which, and which result subtracted from which: (to, from), by number.

    For tiles of nine kinds: in the middle, first or last of a column, each in the middle, first or last of a row.
    """
    (mh, rh), (mw, rw) = tiles
    down, along = (_along(fold.step, ends, *tile) for ends, tile in zip(fold[1:], tiles, strict=True))
    sizes = (mh + rh - 1, mw + rw - 1), (mh, mw)
    pixels, results = (
        [_both(column[of], row[of], *size) for column in down for row in along]
        for of, size in enumerate(sizes)
    )
    return pixels, results


def _along(step: int, ends: Ends, m: int, r: int) -> list[tuple[Moves, Moves]]:
    """Return the moves of pixels and of results along an axis, for the tiles of three kinds."""
    alpha = m + r - 1
    kinds: list[tuple[Moves, Moves]] = [([], [])] * 3
    if ends.first >= 0:
        up = [(i, i - step) for i in range(step, alpha)]
        kinds[1] = up, up[: max(0, m - step)][::-1]
    if ends.last >= 0:
        down = [(i, i + step) for i in range(alpha - step)]
        kinds[2] = down[::-1], down[: max(0, ends.rest - step)]
    return kinds


def _both(down: Moves, along: Moves, high: int, wide: int) -> list[int]:
    """Return those of a column in each column, then those of a row in each row."""
    pairs = [(a * wide + s, b * wide + s) for a, b in down for s in range(wide)]
    pairs += [(r * wide + a, r * wide + b) for r in range(high) for a, b in along]
    return [pixel for pair in pairs for pixel in pair]
