"""Groups of few channels of images held pixel by pixel: forward and input gradient, lanes over groups.

    result[pixel, g, m] = sum over c and taps of  source[pixel + tap, g, c] * w[m, c, tap, g]

Depthwise a group is one channel, c = m = 0.  Where it has several, the c-th ones of all groups are a plane of their own in a task's
scratch, and so are the m-th results of a row, which are woven as they are written.

A task owns some rows of an image and a block of channels, and slides over them row by row (`slide`): pixels are read where
they are, or in planes.  What a row of results sums is listed once and again for each that the border cuts differently: rows of
taps that are outside the image are left out, and so are taps that meet nothing but the border.

The input gradient where borders repeat the image: a row that some repeat sums what they receive too, by more rows of
taps, and what columns receive so is added by single products when a row is done.  Where grad_output is a circle, too
(`borders.circle`), it is read on the other side where it ends, as the image is forward.
"""

from __future__ import annotations

from itertools import chain, product
from math import prod
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import borders, jit, machine, threads
from fastconv.activations import finish
from fastconv.algorithms.base import equalised, flat
from fastconv.algorithms.direct.depthwise.shape import repeated
from fastconv.algorithms.direct.pixels.correlation import ONE_ROW, reach
from fastconv.algorithms.direct.pixels.packed import PackedPass
from fastconv.algorithms.direct.pixels.products import add_products
from fastconv.algorithms.direct.pixels.slide import SIZE, STEP, TAPS, slide
from fastconv.algorithms.passes import AxisPass, axis_pass
from fastconv.gemm.interlace import part_lanes, weave_lanes
from fastconv.gemm.record import record
from fastconv.gemm.schedule import next_task, part
from fastconv.gemm.transposition import transpose
from fastconv.problem import Axis, ConvProblem, Direction
from fastconv.typing import Array

TASKS = 8  # wanted, so that workers end together
CHUNK = 32  # groups of a task of packing


class Geometry(NamedTuple):
    """A pass and its blocks, as numbers."""

    n: int
    groups: int
    c: int  #         channels of the source in a group,
    m: int  #         and of the result
    p: int  #         positions of each phase: rows, in all sheets, and columns
    q: int
    source_h: int  #  rows of all sheets
    source_w: int
    stride_w: int
    steps_h: int  #   phases of the result's rows
    steps_w: int
    result_h: int
    result_w: int
    row_blocks: int
    c_blocks: int
    whole: int  #     vectors that the groups fill: a block is some of them
    plane: int  #     elements of a plane of the source
    row: int  #       where a row of the result, plane by plane, begins in a worker's scratch
    scratch: int  #   elements of a worker
    of_c: int  #      weights from channel to channel of the source,
    of_m: int  #      and of the result
    tap: int  #       elements from one tap of a step to the next
    steps: int  #     numbers in a worker's list of steps
    vl: int
    kinds_at: (
        int  #  where tables begin: [kind] -> (rows of taps, where they are), as `add_products` reads them
    )
    rows_at: int  #   [phase][position] -> (row of the result or -1, own row of the source, kind)
    columns_at: int  # [phase] -> (steps along w, where they begin, first and last offset)
    beside_at: int  # [coordinate - first_w] -> column of the source, or -1
    first_w: int
    repeats: bool  #  whether what is around the source is the source, left and right
    products_at: int  # [phase] -> results that columns of the border are added to, and where they are
    under_at: int  #  [block of rows] -> first row of the source under it, and how many


@jit.kernel
def pack(workers, counters, w, packed, groups, taps):
    """Turn the weights from [group][tap of a channel] to [tap of a channel][group]; tasks are chunks of groups."""
    for worker in numba.prange(workers):
        tasks = -(-groups // CHUNK)
        task = next_task(counters, worker, tasks)
        while task < tasks:
            g = task * CHUNK
            transpose(packed, g, groups, w, g * taps, taps, min(CHUNK, groups - g), taps)
            task = next_task(counters, worker, tasks)


@jit.kernel
def correlate(
    workers, counters, x, w, out, scratch, lists, geos, tables, start, plain, activation, residual, narrow
):  # fmt: skip
    """Compute a pass; tasks are images x blocks of rows x blocks of groups."""
    for worker in numba.prange(workers):
        geo = geos[0]
        steps = lists[worker * geo.steps : (worker + 1) * geo.steps]
        own = scratch[worker * geo.scratch : (worker + 1) * geo.scratch]
        size = geo.source_w * geo.groups
        tasks = geo.n * geo.row_blocks * geo.c_blocks
        task = next_task(counters, worker, tasks)
        while task < tasks:
            rest, c_block = task // geo.c_blocks, task % geo.c_blocks
            image, row_block = rest // geo.row_blocks, rest % geo.row_blocks
            c0 = part(geo.whole, geo.c_blocks, c_block) * geo.vl
            c1 = part(geo.whole, geo.c_blocks, c_block + 1) * geo.vl
            c1 = geo.groups if c_block == geo.c_blocks - 1 else c1
            source, origin = x, image * geo.source_h * size
            if geo.c > 1:
                first, rows = tables[geo.under_at + 2 * row_block], tables[geo.under_at + 2 * row_block + 1]
                part_lanes(own, 0, geo.plane, x, (origin + first * size) * geo.c, rows * size, geo.c)
                source, origin = own, -first * size
            for phase in range(geo.steps_h * geo.steps_w):
                _slide_rows(
                    image, part(geo.p, geo.row_blocks, row_block), part(geo.p, geo.row_blocks, row_block + 1), c0, c1,
                    phase // geo.steps_w, phase % geo.steps_w, source, origin, w, out, own, steps, geo, tables, start,
                    plain, activation, residual, narrow,
                )  # fmt: skip
            task = next_task(counters, worker, tasks)


@jit.inner
def _slide_rows(
    image, p0, p1, c0, c1, phase_h, phase_w, x, origin, w, out, own, steps, geo, tables, start, plain, activation,
    residual, narrow,
):  # fmt: skip
    """Compute the positions of a phase in rows p0..p1."""
    left, right = tables[geo.columns_at + 4 * phase_w + 2], tables[geo.columns_at + 4 * phase_w + 3]
    products = geo.products_at + 2 * phase_w
    positions = (geo.result_w - phase_w + geo.steps_w - 1) // geo.steps_w
    tiles = -(-positions // SIZE)
    count, listed, kind = 0, -1, -1
    wide, step, unit = geo.result_w * geo.groups, geo.steps_w * geo.groups, geo.stride_w * geo.groups
    rows, met = tables[:0], 0
    for entry in range(geo.rows_at + 3 * (phase_h * geo.p + p0), geo.rows_at + 3 * (phase_h * geo.p + p1), 3):
        row = tables[entry]
        if row < 0:
            continue
        if kind != tables[entry + 2]:
            kind, listed = tables[entry + 2], -1
            met, rows = tables[geo.kinds_at + 2 * kind], tables[tables[geo.kinds_at + 2 * kind + 1] :]
        result = (image * geo.result_h + row) * wide
        source = origin + tables[entry + 1] * geo.source_w * geo.groups
        for m in range(geo.m):
            target, to = (out, result) if geo.m == 1 else (own, geo.row + m * wide)
            to += phase_w * geo.groups
            weights, sums = w[m * geo.of_m :], start[m * geo.groups :]
            for i in range(tiles):
                q = part(positions, tiles, i)
                size = part(positions, tiles, i + 1) - q
                column = q * geo.stride_w
                inside = column + left >= 0 and column + (size - 1) * geo.stride_w + right < geo.source_w
                if listed != (-2 if inside else i):
                    count = _list_steps(steps, rows, met, phase_w, q, size, inside, geo, tables)
                    listed = -2 if inside else i
                slide(
                    target, to + q * step, step, x, source + q * unit, unit, weights, geo.tap, sums, c0, c1, steps, count,
                    tables[geo.beside_at :], geo.stride_w, geo.groups, size, narrow,
                )  # fmt: skip
            for c in range(geo.c if tables[products] else 0):
                add_products(
                    target, to, x, source + c * geo.plane, weights[c * geo.of_c :], c0, c1, rows, met, tables,
                    tables[products + 1], tables[products],
                )  # fmt: skip
        to = result + phase_w * geo.groups
        if geo.m > 1:
            runs, length = (1, positions * geo.groups) if geo.steps_w == 1 else (positions, geo.groups)
            for j in range(runs):
                at = to + j * step
                weave_lanes(out, at * geo.m, own, geo.row + at - result, wide, length, geo.m)
        if not plain:
            for j in range(positions):
                at = (to + j * step + c0) * geo.m
                finish(out, at, (c1 - c0) * geo.m, start[:0], np.int64(0), activation, residual, at)


@jit.inner
def _list_steps(steps, rows, met, phase_w, q, size, inside, geo, tables):
    """List what ``size`` results from ``q`` on sum of each of ``met`` rows; return the number of steps."""
    at, column = geo.columns_at + 4 * phase_w, q * geo.stride_w
    n = 0
    for i in range(geo.c * met):
        c, row = i // met, 2 * (i % met)
        for entry in range(tables[at + 1], tables[at + 1] + 3 * tables[at], 3):
            offset, taps = tables[entry], tables[entry + 2]
            first = column + offset
            last = first + (size + taps - 2) * geo.stride_w
            if geo.repeats or (last >= 0 and first < geo.source_w):
                within = inside or (first >= 0 and last < geo.source_w)
                steps[n] = c * geo.plane + rows[row] + (offset if within else -column) * geo.groups
                steps[n + 1] = c * geo.of_c + rows[row + 1] + tables[entry + 1] * geo.groups
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


def columns_table(last: AxisPass, at: int) -> tuple[Array, int, int]:
    """Return the table of steps along w, ``at`` which it stands, the taps between those of a step, and the most steps."""
    index = [{offset: s for s, offset in taps} for taps in last.taps]
    along = [steps_along(taps, last.stride) for taps in index]
    apart = [taps[i + last.stride] - taps[i] for taps in index for i in taps if i + last.stride in taps]
    heads: list[int] = []
    entries: list[int] = []
    behind = at + 4 * last.step
    for steps, taps in zip(along, last.taps, strict=True):
        offsets = [offset for _, offset in taps] or [0]
        heads += [len(steps), behind + len(entries), min(offsets), max(offsets)]
        entries += [number for step in steps for number in step]
    return np.array(heads + entries, np.int64), apart[0] if apart else 0, max(map(len, along))


class Received(NamedTuple):
    """What the pixels of a result sum along an axis; equal for those of a kind."""

    kinds: list[tuple[tuple[int, int], ...]]  # (pixel of the source, from the result's own, and tap)
    kind: Array  # [phase][position]
    pixel: Array  # of the result, or -1
    own: Array  # of the source


def received(axis: Axis, a: AxisPass, mode: str) -> Received:
    """Sort the pixels of an axis by what they sum: taps that meet the source, and what its border hands on."""
    more: list[list[tuple[int, int]]] = [[] for _ in range(a.result)]
    for source, tap, pixel in repeated(axis, mode):
        more[pixel].append((source, tap))
    kinds: dict[tuple[tuple[int, int], ...], int] = {}
    own = a.stride * np.arange(a.outputs)
    found = np.zeros((a.step, a.outputs), np.int64)
    for phase, taps in enumerate(a.taps):
        down = sorted((offset, tap) for tap, offset in taps)
        sources = [(a.sources(own + offset).tolist(), tap) for offset, tap in down]
        for j, place in enumerate(own.tolist()):
            pixel = phase + a.step * j
            summed = [(source[j], tap) for source, tap in sources if source[j] >= 0]
            summed += more[pixel] if pixel < a.result else []
            kind = tuple((source - place, tap) for source, tap in summed)
            found[phase, j] = kinds.setdefault(kind, len(kinds))
    return Received(list(kinds), found, a.pixels, np.broadcast_to(own, found.shape))


def rows_tables(
    sheets: Received,
    rows: Received,
    result_h: int,
    source_h: int,
    kernel: tuple[int, int],
    pitch: int,
    groups: int,
) -> tuple[Array, Array, list[list[int]]]:
    """Return ``[phase][position] -> (row of the result or -1, own row of the source, kind)``, kinds, and the rows of each.

    Rows are counted through all sheets.  ``[kind] -> (rows, where)``, and there elements from the own row of the source to
    each that is summed, and to its weights.
    """

    def both(a: Array, b: Array) -> Array:
        return np.stack(np.broadcast_arrays(a[:, None, :, None], b[None, :, None, :]))

    high, across = kernel
    pixel, own, kind = (
        both(sheets.pixel, rows.pixel),
        both(sheets.own, rows.own),
        both(sheets.kind, rows.kind),
    )
    lines = [
        np.where(pixel.min(0) < 0, -1, pixel[0] * result_h + pixel[1]),
        own[0] * source_h + own[1],
        kind[0] * len(rows.kinds) + kind[1],
    ]
    summed = [
        [(d * source_h + h, t * high + r) for d, t in deep for h, r in down]
        for deep, down in product(sheets.kinds, rows.kinds)
    ]
    lists = [[(row * pitch, taps * across * groups) for row, taps in kind] for kind in summed]
    begin = 2 * (len(lists) + np.cumsum([0, *map(len, lists)]))
    heads = [n for some, start in zip(lists, begin.tolist(), strict=False) for n in (len(some), start)]
    kinds = np.array([*heads, *chain(*chain(*lists))], np.int64)
    return np.stack(lines, -1).reshape(-1), kinds, [[row for row, _ in kind] for kind in summed]


def under(lines: Array, kinds: list[list[int]], p: int, blocks: int) -> Array:
    """Return the first row of the source that each block of ``p`` positions sums of, and how many from there on it spans."""
    found = np.zeros((blocks, 2), np.int64)
    result, own, kind = lines.reshape(-1, p, 3).transpose(2, 0, 1)
    first, last = (np.array([bound(rows, default=0) for rows in kinds])[kind] + own for bound in (min, max))
    some = (result >= 0) & np.array([bool(rows) for rows in kinds])[kind]
    for block in range(blocks):
        at = slice(p * block // blocks, p * (block + 1) // blocks)
        if some[:, at].any():
            begin = first[:, at][some[:, at]].min()
            found[block] = begin, last[:, at][some[:, at]].max() + 1 - begin
    return found


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


class ByGroups(PackedPass):
    """Forward or input gradient of groups of few channels."""

    def __init__(self, problem: ConvProblem, direction: Direction, cache: int) -> None:
        vl, cores, itemsize = machine.tile(problem.itemsize).vl, machine.machine().cores, problem.itemsize
        (sheets, given_d), (rows, given_h), (last, given_w) = (
            (ONE_ROW, "zeros"), (ONE_ROW, "zeros"),
            *(pass_along(a, direction, problem.padding_mode) for a in problem.axes),
        )[-3:]  # fmt: skip
        g, taps = problem.groups, prod(problem.kernel)
        c, m = problem.c // g, problem.k // g
        of_c, of_m = taps * g, c * taps * g
        if direction is Direction.INPUT_GRAD:
            c, m, of_c, of_m = m, c, of_m, of_c
        self.taps = c * m * taps
        self.groups, self.m, self.lanes, self.dtype, self.flops = m, g, g, problem.dtype, problem.flops
        self.packed = -(-g * self.taps // 16) * 16
        self.narrow = None if g >= vl else True

        d, v, h = problem.last_axes(3)
        pitch = last.source * g
        lines, kinds, summed = rows_tables(
            received(d, sheets, given_d), received(v, rows, given_h), rows.result, rows.source, (v.kernel, h.kernel),
            pitch, g,
        )  # fmt: skip
        rows_at = kinds.size
        columns_at = rows_at + lines.size
        columns, tap, most_along = columns_table(last, columns_at)
        beside = reach(last)
        beside_at = columns_at + columns.size
        products_at = beside_at + beside.size
        beyond = more_products(h, given_w, last, g, products_at)
        span_d, span_h = (max(a.offsets, default=0) - min(a.offsets, default=0) for a in (sheets, rows))
        wanted, whole = -(-TASKS // max(1, problem.n)), max(1, g // vl)
        p, across = sheets.outputs * rows.outputs, span_d * rows.source + span_h
        if c == 1:
            row_blocks = max(1, min(wanted, p))
        else:  # planes of the rows under a block take a third of the cache
            most = cache // 3 // itemsize // max(1, c * pitch) - across
            row_blocks = max(1, min(p, max(wanted, -(-p * max(1, rows.stride) // max(1, most)))))
        held = ((across + 2) * last.source + taps) * g * itemsize
        c_blocks = min(whole, max(-(-wanted // row_blocks), held // cache)) if c == m == 1 else 1
        below = under(lines, summed, p, row_blocks)
        plane = int(below[:, 1].max()) * pitch if c > 1 else 0
        self.tables = np.concatenate([kinds, lines, columns, beside, beyond, below.reshape(-1)])
        self.pixels = -(-STEP * max(map(len, summed)) * most_along * c // 3)
        row = -(-c * plane // 16) * 16
        self.scratch = -(-(row + (m * last.result * g if m > 1 else 0)) // 16) * 16
        self.geometry = record(
            Geometry(
                n=problem.n, groups=g, c=c, m=m, p=p, q=last.outputs, source_h=sheets.source * rows.source,
                source_w=last.source, stride_w=last.stride, steps_h=sheets.step * rows.step, steps_w=last.step,
                result_h=sheets.result * rows.result, result_w=last.result, row_blocks=row_blocks, c_blocks=c_blocks,
                whole=whole, plane=plane, row=row, scratch=self.scratch, of_c=of_c, of_m=of_m,
                tap=tap * g, steps=3 * self.pixels, vl=vl, kinds_at=0, rows_at=rows_at,
                columns_at=columns_at, beside_at=beside_at, first_w=min(last.offsets, default=0),
                repeats=bool(last.border), products_at=products_at, under_at=products_at + beyond.size,
            )
        )  # fmt: skip
        self.workspace = (self.packed + m * g + cores * self.scratch) * itemsize + 24 * cores * self.pixels

    def pack(self, weight: Array, packed: Array) -> None:
        threads.share_out(self.typed[pack], 4.0 * self.packed, flat(weight), packed, self.lanes, self.taps)

    def begins(self, bias: Array) -> Array:
        return bias.reshape(self.lanes, self.groups).T

    def correlate(
        self, x: Array, packed: Array, out: Array, around: Array, scratch: Array, lists: Array, start: Array,
        plain: bool, activation: Any, residual: Array,
    ) -> None:  # fmt: skip
        threads.share_out(
            self.typed[correlate], self.flops, x, packed, out, scratch, lists, self.geometry,
            self.tables, start, plain, activation, residual, self.narrow,
        )  # fmt: skip
