"""Input gradients whose tiles hold pixels around the image: these are added to those that they repeat.

Tiles mostly cover more than an image has: at stride 2 the phases of 56 pixels have 28 positions, and ten tiles of F(3, 4)
have 30.  So the gradient of a wider image, that of some pixels around as well, takes as many tiles.  It is written to scratch,
and each plane then goes to its place while it is in cache, first the image, then what repeats it.  Pixels that find no room have a
`frame`.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numba
import numpy as np

from fastconv import borders, jit, threads
from fastconv.activations import NONE
from fastconv.algorithms.base import Execution, flat
from fastconv.algorithms.frame.pieces import Added
from fastconv.algorithms.frame.tables import SHORTEST, runs
from fastconv.algorithms.passes import combined
from fastconv.gemm.move import add_row, write_row
from fastconv.gemm.segments import add_pixels
from fastconv.problem import ConvProblem
from fastconv.typing import Array


@jit.kernel
def fold(workers, gx, wide, rows, inside, singles, planes, size, wide_size):
    """Fold planes one after the other."""
    for worker in numba.prange(workers):
        for plane in range(planes * worker // workers, planes * (worker + 1) // workers):
            fold_plane(gx, plane * size, wide, plane * wide_size, rows, inside, singles)


@jit.inner
def fold_plane(gx, to, wide, at, rows, inside, singles):
    """Write the ``inside`` rows of a plane to their places, and add the others, then single pixels."""
    for i in range(0, 3 * inside, 3):
        write_row(gx, to + rows[i], wide, at + rows[i + 1], rows[i + 2])
    for i in range(3 * inside, rows.size, 3):
        add_row(gx, to + rows[i], wide, at + rows[i + 1], rows[i + 2])
    add_pixels(gx, to, wide, at, singles, 0, singles.size // 2)


def held(problem: ConvProblem, around: borders.Around) -> Added:
    """Return each pixel held with the one that it repeats, of each axis."""
    return tuple(
        borders.among(borders.edges(a, problem.padding_mode), a.size, before, after)
        for a, (before, after) in zip(problem.axes, around, strict=True)
    )


def places(problem: ConvProblem, around: borders.Around) -> tuple[Array, int, Array]:
    """Return the rows of a plane, how many of them are inside, and single pixels: where they go and where they are."""
    target, inside = np.zeros((1, 1), int), np.zeros((1, 1), int)
    for a, edges, (before, after) in zip(problem.axes, held(problem, around), around, strict=True):
        at = np.arange(-before, a.size + after)[None]
        target = combined(target, borders.sources(at, a.size, edges), a.size)
        inside = combined(inside, np.where((at >= 0) & (at < a.size), 0, -1), 1)
    target, within = target[0], inside[0] >= 0
    lines = [(to, at, n) for at, to, n in runs(np.where(within, target, -1)) if to >= 0]
    added = [(to, at, n) for at, to, n in runs(np.where(within, -1, target)) if to >= 0]
    rows = lines + [run for run in added if run[2] >= SHORTEST]
    singles = [(to + i, at + i) for to, at, n in added if n < SHORTEST for i in range(n)]
    return np.array(rows, np.int64).reshape(-1), len(lines), np.array(singles, np.int64).reshape(-1)


class Held(Execution):
    """The input gradient of a wider image by ``inner``, folded; who adds the frame finishes it."""

    def __init__(self, inner: Execution, problem: ConvProblem, around: borders.Around) -> None:
        self.inner, self.dtype = inner, problem.dtype
        self.added, self.tables = held(problem, around), places(problem, around)
        self.planes, self.size = problem.n * problem.c, prod(a.size for a in problem.axes)
        sizes = [b + a.size + c for a, (b, c) in zip(problem.axes, around, strict=True)]
        self.shape = problem.n, problem.c, *sizes
        self.workspace = inner.workspace + prod(self.shape) * problem.itemsize

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        wide = np.empty(self.shape, self.dtype)
        self.inner.run(first, second, wide, bias[:0], NONE, residual[:0])
        threads.launch(
            self.typed[fold], float(wide.size), flat(out), flat(wide), *self.tables, self.planes, self.size, wide.size // max(1, self.planes),
        )  # fmt: skip
