"""Direct convolution of any stride, dilation and groups: the tables and blocks of `cpu.py`."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fastconv import machine
from fastconv.algorithms.correlation import BlockedPass
from fastconv.algorithms.direct.cpu import Geometry, correlate
from fastconv.algorithms.passes import ONE_ROW, AxisPass, Pass, combined, phase_tables
from fastconv.gemm.blocking import odd_lines, stays_in_l1, streams
from fastconv.gemm.move import SLACK
from fastconv.gemm.record import joined, record
from fastconv.gemm.segments import SEGMENT
from fastconv.typing import Array

KC = 384  # rows of A and B that a chunk of channels brings at the most,
KC_LEAST = 160  # and as many where what a slice reads of them would leave half of L1
COLUMNS = 256  # result pixels of a task at the least, if there are as many


@dataclass(frozen=True, slots=True)
class StripeAxis:
    """How the source along one axis is split by phase of the stride.

    Of the source pixels that results read, pixel ``i*stride + phase + first`` is number i of its phase;
    only phases that some tap starts in are kept.
    """

    first: int
    phases: tuple[int, ...]
    places: tuple[tuple[int, int], ...]  # of each offset: (index of its phase, pixels from the beginning)
    extra: int  # pixels a phase needs beyond one a result

    @classmethod
    def of(cls, axis: AxisPass) -> StripeAxis:
        offsets = axis.offsets or [0]
        first = min(offsets)
        phases = sorted({(o - first) % axis.stride for o in offsets})
        places = tuple((phases.index((o - first) % axis.stride), (o - first) // axis.stride) for o in offsets)
        return cls(first, tuple(phases), places, max((shift for _, shift in places), default=0))


@dataclass(frozen=True, slots=True)
class Stripe:
    """The stripe of a pass, and the area of results, within a sheet of a volume, that one stripe serves."""

    sheets: AxisPass  # of a volume, else one
    rows: AxisPass
    columns: AxisPass
    h: StripeAxis
    w: StripeAxis
    block_rows: int
    row_blocks: int
    block_q: int
    q_blocks: int
    pitch: int
    flattened: bool

    @classmethod
    def of(cls, p: Pass, columns: int, elements: int, vl: int) -> Stripe:
        """Serve about ``columns`` results from at most ``elements`` a channel."""
        sheets, rows, last = (ONE_ROW, ONE_ROW, *p.axes)[-3:]
        h, w = StripeAxis.of(rows), StripeAxis.of(last)
        parts = -(-last.outputs // columns)
        block_q = last.outputs if parts == 1 else -(-last.outputs // (parts * vl)) * vl
        q_blocks = -(-last.outputs // block_q)
        pitch = block_q + w.extra
        in_rows = -(-block_q // vl) * vl
        flattened = q_blocks == 1 and pitch < in_rows
        most = elements // (max(1, len(sheets.offsets)) * len(h.phases) * len(w.phases) * pitch) - h.extra
        most = max(1, min(most, columns // min(pitch, in_rows), rows.outputs))
        row_blocks = -(-rows.outputs // most)
        return cls(
            sheets, rows, last, h, w, -(-rows.outputs // row_blocks), row_blocks, block_q, q_blocks, pitch, flattened,
        )  # fmt: skip

    @property
    def row_phases(self) -> int:
        """Phases of rows, of all sheets that taps reach."""
        return max(1, len(self.sheets.offsets)) * len(self.h.phases)

    @property
    def sheet_rows(self) -> int:
        """Rows of the source in the table of a sheet of results: of each sheet that it reads."""
        rows = (self.rows.outputs - 1 + self.h.extra) * self.rows.stride + self.h.phases[-1] + 1
        return max(1, len(self.sheets.offsets)) * rows

    @property
    def phase_size(self) -> int:
        """Elements of one phase of a channel."""
        return (self.block_rows + self.h.extra) * self.pitch + SLACK

    @property
    def pixels(self) -> int:
        """Numbers in the list of a channel's segments; its pixels follow."""
        return SEGMENT * self.row_phases * len(self.w.phases) * (self.block_rows + self.h.extra)

    @property
    def segments(self) -> int:
        """Numbers in a worker's list."""
        edges = self.row_phases * (self.block_rows + self.h.extra) * len(self.columns.border)
        return self.pixels + 1 + 2 * edges

    @property
    def channel_size(self) -> int:
        """Elements of a channel; a multiple of 4 KB would put the same rows of all channels into one set of L1."""
        return odd_lines(self.row_phases * len(self.w.phases) * self.phase_size, SLACK)

    def stream(self, p: Pass, vl: int) -> bool:
        """Tell whether all runs of results can begin at the same place within a vector of memory."""
        return p.phases == 1 and not self.flattened and p.axes[-1].result % vl == 0

    def slices(self, tile: machine.Tile) -> int:
        """Slices as wide as the tile that a block of results is at most cut into."""
        rows, width = self.block_rows, self.block_q
        if self.flattened:
            rows, width = 1, (rows - 1) * self.pitch + width
        return rows * -(-(width + tile.vl - 1) // (tile.vl * tile.nr))

    def near(self, p: Pass, channels: int, itemsize: int) -> bool:
        """Tell whether blocks that lie within the source can read it in place, so many channels from L1."""
        if p.last or len(p.axes) > 2 or p.phases > 1 or any(a.stride > 1 for a in p.axes):
            return False
        size = prod(a.source for a in p.axes)
        return stays_in_l1(channels * (1 + self.h.extra), size * itemsize)

    def views(self, p: Pass) -> dict[tuple[int, ...], int]:
        """Return where the view of a channel begins that a tap with these source offsets has."""
        found = {}
        for j, sheet in enumerate(self.sheets.offsets):
            for row, (i, down) in zip(self.rows.offsets, self.h.places, strict=False):
                for column, (k, right) in zip(self.columns.offsets, self.w.places, strict=False):
                    phase = (j * len(self.h.phases) + i) * len(self.w.phases) + k
                    begin = phase * self.phase_size + down * self.pitch + right
                    found[(sheet, row, column)[-len(p.axes) :]] = begin
        return found


def tables_of(s: Stripe, pixel: int) -> dict[str, Any]:
    """Return the tables of phases, and of what is read of the source, whose pixels are ``pixel`` apart, and its border."""
    offsets = np.array(s.sheets.offsets or [0])
    count = s.sheet_rows // len(offsets)
    sheets = s.sheets.sources(offsets + s.sheets.stride * np.arange(s.sheets.outputs)[:, None])
    rows = s.rows.sources(s.h.first + np.arange(count))
    return {
        "phase_h": [sheet * count + phase for sheet in range(len(offsets)) for phase in s.h.phases],
        "phase_w": s.w.phases,
        "source_row": combined(sheets.reshape(1, -1), rows.reshape(1, -1), s.rows.source),
        "edges": s.columns.edges([s.w.first + phase for phase in s.w.phases], pixel),
    }


def describe(p: Pass, s: Stripe, itemsize: int, starts: dict[str, int], **blocks: int) -> Array:
    """Put a pass and its stripe into numbers; ``blocks`` are those that the caller has chosen."""
    tile, last, far = machine.tile(itemsize), p.axes[-1], not p.last and streams(p.results, itemsize)
    sizes = prod(a.source for a in p.axes), prod(a.result for a in p.axes)
    (source_channel, source_pixel), (result_channel, result_pixel) = map(p.steps_of, (p.channels, p.m), sizes)
    geometry = Geometry(
        n=p.n, groups=p.groups, channels=p.channels, m=p.m,
        sheets=s.sheets.outputs, p=s.rows.outputs, q=last.outputs, source_h=s.sheets.source * s.rows.source,
        source_w=last.source, source_channel=source_channel, source_pixel=source_pixel, sheet_rows=s.sheet_rows,
        stride_h=s.rows.stride, stride_w=last.stride, first_h=s.h.first, first_w=s.w.first,
        phases_h=s.row_phases, phases_w=len(s.w.phases), split=last.stride == len(s.w.phases) == 2 and source_pixel == 1, stripe_rows=s.block_rows + s.h.extra,
        pitch=s.pitch, phase_size=s.phase_size, channel_size=s.channel_size, block_rows=s.block_rows, block_q=s.block_q, flattened=s.flattened,
        row_blocks=s.row_blocks, q_blocks=s.q_blocks, steps_h=s.sheets.step * s.rows.step, steps_w=last.step,
        phases=p.phases,
        result_w=last.result, result_size=sizes[1], result_channel=result_channel, result_pixel=result_pixel, vl=tile.vl, mr=tile.mr, nr=tile.nr,
        segments=s.segments, pixels=s.pixels, source_row_at=starts["source_row"], edges_at=starts["edges"], phases_at=starts.get("phases", 0), phase_h_at=starts["phase_h"], phase_w_at=starts["phase_w"],
        result_row_at=starts.get("result_row", 0), stream=s.stream(p, tile.vl) and far, past_caches=p.phases > 1 and far,
        **blocks,
    )  # fmt: skip
    return record(geometry)


def chunks_of(p: Pass, tile: machine.Tile, itemsize: int) -> int:
    """Return into how many chunks channels are cut: so that what a slice reads, whole lines of each row, stays in L1.

    At stride 2 that is more than its products: of 3x3 taps three rows of two phases.  128 -> 128 channels, 2 x 56 x 56,
    one thread 3.44 -> 3.22 ms.
    """
    steps = p.channels * prod(p.kernel)
    rows = prod(len(a.offsets) for a in p.axes[:-1])
    slice_bytes = rows * len(StripeAxis.of(p.axes[-1]).phases) * (tile.nr + 1) * tile.vl * itemsize
    near = -(-p.channels * slice_bytes // (machine.machine().l1 // 2))
    most = -(-steps // KC_LEAST) if p.phases == 1 else 1
    return max(-(-steps // KC), min(near, most))


class DensePass(BlockedPass):
    """A pass ready to run; ``cache`` bytes are for a worker's blocks."""

    kernel = correlate

    def __init__(self, p: Pass, itemsize: int, cache: int) -> None:
        tile, cores = machine.tile(itemsize), machine.machine().cores
        super().__init__(p, itemsize)
        taps, phases = prod(p.kernel), p.phases
        chunks = max(1, min(p.channels, chunks_of(p, tile, itemsize)))
        per_chunk = -(-p.channels // chunks)
        # The stripe of a task may fill a third of L2, a chunk of its weights a quarter, and sums another.
        third, quarter = cache // 3 // itemsize, cache // 4 // itemsize
        columns = min(max(min(COLUMNS, third) // phases, third // (p.m * phases)), 8 * COLUMNS)
        s = Stripe.of(p, columns, third // per_chunk, tile.vl)
        ld, panels = tile.nr * tile.vl, -(-p.m // tile.mr)
        kept = s.slices(tile) if chunks > 1 or phases > 1 else 1
        tasks = p.n * p.groups * s.sheets.outputs * s.row_blocks * s.q_blocks
        m_blocks = max(
            -(-p.m * phases * ld * kept // quarter),
            -(-p.m * per_chunk * taps // quarter),
            -(-cores // max(1, tasks)),
        )
        m_blocks = min(panels, m_blocks)
        rows = -(-panels // m_blocks) * tile.mr
        ldc = odd_lines(kept * ld, tile.vl) if phases > 1 else ld
        self.column_blocks = tasks // max(1, p.groups)
        sizes = (
            per_chunk * s.channel_size + ld + SLACK,
            rows * per_chunk * taps + SLACK if self.loads else 0,
            (rows * phases * ldc if phases > 1 else kept * rows * ld) + SLACK,
        )
        panel, c_start, self.scratch = np.cumsum([-(-size // 16) * 16 for size in sizes]).tolist()
        self.segments = s.segments

        def described() -> tuple[Array, Array]:
            steps = phase_tables(p, s.views(p), per_chunk, s.channel_size)
            near = s.near(p, per_chunk, itemsize)
            if near:  # the same views of a channel of the source
                size = prod(a.source for a in p.axes)
                in_place = phase_tables(p, s.views(p), per_chunk, size)
                steps["phases"] += [(taps, steps["steps"].size + at) for taps, at in in_place["phases"]]
                steps["steps"] = np.concatenate([steps["steps"], in_place["steps"]])
            tables, starts = joined(
                **steps,
                **tables_of(s, p.steps_of(p.channels, 0)[1]),
                result_row=combined(s.sheets.pixels, s.rows.pixels, s.rows.result),
            )
            geometry = describe(
                p, s, itemsize, starts, near=near, m_blocks=m_blocks, chunks=chunks, ld=ld, ldc=ldc, panel=panel, c_start=c_start,
                scratch=self.scratch,
            )  # fmt: skip
            return geometry, tables

        self.describe = described
