"""Forward and input gradient of images held pixel by pixel: the tables and blocks of `cpu.py`."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, pairwise, product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from fastconv import borders, machine, threads
from fastconv.algorithms.base import flat
from fastconv.algorithms.direct.pixels.cpu import Geometry, correlate
from fastconv.algorithms.direct.pixels.frame import Box, bordered
from fastconv.algorithms.direct.pixels.pack import CHUNK, COLUMNS, HEAD, Packing, pack
from fastconv.algorithms.direct.pixels.packed import PackedPass
from fastconv.algorithms.passes import ONE_ROW, AxisPass, Pass, axis_pass, pass_of
from fastconv.gemm.gathered import TALLEST, widest
from fastconv.gemm.record import record
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array

PIXELS = 256  # positions of an area: the weights stream from L2 or L3 at 4 bytes for 2 * 256 flop
TASKS = 8  # wanted, so that workers end together


def leaves(axis: AxisPass) -> bool:
    """Whether some tap at some position reads outside the source."""
    offsets = axis.offsets or [0]
    return offsets[0] < 0 or axis.stride * (axis.outputs - 1) + offsets[-1] >= axis.source


def phase_tables(
    axes: tuple[AxisPass, AxisPass, AxisPass],
    kernel: tuple[int, ...],
    sheets: dict[int, int],
    pitch: int,
    pixel: int,
    merge: bool,
    together: int,
) -> tuple[Array, int, int]:
    """Return ``[phase] -> (runs, where, taps, taps before, rows, where)`` and what follows, where columns are, and taps.

    Behind the phases are the offsets of their runs, from the first tap's pixel, and of their rows of taps, in sheets
    and rows from a position's own.  Taps go by offset along w, so that those of neighbouring pixels are one run of
    channels.  Those of a sheet begin at ``sheets[offset]``.  Columns are (number of the tap, channel), for the taps of
    ``together`` channels as they stand in the weights; taps of no phase share the last number.
    """
    _, first_h, first_w = (min(a.offsets, default=0) for a in axes)
    heads: list[int] = []
    entries: list[int] = []
    phases, before = prod(a.step for a in axes), 0
    numbers = np.full(kernel, -1, np.int64)
    for phase_d, phase_h, phase_w in product(*(a.taps for a in axes)):
        across = sorted(phase_w, key=lambda tap: tap[1])
        neighbours = all(b[1] - a[1] == 1 for a, b in pairwise(across))
        heads_w = across[:1] if merge and neighbours else across
        down = [(d, h) for _, d in phase_d for _, h in phase_h]
        runs = [
            sheets[d] + (h - first_h) * pitch + (w - first_w) * pixel for d, h in down for _, w in heads_w
        ]
        at = HEAD * phases + len(entries)
        heads += [len(runs), at, len(down) * len(across), before, len(down), at + len(runs)]
        entries += [*runs, *chain(*down)]
        for (t, _), (r, _), (s, _) in product(phase_d, phase_h, across):
            numbers[t, r, s] = before
            before += 1
    numbers[numbers < 0] = before
    columns = np.stack(np.broadcast_arrays(numbers.reshape(-1), np.arange(together)[:, None]), -1)
    tables = np.array(heads + entries, np.int64)
    return np.concatenate([tables, columns.reshape(-1)]), tables.size, int(numbers.max()) + 1


def reach(axis: AxisPass) -> Array:
    """Return the pixel of the source, or -1, at each coordinate from the first tap of position 0 on."""
    first, end = min(axis.offsets, default=0), max(axis.offsets, default=0) + 1
    return axis.sources(np.arange(first, (axis.outputs - 1) * axis.stride + end))


def with_borders(
    tables: Array, sheets: AxisPass, rows: AxisPass, last: AxisPass
) -> tuple[Array, dict[str, int]]:
    """Add to tables what `cpu.copy_rows` reads, and which sheets are copied, and return where it is."""
    offsets = np.array(sheets.offsets or [0], np.int64)
    parts = [
        tables,
        sheets.sources(offsets[:, None] + sheets.stride * np.arange(sheets.outputs)).reshape(-1),
        reach(rows),
        np.array(last.border, np.int64).reshape(-1),
    ]
    _, sheets_at, rows_at, edges_at, _ = np.cumsum([0, *(part.size for part in parts)]).tolist()
    at = {"sheets_at": sheets_at, "rows_at": rows_at, "edges_at": edges_at, "edges": len(last.border)}
    return np.concatenate(parts), at


class Walk(NamedTuple):
    """What the kernel goes through: the last three axes of a pass, as sheets of rows of pixels."""

    n: int
    sheets: AxisPass
    rows: AxisPass
    last: AxisPass
    kernel: tuple[int, ...]
    box: Box

    @classmethod
    def of(cls, p: Pass, box: Box, framed: bool) -> Walk:
        sheets, rows, last = (ONE_ROW, ONE_ROW, *(a.reaching for a in p.axes))[-3:]
        walk = cls(p.n, sheets, rows, last, (1, 1, *p.kernel)[-3:], box)
        if len(p.axes) > 1:
            return walk
        if max(last.offsets, default=0) - min(last.offsets, default=0) > last.outputs:
            # most taps meet padding: rows of taps that do are left out
            box = Box(0, box.left, 0, 1, box.inner_w, 1)
            return walk._replace(rows=last, last=ONE_ROW, kernel=(1, p.kernel[-1], 1), box=box)
        if last.is_identity and not framed:  # images are one row of pixels
            count = p.n * last.outputs
            row = AxisPass(count, count, count, 1, last.taps)
            return walk._replace(n=1, last=row, box=Box(0, 0, 0, 1, 1, count))
        return walk

    @property
    def copied(self) -> bool:
        """Whether areas are copied with what is around the image; sheets outside of it are not read."""
        return leaves(self.rows) or leaves(self.last) or bool(self.sheets.border)


class Areas(NamedTuple):
    """How positions and result channels are cut."""

    row_blocks: int
    rows: int  # of an area
    q_blocks: int
    q: int
    m_blocks: int


def cut(p: Pass, walk: Walk, blocks: int, third: int) -> Areas:
    """Choose areas: source, results and weights of one take a third of the cache each; there are TASKS if it can be."""
    n, sheets, rows, last, *_ = walk
    phases, deep = p.phases, len(sheets.offsets or [0]) if walk.copied else 1
    per_position = max(
        deep * last.stride * p.channels * (rows.stride if rows.outputs > 1 else 1), p.m * phases, 1
    )
    stay = p.m * p.reduction <= third  # else each area fetches the weights: rather tasks of few channels
    positions = n * p.groups * sheets.outputs * rows.outputs * last.outputs
    wanted = max(2 * TALLEST, positions // (TASKS if stay else -(-TASKS // blocks)))
    area = max(1, min(PIXELS, wanted, third // per_position))
    q_blocks = -(-last.outputs // min(last.outputs, area))
    q = -(-last.outputs // q_blocks)
    row_blocks = -(-rows.outputs // max(1, area // q))
    areas = n * p.groups * sheets.outputs * row_blocks * q_blocks
    m_blocks = min(blocks, -(-TASKS // areas)) if areas < TASKS else 1
    return Areas(row_blocks, -(-rows.outputs // row_blocks), q_blocks, q, m_blocks)


class Correlation(PackedPass):
    """Forward or input gradient; blocks for ``cache`` bytes."""

    def __init__(self, problem: ConvProblem, direction: Direction, cache: int) -> None:
        framed = borders.framed(problem, direction)
        problem, box = bordered(problem, direction)
        p = pass_of(problem, direction)
        if framed:  # of one tap too: the image is not all of the row
            p = replace(p, axes=tuple(axis_pass(a, direction) for a in problem.axes))
        vl, cores = machine.tile(problem.itemsize).vl, machine.machine().cores
        self.dtype, self.flops = problem.dtype, p.flops
        walk, third = Walk.of(p, box, framed), cache // 3 // problem.itemsize
        n, sheets, rows, last, kernel, box = walk
        vectors = -(-p.m // vl)
        blocks = -(-vectors // widest())
        areas, copied = cut(p, walk, blocks, third), walk.copied

        span_h, span_w = ((max(a.offsets, default=0) - min(a.offsets, default=0) + 1) for a in (rows, last))
        under = sheets.offsets or [0]
        deep, pixel = (len(under), p.channels) if copied else (1, p.groups * p.channels)
        pitch = ((areas.q - 1) * last.stride + span_w if copied else last.source) * pixel
        sheet = ((areas.rows - 1) * rows.stride + span_h if copied else rows.source) * pitch
        begins = {d: (i if copied else d - under[0]) * sheet for i, d in enumerate(under)}
        together = min(CHUNK, max(1, COLUMNS // prod(kernel)))
        tables, columns_at, taps = phase_tables(
            (sheets, rows, last), kernel, begins, pitch, pixel, pixel == p.channels, together
        )
        self.tables, at = with_borders(tables, sheets, rows, last)
        self.scratch = -(-deep * sheet // 16) * 16 if copied else 0
        self.packed = -(-p.groups * vectors * vl * taps * p.channels // 16) * 16
        self.pixels = areas.rows * areas.q
        self.lanes = vectors * vl
        self.m, self.groups = p.m, p.groups
        self.packing = record(
            Packing(
                p.groups, p.m, p.channels, prod(p.kernel), vectors, blocks, taps * p.channels,
                p.group_stride, p.row_stride, p.channel_stride, columns_at, together, vl,
            )
        )  # fmt: skip
        self.geometry = record(
            Geometry(
                n=n, groups=p.groups, channels=p.channels, m=p.m, sheets=sheets.outputs, p=rows.outputs, q=last.outputs,
                source_d=sheets.source, source_h=rows.source, source_w=last.source,
                stride_d=sheets.stride, stride_h=rows.stride, stride_w=last.stride, first_d=under[0],
                first_h=min(rows.offsets, default=0), first_w=min(last.offsets, default=0),
                span_h=span_h, span_w=span_w, steps_d=sheets.step, steps_h=rows.step, steps_w=last.step,
                result_d=sheets.result, result_h=rows.result, result_w=last.result, row_blocks=areas.row_blocks,
                block_q=areas.q, q_blocks=areas.q_blocks, m_blocks=areas.m_blocks, copied=copied, deep=deep,
                sheet=sheet, pitch=pitch, pixel=pixel, scratch=self.scratch, pixels=self.pixels,
                registers=machine.simd().registers, chunk=third, repeats=problem.padding_mode != "zeros", framed=framed, **box._asdict(), **at,
            )
        )  # fmt: skip
        self.workspace = (self.packed + p.groups * self.lanes + cores * self.scratch) * problem.itemsize
        self.workspace += 24 * cores * self.pixels

    def pack(self, weight: Array, packed: Array) -> None:
        threads.share_out(
            self.typed[pack], 4.0 * self.packed, flat(weight), packed, self.packing, self.tables
        )

    def correlate(
        self, x: Array, packed: Array, out: Array, around: Array, scratch: Array, lists: Array, start: Array,
        plain: bool, activation: Any, residual: Array,
    ) -> None:  # fmt: skip
        threads.share_out(
            self.typed[correlate], self.flops, x, packed, self.packing, out, around, scratch, lists,
            self.geometry, self.tables, start, plain, activation, residual,
        )  # fmt: skip
