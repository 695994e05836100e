"""Moving rows: into a copy with their borders, and a result out of scratch."""

from __future__ import annotations

from fastconv import jit
from fastconv.gemm.move import add_row, write_row


@jit.inner
def clear(dst, d, count):
    """Set ``dst[d : d + count]`` to zero."""
    for j in range(count):
        dst[d + j] = 0


@jit.inner
def copy_row(dst, src, pieces, runs, singles):
    """Copy ``runs`` runs of pixels (to, from, count), then single ones (to, from); from -1 is a zero."""
    for i in range(0, 3 * runs, 3):
        write_row(dst, pieces[i], src, pieces[i + 1], pieces[i + 2])
    for i in range(3 * runs, 3 * runs + 2 * singles, 2):
        dst[pieces[i]] = src[pieces[i + 1]] if pieces[i + 1] >= 0 else 0


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
        add_row(dst, 0, src, 0, count)
    else:
        write_row(dst, 0, src, 0, count)
