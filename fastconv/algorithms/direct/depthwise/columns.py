"""Columns of a pass: what each vector of a row of results reads.

Columns need no lattice.  Each tap is an offset from the column of the output, in the image itself where its
stride is that of the family, else in a copy of the block's rows (see `image`).

Where borders repeat the image, a column near them reads pixels by taps that are not those that lie there among
zeros, mostly of its own neighbours: reflected at the left, the first column reads its right neighbour by the first
tap and by the last.  So a vector's taps are offsets, of which lanes may have weights of several taps, which are
added before they multiply.  An offset that is no tap's, as from the other end of a row (circular), is a tap of these lanes alone.
Every vector has its own list of taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastconv.algorithms.direct.depthwise.taps import SEVERAL


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
