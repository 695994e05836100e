"""Dilated convolutions as undilated ones between pixels that are ``dilation`` apart, so that tiles serve them too.

Along an axis of dilation d, results i, i + d, i + 2d, ... read none but source pixels that are d apart, too:

    y[i + d*p] = sum over r of  x[i + d*(p + r) - lo] * w[r]              for each i < d

So every d-th pixel is an image of its own, d*d of them with two axes, padding included; the source is copied apart and
the result put together.  The input gradient reads grad_output likewise, and the weight gradient both.  Copies move what
they copy once, im2col multiplies nine times where F(4x4, 3x3) does 2.25 times.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import borders, jit, machine, threads, workspace
from fastconv.activations import NONE, code_of, finish
from fastconv.algorithms.base import Adapter, Execution, flat
from fastconv.algorithms.held import fold_plane, places
from fastconv.algorithms.winograd.phases import undilated
from fastconv.gemm.move import SLACK
from fastconv.gemm.record import record
from fastconv.gemm.schedule import next_task, span
from fastconv.gemm.segments import SEGMENT, copy_channels, copy_pixels
from fastconv.gemm.weave import weave_rows
from fastconv.problem import FORWARD, INPUT_GRAD, WEIGHT_GRAD, ConvProblem, Direction
from fastconv.typing import Array

NOTHING = np.zeros(0, np.int64)
CHANNELS = 16  # of a task: their pixels stay in L2 while all images are made of them


class Geometry(NamedTuple):
    """Images side by side, and apart."""

    n: int
    channels: int
    high: int  # images from each one, along both axes
    wide: int
    apart: int  # pixels from one to the next along a row
    rows: int  # of an image apart
    columns: int
    height: int  # of the image they come from
    width: int
    folded: int = 0  # pixels of that when what is around it is added, if there is something

    @property
    def elements(self) -> int:
        """All pixels of all images apart."""
        return self.n * self.channels * self.high * self.wide * self.rows * self.columns


@jit.kernel
def take_apart(workers, counters, whole, images, segments, pixels, starts, geos):
    """Copy every d-th pixel into images of their own; tasks are images x blocks of channels."""
    for worker in numba.prange(workers):
        _take_apart(worker, counters, whole, images, segments, pixels, starts, geos[0])


@jit.inner
def _take_apart(worker, counters, whole, images, segments, pixels, starts, geo):
    size, own, count = geo.height * geo.width, geo.rows * geo.columns, geo.high * geo.wide
    blocks = -(-geo.channels // CHANNELS)
    task = next_task(counters, worker, geo.n * blocks)
    while task < geo.n * blocks:
        image = task // blocks
        c0, c1 = span(geo.channels, blocks, task % blocks)
        source = (image * geo.channels + c0) * size
        for i in range(count):
            to = ((image * count + i) * geo.channels + c0) * own
            listed = segments[SEGMENT * geo.rows * i :]
            copy_channels(images, to, own, whole, source, size, c1 - c0, listed, geo.rows, geo.apart)
            for c in range(c1 - c0 if starts[i] < starts[i + 1] else 0):
                copy_pixels(images, to + c * own, whole, source + c * size, pixels, starts[i], starts[i + 1])
        task = next_task(counters, worker, geo.n * blocks)


@jit.kernel
def put_together(workers, counters, images, whole, planes, rows, inside, singles, geos, activation, residual):
    """Write the images' pixels among each other, and finish them, or fold them; tasks are images x blocks of channels."""
    for worker in numba.prange(workers):
        _put_together(
            worker, counters, images, whole, planes, rows, inside, singles, geos[0], activation, residual
        )


@jit.inner
def _put_together(
    worker, counters, images, whole, planes, rows, inside, singles, geo, activation, residual
):  # fmt: skip
    size, own = geo.height * geo.width, geo.rows * geo.columns
    blocks = -(-geo.channels // CHANNELS)
    task = next_task(counters, worker, geo.n * blocks)
    while task < geo.n * blocks:
        image = task // blocks
        c0, c1 = span(geo.channels, blocks, task % blocks)
        for c in range(c0, c1):
            plane = image * geo.channels + c
            target, begin = whole, plane * size
            if geo.folded > 0:
                target, begin = planes, worker * size
            for row in range(geo.height):
                to = begin + row * geo.width
                i = (image * geo.high + row % geo.high) * geo.wide
                source = (i * geo.channels + c) * own + row // geo.high * geo.columns
                weave_rows(
                    target, to, 0, images, source, 0, geo.channels * own, geo.wide, 1, geo.width, False
                )
                if residual.size > 0 or code_of(activation) != NONE:
                    finish(whole, to, geo.width, residual[:0], 0, activation, residual, to)
            if geo.folded > 0:
                fold_plane(whole, plane * geo.folded, planes, begin, rows, inside, singles)
        task = next_task(counters, worker, geo.n * blocks)


def pieces(geo: Geometry, down: int, firsts: tuple[int, ...], edges: list[Any]) -> tuple[Array, Array, Array]:
    """Return the segments of the rows of all images apart, pixels of the border, and where those of each begin."""
    (first_h, first_w), (edges_h, edges_w), along = firsts, edges, geo.apart
    begins = first_w + np.arange(geo.wide)
    lo = np.clip(-(begins // along), 0, geo.columns)
    hi = np.clip((geo.width - 1 - begins) // along + 1, lo, geo.columns)
    rows = first_h + np.arange(geo.high)[:, None, None] + down * np.arange(geo.rows)
    rows = borders.sources(rows, geo.height, edges_h)
    segments = np.zeros((geo.high, geo.wide, geo.rows, SEGMENT), np.int64)
    to = geo.columns * np.arange(geo.rows)
    for i, values in enumerate(
        (to, rows * geo.width + begins[:, None], geo.columns, lo[:, None], hi[:, None])
    ):
        segments[..., i] = values
    segments[..., 3:] *= rows[..., None] >= 0
    columns = begins[:, None] + along * np.arange(geo.columns)
    beside = np.where(
        (columns < 0) | (columns >= geo.width), borders.sources(columns, geo.width, edges_w), -1
    )
    inside = (rows[..., None] >= 0) & (beside[:, None] >= 0)
    i, j, t, q = np.nonzero(inside)
    pixels = np.stack((to[t] + q, rows[i, 0, t] * geo.width + beside[j, q]), 1)
    starts = np.cumsum(np.append(0, inside.sum((2, 3))))
    return segments.reshape(-1), pixels.reshape(-1), starts


class Dilated(Adapter):
    """A dilated problem by the execution of the undilated one, which ``make(limit)`` builds.

    It may be the input gradient of a wider image than that of ``bordered``, into which it is folded; who adds a frame finishes it.
    """

    def __init__(
        self, problem: ConvProblem, direction: Direction, make: Callable[[int], Execution], limit: int,
        bordered: ConvProblem | None = None,
    ) -> None:  # fmt: skip
        backward, self.to_weight = direction is INPUT_GRAD, direction is WEIGHT_GRAD
        self.dtype, itemsize = problem.dtype, problem.itemsize
        axes, lengths = problem.last_axes(2), undilated(problem, direction).last_axes(2)
        high, wide = (min(a.dilation, a.size if backward else a.output) for a in axes)

        def side(of_input: bool) -> Geometry:
            apart, whole = ([a.size if of_input else a.output for a in some] for some in (lengths, axes))
            channels = problem.c if of_input else problem.k
            return Geometry(problem.n, channels, high, wide, axes[1].dilation, *apart, *whole)

        source, other = side(not backward), side(backward)
        self.folding, planes = (NOTHING, 0, NOTHING), 0
        if bordered:
            axes_inside = bordered.last_axes(2)
            other = other._replace(folded=prod([a.size for a in axes_inside]))
            self.folding = places(bordered, [(max(a.lo, 0), max(a.hi, 0)) for a in bordered.axes])
            planes = machine.machine().cores * other.height * other.width + SLACK
        firsts = tuple(a.lo - a.dilation * (a.kernel - 1) if backward else -a.lo for a in axes)
        reading = INPUT_GRAD if backward else FORWARD
        edges = [borders.edges(a, problem.padding_mode, reading) for a in axes]
        down = axes[0].dilation
        self.source = *pieces(source, down, firsts, edges), record(source)
        self.other = record(other)
        if self.to_weight:
            self.gradient = *pieces(other, down, (0, 0), [(), ()]), self.other
        sizes = [-(-size // 16) * 16 for size in (source.elements, other.elements + SLACK, planes)]
        self.inner = make(limit - sum(sizes) * itemsize)
        starts = np.cumsum([-(-self.inner.workspace // itemsize // 16) * 16, *sizes]).tolist()
        self.places = [slice(*pair) for pair in pairwise(starts)]  # in scratch, behind what inner takes
        self.elements, self.workspace = starts[-1], starts[-1] * itemsize

    def through(
        self, run: Any, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = workspace.take(self.elements, self.dtype)
        source, other, planes = (scratch[place] for place in self.places)
        threads.share_out(self.typed[take_apart], 4.0 * source.size, flat(first), source, *self.source)
        if self.to_weight:
            threads.share_out(self.typed[take_apart], 4.0 * other.size, flat(second), other, *self.gradient)
            run(source, other, out, bias, activation, residual)
        else:
            run(source, second, other, bias, NONE, flat(residual)[:0])
            threads.share_out(
                self.typed[put_together],
                4.0 * other.size,
                other,
                flat(out),
                planes,
                *self.folding,
                self.other,
                activation,
                flat(residual),
            )
