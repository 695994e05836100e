"""The input gradient of images held pixel by pixel where borders repeat them.

The gradient of the padded image is an ordinary result.  Its pixels inside are written where they belong, those around the
image to an array of their own, row by row, and then added to the pixels that they repeat.
"""

from __future__ import annotations

from abc import abstractmethod
from math import prod
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import borders, jit, threads
from fastconv.activations import NONE
from fastconv.algorithms.base import Execution, pixels
from fastconv.algorithms.frame import Framed
from fastconv.algorithms.frame.tables import runs
from fastconv.gemm.move import add_row
from fastconv.problem import INPUT_GRAD, ConvProblem, Direction
from fastconv.typing import Array


class Box(NamedTuple):
    """Where the image lies in a result that is wider."""

    front: int
    above: int
    left: int
    inner_d: int
    inner_h: int
    inner_w: int


def bordered(problem: ConvProblem, direction: Direction) -> tuple[ConvProblem, Box]:
    """Return the problem whose result has what is around the image too where that is repeated, and where the image is."""
    axes = problem.last_axes(3)
    if direction is not INPUT_GRAD:
        return problem, Box(0, 0, 0, *[a.output for a in axes])
    sizes = [a.size for a in axes]
    if not borders.framed(problem, direction):
        return problem, Box(0, 0, 0, *sizes)
    return borders.written_out(problem), Box(*[a.lo for a in axes], *sizes)


@jit.inner
def place(sheet, row, column, height, width, geo):
    """Return a pixel's number in the image, or -1 less its number among those around, of a result of some size."""
    k, i, j = sheet - geo.front, row - geo.above, column - geo.left
    within = k >= 0 and k < geo.inner_d
    beside = within and i >= 0 and i < geo.inner_h
    if beside and j >= 0 and j < geo.inner_w:
        return (k * geo.inner_h + i) * geo.inner_w + j
    before = min(max(k, 0), geo.inner_d) * geo.inner_h  # rows of the image
    before += (min(max(i, 0), geo.inner_h) if within else 0) + (1 if beside and j >= 0 else 0)
    return before * geo.inner_w - ((sheet * height + row) * width + column) - 1


@jit.kernel
def fold(workers, gx, around, table, images, size, count, channels):
    """Add runs of the ``count`` pixels around each image of ``size`` pixels: (first, target, how many)."""
    for worker in numba.prange(workers):
        for image in range(images * worker // workers, images * (worker + 1) // workers):
            for i in range(0, table.size, 3):
                at, to = image * count + table[i], image * size + table[i + 1]
                add_row(gx, to * channels, around, at * channels, table[i + 2] * channels)


class Bordered(Execution):
    """Writes what `bordered` has around the image elsewhere."""

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

    def __init__(self, inner: Bordered, problem: ConvProblem) -> None:
        at = np.zeros((), np.int64)
        for a in problem.axes:
            at = at[..., None] * a.size + borders.padded(a, problem.padding_mode)
        around = np.ones(at.shape, bool)
        around[tuple([slice(a.lo, a.lo + a.size) for a in problem.axes])] = False
        repeated = at[around]
        self.inner, self.n, self.c = inner, problem.n, problem.c
        self.size, self.count = prod(a.size for a in problem.axes), repeated.size
        self.table = np.array(runs(repeated), np.int64).reshape(-1)
        self.workspace = inner.workspace + self.n * self.count * self.c * problem.itemsize

    def run_all(self, first: Array, second: Array, out: Array, nothing: Array) -> None:
        around = np.empty(self.n * self.count * self.c, out.dtype)
        self.inner.run_around(first, second, out, around, nothing, NONE, nothing)
        threads.launch(
            self.typed[fold],
            float(around.size),
            pixels(out),
            around,
            self.table,
            self.n,
            self.size,
            self.count,
            self.c,
        )
