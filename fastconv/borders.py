"""Borders that repeat the image: which pixel stands where in the padding.

Reflect, replicate and circular padding copy pixels, as `numpy.pad` does for any width.  No padded image is made, but of
a depthwise map at a time.
Kernels that copy the input into a stripe, a block or a tile read the rows of its border where they come from, by
a table, and fetch the few pixels left and right of a row one by one (`edges`), or, where a tile has them in vectors, by
one move for all its lanes (`fft/lanes.py`): forward and weight gradient.

The input gradient is the adjoint: what the padded pixels would receive is added to those that they repeat.  Around a `circle`
nothing is: it reads grad_output as the forward pass reads the image.  Else, in `algorithms/`:

* tiles hold some of what is around the image besides: of FFT `fft/cut.py` says how much, of Winograd `held.py` adds it;
* Winograd's tiles at the ends fold what they would hold there, `winograd/folding.py`;
* `frame` computes what no tile holds, as products of its own;
* of few channels each tap is added where it belongs, `im2col/col2im.py`; of FFT's overlapping tiles each sum, depthwise by
  `fft/folded.py`, with channels last by `fft/pixels.py`;
* depthwise kernels have weights of single columns, `direct/depthwise/columns.py`.
"""

from __future__ import annotations

from itertools import chain
from math import prod

import numpy as np

from fastconv.problem import FORWARD, INPUT_GRAD, Axis, ConvProblem, Direction, told
from fastconv.typing import Array

Edges = tuple[tuple[int, int], ...]  # coordinates outside, each with the pixel that it repeats
NAMES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # in numpy.pad


def padded(axis: Axis, mode: str) -> Array:
    """Return which pixel of the image stands at each padded pixel of an axis; -1 for a zero.

    >>> padded(Axis(4, 3, lo=2, hi=1), "reflect").tolist()
    [2, 1, 0, 1, 2, 3, 2]
    """
    image = np.arange(max(0, -axis.lo), axis.size - max(0, -axis.hi))
    widths = max(0, axis.lo), max(0, axis.hi)
    if mode == "zeros":
        return np.pad(image, widths, constant_values=-1)
    return np.pad(image, widths, NAMES[mode])  # type: ignore[call-overload,no-any-return]


def edges(axis: Axis, mode: str, direction: Direction = FORWARD) -> Edges:
    """Return the coordinates outside of what a direction reads along an axis, each with the pixel that it repeats.

    >>> edges(Axis(4, 3, lo=2, hi=1), "reflect")
    ((-2, 2), (-1, 1), (4, 2))
    >>> edges(Axis(4, 3, lo=2), "circular", INPUT_GRAD)
    ((4, 0), (5, 1))
    """
    if direction is INPUT_GRAD:
        if not circle(axis, mode):
            return ()
        size, _, stride, _, lo, _ = axis
        count = size // stride
        beside = chain(
            range(-((axis.extent - 1 - lo) // stride), 0), range(count, count + (lo + stride - 1) // stride)
        )
        return tuple((at, at % count) for at in beside)
    if mode == "zeros":
        return ()
    source = padded(axis, mode).tolist()
    return tuple((at - axis.lo, p) for at, p in enumerate(source) if not 0 <= at - axis.lo < axis.size)


def circle(axis: Axis, mode: str) -> bool:
    """Return whether grad_output is a circle as the image is: where that has as many pixels, or a stride times as many.

    Each tap leads then from each pixel of grad_output to one of the image, and from no other to that::

        gx[i] = sum over r with (i + lo - r*dilation) divisible by stride of
            w[r] * gy[(i + lo - r*dilation) / stride  mod  size / stride]
    """
    return mode == "circular" and axis.stride * axis.output == axis.size


def framed(problem: ConvProblem, direction: Direction) -> bool:
    """Return whether some of what a direction computes belongs to pixels of a border: what repeats others adds to them."""
    return direction is INPUT_GRAD and problem.padding_mode != "zeros" and _framed(problem, direction)


@told  # three algorithms and more ask
def _framed(problem: ConvProblem, _: Direction) -> bool:
    mode = problem.padding_mode
    return any((a.lo > 0 or a.hi > 0) and not circle(a, mode) for a in problem.axes)


def sources(at: Array, size: int, edges: Edges) -> Array:
    """Return the pixel of an axis that stands at each coordinate, or -1 for a zero."""
    found = np.where((at >= 0) & (at < size), at, -1)
    if edges:
        beside, pixels = np.array(edges, np.int64).T
        place = np.searchsorted(beside, at).clip(max=len(beside) - 1)
        found = np.where(beside[place] == at, pixels[place], found)
    return found


def reached(axis: Axis) -> list[int]:
    """Return which pixels of each stride's, counted from the start of the padding, some tap reads.

    >>> reached(Axis(9, 2, stride=4))
    [0, 1]
    """
    return sorted({axis.dilation * tap % axis.stride for tap in range(axis.kernel)})


def repeats(problem: ConvProblem) -> int:
    """Return how often a pixel of the image appears in the padded one, at most."""
    if problem.padding_mode == "zeros":
        return 1
    return prod(int(np.bincount(padded(a, problem.padding_mode)).max()) for a in problem.axes)


def written_out(problem: ConvProblem, turned: bool = False) -> ConvProblem:
    """Return the problem of the padded image, whose borders are pixels like all others; or that with channels exchanged."""
    p, axes = problem, tuple([Axis(lo + size + hi, r, s, d) for size, r, s, d, lo, hi in problem.axes])
    c, k = (p.k, p.c) if turned else (p.c, p.k)
    return ConvProblem(p.n, c, k, axes, p.groups, p.dtype, "zeros", p.layout)  # in half the time of `replace`


def among(edges: Edges, size: int, before: int, after: int) -> Edges:
    """Return those of the edges that are so many pixels before and after an image, at most.

    >>> among(edges(Axis(4, 3, lo=2, hi=1), "reflect"), 4, 1, 0)
    ((-1, 1),)
    """
    return tuple([(at, pixel) for at, pixel in edges if -before <= at < size + after])


Around = tuple[tuple[int, int], ...]  # of each axis some pixels before and after the image


def room(axis: Axis, spare: int) -> tuple[int, int]:
    """Return how many pixels before and after an image find room where there is some for so many.

    >>> room(Axis(56, 7, 2, lo=3, hi=3), 4), room(Axis(56, 7, 2, lo=3, hi=3), 9)
    ((2, 2), (3, 3))
    """
    total = min(spare, axis.lo + axis.hi)
    before = max(min(axis.lo, total // 2), total - axis.hi)
    return before, total - before


def widened(axis: Axis, before: int, after: int) -> Axis:
    """Return the axis of an image with some of the pixels around it."""
    return axis._replace(size=before + axis.size + after, lo=axis.lo - before, hi=axis.hi - after)
