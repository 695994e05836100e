"""Overlap-save: a long convolution as many short cyclic ones.

A cyclic correlation of ``t`` samples with a kernel that spans ``e`` of them has ``m = t - e + 1`` outputs
that did not wrap around.  So tile i reads samples ``i*m .. i*m + t`` of the padded signal and gives
outputs ``i*m .. i*m + m``: neighbours overlap by ``e - 1`` samples.  In the frequency domain::

    forward       Y[b, k] = sum over c  X[b, c] . conj(W[k, c])          b runs over images and tiles
    weight_grad   GW[k, c] = sum over b  conj(GY[b, k]) . X[b, c]        GY: m samples, then zeros

and input_grad is the forward correlation of gy with the turned kernels (`turned`).

A tile that is alone on its axis may wrap around: the padding at its end is that at its beginning, zeros for zeros,
so that `whole` counts but the longer of both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from fastconv.problem import Axis, ConvProblem
from fastconv.typing import Array


@dataclass(frozen=True, slots=True)
class Span:
    """One axis cut into tiles: ``count`` tiles of ``length`` samples, ``step`` outputs each."""

    axis: Axis
    length: int

    @property
    def step(self) -> int:
        """Outputs of a whole tile."""
        if self.length >= whole(self.axis):
            return self.axis.output
        return min(self.length - self.axis.extent + 1, self.axis.output)

    @property
    def count(self) -> int:
        """Tiles along the axis."""
        return -(-self.axis.output // self.step)


def whole(axis: Axis) -> int:
    """Return the samples of a tile that gives all outputs of an axis, in any direction."""
    return max(axis.size + max(axis.lo, axis.hi, 0), axis.output, axis.extent)


def turned(problem: ConvProblem) -> ConvProblem:
    """Return the forward problem at stride 1 that takes gy to the gradient of x."""
    axes = tuple(
        Axis(a.output, a.kernel, 1, a.dilation, a.extent - 1 - a.lo, a.extent - 1 - a.hi)
        for a in problem.axes
    )
    return replace(problem, c=problem.k, k=problem.c, axes=axes)


def turned_weight(problem: ConvProblem, w: Array) -> Array:
    """Return the weight of `turned`: kernels turned around, channels in and out exchanged."""
    g = problem.groups
    split = w.reshape(g, problem.k // g, problem.c // g, *problem.kernel)
    back = (slice(None), slice(None), slice(None), *[slice(None, None, -1)] * len(problem.axes))
    return split.swapaxes(1, 2)[back].reshape(problem.c, problem.k // g, *problem.kernel)


def overlap(span: Span, tile: int, start: int = 0) -> tuple[slice, slice]:
    """Return the slices of the signal and of the tile that coincide; the rest of the tile is 0."""
    first = start + tile * span.step - span.axis.lo
    low = min(max(first, 0), first + span.length)
    high = max(min(first + span.length, span.axis.size), low)
    return slice(low, high), slice(low - first, high - first)


@functools.cache
def fast_length(least: int) -> int:
    """Return the smallest 2^a 3^b 5^c that is at least ``least``.

    >>> [fast_length(n) for n in (1, 7, 17, 97, 1023)]
    [1, 8, 18, 100, 1024]
    """
    best = 1 << max(least - 1, 0).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            product = three << max(-(-least // three) - 1, 0).bit_length()
            best = min(best, product)
            three *= 3
        five *= 5
    return best


def candidates(axis: Axis) -> Iterable[int]:
    """Yield lengths worth trying: one tile, and tiles whose outputs are 1, 3, 7 or 15 times the kernel's extent."""
    if axis.size == axis.extent == axis.output == 1:
        yield 1
        return
    yield fast_length(min(axis.output + axis.extent - 1, whole(axis)))  # cropped pixels need not be there
    for times in (1, 3, 7, 15):
        if times * axis.extent < axis.output:
            yield fast_length((times + 1) * axis.extent - 1)


def cheapest(axis: Axis, cost: Callable[[Span], float]) -> Span:
    """Choose the length of least cost."""
    return min((Span(axis, length) for length in candidates(axis)), key=cost)
