"""Rows of a pass: blocks of rows of a result, each with the chunks of taps that it meets.

Rows and taps fall into lattices on which they look like a convolution of stride and dilation 1.  With
g = gcd(stride, dilation), steps of e = dilation / g between rows and of m = stride / g between taps::

    row p = rho + e*j,  tap r = f + m*t   read row   origin + rho*stride + f*dilation + lcm*(j + t)

so one micro-kernel serves all: a block is some rows of one rho, a chunk some taps of one f, as many as
`taps.tallest` and `taps.most_taps` say.
A stride of 2 has a family of its own, where row j and tap t read row 2*j + t and chunks are of neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd

from fastconv.algorithms.base import equalised


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
