"""The input gradient of few channels: every tap is a row of one product, and is added where it belongs.

    P[(c, tap), pixel] = sum over k of  w[k, c, tap] * gy[k, pixel]        gx[c, pixel*stride + tap*dilation - lo] += P

A product with a row for each result channel, as of an input gradient that is a correlation, has three rows for a picture's
three colours: it loads and lowers as much as it multiplies.  Here 7x7 taps make 147 rows of them, gy is read once, in place,
and nothing is multiplied with zeros, of a stride or around gy.  The price is that each of P's vectors is added in memory.

A task owns rows of an image's result, in *sums*: of each row the phases of a stride, side by side, so that what a tap
adds are pixels side by side; they are woven as they are written.  It goes through the lines of gy that reach its rows, some
at a time (a *slice*), whose P stays in L1.  Where each line's taps belong is a table, *runs* of lines that are added to rows a
stride apart, so rows that a border repeats cost what others do.  Sums have columns beside the image, too, and hand them to
the pixels that they repeat before they are written; those of zeros are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import borders, jit, machine, threads, workspace
from fastconv.activations import NONE, code_of, finish
from fastconv.algorithms.base import Execution, flat, pixels
from fastconv.algorithms.passes import combined
from fastconv.gemm.blocking import odd_lines, streams
from fastconv.gemm.move import SLACK, add_rows
from fastconv.gemm.pack import WeightView, pack_weights
from fastconv.gemm.record import joined, record
from fastconv.gemm.schedule import counters, next_task, part, span
from fastconv.gemm.segments import SEGMENT, add_pixels, copy_channels
from fastconv.gemm.tile import tile
from fastconv.gemm.transposition import transpose
from fastconv.gemm.weave import weave_pixels, weave_rows
from fastconv.problem import Axis, ConvProblem
from fastconv.typing import Array

SLICE = 2**15  # elements of gy in a slice
CHANNELS = 256  # of a chunk
TASKS = 4  # for each core, where images and rows give as many


class Geometry(NamedTuple):
    """The problem and its blocks, as numbers."""

    n: int
    groups: int
    channels: int  # of grad_output, in a group
    m: int  #         of the result, in a group
    kernel: int  #    taps,
    inner: int  #     those along the last axis,
    outer: int  #     and along the others
    q: int  #         pixels of a line of grad_output
    source_size: int
    source_pixel: int  # elements from pixel to pixel: 1 but in images held so
    width: int  #     pixels of a line of the result
    result_size: int
    result_pixel: int
    row_step: int  #  rows of the result between those that lines side by side reach
    phases: int  #    of the last axis
    front: int  #     columns of a phase before the image
    ldc: int  #       columns of a phase in the sums
    blocks: int  #    of rows
    chunks: int  #    of channels
    ld: int  #        row length of a slice and of its product
    product: int  #   where in a worker's scratch that and the sums begin
    sums: int
    scratch: int  #   elements of a worker
    folds: int  #     columns of the sums that are added to others
    block_at: int  #  where tables begin: [block] -> first slice, one past the last, first row, rows
    slice_at: int  #  [slice] -> the segment of a channel, all its pixels in it
    begin_at: int  #  [slice, outer tap] -> where its runs begin: (line in the slice, row in the block, lines)
    place_at: int  #  [inner tap] -> phase of the sums, column in it of a line's first pixel
    fold_at: int  #   (to, from) in a row of the sums
    past_caches: bool
    vl: int
    mr: int
    nr: int


@jit.kernel
def spread(workers, counters, gy, packed, gx, scratch, geos, tables, bias, activation, residual):
    """Compute the gradient; tasks are images x groups x blocks of rows."""
    for worker in numba.prange(workers):
        _work(worker, counters, gy, packed, gx, scratch, geos[0], tables, bias, activation, residual)


@jit.inner
def _work(worker, counters, gy, packed, gx, scratch, geo, tables, bias, activation, residual):
    b0 = worker * geo.scratch
    apart = geo.phases * geo.ldc
    tasks = geo.n * geo.groups * geo.blocks
    task = next_task(counters, worker, tasks)
    while task < tasks:
        plane, at = task // geo.blocks, geo.block_at + 4 * (task % geo.blocks)
        first, last, row, rows = tables[at], tables[at + 1], tables[at + 2], tables[at + 3]
        c0 = b0 + geo.sums
        scratch[c0 : c0 + geo.m * rows * apart] = 0
        for number in range(first, last):
            _add_slice(scratch, b0, rows * apart, gy, packed, geo, tables, plane, number)
        for line in range(c0, c0 + geo.m * rows * apart if geo.folds > 0 else c0, apart):
            add_pixels(scratch, line, scratch, line, tables[geo.fold_at :], 0, geo.folds)
        if geo.result_pixel > 1:
            _write_pixels(scratch, c0, gx, plane, row, rows, geo, bias, activation, residual)
        else:
            for m in range(geo.m):
                to = (plane * geo.m + m) * geo.result_size + row * geo.width
                weave_rows(
                    gx, to, geo.width, scratch, c0 + geo.front, apart, geo.ldc, geo.phases, rows, geo.width, geo.past_caches
                )  # fmt: skip
                channel = plane % geo.groups * geo.m + m
                finish(gx, to, rows * geo.width, bias, channel, activation, residual, to)
                c0 += rows * apart
        task = next_task(counters, worker, tasks)


@jit.inner
def _write_pixels(scratch, c0, gx, plane, row, rows, geo, bias, activation, residual):
    """Write the sums of some rows, pixel by pixel."""
    image, channel, apart = plane // geo.groups, plane % geo.groups * geo.m, geo.phases * geo.ldc
    for m in range(geo.m):
        finish(scratch, c0 + m * rows * apart, rows * apart, bias, channel + m, NONE, bias[:0], 0)
    for i in range(rows):
        to = (image * geo.result_size + (row + i) * geo.width) * geo.result_pixel + channel
        at = c0 + i * apart + geo.front
        weave_pixels(
            gx, to, geo.result_pixel, scratch, at, rows * apart, geo.ldc, geo.phases, geo.m, geo.width
        )
        if residual.size or code_of(activation) != NONE:
            for pixel in range(to, to + geo.width * geo.result_pixel, geo.result_pixel):
                finish(gx, pixel, geo.m, bias[:0], 0, activation, residual, pixel)


@jit.inner
def _add_slice(scratch, b0, size, gy, packed, geo, tables, plane, number):
    """Add what some lines of grad_output contribute to the sums, of which a channel has ``size``."""
    segment = tables[geo.slice_at + SEGMENT * number :]
    begins = tables[geo.begin_at + number * geo.outer :]
    vectors = segment[2] // geo.vl
    groups, panels = -(-vectors // geo.nr), -(-geo.m * geo.kernel // geo.mr)
    group, product, c0 = plane % geo.groups, b0 + geo.product, b0 + geo.sums
    apart = geo.phases * geo.ldc
    for chunk in range(geo.chunks):
        ch0, ch1 = span(geo.channels, geo.chunks, chunk)
        if geo.source_pixel > 1:
            source = (plane // geo.groups * geo.source_size + segment[1]) * geo.source_pixel
            source += group * geo.channels + ch0
            transpose(scratch, b0, geo.ld, gy, source, geo.source_pixel, segment[4], ch1 - ch0)
        else:
            source = (plane * geo.channels + ch0) * geo.source_size
            copy_channels(scratch, b0, geo.ld, gy, source, geo.source_size, ch1 - ch0, segment, 1, 1)
        row1, to, outer, inner = 0, c0, 0, 0
        for p in range(panels):
            row0, row1 = row1, part(geo.m * geo.kernel, panels, p + 1)
            a0 = (group * geo.m * geo.kernel + row0) * geo.channels + ch0 * (row1 - row0)
            for i in range(groups):
                v0, v1 = span(vectors, groups, i)
                at = v0 * geo.vl
                tile(
                    scratch, product + at, geo.ld, packed, a0, scratch, b0 + at, geo.ld, ch1 - ch0, row1 - row0,
                    v1 - v0, False,
                )  # fmt: skip
            for at in range(product, product + (row1 - row0) * geo.ld, geo.ld):
                place, front = tables[geo.place_at + 2 * inner], tables[geo.place_at + 2 * inner + 1]
                for run in range(begins[outer], begins[outer + 1], 3):
                    j, t, count = tables[run], tables[run + 1], tables[run + 2]
                    add_rows(
                        scratch, to + place + t * apart, geo.row_step * apart,
                        scratch, at - front + j * geo.q, geo.q, count, front, front + geo.q,
                    )  # fmt: skip
                inner += 1
                if inner == geo.inner:
                    outer, inner = outer + 1, 0
                if outer == geo.outer:
                    to, outer = to + size, 0


class SumsRow(NamedTuple):
    """A row of the sums: of each phase of the last axis' stride ``front`` columns beside the image, the image, and more."""

    axis: Axis
    front: int
    ld: int

    @classmethod
    def of(cls, axis: Axis, vl: int) -> SumsRow:
        shifts = cls.shifts(axis)
        front = max(0, -(int(shifts[0]) // axis.stride))
        ld = front + max(-(-axis.size // axis.stride), int(shifts[-1]) // axis.stride + axis.output)
        return cls(axis, front, -(-ld // vl) * vl)

    @staticmethod
    def shifts(axis: Axis) -> Array:
        """Return the pixel that each tap of the first of gy's pixels is added to."""
        return axis.dilation * np.arange(axis.kernel) - axis.lo

    def place(self, pixel: Any) -> Any:
        """Return where a pixel of a line belongs."""
        return pixel % self.axis.stride * self.ld + self.front + pixel // self.axis.stride

    def folds(self, edges: borders.Edges) -> list[tuple[int, int]]:
        """Return which columns are added to which: (to, from)."""
        return [
            (self.place(pixel), self.place(at))
            for at, pixel in edges
            if 0 <= self.front + at // self.axis.stride < self.ld
        ]


class Col2im(Execution):
    """Over any number of axes, ready to run; borders that repeat the image too."""

    def __init__(self, problem: ConvProblem, cache: int) -> None:
        p, itemsize, mode = problem, problem.itemsize, problem.padding_mode
        self.dtype, self.flops = p.dtype, p.flops
        by_pixel = p.layout == "nhwc"
        self.images = pixels if by_pixel else flat
        unit, cores = machine.tile(itemsize), machine.machine().cores
        channels, m, kernel, images = p.k // p.groups, p.c // p.groups, prod(p.kernel), p.n * p.groups
        *outer, last = p.axes
        rows, lines, q = prod(a.size for a in outer), prod(p.output[:-1]), last.output
        chunks = -(-channels // CHANNELS)
        per_chunk = -(-channels // chunks)
        together = _lines(lines, q, per_chunk, unit.vl)
        ld = odd_lines(together * q, unit.vl)

        sums = SumsRow.of(last, unit.vl)
        row_size = m * last.stride * sums.ld
        blocks = 1 if images % cores == 0 or images >= TASKS * cores else -(-TASKS * cores // max(1, images))
        blocks = min(rows, max(blocks, -(-rows * row_size * itemsize // (cache // 4))))
        cut = [(rows * b // blocks, rows * (b + 1) // blocks) for b in range(blocks)]
        targets, folds = _targets(outer, mode), sums.folds(borders.edges(last, mode))
        row_step = outer[-1].stride if outer else 1
        reached = [_reaching(targets, *block, row_step, together) for block in cut]
        self.tables, at = _tables(cut, reached, q, unit.vl, sums, folds)
        sizes = per_chunk * ld, unit.mr * ld, max(r1 - r0 for r0, r1 in cut) * row_size
        starts = np.cumsum([0] + [-(-(size + SLACK) // 16) * 16 for size in sizes]).tolist()
        self.scratch = starts[-1]
        self.packed = -(-p.k * m * kernel // 16) * 16
        self.workspace = (self.packed + cores * self.scratch) * itemsize
        view = WeightView(
            p.groups, m * kernel, channels, 1, channels * m * kernel, 1, m * kernel, unit.mr, False
        )
        self.view = record(view)  # (c, tap) follow each other in memory
        self.geometry = record(
            Geometry(
                p.n, p.groups, channels, m, kernel, last.kernel, len(targets), q, lines * q,
                p.k if by_pixel else 1, last.size, rows * last.size, p.c if by_pixel else 1, row_step,
                last.stride, sums.front, sums.ld, blocks, chunks, ld, starts[1], starts[2], self.scratch, len(folds),
                at["block"], at["slice"], at["begin"], at["place"], at["fold"], streams(prod(p.input_shape), itemsize),
                unit.vl, unit.mr, unit.nr,
            )
        )  # fmt: skip

    def prepare(self, weight: Array) -> Array:
        packed = workspace.aligned(self.packed, self.dtype)
        threads.launch(self.typed[pack_weights], 4.0 * self.packed, flat(weight), packed, self.view)
        return packed

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        used = threads.workers(self.flops)
        scratch = workspace.take(self.packed + used * self.scratch, self.dtype)
        threads.launch(self.typed[pack_weights], 4.0 * self.packed, flat(second), scratch, self.view)
        self._spread(used, first, scratch, out, scratch[self.packed :], bias, activation, residual)

    def run_prepared(
        self, first: Array, prepared: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        used = threads.workers(self.flops)
        scratch = workspace.take(used * self.scratch, self.dtype)
        self._spread(used, first, prepared, out, scratch, bias, activation, residual)

    def _spread(
        self, used: int, gy: Array, packed: Array, gx: Array, scratch: Array, bias: Array, activation: Any,
        residual: Array,
    ) -> None:  # fmt: skip
        threads.start(
            self.typed[spread], used, counters(used), self.images(gy), packed, self.images(gx), scratch, self.geometry, self.tables,
            bias, activation, self.images(residual) if residual.size else residual,
        )  # fmt: skip


def _lines(lines: int, q: int, channels: int, vl: int) -> int:
    """Return how many lines a slice has: as many as a slice holds, or fewer that leave fewer lanes of vectors empty."""
    most = max(1, min(lines, SLICE // max(1, channels * q)))
    return min(range(most, max(0, most - vl), -1), key=lambda i: -(-i * q // vl) / i)


def _targets(outer: Sequence[Axis], mode: str) -> Array:
    """Return [outer tap, line of gy] -> the row of the result that it is added to, or -1."""
    targets = np.zeros((1, 1), int)
    for a in outer:
        at = a.stride * np.arange(a.output) + a.dilation * np.arange(a.kernel)[:, None] - a.lo
        targets = combined(targets, borders.sources(at, a.size, borders.edges(a, mode)), a.size)
    return targets


def _tables(
    cut: list[tuple[int, int]], reached: list[tuple[Array, Array, Array]], q: int, vl: int, sums: SumsRow,
    folds: list[tuple[int, int]],
) -> tuple[Array, dict[str, int]]:  # fmt: skip
    """Join the tables that `Geometry` names, of blocks of rows and of what reaches each."""
    slices, counts, runs = zip(*reached, strict=True)
    ends = np.cumsum([0, *map(len, slices)])
    segments = [
        (0, line * q, -(-i * q // vl) * vl, 0, i * q)
        for line, i in zip(*np.concatenate(slices).T, strict=True)
    ]
    begins = np.cumsum([0, *np.concatenate(counts)])
    places = sums.place(sums.shifts(sums.axis)).tolist()
    tables, at = joined(
        block=[(ends[b], ends[b + 1], r0, r1 - r0) for b, (r0, r1) in enumerate(cut)], slice=segments, begin=begins,
        run=np.concatenate(runs), place=[(at - at % sums.ld, at % sums.ld) for at in places], fold=folds,
    )  # fmt: skip
    tables[at["begin"] : at["run"]] = at["run"] + 3 * begins
    return tables, at


def _reaching(targets: Array, first: int, last: int, step: int, most: int) -> tuple[Array, Array, Array]:
    """Return the slices of at ``most`` lines that reach rows first..last, how many runs each tap has in them, and the runs.

    ``targets`` [tap, line] are rows, or -1; rows of a run are ``step`` apart.
    """
    there = (targets >= first) & (targets < last)
    lines = np.flatnonzero(there.any(axis=0))
    rows, there = targets[:, lines] - first, there[:, lines]
    fresh = np.diff(lines, prepend=-2) != 1
    fresh |= (lines - lines[fresh][np.cumsum(fresh) - 1]) % most == 0
    number = np.cumsum(fresh) - 1  # of each line's slice
    begin = there.copy()
    begin[:, 1:] &= ~(there[:, :-1] & (np.diff(rows) == step)) | fresh[1:]
    taps, at = np.nonzero(begin)
    lengths = np.bincount(np.cumsum(begin)[there.reshape(-1)] - 1, minlength=len(at))
    runs = np.stack((lines[at] - lines[fresh][number[at]], rows[taps, at], lengths), axis=1)
    owner = number[at] * len(targets) + taps
    slices = np.stack((lines[fresh], np.bincount(number, minlength=fresh.sum())), axis=1)
    return (
        slices,
        np.bincount(owner, minlength=fresh.sum() * len(targets)),
        runs[np.argsort(owner, kind="stable")],
    )
