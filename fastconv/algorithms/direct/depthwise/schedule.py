"""The steps of a pass over one map, as tables that `taps` walks: blocks of rows (`rows`) by vectors of columns (`columns`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fastconv.algorithms.direct.depthwise.columns import Columns, Group
from fastconv.algorithms.direct.depthwise.rows import Block, Chunk
from fastconv.algorithms.direct.depthwise.taps import ENTRY, STEP, TAP, most_rows
from fastconv.typing import Array


@dataclass(frozen=True, slots=True)
class Band:
    """Where the entries of some vectors of columns are in a schedule, each of ``size`` numbers."""

    columns: Columns
    entries: list[list[int]]
    first: int
    size: int


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks of columns that one step takes, and how many rows; ``along`` a row if these are vectors of it."""

    block: int
    blocks: int
    height: int
    along: bool


class Schedule:
    """The tables of the steps of a pass."""

    def __init__(self, vl: int, stride: int, pitch: int, kernel: int) -> None:
        """``stride`` of the family; ``pitch`` of rows of the source, ``kernel`` of rows of the weight."""
        self.vl, self.stride, self.pitch, self.kernel = vl, stride, pitch, kernel
        self.steps: list[int] = []
        self.rows: list[int] = []
        self.blocks: list[int] = []
        self.columns: list[int] = []

    def band(self, columns: Columns, groups: Sequence[Group], some: slice = slice(None)) -> Band:
        """Add the tables of some vectors of columns, or of ``some`` of what they read."""
        places: dict[tuple[object, ...], int] = {}
        entries = []
        for vectors, all_reads in groups:
            reads = [phase[some] for phase in all_reads]
            taps = tuple([(r.offset, r.weights[0][0], r.weights[1:]) for phase in reads for r in phase])
            if taps not in places:
                places[taps] = len(self.columns)
                self._list(taps)
            entry = columns.entry(vectors[0], self.vl, places[taps], reads)
            entries += [[q, *entry[1:]] for q in vectors]
        size = max(map(len, entries), default=0)
        band = Band(columns, entries, len(self.blocks), size)
        for entry in entries:
            self.blocks += entry + [0] * (size - len(entry))
        return band

    def _list(self, taps: Sequence[tuple[int, int, Sequence[tuple[int, int]]]]) -> None:
        """Add a table of taps, each with the place of the further weights of some lanes, their number first."""
        further: list[int] = []
        at = len(self.columns) + TAP * len(taps)
        for offset, weight, weights in taps:
            self.columns += [offset, weight, at + len(further)]
            further += [len(weights), *(n for pair in weights for n in pair)] if weights else []
        self.columns += further

    def add(self, block: Block, band: Band, out: int, ldo: int, more: bool = False) -> None:
        """Add the steps that complete a block of rows, at ``out`` of the result and ``ldo`` apart, or add ``more``."""
        phases = len(band.columns.taps)
        for i, chunk in enumerate(block.met):
            for run, reads in self.runs(block, chunk, band, most_rows(phases)):
                fields = {
                    "out": out, "ldo": self.vl * phases if run.along else ldo, "height": run.height,
                    "tall": chunk.tall, "rows": reads, "weight": chunk.tap * self.kernel,
                    "row_step": chunk.step * self.kernel, "more": int(more or i > 0), "block": run.block,
                    "blocks": run.blocks, "entry": band.size, "pitch": self.pitch,
                }  # fmt: skip
                self.steps += [fields[name] for name in STEP]

    def runs(self, block: Block, chunk: Chunk, band: Band, most: int) -> Iterator[tuple[Run, int]]:
        """List the runs of a chunk, each with the place of its rows, which are added to the tables.

        A row of taps that meets one row of outputs shares nothing; as many independent sums as there would be rows,
        ``most`` of them, come from vectors side by side.
        """
        reads = [row * self.pitch if row >= 0 else -1 for row in chunk.reads]
        entries, size = band.entries, band.size
        if block.height > 1 or chunk.tall > 1 or len(block.chunks) > 1 or reads[0] < 0:
            self.rows += reads
            yield Run(band.first, len(entries), block.height, False), len(self.rows) - len(reads)
            return
        stored = (1 << len(band.columns.taps) * self.vl) - 1
        every = band.columns.spread((1 << self.vl) - 1)
        i = 0
        while i < len(entries):
            lanes, masks = entries[i][1], entries[i][ENTRY:]
            whole = lanes == stored and all(mask & every == every for mask in masks)
            j = i + 1
            while (
                whole and j < min(len(entries), i + most) and entries[i][1:] == entries[j][1:]
                and entries[j][0] == entries[i][0] + self.vl * (j - i)
            ):  # fmt: skip
                j += 1
            # row j of a family of stride 2 reads entry 2*j
            beside = range(self.stride * (j - i - 1) + 1)
            self.rows += [reads[0] + self.vl * part for part in beside]
            yield Run(band.first + i * size, 1, j - i, True), len(self.rows) - len(beside)
            i = j

    @property
    def length(self) -> int:
        """Number of steps."""
        return len(self.steps) // len(STEP)

    def tables(self) -> list[Array]:
        """Return steps, rows, blocks and columns as kernels take them."""
        return [np.array(t, np.int64) for t in (self.steps, self.rows, self.blocks, self.columns)]
