"""Turning images: from channel by channel, as they come, to pixel by pixel, as a sum over pixels wants them.

A tile that sums over pixels broadcasts one operand and takes vectors of the other (`gathered.py`).  What is
broadcast may stand anywhere; the vectors have to be neighbouring channels of one pixel.  So one operand is
turned on its way into cache, area by area, and zeros are put around it where an area leaves the image.
"""

from __future__ import annotations

from fastconv import jit
from fastconv.gemm.move import transpose

CHANNELS = 16  # turned at a time, row after row of an area: whole cache lines are written, few streams read


@jit.inner
def turn_area(to, to0, pitch, pixel, x, x0, channels, h, w, row, rows, column, columns):
    """Set ``to[to0 + i*pitch + j*pixel + c] = x[x0 + (c*h + row + i)*w + column + j]``, zero outside of the image.

    i < rows, j < columns, c < channels; what else a pixel has room for is set to anything.
    """
    first, last = min(max(0, -row), rows), max(0, min(rows, h - row))
    left, right = min(max(0, -column), columns), max(0, min(columns, w - column))
    for i in range(rows):
        line = to0 + i * pitch
        if first <= i < last and left < right:
            to[line : line + left * pixel] = 0
            to[line + right * pixel : line + columns * pixel] = 0
        else:
            to[line : line + columns * pixel] = 0
    if left < right:
        for c in range(0, channels, CHANNELS):
            source = x0 + (c * h + row) * w + column + left
            at = to0 + left * pixel + c
            for i in range(first, last):
                transpose(
                    to, at + i * pitch, pixel, x, source + i * w, h * w, min(CHANNELS, channels - c),
                    right - left,
                )  # fmt: skip
