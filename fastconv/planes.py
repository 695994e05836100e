"""Whole planes: the sum of each, and a number spread over each.

Gradients by a bias are sums of planes, and pooling over a whole map is one of either.  A plane is summed in `LANES`
partial sums side by side, then those by halves, so that the order, and with it every bit, is the same on any
number of threads.
"""

from __future__ import annotations

import numba
import numpy as np

from fastconv import jit, threads
from fastconv.arrays import Array, common, contiguous, empty
from fastconv.gemm.schedule import part

LANES = 16


def sums(planes: Array) -> Array:
    """Return the sum of each row of a (planes, pixels) array."""
    result = np.empty(len(planes), planes.dtype)
    scratch = np.empty((threads.count(), LANES), planes.dtype)
    threads.launch(_sum, 4.0 * planes.size, contiguous(planes, planes.dtype), result, scratch)
    return result


def spread(values: Array, pixels: int) -> Array:
    """Return a (planes, pixels) array with each value all over its plane."""
    planes = empty((values.size, pixels), common(values))
    threads.launch(_spread, 4.0 * planes.size, contiguous(values, planes.dtype), planes)
    return planes


@jit.kernel
def _sum(workers, planes, result, scratch):
    for worker in numba.prange(workers):
        lanes = scratch[worker]
        for i in range(part(len(planes), workers, worker), part(len(planes), workers, worker + 1)):
            result[i] = _sum_of(planes[i], lanes)


@jit.inner
def _sum_of(row, lanes):
    whole = row.size // LANES * LANES
    for lane in range(LANES):
        lanes[lane] = row[whole + lane] if whole + lane < row.size else 0
    for q in range(0, whole, LANES):
        pixels = row[q : q + LANES]
        for lane in range(LANES):
            lanes[lane] += pixels[lane]
    half = LANES // 2
    while half:
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    return lanes[0]


@jit.kernel
def _spread(workers, values, planes):
    for worker in numba.prange(workers):
        for i in range(part(len(planes), workers, worker), part(len(planes), workers, worker + 1)):
            row, value = planes[i], values[i]
            for q in range(row.size):
                row[q] = value
