"""Depthwise convolution of images held pixel by pixel: forward and input gradient, lanes over channels.

    result[pixel, c] = sum over taps of  source[pixel + tap, c] * w[tap, c]

A task owns some rows of an image and a block of channels, and slides over them row by row (`slide`): pixels are read where
they are.  What a row of results sums is listed once and again for each that the border cuts differently: rows of
taps that are outside the image are left out, and so are taps that meet nothing but the border.

The input gradient where borders repeat the image: a row that some repeat sums what they receive too, by more rows of
taps, and a column by more steps, of one tap, in which the other results read zeros.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import jit, machine, threads
from fastconv.activations import finish
from fastconv.algorithms.base import Array, equalised, flat
from fastconv.algorithms.correlation import AxisPass, axis_pass
from fastconv.algorithms.direct.depthwise.shape import repeated
from fastconv.algorithms.direct.pixels.correlation import ONE_ROW, reach
from fastconv.algorithms.direct.pixels.packed import PackedPass
from fastconv.algorithms.direct.pixels.slide import SIZE, STEP, TAPS, slide
from fastconv.gemm.move import transpose
from fastconv.gemm.record import record
from fastconv.gemm.schedule import next_task, part
from fastconv.problem import Axis, ConvProblem, Direction

TASKS = 8  # wanted, so that workers end together
CHUNK = 32  # channels of a task of packing


class Geometry(NamedTuple):
    """A pass and its blocks, as numbers."""

    n: int
    channels: int
    p: int  #         positions along both axes, of each phase
    q: int
    source_h: int
    source_w: int
    stride_h: int
    stride_w: int
    steps_h: int  #   phases of the result
    steps_w: int
    result_h: int
    result_w: int
    row_blocks: int
    c_blocks: int
    whole: int  #     vectors that the channels fill: a block is some of them
    tap: int  #       elements from one tap of a step to the next
    steps: int  #     numbers in a worker's list of steps
    vl: int
    rows_at: int  #   where tables begin: [phase] -> (taps along h, where they begin)
    columns_at: int  # [phase] -> (steps along w, where they begin, first and last offset)
    under_at: int  #  [coordinate - first_h] -> row of the source, or -1
    beside_at: int  # [coordinate - first_w] -> column of the source, or -1
    first_h: int
    first_w: int
    repeats: bool  #  whether what is around the image is the image, forward
    more_rows_at: (
        int  #  [row of the result] -> rows of taps more, and where (row of the source, its taps) are
    )
    more_steps_at: int  # [phase] -> steps more, and where (tap, its columns, first result, last result) are


@jit.kernel
def pack(workers, counters, w, packed, channels, taps):
    """Turn the weights from [c][tap] to [tap][c]; tasks are chunks of channels."""
    for worker in numba.prange(workers):
        tasks = -(-channels // CHUNK)
        task = next_task(counters, worker, tasks)
        while task < tasks:
            c = task * CHUNK
            transpose(packed, c, channels, w, c * taps, taps, min(CHUNK, channels - c), taps)
            task = next_task(counters, worker, tasks)


@jit.kernel
def correlate(
    workers, counters, x, w, out, lists, geos, tables, start, plain, activation, residual, narrow
):  # fmt: skip
    """Compute a pass; tasks are images x blocks of rows x blocks of channels."""
    for worker in numba.prange(workers):
        geo = geos[0]
        steps = lists[worker * geo.steps : (worker + 1) * geo.steps]
        tasks = geo.n * geo.row_blocks * geo.c_blocks
        task = next_task(counters, worker, tasks)
        while task < tasks:
            rest, c_block = task // geo.c_blocks, task % geo.c_blocks
            image, row_block = rest // geo.row_blocks, rest % geo.row_blocks
            c0 = part(geo.whole, geo.c_blocks, c_block) * geo.vl
            c1 = part(geo.whole, geo.c_blocks, c_block + 1) * geo.vl
            c1 = geo.channels if c_block == geo.c_blocks - 1 else c1
            for phase in range(geo.steps_h * geo.steps_w):
                _slide_rows(
                    image, part(geo.p, geo.row_blocks, row_block), part(geo.p, geo.row_blocks, row_block + 1), c0, c1,
                    phase // geo.steps_w, phase % geo.steps_w, x, w, out, steps, geo, tables, start, plain, activation,
                    residual, narrow,
                )  # fmt: skip
            task = next_task(counters, worker, tasks)


@jit.inner
def _slide_rows(
    image, p0, p1, c0, c1, phase_h, phase_w, x, w, out, steps, geo, tables, start, plain, activation, residual, narrow
):  # fmt: skip
    """Compute the positions of a phase in rows p0..p1."""
    taps, taps_at = tables[geo.rows_at + 2 * phase_h], tables[geo.rows_at + 2 * phase_h + 1]
    left, right = tables[geo.columns_at + 4 * phase_w + 2], tables[geo.columns_at + 4 * phase_w + 3]
    positions = (geo.result_w - phase_w + geo.steps_w - 1) // geo.steps_w
    tiles = -(-positions // SIZE)
    pitch, count = geo.source_w * geo.channels, 0
    listed = -1, -1, -1, -1
    for p in range(p0, p1):
        row, lo, hi = phase_h + p * geo.steps_h, 0, taps
        if row >= geo.result_h:
            continue
        under = geo.under_at + p * geo.stride_h - geo.first_h
        while lo < hi and tables[under + tables[taps_at + 2 * lo]] < 0:
            lo += 1
        while lo < hi and tables[under + tables[taps_at + 2 * hi - 2]] < 0:
            hi -= 1
        at_border = geo.repeats and lo < hi and _leaves(p * geo.stride_h, tables, taps_at, taps, geo)
        at_border = at_border or tables[geo.more_rows_at + 2 * row] > 0
        for i in range(tiles):
            q = part(positions, tiles, i)
            size = part(positions, tiles, i + 1) - q
            column = q * geo.stride_w
            inside = column + left >= 0 and column + (size - 1) * geo.stride_w + right < geo.source_w
            alike = inside and not _receives_more(q, size, phase_w, tables, geo)
            kind = lo, hi, -2 if alike else i, p if at_border else -2
            if kind != listed:
                count = _list_steps(steps, p, row, lo, hi, taps_at, phase_w, q, size, inside, geo, tables)
                listed = kind
            pixel = (image * geo.result_h + row) * geo.result_w + phase_w + q * geo.steps_w
            slide(
                out, pixel * geo.channels, geo.steps_w * geo.channels, x,
                (image * geo.source_h + p * geo.stride_h) * pitch + column * geo.channels, geo.stride_w * geo.channels,
                w, geo.tap, start, c0, c1, steps, count, tables[geo.beside_at :], geo.stride_w, geo.channels, size, narrow,
            )  # fmt: skip
            if not plain:
                for j in range(size):
                    at = (pixel + j * geo.steps_w) * geo.channels + c0
                    finish(out, at, c1 - c0, start[:0], np.int64(0), activation, residual, at)


@jit.inner
def _leaves(row, tables, taps_at, taps, geo):
    """Tell whether a row of taps is outside of the source, for results that stand on a row of it."""
    return row + tables[taps_at] < 0 or row + tables[taps_at + 2 * taps - 2] >= geo.source_h


@jit.inner
def _receives_more(q, size, phase_w, tables, geo):
    """Tell whether columns of the border are added to some of the results."""
    at = geo.more_steps_at + 2 * phase_w
    for entry in range(tables[at + 1], tables[at + 1] + 4 * tables[at], 4):
        if q <= tables[entry + 3] and q + size > tables[entry + 2]:
            return True
    return False


@jit.inner
def _list_steps(steps, p, result_row, lo, hi, taps_at, phase_w, q, size, inside, geo, tables):
    """List what ``size`` results from ``q`` on sum, by rows ``lo..hi`` of taps and more; return the number of steps."""
    at, more = geo.columns_at + 4 * phase_w, geo.more_steps_at + 2 * phase_w
    more_rows, column = geo.more_rows_at + 2 * result_row, q * geo.stride_w
    n = 0
    for i in range(lo, hi + tables[more_rows]):
        row = p * geo.stride_h  # from the results' own
        if i < hi:
            under, weights = tables[taps_at + 2 * i] - geo.first_h, tables[taps_at + 2 * i + 1]
            row = tables[geo.under_at + row + under] - row
        else:
            entry = tables[more_rows + 1] + 2 * (i - hi)
            row, weights = tables[entry] - row, tables[entry + 1]
        for k in range(tables[at]):
            entry = tables[at + 1] + 3 * k
            offset, taps = tables[entry], tables[entry + 2]
            first = column + offset
            last = first + (size + taps - 2) * geo.stride_w
            if geo.repeats or (last >= 0 and first < geo.source_w):
                within = inside or (first >= 0 and last < geo.source_w)
                steps[n] = (row * geo.source_w + (offset if within else -column)) * geo.channels
                steps[n + 1] = (weights + tables[entry + 1]) * geo.channels
                steps[n + 2] = taps if within else -taps
                steps[n + 3] = first - geo.first_w
                n += STEP
        for entry in range(tables[more + 1], tables[more + 1] + 4 * tables[more], 4):
            if q <= tables[entry + 3] and q + size > tables[entry + 2]:
                steps[n] = (row * geo.source_w - column) * geo.channels
                steps[n + 1] = (weights + tables[entry]) * geo.channels
                steps[n + 2] = -1
                steps[n + 3] = tables[entry + 1] + q - geo.beside_at
                n += STEP
    return n // STEP


def steps_along(taps: dict[int, int], stride: int) -> list[tuple[int, int, int]]:
    """Return the steps of a phase: (offset of the first tap, its index, taps), from ``taps``: offset -> index.

    Taps of a step are ``stride`` apart, as the pixels of neighbouring results.
    """
    steps, ahead = [], dict(taps)
    while ahead:
        run = [min(ahead)]
        while run[-1] + stride in ahead:
            run.append(run[-1] + stride)
        for at, length in equalised(len(run), TAPS):
            steps.append((run[at], taps[run[at]], length))
        ahead = {offset: index for offset, index in ahead.items() if offset not in run}
    return steps


def describe(rows: AxisPass, last: AxisPass, across: int) -> tuple[Array, int, tuple[int, int]]:
    """Return the tables, how many taps of the kernel lie between those of a step, and the most rows and steps of a result."""
    index = [{offset: s for s, offset in taps} for taps in last.taps]
    along = [steps_along(taps, last.stride) for taps in index]
    apart = [taps[at + last.stride] - taps[at] for taps in index for at in taps if at + last.stride in taps]
    down = [sorted((offset, r * across) for r, offset in taps) for taps in rows.taps]
    heads: list[int] = []
    entries: list[int] = []
    behind = 2 * rows.step + 4 * last.step
    for taps in down:
        heads += [len(taps), behind + len(entries)]
        entries += [number for tap in taps for number in tap]
    for steps, taps in zip(along, last.taps, strict=True):
        offsets = [offset for _, offset in taps] or [0]
        heads += [len(steps), behind + len(entries), min(offsets), max(offsets)]
        entries += [number for step in steps for number in step]
    most = max(map(len, down)), max(map(len, along))
    return np.array(heads + entries, np.int64), apart[0] if apart else 0, most


def more_rows(axis: Axis, mode: str, across: int, results: int, at: int) -> tuple[Array, int]:
    """Return the table of the rows that rows of the border are added to, ``at`` which it stands, and the most of one."""
    found: list[list[int]] = [[] for _ in range(results)]
    for source, tap, pixel in repeated(axis, mode):
        found[pixel] += [source, tap * across]
    begin = at + 2 * results + np.cumsum([0, *map(len, found)])
    heads = [n for row, start in zip(found, begin.tolist(), strict=False) for n in (len(row) // 2, start)]
    return np.array([*heads, *chain(*found)], np.int64), max(map(len, found)) // 2


def more_steps(axis: Axis, mode: str, last: AxisPass, at: int) -> tuple[Array, int]:
    """Return the table of steps of one tap that add columns of the border, and how many there are at the most.

    A result that a tap reaches by several columns has several steps.
    """
    found: list[list[tuple[int, Array]]] = [[] for _ in range(last.step)]
    for source, tap, pixel in repeated(axis, mode):
        steps, result = found[pixel % last.step], pixel // last.step
        free = (columns for s, columns in steps if s == tap and columns[result] < 0)
        columns = next(free, None)
        if columns is None:
            columns = np.full(last.outputs, -1)
            steps.append((tap, columns))
        columns[result] = source
    heads: list[int] = []
    entries: list[int] = []
    tables: list[Array] = []
    begin = at + 2 * last.step
    behind = begin + 4 * sum(map(len, found))
    for steps in found:
        heads += [len(steps), begin + len(entries)]
        for tap, columns in steps:
            results = np.flatnonzero(columns >= 0)
            entries += [tap, behind + last.outputs * len(tables), int(results[0]), int(results[-1])]
            tables.append(columns)
    return np.concatenate([np.array(heads + entries, np.int64), *tables]), max(map(len, found))


class Depthwise(PackedPass):
    """Forward or input gradient of as many channels as groups."""

    scratch = 0

    def __init__(self, problem: ConvProblem, direction: Direction, cache: int) -> None:
        vl, cores = machine.tile(problem.itemsize).vl, machine.machine().cores
        forward, mode = direction is Direction.FORWARD, problem.padding_mode
        axes = (axis_pass(a, direction, mode).reaching for a in problem.axes)
        rows, last = (ONE_ROW, *axes)[-2:]
        c, across = problem.c, problem.kernel[-1]
        self.taps = across if len(problem.axes) == 1 else across * problem.kernel[0]
        self.groups, self.m, self.lanes, self.dtype, self.flops = 1, c, c, problem.dtype, problem.flops
        self.typed = threads.Typed(correlate)
        self.packed = -(-c * self.taps // 16) * 16
        self.narrow = None if c >= vl else True

        tables, tap, most = describe(rows, last, across)
        under, beside = (reach(axis) for axis in (rows, last))
        v, h = problem.last_axes(2)
        received = "zeros" if forward else mode
        rows_at = tables.size + under.size + beside.size
        above, most_rows = more_rows(v, received, across, rows.result, rows_at)
        steps_at = rows_at + above.size
        beyond, most_steps = more_steps(h, received, last, steps_at)
        self.tables = np.concatenate([tables, under, beside, above, beyond])
        span = max(rows.offsets, default=0) - min(rows.offsets, default=0) + 1
        wanted, whole = -(-TASKS // max(1, problem.n)), max(1, c // vl)
        row_blocks = max(1, min(wanted, rows.outputs))
        held = ((span + 1) * last.source + self.taps) * c * problem.itemsize
        c_blocks = min(whole, max(-(-wanted // row_blocks), held // cache))
        self.pixels = -(-STEP * (most[0] + most_rows) * (most[1] + most_steps) // 3)
        self.geometry = record(
            Geometry(
                n=problem.n, channels=c, p=rows.outputs, q=last.outputs, source_h=rows.source, source_w=last.source,
                stride_h=rows.stride, stride_w=last.stride, steps_h=rows.step, steps_w=last.step,
                result_h=rows.result, result_w=last.result, row_blocks=row_blocks, c_blocks=c_blocks, whole=whole,
                tap=tap * c, steps=3 * self.pixels, vl=vl, rows_at=0, columns_at=2 * rows.step,
                under_at=tables.size, beside_at=tables.size + under.size, first_h=min(rows.offsets, default=0),
                first_w=min(last.offsets, default=0), repeats=forward and mode != "zeros",
                more_rows_at=rows_at, more_steps_at=steps_at,
            )
        )  # fmt: skip
        self.workspace = (self.packed + self.lanes) * problem.itemsize + 24 * cores * self.pixels

    def pack(self, weight: Array, packed: Array) -> None:
        threads.share_out(pack, 4.0 * self.packed, flat(weight), packed, self.m, self.taps)

    def correlate(
        self, x: Array, packed: Array, out: Array, around: Array, scratch: Array, lists: Array, start: Array,
        plain: bool, activation: Any, residual: Array,
    ) -> None:  # fmt: skip
        threads.share_out(
            self.typed, self.flops, x, packed, out, lists, self.geometry,
            self.tables, start, plain, activation, residual, self.narrow,
        )  # fmt: skip
