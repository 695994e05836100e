"""Turning images: from channel by channel, as they come, to pixel by pixel, as a sum over pixels wants them.

A tile that sums over pixels broadcasts one operand and takes vectors of the other (`gathered.py`).  What is
broadcast may stand anywhere; the vectors have to be neighbouring channels of one pixel.  So one operand is
turned on its way into cache, area by area, and what is around the image is put where an area leaves it.
"""

from __future__ import annotations

from fastconv import jit
from fastconv.gemm.move import write_row
from fastconv.gemm.transposition import transpose

CHANNELS = 16  # turned at a time, row after row of an area: whole cache lines are written, few streams read


@jit.inner
def turn_area(to, to0, pitch, pixel, x, x0, channels, h, w, border, row, rows, pairs, edges, column, columns):
    """Set ``to[to0 + i*pitch + j*pixel + c] = x[x0 + (c*h + border[row + i])*w + column + j]``.

    i < rows, j < columns, c < channels; what else a pixel has room for is set to anything.  Outside of the image,
    where a row is -1 as well, stand zeros, and in ``edges`` columns others of it: ``border[pairs:]`` has pairs of
    these columns.
    """
    left, right = min(max(0, -column), columns), max(0, min(columns, w - column))
    for i in range(rows):
        line = to0 + i * pitch
        if border[row + i] >= 0 and left < right:
            to[line : line + left * pixel] = 0
            to[line + right * pixel : line + columns * pixel] = 0
        else:
            to[line : line + columns * pixel] = 0
    for c in range(0, channels, CHANNELS):
        count = min(CHANNELS, channels - c)
        for i in range(rows):
            if border[row + i] >= 0:
                at, line = to0 + i * pitch + c, x0 + (c * h + border[row + i]) * w
                if left < right:
                    transpose(
                        to, at + left * pixel, pixel, x, line + column + left, h * w, count, right - left
                    )
                for pair in range(pairs, pairs + 2 * edges, 2):
                    j = border[pair] - column
                    if 0 <= j < columns:
                        transpose(to, at + j * pixel, pixel, x, line + border[pair + 1], h * w, count, 1)


@jit.inner
def copy_area(
    to, to0, pitch, pixel, x, x0, channels, apart, w, border, row, rows, pairs, edges, column, columns
):  # fmt: skip
    """Set ``to[to0 + i*pitch + j*pixel + c] = x[x0 + (border[row + i]*w + column + j)*apart + c]``: pixels are ``apart``.

    Outside of the image is what `turn_area` has there.
    """
    for i in range(rows):
        at, line = to0 + i * pitch, x0 + border[row + i] * w * apart
        for j in range(columns):
            if border[row + i] >= 0 and 0 <= column + j < w:
                write_row(to, at + j * pixel, x, line + (column + j) * apart, channels)
            else:
                to[at + j * pixel : at + (j + 1) * pixel] = 0
        if border[row + i] >= 0:
            for pair in range(pairs, pairs + 2 * edges, 2):
                j = border[pair] - column
                if 0 <= j < columns:
                    write_row(to, at + j * pixel, x, line + border[pair + 1] * apart, channels)
