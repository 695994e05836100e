"""Which tiles a vector holds, and where their pixels are: as many tiles as it has lanes, one row after the other.

Of maps of 28 x 28 pixels a row has seven tiles of 4 x 4, so a *strip* of sixteen holds more than two rows of them; of
7 x 7 eight rows, through images as they follow each other.  A strip is transformed at once, its pixels by a table:
each vector of them is put together from *pieces*, runs of neighbours in a line of the image.  Lanes that no
piece fills are zeros; pixels that a border repeats are pieces of one.

    a vector of pixels    how many pieces, then of each  (line, column in it of the first lane, lanes as bits)

Where a strip begins in a row repeats itself: in the case of seven tiles after seven strips.  A long row has tiles of zeros
at its end (`row_of_tiles`), as its strips would else repeat themselves too late: 10,543 tiles after as many strips.
"""

from __future__ import annotations

from itertools import chain, islice
from math import gcd
from typing import NamedTuple

import numpy as np

from fastconv.typing import Array


class Strips(NamedTuple):
    """A round of strips until one begins with a row again: of each lane, by [strip, lane]."""

    rows: Array  # which of the rows of tiles that the strip touches
    places: Array  # which tile of it
    ends: Array  # whether the next lane is not the next tile of it

    @classmethod
    def of(cls, tiles: int, vl: int) -> Strips:
        """Cut rows of ``tiles`` tiles for vectors of ``vl`` lanes."""
        numbers = np.arange(tiles // gcd(tiles, vl) * vl).reshape(-1, vl)
        rows, places = np.divmod(numbers, tiles)
        ends = places == tiles - 1
        ends[:, -1] = True
        return cls(rows - rows[:, :1], places, ends)

    @property
    def touched(self) -> Array:
        """How many rows each strip touches."""
        return self.rows[:, -1] + 1


def row_of_tiles(tiles: int, vl: int) -> int:
    """Return the tiles of a row, up to 1/32 more than needed, for the largest part of a vector that divides them."""
    while -tiles % vl > tiles // 32:
        vl //= 2
    return -(-tiles // vl) * vl


class Row(NamedTuple):
    """How tiles read the pixels of a line."""

    m: int  #      positions of a tile
    taps: int
    stride: int  # pixels from position to position
    # of each of them that is read, as a line of its own, how many taps it lacks at the end
    lacking: tuple[int, ...]


def lanes(chosen: Array) -> int:
    """Return lanes as bits."""
    return int(chosen @ (1 << np.arange(len(chosen))))


def sources(strips: Strips, row: Row, high: int, columns: Array, masks: list[list[int]]) -> list[list[int]]:
    """Return the table of each strip: rows, ``ends`` as bits, ``masks``, the vectors of pixels; of tiles ``high`` lines are read.

    ``columns`` tells of each pixel of a padded line its column in the image, or -1.  First come the pixels in
    which tiles begin, ``m * stride`` of each; then those that the tiles at ``ends`` would share with a next one.
    """
    step = row.m * row.stride
    rows, pixels = _dense(strips, step)
    next_tile = [
        (strips.places + 1) * step + beyond * row.stride + phase
        for beyond in range(row.taps - 1)
        for phase, lack in enumerate(row.lacking)
        if beyond < row.taps - 1 - lack
    ]
    found = [columns[pixels]] + [np.where(strips.ends, columns[p], -1)[:, None] for p in next_tile]
    rows = np.concatenate([rows] + [strips.rows[:, None]] * len(next_tile), axis=1)
    tables = _pieces(rows * high, np.concatenate(found, axis=1))
    ends = map(lanes, strips.ends)
    return [
        [touched, end, *mask, *table]
        for touched, end, mask, table in zip(strips.touched, ends, masks, tables, strict=True)
    ]


def results(strips: Strips, step: int, size: int, masks: list[list[int]]) -> list[list[int]]:
    """Return the table of each strip: rows, ``masks``, the vectors of results, ``step`` of ``size`` columns a tile."""
    rows, pixels = _dense(strips, step)
    tables = _pieces(rows, np.where(pixels < size, pixels, -1))
    return [
        [touched, *mask, *table] for touched, mask, table in zip(strips.touched, masks, tables, strict=True)
    ]


def _dense(strips: Strips, step: int) -> tuple[Array, Array]:
    """Return row and pixel of each lane [strip, vector, lane] of ``step`` pixels for each tile, one after the other."""
    rows = np.repeat(strips.rows, step, axis=1)
    pixels = np.repeat(strips.places * step, step, axis=1) + np.arange(step * strips.rows.shape[1]) % step
    shape = len(rows), step, -1
    return rows.reshape(shape), pixels.reshape(shape)


def _pieces(rows: Array, columns: Array) -> list[list[int]]:
    """Return the vectors [strip, vector, lane] of pixels (row, column), none where that is -1, in pieces."""
    filled = columns >= 0
    follows = np.zeros_like(filled)
    follows[..., 1:] = (np.diff(rows) == 0) & (np.diff(columns) == 1) & filled[..., :-1]
    begins = filled & ~follows
    ends = filled.copy()
    ends[..., :-1] &= ~(follows & filled)[..., 1:]
    at = np.nonzero(begins)
    first, last = at[-1], np.nonzero(ends)[-1]
    pieces = np.stack([rows[at], columns[at] - first, (2 << last) - (1 << first)], axis=1)
    found = iter(pieces.tolist())
    tables = []
    for strip in begins.sum(axis=-1).tolist():
        tables.append(table := [])
        for count in strip:
            table += [count, *chain(*islice(found, count))]
    return tables
