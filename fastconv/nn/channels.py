"""The passes of batch normalisation over a channel, whose pixels of the whole batch stay in cache meanwhile.

Arrays are x[n, c, pixel].  A channel is summed image upon image into a row of ``sums``, which vectorises
without changing the order of any sum, and the row in float64.  Threads share out channels.

What moves through memory takes the time: the gradient computes u from x once more, which saves writing and
reading it, and a rectifier behind is no pass of its own.  ``floor`` is what results are raised to, 0 with a
rectifier and else minus infinity; where it was met, no gradient comes back.
"""

from __future__ import annotations

import math

import numba

from fastconv import jit
from fastconv.gemm.schedule import part


@jit.kernel
def normalise(workers, x, y, other, weight, bias, means, variances, eps, floor, estimate, sums):
    """Write y, with another array added unless that is empty; means and variances are estimated from x, or given."""
    for worker in numba.prange(workers):
        for channel in range(part(x.shape[1], workers, worker), part(x.shape[1], workers, worker + 1)):
            if estimate:
                _estimate(x, channel, means, variances, sums, worker)
            _normalise(x, y, other, channel, weight, bias, means, variances, eps, floor)


@jit.inner
def _estimate(x, channel, means, variances, sums, worker):
    n, _, pixels = x.shape
    _clear(sums, worker)
    for i in range(n):
        for q in range(pixels):
            sums[worker, 0, q] += x[i, channel, q]
    means[channel] = _total(sums, worker, 0) / (n * pixels)
    mean = x.dtype.type(means[channel])
    _clear(sums, worker)
    for i in range(n):
        for q in range(pixels):
            d = x[i, channel, q] - mean
            sums[worker, 0, q] += d * d
    variances[channel] = _total(sums, worker, 0) / (n * pixels)


@jit.inner
def _normalise(x, y, other, channel, weight, bias, means, variances, eps, floor):
    n, _, pixels = x.shape
    mean, w, b = x.dtype.type(means[channel]), weight[channel], bias[channel]
    scale, least = x.dtype.type(1 / math.sqrt(variances[channel] + eps)), x.dtype.type(floor)
    for i in range(n):
        if other.size:
            for q in range(pixels):
                v = (x[i, channel, q] - mean) * scale * w + b + other[i, channel, q]
                y[i, channel, q] = max(v, least)
        else:
            for q in range(pixels):
                v = (x[i, channel, q] - mean) * scale * w + b
                y[i, channel, q] = max(v, least)


@jit.kernel
def gradient(
    workers, gy, x, gx, weight, bias, means, variances, eps, floor, by_bias, by_weight, estimated, sums
):
    """Write by_bias = sum(gy), by_weight = sum(gy * u), and from them gx."""
    for worker in numba.prange(workers):
        for channel in range(part(x.shape[1], workers, worker), part(x.shape[1], workers, worker + 1)):
            mean, scale = x.dtype.type(means[channel]), x.dtype.type(1 / math.sqrt(variances[channel] + eps))
            line = (weight[channel], bias[channel], x.dtype.type(floor))
            _sum(gy, x, channel, mean, scale, line, by_bias, by_weight, sums, worker)
            _gradient(gy, x, gx, channel, mean, scale, line, by_bias, by_weight, estimated)


@jit.inner
def _sum(gy, x, channel, mean, scale, line, by_bias, by_weight, sums, worker):
    n, _, pixels = x.shape
    w, b, least = line
    _clear(sums, worker)
    for i in range(n):
        for q in range(pixels):
            u = (x[i, channel, q] - mean) * scale
            g = x.dtype.type(0) if u * w + b <= least else gy[i, channel, q]
            sums[worker, 0, q] += g
            sums[worker, 1, q] += g * u
    by_bias[channel], by_weight[channel] = _total(sums, worker, 0), _total(sums, worker, 1)


@jit.inner
def _gradient(gy, x, gx, channel, mean, scale, line, by_bias, by_weight, estimated):
    n, _, pixels = x.shape
    w, b, least = line
    level, along = x.dtype.type(0), x.dtype.type(0)
    if estimated:
        level = x.dtype.type(by_bias[channel] / (n * pixels))
        along = x.dtype.type(by_weight[channel] / (n * pixels))
    for i in range(n):
        for q in range(pixels):
            u = (x[i, channel, q] - mean) * scale
            g = x.dtype.type(0) if u * w + b <= least else gy[i, channel, q]
            gx[i, channel, q] = w * scale * (g - level - u * along)


@jit.inner
def _clear(sums, worker):
    for q in range(sums.shape[2]):
        sums[worker, 0, q] = 0
        sums[worker, 1, q] = 0


@jit.inner
def _total(sums, worker, row):
    total = 0.0
    for q in range(sums.shape[2]):
        total += sums[worker, row, q]
    return total
