"""The steps of a pass over one map, as tables that `taps` walks: blocks of rows by chunks of taps.

Rows and taps fall into lattices on which they look like a convolution of stride and dilation 1.  With
g = gcd(stride, dilation), steps of e = dilation / g between rows and of m = stride / g between taps::

    row p = rho + e*j,  tap r = f + m*t   read row   origin + rho*stride + f*dilation + lcm*(j + t)

so one micro-kernel serves all: a block is up to eight rows of one rho, a chunk up to seven taps of one f.
A stride of 2 has a family of its own, where row j and tap t read row 2*j + t and chunks are of neighbours.

Columns need no lattice.  Each tap is an offset from the column of the output, in the image itself where its
stride is that of the family, else in a copy of the block's rows (see `Copy`).

Where borders repeat the image, a column near them reads pixels that are not its neighbours: each by a tap of that
column alone.  Every vector of columns has its own list of taps, so that those in the middle of a row have none of
these: on rows of 56 pixels, 14 products of a vector and a tap of a row of 3 instead of 12.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from fastconv.algorithms.base import Array, equalised
from fastconv.algorithms.direct.depthwise.taps import ENTRY, STEP, most_rows


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of the source the rows of a result read.

    Row i < count of the result, its row ``start + spacing*i``, reads by tap u < taps the source row
    ``origin + stride*i + dilation*u``; the weights of tap u are row ``tap + turn*u`` of the kernel.
    """

    count: int
    taps: int
    origin: int
    stride: int = 1
    dilation: int = 1
    start: int = 0
    spacing: int = 1
    tap: int = 0
    turn: int = 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Taps ``tap + step*t``, t < tall, and the source rows that they and the rows of a block meet."""

    tap: int
    step: int
    tall: int
    reads: tuple[int, ...]  # -1 where there is none


@dataclass(frozen=True, slots=True)
class Block:
    """Rows ``row + spacing*j``, j < height, of a result."""

    row: int
    spacing: int
    height: int
    chunks: tuple[Chunk, ...]

    @property
    def met(self) -> tuple[Chunk, ...]:
        """The chunks that meet a row of the source, or one that writes zeros."""
        return tuple(chunk for chunk in self.chunks if max(chunk.reads) >= 0) or self.chunks[:1]

    def copied(self) -> tuple[Block, list[int]]:
        """Return the block as it reads a copy of its rows, and which these are."""
        read = sorted({row for chunk in self.chunks for row in chunk.reads if row >= 0})
        place = {-1: -1} | {row: i for i, row in enumerate(read)}
        chunks = (replace(chunk, reads=tuple(place[row] for row in chunk.reads)) for chunk in self.chunks)
        return replace(self, chunks=tuple(chunks)), read


def lattice(kernel: int, stride: int, dilation: int) -> tuple[int, int, int]:
    """Return e, m and lcm; the only tap of a kernel of one shares no row whatever the steps."""
    if kernel == 1:
        return 1, 1, stride
    g = gcd(stride, dilation)
    return dilation // g, stride // g, stride * dilation // g


def row_blocks(
    rows: Rows, source: Sequence[int], step: int, most_rows: int, most_taps: int
) -> Iterator[Block]:
    """Cut rows into blocks; ``source[i]`` is the row of memory that row i of the source is, or -1."""
    if step == 1:
        e, m, lcm = lattice(rows.taps, rows.stride, rows.dilation)
    else:
        e, m, lcm = lattice(rows.taps, 1, rows.dilation)
    taps = [
        (f, *cut) for f in range(min(m, rows.taps)) for cut in equalised(-(-(rows.taps - f) // m), most_taps)
    ]
    size = len(source)
    for rho in range(min(e, rows.count)):
        for j, height in equalised(-(-(rows.count - rho) // e), most_rows):
            chunks = []
            for f, t, tall in taps:
                first = rows.origin + rho * rows.stride + f * rows.dilation + lcm * (step * j + t)
                reads = range(first, first + lcm * (step * (height - 1) + tall), lcm)
                memory = tuple([source[i] if 0 <= i < size else -1 for i in reads])
                chunks.append(Chunk(rows.tap + rows.turn * (f + m * t), rows.turn * m, tall, memory))
            chunks = chunks or [Chunk(0, 0, 1, (-1,) * (step * (height - 1) + 1))]  # writes zeros
            first_row = rows.start + rows.spacing * (rho + e * j)
            yield Block(first_row, rows.spacing * e, height, tuple(chunks))


@dataclass(frozen=True, slots=True)
class Tap:
    """A column of taps: how far from the output it reads, its weight's place in a row, and its map's in memory."""

    offset: int
    weight: int
    plane: int = 0
    only: int | None = None  # the one column of its phase that reads by it


Read = tuple[int, int | None]  # what tells the lanes of taps apart: their offset and their only column


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of the source the columns of a result read.

    Column ``phases*q + f`` of the result, f < phases, reads ``stride*q + offset`` for the taps of phase f,
    if that is within 0 .. source - 1.
    """

    width: int
    source: int
    stride: int
    taps: tuple[tuple[Tap, ...], ...]

    def table(self) -> list[int]:
        """Return offsets in memory and places of weights, of all phases in a row."""
        return [n for phase in self.taps for tap in phase for n in (tap.plane + tap.offset, tap.weight)]

    def vectors(self, vl: int, overlap: bool) -> list[int]:
        """Return the first column of each vector, counted within a phase.

        The last vector may reach back over columns that are done, where writing them again does no harm.
        """
        last = max(0, self.count - vl)
        return sorted({*range(0, last, vl), last}) if overlap else list(range(0, self.count, vl))

    @property
    def count(self) -> int:
        """Columns of the first phase, which has the most."""
        return -(-self.width // len(self.taps))

    def of(self, q: int, vl: int) -> Columns:
        """Return the columns with those taps alone by which some of q .. q + vl - 1 read."""
        met = (tuple(t for t in phase if t.only is None or q <= t.only < q + vl) for phase in self.taps)
        return replace(self, taps=tuple(met))

    def reads(self) -> list[Read]:
        """Return what each tap reads."""
        return [(tap.offset, tap.only) for phase in self.taps for tap in phase]

    def entry(self, q: int, vl: int, table: int, taps: Sequence[Read]) -> list[int]:
        """Return what kernels read for a vector: ENTRY, then for each of ``taps`` the lanes to load."""
        phases, lanes = len(self.taps), min(vl, self.count - q)
        numbers = [q, _bits(phases * lanes, 0, self.width - phases * q), table, len(self.taps[0])]
        masks = {}
        for offset, only in set(taps):  # those of other channels are the same
            first = self.stride * q + offset
            mask = _bits(self.stride * (lanes - 1) + 1, -first, self.source - first)
            met = _bits(lanes, -(first // self.stride), -((first - self.source) // self.stride))
            if only is not None:
                mask, met = mask & 1 << self.stride * (only - q), met & 1 << only - q
            masks[offset, only] = mask | (met << 32 if self.stride > 1 else 0)
        return [*numbers, len(taps), *(masks[tap] for tap in taps)]


def _bits(count: int, lo: int, hi: int) -> int:
    """Return the number whose bits i < count with lo <= i < hi are set.

    >>> bin(_bits(4, 1, 9))
    '0b1110'
    """
    lo, hi = max(0, lo), min(count, hi)
    return (1 << hi) - (1 << lo) if lo < hi else 0


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

    def band(self, columns: Columns, vectors: Sequence[int]) -> Band:
        """Add the tables of the vectors of columns that begin at these."""
        single = [tap.only for phase in columns.taps for tap in phase if tap.only is not None]
        places: dict[tuple[int, ...], tuple[Columns, int, Sequence[Read]]] = {}
        entries = []
        for q in vectors:
            met = tuple([i for i, only in enumerate(single) if q <= only < q + self.vl])
            if met not in places:
                read = columns.of(q, self.vl)
                places[met] = read, len(self.columns), read.reads()
                self.columns += read.table()
            read, place, reads = places[met]
            entries.append(read.entry(q, self.vl, place, reads))
        size = max(map(len, entries), default=0)
        band = Band(columns, entries, len(self.blocks), size)
        for entry in entries:
            self.blocks += entry + [0] * (size - len(entry))
        return band

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
        stored, loaded = len(band.columns.taps) * self.vl, self.stride * (self.vl - 1) + 1
        i = 0
        while i < len(entries):
            lanes, masks = entries[i][1], entries[i][ENTRY:]
            every = (1 << loaded) - 1
            whole = lanes == (1 << stored) - 1 and all(mask & every == every for mask in masks)
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
