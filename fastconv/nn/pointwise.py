"""Passes over arrays, number by number: threads share them out, and results come in memory that is used again.

NumPy's own run on one thread, where the rest of a step has all of them.
"""

from __future__ import annotations

from math import prod

import numba
import numpy as np

from fastconv import jit, threads
from fastconv.arrays import empty
from fastconv.gemm.schedule import part, span
from fastconv.typing import Array

WORK = 8.0  # flops that moving a number counts for
ROW = 1024  # numbers that a loop is worth its start for


def rectified(x: Array) -> Array:
    """Return max(x, 0)."""
    y = empty(x.shape, x.dtype)
    threads.launch(_rectify, WORK * x.size, x.reshape(-1), y.reshape(-1))
    return y


def kept(gy: Array, y: Array) -> Array:
    """Return gy where y > 0 (or NaN), and 0 elsewhere."""
    gx = empty(gy.shape, gy.dtype)
    threads.launch(_keep, WORK * gy.size, gy.reshape(-1), y.reshape(-1), gx.reshape(-1))
    return gx


def kept_and_summed(gy: Array, y: Array) -> tuple[Array, Array]:
    """Return what `kept` does, and its sum over each channel, axis 1: both in one pass."""
    gx, sums, pixels = empty(gy.shape, gy.dtype), np.empty(gy.shape[1]), prod(gy.shape[2:])
    images = (len(gy), sums.size * pixels)
    rows = np.empty((threads.count(), max(ROW, pixels)), gy.dtype)
    threads.launch(
        _keep_and_sum, WORK * gy.size, gy.reshape(images), y.reshape(images), gx.reshape(images), sums, rows
    )
    return gx, sums.astype(gy.dtype)


def added(a: Array, b: Array, rectify: bool = False) -> Array:
    """Return a + b, or max(a + b, 0)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(
            f"both must have one shape and dtype, got {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        )
    y = empty(a.shape, a.dtype)
    floor = 0.0 if rectify else -np.inf
    threads.launch(_add, WORK * a.size, a.reshape(-1), b.reshape(-1), y.reshape(-1), floor)
    return y


# Each worker views its part: an index that counts from 0 needs no test for a negative one, and so vectorises.


@jit.kernel
def _rectify(workers, x, y):
    for worker in numba.prange(workers):
        first, last = span(y.size, workers, worker)
        _rectify_part(x[first:last], y[first:last])


@jit.inner
def _rectify_part(x, y):
    zero = y.dtype.type(0)
    for i in range(y.size):
        y[i] = max(x[i], zero)


@jit.kernel
def _keep(workers, gy, y, gx):
    for worker in numba.prange(workers):
        first, last = span(y.size, workers, worker)
        _keep_part(gy[first:last], y[first:last], gx[first:last])


@jit.inner
def _keep_part(gy, y, gx):
    zero = y.dtype.type(0)
    for i in range(y.size):
        gx[i] = zero if y[i] <= zero else gy[i]


@jit.kernel
def _keep_and_sum(workers, gy, y, gx, sums, rows):
    pixels = gy.shape[1] // max(sums.size, 1)
    together = max(1, ROW // max(pixels, 1))  # channels, whose pixels follow each other
    for worker in numba.prange(workers):
        end = part(sums.size, workers, worker + 1)
        for first in range(part(sums.size, workers, worker), end, together):
            last = min(first + together, end)
            lo, hi = first * pixels, last * pixels
            row = rows[worker, : hi - lo]
            row[:] = 0
            for n in range(len(gy)):  # image upon image: vectorised, and no sum changes its order
                _keep_and_add(gy[n, lo:hi], y[n, lo:hi], gx[n, lo:hi], row)
            for k in range(first, last):
                sums[k] = total(row[k * pixels - lo : (k + 1) * pixels - lo])


@jit.inner
def total(row):
    """Return the sum in float64, first to last."""
    result = 0.0
    for q in range(row.size):
        result += row[q]
    return result


@jit.inner
def _keep_and_add(gy, y, gx, row):
    zero = y.dtype.type(0)
    for i in range(y.size):
        gx[i] = zero if y[i] <= zero else gy[i]
        row[i] += gx[i]


@jit.kernel
def _add(workers, a, b, y, floor):
    for worker in numba.prange(workers):
        first, last = span(y.size, workers, worker)
        _add_part(a[first:last], b[first:last], y[first:last], y.dtype.type(floor))


@jit.inner
def _add_part(a, b, y, least):
    for i in range(y.size):
        v = a[i] + b[i]
        y[i] = max(v, least)
