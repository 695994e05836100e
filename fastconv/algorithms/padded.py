"""Borders that repeat the image, for what transforms whole tiles: images are written out with them first.

A tile of FFT is read once by a transform of many passes, so that writing a padded image beside it is a small part of
them, and all that follows is a problem without padding.  Its input gradient is computed for the padded image too, and
each padded pixel then added to the one it repeats.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numba
import numpy as np

from fastconv import borders, jit, machine, threads, workspace
from fastconv.activations import NONE, finish
from fastconv.algorithms.base import Around, Array, Execution, flat
from fastconv.algorithms.direct.depthwise.move import fold
from fastconv.algorithms.direct.depthwise.pointer import after, pointer
from fastconv.problem import ConvProblem, Direction
from fastconv.roofline import busy, rates


@jit.kernel
def pad(workers, x, to, planes, width, lo, padded_width, rows, edges):
    """Write padded images: row i is row ``rows[i]`` of the image and pixels of it, ``edges`` (at, from), beside."""
    size, height = x.size // planes, rows.size
    for worker in numba.prange(workers):
        for row in range(planes * height * worker // workers, planes * height * (worker + 1) // workers):
            source = pointer(x, row // height * size + rows[row % height] * width)
            line = pointer(to, row * padded_width)
            fold(after(line, lo), source, width, False)
            for j in range(0, edges.size, 2):
                line[edges[j]] = source[edges[j + 1]]


@jit.kernel
def unpad(
    workers, padded, x, planes, channels, width, lo, padded_width, rows, edges, bias, activation, residual
):
    """Add padded pixels to those they repeat; ``rows`` are (padded row, row, whether it is the row's first)."""
    size, height = x.size // planes, rows.size // 3
    for worker in numba.prange(workers):
        for plane in range(planes * worker // workers, planes * (worker + 1) // workers):
            for i in range(0, rows.size, 3):
                line = pointer(padded, (plane * height + rows[i]) * padded_width)
                row = pointer(x, plane * size + rows[i + 1] * width)
                fold(row, after(line, lo), width, rows[i + 2] == 0)
                for j in range(0, edges.size, 2):
                    row[edges[j + 1]] += line[edges[j]]
            at = plane * size
            finish(x, at, size, bias, plane % channels, activation, residual, at)


def size(problem: ConvProblem) -> int:
    """Return the bytes of the padded images."""
    return prod(borders.written_out(problem).input_shape) * problem.itemsize


def cost(problem: ConvProblem) -> float:
    """Predict the seconds that writing the padding, or adding it, takes."""
    vectors = size(problem) / machine.tile(problem.itemsize).vl / problem.itemsize
    return rates().launch + busy("padded", problem, {"vectors": vectors})


class Padded(Around):
    """A problem by the execution of `borders.written_out`."""

    def __init__(self, inner: Execution, problem: ConvProblem, direction: Direction) -> None:
        self.inner, self.direction, self.dtype = inner, direction, problem.dtype
        *above, last = problem.axes
        mode, self.shape = problem.padding_mode, borders.written_out(problem).input_shape
        self.size, (*heights, width) = prod(self.shape), self.shape[2:]
        self.before = -(-inner.workspace // 64) * 64 // problem.itemsize  # scratch of the inner execution
        self.workspace = (self.before + self.size) * problem.itemsize
        lands = [borders.pixels(a, mode).tolist() for a in above]
        sizes = [a.size for a in above]
        rows = [int(np.ravel_multi_index(place, sizes)) if sizes else 0 for place in product(*lands)]
        edges = [n for at, pixel in borders.edges(last, mode) for n in (at + last.lo, pixel)]
        if direction is Direction.INPUT_GRAD:
            # rows of the image come first, and set what others are added to
            own = list(product(*(range(a.lo, a.lo + a.size) for a in above)))
            first = [int(np.ravel_multi_index(place, heights)) if sizes else 0 for place in own]
            others = sorted(set(range(len(rows))) - set(first))
            rows = [n for i in first for n in (i, rows[i], 1)] + [n for i in others for n in (i, rows[i], 0)]
        self.geometry = problem.n * problem.c, last.size, last.lo, width
        self.channels = problem.c
        self.tables = np.array(rows, np.int64), np.array(edges, np.int64)

    def through(
        self, run: Any, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = workspace.take(self.before + self.size, self.dtype)[self.before : self.before + self.size]
        padded, copied = scratch.reshape(self.shape), 8.0 * self.size
        if self.direction is not Direction.INPUT_GRAD:
            threads.launch(pad, copied, flat(first), scratch, *self.geometry, *self.tables)
            run(padded, second, out, bias, activation, residual)
            return
        planes, *lines = self.geometry
        run(first, second, padded, bias[:0], NONE, residual.ravel()[:0])
        threads.launch(
            unpad, copied, scratch, flat(out), planes, self.channels, *lines, *self.tables, bias, activation,
            flat(residual),
        )  # fmt: skip
