"""What the kernel goes by: lists of what is copied, multiplied and added, all in one table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastconv.algorithms.frame.pieces import Piece, wide
from fastconv.gemm.record import record
from fastconv.gemm.segments import SEGMENT
from fastconv.typing import Array

SECONDS = -2  # in place of a pixel: every second one receives
SHORTEST = 4  # pixels side by side that are copied, or added, by vectors
# numbers of an entry of each list
EACH = {
    "segments": SEGMENT,
    "columns": SEGMENT,
    "pixels": 2,
    "sums": 3,
    "pieces": 4,
    "rows": 4,
    "targets": 2,
    "less": 2,
}


class Batch(NamedTuple):
    """Some pieces whose C is held at once; where their tables begin, and how long they are."""

    size: int  # elements of a channel in B
    pitch: int
    segments_at: int
    segments: int
    columns_at: int  # those of pixels below each other, ``pitch`` apart
    columns: int
    pixels_at: int
    pixels: int
    sums_at: int  # (line of B, line that is added to it, how many pixels)
    sums: int
    pieces_at: int  # [piece] -> (taps, where its steps begin, first column, vectors)
    pieces: int
    rows_at: int  # (pixel of the result, column, how many side by side, pixel that they are subtracted from, or -1;
    #             -2 where every second pixel receives)
    rows: int
    targets_at: int  # single ones: (pixel of the result, column)
    targets: int
    less_at: int  #    those that they are subtracted from
    less: int


class Layout(NamedTuple):
    """How a piece is held, and where pixels are."""

    vl: int
    kernel: int
    channels: int  # of a chunk
    pitch: int  # pixels from row to row of grad_output
    source_pixel: int  # elements from pixel to pixel
    result_pixel: int


def size(batch: list[Piece], vl: int) -> int:
    """Return the elements that a channel of a batch takes in B."""
    return sum(len(piece.lines) * _held(piece, vl) for piece in batch)


def _held(piece: Piece, vl: int) -> int:
    """Return the elements of a line of B: the last row's whole vectors may pass its end."""
    return wide(piece.lines.shape[1], vl) + vl


def described(batched: list[list[Piece]], layout: Layout) -> tuple[Array, Array]:
    """Return the batches as the kernel takes them, and all their tables in one."""
    tables: list[int] = []
    found = [record(_tabled(batch, tables, layout)) for batch in batched]
    return np.concatenate(found), np.array(tables, np.int64)


def _tabled(batch: list[Piece], tables: list[int], layout: Layout) -> Batch:
    """Append the tables of a batch; return where they are."""
    vl, pitch, source_pixel, result_pixel = layout.vl, layout.pitch, layout.source_pixel, layout.result_pixel
    lists: dict[str, list[int]] = {name: [] for name in EACH}
    of_channel = size(batch, vl)
    row = column = 0
    for piece in batch:
        taps = np.stack((piece.taps, row + piece.begin), axis=1)
        steps = np.arange(layout.channels)[:, None, None] * (layout.kernel, of_channel) + taps
        count = wide(len(piece.targets), vl)
        lists["pieces"] += [len(taps), len(tables), column, count // vl]
        tables += steps.reshape(-1).tolist()
        first = row
        for line in piece.lines:
            apart = mostly(line, pitch)
            for place, pixel, length in runs(line, apart):
                to, at = row + place, pixel * source_pixel
                if pixel < 0:
                    lists["segments"] += [to, 0, length, 0, 0]
                elif length >= SHORTEST:
                    lists["columns" if apart > 1 else "segments"] += [to, at, length, 0, length]
                else:
                    for j in range(length):
                        lists["pixels"] += [to + j, at + j * apart * source_pixel]
            if row > first:
                lists["sums"] += [first, row, len(line)]
            row += _held(piece, vl)
        apart = mostly(piece.targets, 2)
        for place, pixel, length in runs(piece.targets, apart):
            if length >= SHORTEST and result_pixel == 1 and not (apart == 2 and piece.back):
                other = pixel - piece.back if piece.back else -1
                lists["rows"] += [pixel, column + place, length, SECONDS if apart == 2 else other]
                continue
            for j in range(length):
                to, at = pixel + j * apart, column + place + j
                lists["targets"] += [to * result_pixel, at]
                lists["less"] += [(to - piece.back) * result_pixel, at] if piece.back else []
        column += count
    places: dict[str, int] = {}
    for name, values in lists.items():
        places |= {f"{name}_at": len(tables), name: len(values) // EACH[name]}
        tables += values
    return Batch(size=of_channel, pitch=pitch, **places)


def runs(line: Array, apart: int = 1) -> list[tuple[int, int, int]]:
    """Return (place, pixel, how many) of pixels that stand side by side, or so far apart, and of zeros (-1)."""
    zero = line < 0
    goes_on = (np.diff(line) == np.where(zero[1:], 0, apart)) & (zero[1:] == zero[:-1])
    begin = np.flatnonzero(np.r_[True, ~goes_on])
    count = np.diff(np.r_[begin, len(line)])
    return list(zip(begin.tolist(), line[begin].tolist(), count.tolist(), strict=True))


def mostly(line: Array, apart: int) -> int:
    """Return ``apart`` if pixels of a line mostly stand so far apart, else 1."""
    return apart if 2 * np.count_nonzero(np.diff(line) == apart) > len(line) else 1
