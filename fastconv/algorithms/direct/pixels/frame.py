"""The input gradient of images held pixel by pixel where borders repeat them.

The gradient of the padded image is that among zeros inside, and strips around: for each side of an axis, the gradient
of a small image, an ordinary problem with much padding, of which only the taps that reach it are multiplied.  The
strips' pixels are then added to those that they repeat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numba
import numpy as np

from fastconv import borders, jit, threads
from fastconv.activations import NONE
from fastconv.algorithms.base import Array, Execution, pixels
from fastconv.algorithms.correlation import combined
from fastconv.algorithms.direct.pixels import build
from fastconv.algorithms.frame import Framed, runs
from fastconv.gemm.move import add_row
from fastconv.problem import INPUT_GRAD, ConvProblem


@jit.kernel
def fold(workers, gx, strips, table, images, size, channels):
    """Add runs of pixels of the strips, (first, pixels to the next image, target, how many), to images of ``size`` pixels."""
    for worker in numba.prange(workers):
        for image in range(images * worker // workers, images * (worker + 1) // workers):
            for i in range(0, table.size, 4):
                at, to = table[i] + image * table[i + 1], image * size + table[i + 2]
                add_row(gx, to * channels, strips, at * channels, table[i + 3] * channels)


def strips(problem: ConvProblem) -> Iterator[tuple[ConvProblem, Array]]:
    """Yield the problem whose input gradient a strip is, and the pixels that it repeats; corners belong to the first axis."""
    whole = [range(a.lo + a.size + a.hi) for a in problem.axes]
    image = [range(a.lo, a.lo + a.size) for a in problem.axes]
    for i, (line, inside) in enumerate(zip(whole, image, strict=True)):
        for side in (line[: inside.start], line[inside.stop :]):
            axes, repeated = [], np.zeros((1, 1), np.int64)
            for a, span in zip(problem.axes, (*image[:i], side, *whole[i + 1 :]), strict=True):
                axes.append(a._replace(size=len(span), lo=span.start, hi=a.lo + a.size + a.hi - span.stop))
                here = borders.pixels(a, problem.padding_mode)[span.start : span.stop]
                repeated = combined(repeated, here.reshape(1, -1), a.size)
            if side:
                yield replace(problem, axes=tuple(axes), padding_mode="zeros"), repeated[0]


class FramedPixels(Framed):
    """Of images pixel by pixel."""

    view = staticmethod(pixels)

    def __init__(self, inner: Execution, problem: ConvProblem, cache: int) -> None:
        self.inner, self.n, self.c, self.size = inner, problem.n, problem.c, prod(problem.input_shape[2:])
        self.strips, table, end = [], [], 0
        for strip, repeated in strips(problem):
            first, end = end, end + self.n * len(repeated)
            shape = self.n, *strip.input_shape[2:], self.c  # in memory
            self.strips.append((build(strip, INPUT_GRAD, cache), slice(first, end), shape))
            for place, pixel, count in runs(repeated):
                table += [first + place, len(repeated), pixel, count]
        self.pixels, self.table = end, np.array(table, np.int64)
        rank = len(problem.axes)
        self.channels_first = 0, rank + 1, *range(1, rank + 1)
        scratch = max(inner.workspace, *(execution.workspace for execution, *_ in self.strips))
        self.workspace = scratch + self.pixels * self.c * problem.itemsize

    def add(self, first: Array, second: Array, out: Array) -> None:
        held, nothing = np.empty((self.pixels, self.c), out.dtype), np.empty(0, out.dtype)
        for execution, place, shape in self.strips:
            strip = held[place].reshape(shape).transpose(self.channels_first)
            execution.run(first, second, strip, nothing, NONE, nothing)
        threads.launch(
            fold, float(held.size), pixels(out), held.reshape(-1), self.table, self.n, self.size, self.c
        )
