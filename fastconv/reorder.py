"""Images in the other layout, for what reads only one."""

from __future__ import annotations

import numba

from fastconv import jit, threads
from fastconv.algorithms.base import flat, pixels
from fastconv.arrays import empty
from fastconv.gemm.schedule import span
from fastconv.gemm.transposition import transpose
from fastconv.typing import Array

ROWS, COLUMNS = 64, 16  # of a step: the lines that it reads and writes stay in L1, whatever their distance


@jit.kernel
def transposed(workers, dst, src, n, rows, columns):
    """Transpose ``n`` matrices."""
    for worker in numba.prange(workers):
        chunks = -(-rows // ROWS)
        begin, end = span(n * chunks, workers, worker)
        for chunk in range(begin, end):
            first, i = chunk // chunks * rows * columns, chunk % chunks * ROWS
            for j in range(0, columns, COLUMNS):
                transpose(
                    dst, first + j * rows + i, rows, src, first + i * columns + j, columns,
                    min(ROWS, rows - i), min(COLUMNS, columns - j),
                )  # fmt: skip


def turned(images: Array, last: bool) -> Array:
    """Return a copy of images (n, c, h, w) that are channel by channel, or pixel by pixel, in the other layout."""
    n, c = images.shape[:2]
    size = images.size // (n * c)
    copy = empty(images.shape, images.dtype, "nhwc" if last else "nchw")
    source, target, rows, columns = (
        (flat(images), pixels(copy), c, size) if last else (pixels(images), flat(copy), size, c)
    )
    threads.launch(transposed, 4.0 * images.size, target, source, n, rows, columns)
    return copy
