"""The steps of a pass over one map, as tables that `taps` walks: blocks of rows by chunks of taps.

Rows and taps fall into lattices on which they look like a convolution of stride and dilation 1.  With
g = gcd(stride, dilation), steps of e = dilation / g between rows and of m = stride / g between taps::

    row p = rho + e*j,  tap r = f + m*t   read row   origin + rho*stride + f*dilation + lcm*(j + t)

so one micro-kernel serves all: a block is up to eight rows of one rho, a chunk up to seven taps of one f.
A stride of 2 has a family of its own, where row j and tap t read row 2*j + t and chunks are of neighbours.

Columns need no lattice.  Each tap is an offset from the column of the output, in the image itself where its
stride is that of the family, else in a copy of the block's rows (see `Copy`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from fastconv.algorithms.base import Array, equalised
from fastconv.algorithms.direct.depthwise.taps import STEP, most_rows, most_taps


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


def row_blocks(rows: Rows, source: Sequence[int], step: int, phases: int) -> Iterator[Block]:
    """Cut rows into blocks; ``source[i]`` is the row of memory that row i of the source is, or -1."""
    if step == 1:
        e, m, lcm = lattice(rows.taps, rows.stride, rows.dilation)
    else:
        e, m, lcm = lattice(rows.taps, 1, rows.dilation)
    for rho in range(min(e, rows.count)):
        for j, height in equalised(-(-(rows.count - rho) // e), most_rows(phases)):
            chunks = []
            for f in range(min(m, rows.taps)):
                for t, tall in equalised(-(-(rows.taps - f) // m), most_taps()):
                    first = rows.origin + rho * rows.stride + f * rows.dilation + lcm * (step * j + t)
                    reads = (first + lcm * i for i in range(step * (height - 1) + tall))
                    memory = tuple(source[i] if 0 <= i < len(source) else -1 for i in reads)
                    chunks.append(Chunk(rows.tap + rows.turn * (f + m * t), rows.turn * m, tall, memory))
            met = [chunk for chunk in chunks if max(chunk.reads) >= 0]
            nothing = [Chunk(0, 0, 1, (-1,) * (step * (height - 1) + 1))]  # writes zeros
            first_row = rows.start + rows.spacing * (rho + e * j)
            yield Block(first_row, rows.spacing * e, height, tuple(met or nothing))


@dataclass(frozen=True, slots=True)
class Tap:
    """A column of taps: how far from the output it reads, its weight's place in a row, and its map's in memory."""

    offset: int
    weight: int
    plane: int = 0


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

    def blocks(self, vl: int, once: bool) -> list[list[int]]:
        """Return, for each vector q, its first column, the lanes to store, and for each tap those to load.

        The last vector reaches back over columns that are done, and writes them again if that is all that is
        written; lanes that are added to in several steps belong to one vector.
        """
        phases = len(self.taps)
        count = -(-self.width // phases)
        last = max(0, count - vl)
        found = []
        for q in sorted({*range(0, last, vl), last}):
            lanes = min(vl, count - q)
            done = 0 if once or not found else found[-1][0] + vl - q
            masks = [_bits(phases * lanes, phases * done, self.width - phases * q)]
            for phase in self.taps:
                for tap in phase:
                    first = self.stride * q + tap.offset
                    masks.append(_bits(self.stride * (lanes - 1) + 1, -first, self.source - first))
            found.append([q, *masks])
        return found


def _bits(count: int, lo: int, hi: int) -> int:
    """Return the number whose bits i < count with lo <= i < hi are set.

    >>> bin(_bits(4, 1, 9))
    '0b1110'
    """
    lo, hi = max(0, lo), min(count, hi)
    return (1 << hi) - (1 << lo) if lo < hi else 0


@dataclass(frozen=True, slots=True)
class Band:
    """Where the tables of some columns are in a schedule."""

    columns: Columns
    blocks: list[list[int]]
    first_column: int
    first_block: int

    def runs(self, along: bool, stride: int, vl: int) -> Iterator[tuple[int, int, int]]:
        """List (first block, blocks, rows): all together; or, ``along`` a row, whole ones as if they were rows.

        A row of taps that meets one row of outputs shares nothing; as many independent sums as there would be rows
        come from vectors side by side.
        """
        if not along:
            yield 0, len(self.blocks), 1
            return
        phases = len(self.columns.taps)
        full = [phases * vl] + [stride * (vl - 1) + 1] * sum(len(phase) for phase in self.columns.taps)
        i = 0
        while i < len(self.blocks):
            j = i
            while (
                j < len(self.blocks)
                and j - i < most_rows(phases)
                and self.blocks[j][0] == self.blocks[i][0] + vl * (j - i)
                and self.blocks[j][1:] == [(1 << count) - 1 for count in full]
            ):
                j += 1
            yield i, 1, max(1, j - i)
            i = max(j, i + 1)


class Schedule:
    """The tables of the steps of a pass."""

    def __init__(self, vl: int, stride: int, pitch: int, kernel: int) -> None:
        """``stride`` of the family; ``pitch`` of rows of the source, ``kernel`` of rows of the weight."""
        self.vl, self.stride, self.pitch, self.kernel = vl, stride, pitch, kernel
        self.steps: list[int] = []
        self.rows: list[int] = []
        self.blocks: list[int] = []
        self.columns: list[int] = []

    def band(self, columns: Columns, once: bool) -> Band:
        """Add the tables of columns, for blocks that are written ``once``, by one chunk each."""
        band = Band(columns, columns.blocks(self.vl, once), len(self.columns), len(self.blocks))
        self.columns += columns.table()
        self.blocks += [n for block in band.blocks for n in block]
        return band

    def add(self, block: Block, band: Band, out: int, ldo: int) -> None:
        """Add the steps that complete a block of rows, at ``out`` of the result and ``ldo`` apart."""
        phases, vl = [len(phase) for phase in band.columns.taps], self.vl
        along = block.height == 1 and len(block.chunks) == 1 and block.chunks[0].tall == 1
        for i, chunk in enumerate(block.chunks):
            reads = [row * self.pitch if row >= 0 else -1 for row in chunk.reads]
            for first, blocks, rows in band.runs(along and reads[0] >= 0, self.stride, vl):
                height = rows if along else block.height
                if along and height > 1:
                    step = self.stride  # row j of a family of stride 2 reads entry 2*j
                    reads = [reads[0] + vl * j * (j % step == 0) for j in range(step * (height - 1) + 1)]
                fields = {
                    "out": out, "ldo": vl * len(phases) if along else ldo, "height": height, "tall": chunk.tall,
                    "rows": len(self.rows), "weight": chunk.tap * self.kernel,
                    "row_step": chunk.step * self.kernel, "more": int(i > 0),
                    "block": band.first_block + first * (2 + sum(phases)), "blocks": blocks,
                    "column": band.first_column, "middle": phases[0], "end": sum(phases), "pitch": self.pitch,
                }  # fmt: skip
                self.steps += [fields[name] for name in STEP]
                self.rows += reads

    @property
    def length(self) -> int:
        """Number of steps."""
        return len(self.steps) // len(STEP)

    def tables(self) -> list[Array]:
        """Return steps, rows, blocks and columns as kernels take them."""
        return [np.array(t, np.int64) for t in (self.steps, self.rows, self.blocks, self.columns)]
