"""Input gradient of depthwise layers where borders repeat the image: tiles of the gradient are added up and folded.

The padded gradient has more pixels than the output has, and so would have more tiles that save them; tiles of the
output's pixels, whose results overlap, are as many as those of the forward pass::

    padded[a + r] += sum over the tile's a  gy[a] w[r]         (overlap-add)

All channels of a vector side by side, until each padded pixel has been added to the one that it repeats.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fastconv import borders, jit, threads
from fastconv.activations import finish
from fastconv.algorithms.base import flat
from fastconv.algorithms.fft.codelets import INVERSE_REAL, transform
from fastconv.algorithms.fft.cut import Choice
from fastconv.algorithms.fft.geometry import rows, with_maps
from fastconv.algorithms.fft.lanes import clear, place, scatter, table_size
from fastconv.algorithms.fft.tile2d import samples_times, spectrum
from fastconv.algorithms.fft.tiles import Spectral
from fastconv.gemm.move import add_row
from fastconv.gemm.schedule import next_task
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array


@jit.inner
def _place_planes(table, wide, first, image, size, begin, rows, column, columns, g):
    """Say where ``rows`` x ``columns`` pixels of VL channels lie: rows from ``begin`` in the maps on, and a column."""
    clear(table, g.lanes, wide)
    for lane in range(min(g.lanes, g.groups - first)):
        at = (image * g.groups + first + lane) * size + column
        place(table, g.lanes, lane, at, begin, 0, rows, 0, columns)


@jit.inner
def _add_tile(plane, row, column, own, g):
    """Add a tile to the padded pixels from (row, column) on."""
    start, step, gap = (g.aw + g.lanes) * g.lanes, (2 * g.ah + 1) * g.lanes, g.ah * g.lanes
    columns = min(g.aw, g.q - column) * g.lanes
    for i in range(min(g.ah, g.p - row)):
        if g.ah > 1:
            at = start + i * g.lanes
            transform(INVERSE_REAL, g.aw, own, at, step, gap, own, 0, 0, 0, own, 0, g.lanes, 0)
        add_row(plane, ((row + i) * g.q + column) * g.lanes, own, 0, columns)


@jit.inner
def _fold(plane, edges_h, edges_w, lo_h, height, g):
    """Add padded rows to the rows they repeat, then the columns of these; edges are (padded, what it repeats)."""
    line = g.q * g.lanes
    for i in range(0, edges_h.size, 2):
        add_row(plane, edges_h[i + 1] * line, plane, edges_h[i] * line, line)
    for row in range(lo_h, lo_h + height):
        for i in range(0, edges_w.size, 2):
            to, at = row * line + edges_w[i + 1] * g.lanes, row * line + edges_w[i] * g.lanes
            add_row(plane, to, plane, at, g.lanes)


@jit.kernel
def folded(
    workers, counters, gy, u, gx, bias, activation, residual, scratch, maps, geos, lo_h, lo_w, height, width, entries,
    edges_h, edges_w,
):  # fmt: skip
    """Gradient of the output, spectra of kernels -> gradient of the input; a unit is VL channels of an image."""
    for worker in numba.prange(workers):
        g = geos[0]
        vectors, gap = (g.groups + g.lanes - 1) // g.lanes, g.lanes
        units, size, spectra = g.n * vectors, scratch.size // workers, g.frequencies * 2 * g.lanes
        own = scratch[worker * size : (worker + 1) * size]
        v, plane = own[g.tile_scratch :], own[g.tile_scratch + spectra :]
        table_in = np.empty(g.table, np.int64)
        table_out = np.empty(entries, np.int64)
        unit = next_task(counters, worker, units)
        while unit < units:
            first, image = unit // g.n * g.lanes, unit % g.n
            u0 = unit // g.n * spectra
            plane[: g.p * g.q * g.lanes] = 0
            for t in range(g.th * g.tw):
                row, column = t // g.tw * g.mh, t % g.tw * g.mw
                rows, columns = min(g.h - row, g.mh), min(g.w - column, g.mw)
                _place_planes(table_in, g.aw, first, image, g.h * g.w, row, rows, column, columns, g)
                spectrum(gy, 0, maps, table_in, g.ah, g.aw, g.lanes, own, v, 0, 2 * gap, gap)
                samples_times(v, 0, 2 * gap, gap, u, u0, 2 * gap, gap, g.ah, g.aw, g.lanes, own)
                _add_tile(plane, row, column, own, g)
            _fold(plane, edges_h, edges_w, lo_h, height, g)
            _place_planes(table_out, width, first, image, height * width, g.of_result, height, 0, width, g)
            for row in range(height):
                for chunk in range((width + g.lanes - 1) // g.lanes):
                    at = ((lo_h + row) * g.q + lo_w + chunk * g.lanes) * g.lanes
                    scatter(gx, 0, maps, table_out, row, chunk, plane, at)
            for lane in range(min(g.lanes, g.groups - first)):
                at = (image * g.groups + first + lane) * height * width
                finish(gx, at, height * width, bias, first + lane, activation, residual, at)
            unit = next_task(counters, worker, units)


class Folded(Spectral):
    """The input gradient by the tiles ``choice`` of the forward pass over padded images."""

    def __init__(self, problem: ConvProblem, choice: Choice) -> None:
        written = borders.written_out(problem)
        (v, h), mode = problem.last_axes(2), problem.padding_mode
        lanes = choice.cut.lanes
        # the last vectors that are stored may begin in the last row, and end behind it
        plane = ((v.lo + v.size + v.hi) * (h.lo + h.size + h.hi) + lanes) * lanes
        super().__init__(written, Direction.INPUT_GRAD, choice._replace(worker=choice.worker + plane))
        g = self.geometry
        source = rows(g.h, g.w, (g.th - 1) * g.mh + g.ah)
        self.geometry, self.maps = with_maps(g, source, rows(v.size, h.size, v.size), [])
        self.ends = v.lo, h.lo, v.size, h.size, table_size(lanes, h.size)
        self.edges = [
            np.array([n + a.lo for pair in borders.edges(a, mode) for n in pair], np.int64) for a in (v, h)
        ]

    def _multiply(
        self, x: Array, u: Array, out: Array, bias: Array, activation: Any, residual: Array, scratch: Array
    ) -> None:
        threads.share_out(
            self.typed[folded], self.choice.flops, flat(x), u, flat(out), bias, activation, flat(residual), scratch,
            self.maps, self.described, *self.ends, *self.edges,
        )  # fmt: skip
