"""The steps of a pass over one map, as tables that `taps` walks: blocks of rows by chunks of taps.

Rows and taps fall into lattices on which they look like a convolution of stride and dilation 1.  With
g = gcd(stride, dilation), steps of e = dilation / g between rows and of m = stride / g between taps::

    row p = rho + e*j,  tap r = f + m*t   read row   origin + rho*stride + f*dilation + lcm*(j + t)

so one micro-kernel serves all: a block is up to eight rows of one rho, a chunk up to seven taps of one f.
A stride of 2 has a family of its own, where row j and tap t read row 2*j + t and chunks are of neighbours.

Columns need no lattice.  Each tap is an offset from the column of the output, in the image itself where its
stride is that of the family, else in a copy of the block's rows (see `shape.Image`).

Where borders repeat the image, a column near them reads pixels by taps that are not those that lie there among
zeros, mostly of its own neighbours: reflected at the left, the first column reads its right neighbour by the first
tap and by the last.  So a vector's taps are offsets, of which lanes may have weights of several taps, which are
added before they multiply.  An offset that is no tap's, as from the other end of a row (circular), is a tap of these lanes alone.
Every vector has its own list of taps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import equalised
from fastconv.algorithms.direct.depthwise.taps import ENTRY, SEVERAL, STEP, TAP, most_rows
from fastconv.typing import Array


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
    rows: Rows, source: Sequence[int], step: int, most_rows: Callable[[int, int], int], most_taps: int
) -> Iterator[Block]:
    """Cut rows into blocks; ``source[i]`` is the row of memory that row i of the source is, or -1.

    ``most_rows`` tells how high a block may be, by how many rows there are and the fewest taps of a chunk.
    """
    if step == 1:
        e, m, lcm = lattice(rows.taps, rows.stride, rows.dilation)
    else:
        e, m, lcm = lattice(rows.taps, 1, rows.dilation)
    taps = [
        (f, *cut) for f in range(min(m, rows.taps)) for cut in equalised(-(-(rows.taps - f) // m), most_taps)
    ]
    fewest = min((tall for _, _, tall in taps), default=0)
    size = len(source)
    for rho in range(min(e, rows.count)):
        count = -(-(rows.count - rho) // e)
        for j, height in equalised(count, most_rows(count, fewest)):
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
    columns: range  # of its phase, that read a pixel by it
    plane: int = 0
    more: bool = False  # pixels that a border repeats, for columns whose other taps may read them as well


class Read(NamedTuple):
    """What a vector of columns reads at an offset: lanes to load, as kernels take them, and (weight, lanes of columns)."""

    offset: int
    lanes: int
    weights: tuple[tuple[int, int], ...]


class Group(NamedTuple):
    """Vectors that read alike, each by its first column, and what they read for each phase."""

    vectors: list[int]
    reads: list[list[Read]]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of the source the columns of a result read.

    Column ``phases*q + f`` of the result, f < phases, reads ``stride*q + offset`` for the taps of phase f.
    """

    width: int
    stride: int
    taps: tuple[tuple[Tap, ...], ...]

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

    def groups(self, vl: int, overlap: bool) -> list[Group]:
        """Return all vectors with what they read: those inside the image together, each of the others alone."""
        single = {q for phase in self.taps for tap in phase if tap.more for q in tap.columns}
        most = [tap.columns for phase in self.taps for tap in phase if not tap.more]
        first, end = (
            max((some.start for some in most), default=0),
            min((some.stop for some in most), default=0),
        )
        found: dict[int, list[int]] = {}
        for q in self.vectors(vl, overlap):
            inside = (
                len(self.taps) * (q + vl) <= self.width and first <= q <= end - vl
                and single.isdisjoint(range(q, q + vl))
            )  # fmt: skip
            found.setdefault(-1 if inside else q, []).append(q)
        return [Group(alike, self._reads(alike[0], vl)) for alike in found.values()]

    def _reads(self, q: int, vl: int) -> list[list[Read]]:
        """Return what columns q .. q + vl - 1 of each phase read; weights of one offset are together."""
        return [self._of_phase(phase, q, min(vl, self.count - q)) for phase in self.taps]

    def _of_phase(self, phase: tuple[Tap, ...], q: int, lanes: int) -> list[Read]:
        loaded: dict[tuple[int, ...], int] = {}
        weights: dict[tuple[int, ...], dict[int, int]] = {}
        for tap in phase:
            key: tuple[int, ...] = tap.plane, tap.offset
            met = _bits(lanes, tap.columns.start - q, tap.columns.stop - q)
            if tap.more and not met:
                continue
            if tap.more and key not in loaded:  # no tap of all columns
                key = *key, tap.weight
            loaded[key] = loaded.get(key, 0) | self.spread(met)
            of_lanes = weights.setdefault(key, {})
            of_lanes[tap.weight] = of_lanes.get(tap.weight, 0) | met
        return [
            Read(key[0] + key[1], loaded[key], tuple(of_lanes.items())) for key, of_lanes in weights.items()
        ]

    def spread(self, lanes: int) -> int:
        """Return the lanes that are loaded for some lanes of columns."""
        return int(f"{lanes:b}", 2**self.stride)

    def entry(self, q: int, vl: int, table: int, reads: Sequence[Sequence[Read]]) -> list[int]:
        """Return what kernels read for a vector: ENTRY, then for each of ``reads`` the lanes to load."""
        phases, lanes = len(self.taps), min(vl, self.count - q)
        masks = [
            read.lanes | (read.weights[0][1] << 32 if self.stride > 1 else 0) | -(len(read.weights) > 1) & SEVERAL
            for phase in reads for read in phase
        ]  # fmt: skip
        stored = _bits(phases * lanes, 0, self.width - phases * q)
        return [q, stored, table, len(reads[0]), len(masks), *masks]


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
