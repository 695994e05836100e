"""Taps and the padding: which meet the image, and how often; those that never do are left out of a problem.

A kernel with a dilation, or larger than its image, has taps that stand beside the image at every position.  They
multiply zeros, and their gradient is 0.  Without them, before any algorithm is asked, the problem is a smaller one
with the same result: 3x3 taps at dilation 256 on 28 x 28 pixels are a 1x1 layer.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from math import gcd, prod
from typing import Any

import numpy as np

from fastconv.algorithms.base import Adapter, Execution
from fastconv.problem import Axis, ConvProblem, Direction
from fastconv.typing import Array


def kept(axis: Axis) -> range:
    """Return the taps that meet the image, and all between them; all where none does.

    Tap r reads pixel  p*stride + r*dilation - lo:  it is beside the image where the last position's is below 0, or
    the first position's at ``size`` or above.

    >>> kept(Axis(28, 3, dilation=256, lo=256, hi=256))
    range(1, 2)
    """
    first = max(0, -(((axis.output - 1) * axis.stride - axis.lo) // axis.dilation))
    end = min(axis.kernel, (axis.size - 1 + axis.lo) // axis.dilation + 1)
    return range(first, end) if first < end else range(axis.kernel)


@functools.lru_cache(maxsize=256)  # the axes of an image are alike, and those of many layers
def met(axis: Axis) -> float:
    """Return how many pairs (p, r) of positions and taps meet the image, 0 <= p*stride + r*dilation - lo < size.

    Pairs below a line are counted by triangles: exactly where stride or dilation divides the other, else in the mean.

    >>> met(Axis(5, 3, lo=1, hi=1)), met(Axis(9, 3, dilation=6, lo=6, hi=6))
    (13.0, 15.0)
    """
    size, kernel, stride, dilation, lo, _ = axis
    g = gcd(stride, dilation)
    short, long = sorted((stride // g, dilation // g))
    outputs, taps = axis.output * stride // g, kernel * dilation // g

    def triangle(line: int) -> float:  # pairs of all p, r >= 0
        if line <= 0:
            return 0.0
        t = -(-line // long)
        return t * (line + (short - 1 - long * (t - 1)) / 2) / short

    def below(line: int) -> float:  # less those with p or r too large
        pairs = triangle(line) - triangle(line - outputs) - triangle(line - taps)
        return pairs + triangle(line - outputs - taps)

    return below(-(-(lo + size) // g)) - below(-(-lo // g))


def without_padded(problem: ConvProblem) -> ConvProblem:
    """Return the problem without taps that meet nothing but zeros; a problem that has none as it is."""
    # most kernels are shorter than the image with the lesser padding: each tap meets it, and a choice is quick
    for size, kernel, stride, dilation, lo, hi in problem.axes:
        reach = dilation * (kernel - 1) + stride - size
        if reach >= lo or reach >= hi:
            break
    else:
        return problem
    if problem.padding_mode != "zeros":
        return problem
    axes = tuple([_cut(a, kept(a)) for a in problem.axes])
    return problem if axes == problem.axes else replace(problem, axes=axes)


def _cut(axis: Axis, taps: range) -> Axis:
    """Return an axis of some of its taps, with as many positions."""
    if len(taps) == axis.kernel:
        return axis
    left, right = taps.start * axis.dilation, (axis.kernel - taps.stop) * axis.dilation
    dilation = axis.dilation if len(taps) > 1 else 1
    return axis._replace(kernel=len(taps), dilation=dilation, lo=axis.lo - left, hi=axis.hi - right)


LARGE = 2**20  # bytes of weights, which take some 0.1 ms to copy


def with_padded(execution: Execution, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
    """Return the problem's execution, given that of what `without_padded` makes of it.

    Large weights of which most stay are read where they are: 768 -> 768 channels in 16 groups, 128 taps, of which 98
    meet a signal of 49 pixels, took a third of their time to be copied.
    """
    taps, size = prod(map(len, map(kept, problem.axes))), prod(problem.weight_shape) * problem.itemsize
    if direction is not Direction.WEIGHT_GRAD and size >= LARGE and 2 * taps >= prod(problem.kernel):
        whole = execution.of_more_taps(problem)
        if whole and whole.workspace <= limit:
            return whole
    return WithPadded(execution, problem, direction)


class WithPadded(Adapter):
    """A problem by the execution of one without some of its taps."""

    def __init__(self, execution: Execution, problem: ConvProblem, direction: Direction) -> None:
        self.inner, self.workspace = execution, execution.workspace
        self.to_weight = direction is Direction.WEIGHT_GRAD
        self.taps = (slice(None), slice(None), *(slice(t.start, t.stop) for t in map(kept, problem.axes)))

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        if not self.to_weight:
            super().run(first, second, out, bias, activation, residual)
            return
        some = np.empty_like(out[self.taps], order="C")
        self.inner.run(first, second, some, bias, activation, residual)
        out.fill(0)
        out[self.taps] = some

    def turned(self, second: Array) -> Array:
        return np.ascontiguousarray(second[self.taps])
