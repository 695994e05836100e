"""Depthwise convolution of images held pixel by pixel: forward and input gradient, lanes over channels.

    result[pixel, c] = sum over taps of  source[pixel + tap, c] * w[tap, c]

A task owns some rows of an image and a block of channels, and slides over them row by row (`slide`): pixels are read where
they are.  What a row of results sums is listed once and again for each that the border cuts differently: rows of
taps that are outside the image are left out, and so are taps that meet nothing but the border.

The input gradient where borders repeat the image: a row that some repeat sums what they receive too, by more rows of
taps, and what columns receive so is added by single products when a row is done.  Where grad_output is a circle, too
(`borders.circle`), it is read on the other side where it ends, as the image is forward.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import borders, jit, machine, threads
from fastconv.activations import finish
from fastconv.algorithms.base import Array, equalised, flat
from fastconv.algorithms.correlation import AxisPass, axis_pass
from fastconv.algorithms.direct.depthwise.shape import repeated
from fastconv.algorithms.direct.pixels.correlation import ONE_ROW, reach
from fastconv.algorithms.direct.pixels.packed import PackedPass
from fastconv.algorithms.direct.pixels.products import add_products
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
    rows: int  #      numbers in a worker's list of rows of taps, and in its list of steps
    steps: int
    vl: int
    rows_at: int  #   where tables begin: [phase] -> (taps along h, where they begin)
    columns_at: int  # [phase] -> (steps along w, where they begin, first and last offset)
    under_at: int  #  [coordinate - first_h] -> row of the source, or -1
    beside_at: int  # [coordinate - first_w] -> column of the source, or -1
    first_h: int
    first_w: int
    repeats_h: bool  # whether what is around the source is the source
    repeats_w: bool
    more_rows_at: (
        int  #  [row of the result] -> rows of taps more, and where (row of the source, its taps) are
    )
    products_at: int  # [phase] -> results that columns of the border are added to, and where they are


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
        base = worker * (geo.rows + geo.steps)
        rows, steps = lists[base : base + geo.rows], lists[base + geo.rows : base + geo.rows + geo.steps]
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
                    phase // geo.steps_w, phase % geo.steps_w, x, w, out, rows, steps, geo, tables, start, plain,
                    activation, residual, narrow,
                )  # fmt: skip
            task = next_task(counters, worker, tasks)


@jit.inner
def _slide_rows(
    image, p0, p1, c0, c1, phase_h, phase_w, x, w, out, rows, steps, geo, tables, start, plain, activation, residual,
    narrow,
):  # fmt: skip
    """Compute the positions of a phase in rows p0..p1."""
    taps, taps_at = tables[geo.rows_at + 2 * phase_h], tables[geo.rows_at + 2 * phase_h + 1]
    left, right = tables[geo.columns_at + 4 * phase_w + 2], tables[geo.columns_at + 4 * phase_w + 3]
    products = geo.products_at + 2 * phase_w
    positions = (geo.result_w - phase_w + geo.steps_w - 1) // geo.steps_w
    tiles = -(-positions // SIZE)
    pitch, met, count = geo.source_w * geo.channels, 0, 0
    rows_listed, listed = (-1, -1, -1), -1
    for p in range(p0, p1):
        row, lo, hi = phase_h + p * geo.steps_h, 0, taps
        if row >= geo.result_h:
            continue
        under = geo.under_at + p * geo.stride_h - geo.first_h
        while lo < hi and tables[under + tables[taps_at + 2 * lo]] < 0:
            lo += 1
        while lo < hi and tables[under + tables[taps_at + 2 * hi - 2]] < 0:
            hi -= 1
        at_border = geo.repeats_h and lo < hi and _leaves(p * geo.stride_h, tables, taps_at, taps, geo)
        at_border = at_border or tables[geo.more_rows_at + 2 * row] > 0
        kind = lo, hi, p if at_border else -2
        if kind != rows_listed:
            met = _list_rows(rows, p, row, lo, hi, taps_at, geo, tables)
            rows_listed, listed = kind, -1
        result = (image * geo.result_h + row) * geo.result_w + phase_w
        source = (image * geo.source_h + p * geo.stride_h) * pitch
        for i in range(tiles):
            q = part(positions, tiles, i)
            size = part(positions, tiles, i + 1) - q
            column = q * geo.stride_w
            inside = column + left >= 0 and column + (size - 1) * geo.stride_w + right < geo.source_w
            if listed != (-2 if inside else i):
                count = _list_steps(steps, rows, met, phase_w, q, size, inside, geo, tables)
                listed = -2 if inside else i
            slide(
                out, (result + q * geo.steps_w) * geo.channels, geo.steps_w * geo.channels, x,
                source + column * geo.channels, geo.stride_w * geo.channels,
                w, geo.tap, start, c0, c1, steps, count, tables[geo.beside_at :], geo.stride_w, geo.channels, size, narrow,
            )  # fmt: skip
        if tables[products]:
            add_products(
                out, result * geo.channels, x, source, w, c0, c1, rows, met, tables, tables[products + 1],
                tables[products],
            )  # fmt: skip
        if not plain:
            for j in range(positions):
                at = (result + j * geo.steps_w) * geo.channels + c0
                finish(out, at, c1 - c0, start[:0], np.int64(0), activation, residual, at)


@jit.inner
def _leaves(row, tables, taps_at, taps, geo):
    """Tell whether a row of taps is outside of the source, for results that stand on a row of it."""
    return row + tables[taps_at] < 0 or row + tables[taps_at + 2 * taps - 2] >= geo.source_h


@jit.inner
def _list_rows(rows, p, result_row, lo, hi, taps_at, geo, tables):
    """List rows ``lo..hi`` of taps and more: where each reads from the results' row on, and its weights; return how many."""
    more, n = geo.more_rows_at + 2 * result_row, hi - lo + tables[geo.more_rows_at + 2 * result_row]
    own = p * geo.stride_h
    for i in range(n):
        if lo + i < hi:
            entry = taps_at + 2 * (lo + i)
            row = tables[geo.under_at + own + tables[entry] - geo.first_h]
        else:
            entry = tables[more + 1] + 2 * (lo + i - hi)
            row = tables[entry]
        rows[2 * i] = (row - own) * geo.source_w * geo.channels
        rows[2 * i + 1] = tables[entry + 1] * geo.channels
    return n


@jit.inner
def _list_steps(steps, rows, met, phase_w, q, size, inside, geo, tables):
    """List what ``size`` results from ``q`` on sum of each of ``met`` rows; return the number of steps."""
    at, column = geo.columns_at + 4 * phase_w, q * geo.stride_w
    n = 0
    for i in range(met):
        for entry in range(tables[at + 1], tables[at + 1] + 3 * tables[at], 3):
            offset, taps = tables[entry], tables[entry + 2]
            first = column + offset
            last = first + (size + taps - 2) * geo.stride_w
            if geo.repeats_w or (last >= 0 and first < geo.source_w):
                within = inside or (first >= 0 and last < geo.source_w)
                steps[n] = rows[2 * i] + (offset if within else -column) * geo.channels
                steps[n + 1] = rows[2 * i + 1] + tables[entry + 1] * geo.channels
                steps[n + 2] = taps if within else -taps
                steps[n + 3] = first - geo.first_w
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


def more_products(axis: Axis, mode: str, last: AxisPass, channels: int, at: int) -> Array:
    """Return the table of the products that columns of the border are, ``at`` which it stands, as `add_products` reads it."""
    found: list[dict[int, list[int]]] = [{} for _ in range(last.step)]
    for source, tap, pixel in repeated(axis, mode):
        phase = found[pixel % last.step]
        phase.setdefault(pixel // last.step * last.step, []).extend((source * channels, tap * channels))
    begin = at + 2 * last.step
    behind = begin + 3 * sum(map(len, found))
    heads: list[int] = []
    targets: list[int] = []
    products: list[int] = []
    for phase in found:
        heads += [len(phase), begin + len(targets)]
        for pixel, pairs in phase.items():
            targets += [pixel * channels, len(pairs) // 2, behind + len(products)]
            products += pairs
    return np.array(heads + targets + products, np.int64)


def pass_along(axis: Axis, direction: Direction, mode: str) -> tuple[AxisPass, str]:
    """Return the pass along an axis, and by which mode its borders add to results besides."""
    walk = axis_pass(axis, direction, mode).reaching
    return walk, "zeros" if direction is Direction.FORWARD or borders.circle(axis, mode) else mode


class Depthwise(PackedPass):
    """Forward or input gradient of as many channels as groups."""

    scratch = 0

    def __init__(self, problem: ConvProblem, direction: Direction, cache: int) -> None:
        vl, cores = machine.tile(problem.itemsize).vl, machine.machine().cores
        (rows, received_h), (last, received_w) = (
            (ONE_ROW, "zeros"),
            *(pass_along(a, direction, problem.padding_mode) for a in problem.axes),
        )[-2:]
        c, across = problem.c, problem.kernel[-1]
        self.taps = across if len(problem.axes) == 1 else across * problem.kernel[0]
        self.groups, self.m, self.lanes, self.dtype, self.flops = 1, c, c, problem.dtype, problem.flops
        self.typed = threads.Typed(correlate)
        self.packed = -(-c * self.taps // 16) * 16
        self.narrow = None if c >= vl else True

        tables, tap, most = describe(rows, last, across)
        under, beside = (reach(axis) for axis in (rows, last))
        v, h = problem.last_axes(2)
        rows_at = tables.size + under.size + beside.size
        above, most_rows = more_rows(v, received_h, across, rows.result, rows_at)
        products_at = rows_at + above.size
        beyond = more_products(h, received_w, last, c, products_at)
        self.tables = np.concatenate([tables, under, beside, above, beyond])
        span = max(rows.offsets, default=0) - min(rows.offsets, default=0) + 1
        wanted, whole = -(-TASKS // max(1, problem.n)), max(1, c // vl)
        row_blocks = max(1, min(wanted, rows.outputs))
        held = ((span + 1) * last.source + self.taps) * c * problem.itemsize
        c_blocks = min(whole, max(-(-wanted // row_blocks), held // cache))
        most_rows += most[0]
        self.pixels = -(-most_rows * (2 + STEP * most[1]) // 3)
        self.geometry = record(
            Geometry(
                n=problem.n, channels=c, p=rows.outputs, q=last.outputs, source_h=rows.source, source_w=last.source,
                stride_h=rows.stride, stride_w=last.stride, steps_h=rows.step, steps_w=last.step,
                result_h=rows.result, result_w=last.result, row_blocks=row_blocks, c_blocks=c_blocks, whole=whole,
                tap=tap * c, rows=2 * most_rows, steps=3 * self.pixels - 2 * most_rows, vl=vl, rows_at=0, columns_at=2 * rows.step,
                under_at=tables.size, beside_at=tables.size + under.size, first_h=min(rows.offsets, default=0),
                first_w=min(last.offsets, default=0), repeats_h=bool(rows.border), repeats_w=bool(last.border),
                more_rows_at=rows_at, products_at=products_at,
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
