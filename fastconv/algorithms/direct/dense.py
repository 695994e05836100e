"""Direct convolution of any stride, dilation and groups: the tables and blocks of `cpu.py`."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fastconv import machine, threads
from fastconv.algorithms.base import Array, flat
from fastconv.algorithms.correlation import AxisPass, BlockedPass, Pass
from fastconv.gemm.move import SLACK

KC = 384  # rows of A and B that a chunk of channels brings
COLUMNS = 256  # result pixels of a task at the least, if there are as many
TASKS = 2  # for each core, where rows and panels give as many


def _phases(axis: AxisPass) -> tuple[int, list[int], list[tuple[int, int]], int]:
    """Return (first source pixel, phases in use, (phase index, shift) of each tap, largest shift)."""
    offsets = [offset for _, offset in axis.taps] or [0]
    first = min(offsets)
    used = sorted({(o - first) % axis.stride for o in offsets})
    places = [(used.index((o - first) % axis.stride), (o - first) // axis.stride) for _, o in axis.taps]
    return first, used, places, max((shift for _, shift in places), default=0)


class DensePass(BlockedPass):
    """A pass over at most two axes, ready to run."""

    def __init__(self, p: Pass, itemsize: int) -> None:
        from fastconv.algorithms.direct.cpu import Geometry, Tables

        super().__init__(p, itemsize)
        tile, m = machine.tile(itemsize), machine.machine()
        rows_axis = p.axes[0] if len(p.axes) == 2 else AxisPass(1, 0, 1, 1, 1, 1, ((0, 0),))
        last = p.axes[-1]
        first_h, phases_h, places_h, shift_h = _phases(rows_axis)
        first_w, phases_w, places_w, shift_w = _phases(last)
        taps = len(places_h) * len(places_w)
        chunks = max(1, min(p.channels, -(-p.channels * taps // KC)))
        per_chunk = -(-p.channels // chunks)
        planes = len(phases_h) * len(phases_w)
        # The stripe of a task may fill a third of L2 and C another; writing longer runs is cheaper.
        third = m.l2 // 3 // itemsize
        columns = min(max(COLUMNS, third // p.m), 8 * COLUMNS)
        q_blocks = -(-last.outputs // columns)
        block_q = last.outputs if q_blocks == 1 else -(-last.outputs // (q_blocks * tile.vl)) * tile.vl
        q_blocks = -(-last.outputs // block_q)
        pitch = block_q + shift_w
        in_rows = -(-block_q // tile.vl) * tile.vl
        flattened = q_blocks == 1 and pitch < in_rows
        most = max(1, third // (per_chunk * planes * pitch) - shift_h)
        most = min(most, max(1, columns // (pitch if flattened else in_rows)))
        row_blocks = -(-rows_axis.outputs // min(rows_axis.outputs, most))
        block_rows = -(-rows_axis.outputs // row_blocks)
        ld = block_rows * in_rows
        if flattened:
            ld = -(-((block_rows - 1) * pitch + block_q) // tile.vl) * tile.vl
        panels = -(-p.m // tile.mr)
        tasks = p.n * p.groups * row_blocks * q_blocks
        m_blocks = max(-(-p.m * ld // third), -(-TASKS * m.cores // max(1, tasks)))
        m_blocks = min(panels, m_blocks)

        stripe_rows = block_rows + shift_h
        plane = stripe_rows * pitch
        tap_offsets = [
            (i * len(phases_w) + k) * plane + down * pitch + right
            for i, down in places_h
            for k, right in places_w
        ]
        offset = np.array(tap_offsets, np.int64) + planes * plane * np.arange(per_chunk).reshape(-1, 1)
        c_start = -(-(per_chunk * planes * plane + tile.nr * tile.vl + SLACK) // 16) * 16
        scratch = c_start + -(-panels // m_blocks) * tile.mr * ld + SLACK
        self.scratch = -(-scratch // 16) * 16
        self.tables = Tables(
            offset.reshape(-1).astype(np.int64),
            np.array(phases_h, np.int64),
            np.array(phases_w, np.int64),
            (rows_axis.start + rows_axis.step * np.arange(rows_axis.outputs)) * last.result + last.start,
        )
        self.geometry = Geometry(
            p.n, p.groups, p.channels, p.m, taps, rows_axis.outputs, last.outputs, rows_axis.source,
            last.source, rows_axis.stride, last.stride, first_h, first_w, len(phases_h), len(phases_w),
            stripe_rows, pitch, block_rows, block_q, flattened, row_blocks, q_blocks, m_blocks, chunks, last.step,
            prod(a.result for a in p.axes), ld, c_start, self.scratch, tile.vl, tile.mr, tile.nr,
        )  # fmt: skip

    def correlate(
        self, x: Array, packed: Array, out: Array, scratch: Array, bias: Array, activation: Any
    ) -> None:
        from fastconv.algorithms.direct.cpu import correlate

        threads.launch(
            correlate, self.flops, np.zeros(1, np.int64), flat(x), packed, flat(out), scratch,
            self.geometry, self.tables, bias, activation,
        )  # fmt: skip
