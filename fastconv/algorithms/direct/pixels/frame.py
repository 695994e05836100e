"""The input gradient of images held pixel by pixel where borders repeat them.

The gradient of the padded image is an ordinary result.  Its pixels inside are written where they belong, those around the
image to an array of their own, row by row, and then added to the pixels that they repeat.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import borders, jit, threads
from fastconv.activations import NONE
from fastconv.algorithms.base import Array, Execution, pixels
from fastconv.algorithms.frame import Framed, runs
from fastconv.gemm.move import add_row
from fastconv.problem import INPUT_GRAD, ConvProblem, Direction


class Box(NamedTuple):
    """Where the image lies in a result that is wider."""

    above: int
    left: int
    inner_h: int
    inner_w: int


def widened(problem: ConvProblem, direction: Direction) -> tuple[ConvProblem, Box]:
    """Return the problem whose result has what is around the image too where that is repeated, and where the image is."""
    if direction is not INPUT_GRAD:
        v, h = (a.output for a in problem.last_axes(2))
        return problem, Box(0, 0, v, h)
    v, h = problem.last_axes(2)
    if not borders.framed(problem, direction):
        return problem, Box(0, 0, v.size, h.size)
    return borders.written_out(problem), Box(v.lo, h.lo, v.size, h.size)


@jit.inner
def place(row, column, width, geo):
    """Return a pixel's number in the image, or -1 less its number among those around, of a result ``width`` wide."""
    i, j = row - geo.above, column - geo.left
    beside = i >= 0 and i < geo.inner_h
    if beside and j >= 0 and j < geo.inner_w:
        return i * geo.inner_w + j
    before = min(max(i, 0), geo.inner_h) + (1 if beside and j >= 0 else 0)  # rows of the image
    return before * geo.inner_w - (row * width + column) - 1


@jit.kernel
def fold(workers, gx, around, table, images, size, count, channels):
    """Add runs of the ``count`` pixels around each image of ``size`` pixels: (first, target, how many)."""
    for worker in numba.prange(workers):
        for image in range(images * worker // workers, images * (worker + 1) // workers):
            for i in range(0, table.size, 3):
                at, to = image * count + table[i], image * size + table[i + 1]
                add_row(gx, to * channels, around, at * channels, table[i + 2] * channels)


class Widened(Execution):
    """Writes the pixels around the image elsewhere."""

    @abstractmethod
    def run_around(
        self, first: Array, second: Array, out: Array, around: Array, bias: Array, activation: Any, residual: Array
    ) -> None:  # fmt: skip
        """Fill ``out`` and ``around``; only ``out`` is finished."""

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        self.run_around(first, second, out, NOWHERE[self.dtype], bias, activation, residual)


NOWHERE = {name: np.empty(0, name) for name in ("float32", "float64")}


class FramedPixels(Framed):
    """Of images pixel by pixel."""

    view = staticmethod(pixels)

    def __init__(self, inner: Widened, problem: ConvProblem) -> None:
        v, h = problem.last_axes(2)
        rows, columns = (borders.pixels(a, problem.padding_mode) for a in (v, h))
        around = np.ones((len(rows), len(columns)), bool)
        around[v.lo : v.lo + v.size, h.lo : h.lo + h.size] = False
        repeated = (rows[:, None] * h.size + columns)[around]
        self.inner, self.n, self.c = inner, problem.n, problem.c
        self.size, self.count = v.size * h.size, repeated.size
        self.table = np.array(runs(repeated), np.int64).reshape(-1)
        self.workspace = inner.workspace + self.n * self.count * self.c * problem.itemsize

    def run_all(self, first: Array, second: Array, out: Array, bias: Array, residual: Array) -> None:
        around = np.empty(self.n * self.count * self.c, out.dtype)
        self.inner.run_around(first, second, out, around, bias[:0], NONE, residual)
        threads.launch(
            fold, float(around.size), pixels(out), around, self.table, self.n, self.size, self.count, self.c
        )
        if bias.size:  # once, and not with every pixel around
            out += bias.reshape(-1, *[1] * (out.ndim - 2))
