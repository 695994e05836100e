"""Values put at places that are known: unpooling, and the gradient of maxima whose places were kept."""

from __future__ import annotations

from math import prod
from typing import Any

import numba
import numpy as np

from fastconv import jit, threads
from fastconv.arrays import contiguous, empty
from fastconv.gemm.schedule import part
from fastconv.typing import Array

WORK = 10.0  # flops that a value or a pixel counts for
BLOCK = 2**12  # pixels: their zeros are in L1 when values are added to them


def scattered(values: Array, indices: Any, size: tuple[int, ...], rank: int, add: bool) -> Array:
    """Return maps of ``size`` with each value at its place in its map, zeros elsewhere.

    Values at one place are added up if ``add``, else the last stays; then, too, -1 names no place: it is that of
    a window without pixels.
    """
    places = np.asarray(indices)
    if places.shape != values.shape or places.dtype != np.int64:
        raise ValueError(f"indices must be int64 of shape {values.shape}, got {places.dtype} {places.shape}")
    y = empty((*values.shape[:-rank], *size), values.dtype)
    results, pixels = prod(values.shape[-rank:]), prod(size)
    wrong = np.zeros(threads.count(), np.int64)
    threads.launch(
        _scatter, WORK * (y.size + values.size), contiguous(values, values.dtype).reshape(-1),
        contiguous(places, places.dtype).reshape(-1), y.reshape(-1), (results, pixels), add, wrong,
    )  # fmt: skip
    if wrong.any():
        raise ValueError(f"indices must be from 0 to {pixels - 1}, got {places.min()} to {places.max()}")
    return y


@jit.kernel
def _scatter(workers, values, places, y, sizes, add, wrong):
    results, pixels = sizes
    for worker in numba.prange(workers):
        maps = y.size // pixels
        first, last = part(maps, workers, worker), part(maps, workers, worker + 1)
        step = max(1, BLOCK // pixels)  # maps that are cleared while they are near
        for begin in range(first, last, step):
            end = min(begin + step, last)
            wrong[worker] += scatter_maps(
                values[begin * results : end * results], places[begin * results : end * results],
                y[begin * pixels : end * pixels], results, pixels, add,
            )  # fmt: skip


@jit.inner
def scatter_maps(values, places, y, results, pixels, add):
    """Fill a few maps; return how many places lie outside."""
    for i in range(y.size):
        y[i] = 0
    wrong = 0
    for i in range(y.size // pixels):
        plane = y[i * pixels : (i + 1) * pixels]
        own, where = values[i * results : (i + 1) * results], places[i * results : (i + 1) * results]
        for j in range(own.size):
            place = where[j]
            if 0 <= place < plane.size:
                plane[place] = own[j] + plane[place] if add else own[j]
            elif place != -1 or not add:
                wrong += 1
    return wrong
