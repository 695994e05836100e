"""Moving rows: their pixels into a copy, and the phases of a result out of scratch."""

from __future__ import annotations

from fastconv import jit


@jit.inner
def clear(dst, d, count):
    """Set ``dst[d : d + count]`` to zero."""
    for j in range(count):
        dst[d + j] = 0


@jit.inner
def copy_row(dst, src, pixels, count):
    """Set ``dst[j] = src[pixels[j]]``, zero where there is no pixel."""
    for j in range(count):
        dst[j] = src[pixels[j]] if pixels[j] >= 0 else 0


@jit.inner
def interleave(dst, src, lds, rows, count):
    """Set ``dst[rows*j + i] = src[i*lds + j]`` for indices of dst below ``count``."""
    for i in range(min(rows, count)):
        for j in range((count - i + rows - 1) // rows):
            dst[rows * j + i] = src[i * lds + j]


@jit.inner
def fold(dst, src, count, more):
    """Set ``dst[j] = src[j]``, or add ``more``."""
    if more:
        for j in range(count):
            dst[j] += src[j]
    else:
        for j in range(count):
            dst[j] = src[j]
