"""The passes of batch normalisation over a channel, whose pixels of the whole batch stay in cache meanwhile.

Arrays are x[n, c, pixel].  A channel is summed image upon image into a row of ``sums``, which vectorises
without changing the order of any sum, and the row in float64.  Threads share out channels.
"""

from __future__ import annotations

import math

import numba

from fastconv import jit
from fastconv.gemm.schedule import part


@jit.kernel
def normalise(workers, x, u, y, weight, bias, means, variances, eps, estimate, sums):
    """Write u and y; means and variances are estimated from x, or given."""
    for worker in numba.prange(workers):
        first, last = part(x.shape[1], workers, worker), part(x.shape[1], workers, worker + 1)
        for channel in range(first, last):
            if estimate:
                _estimate(x, u, channel, means, variances, sums, worker)
            _normalise(x, u, y, channel, weight, bias, means, variances, eps)


@jit.inner
def _estimate(x, u, channel, means, variances, sums, worker):
    n, _, pixels = x.shape
    _clear(sums, worker)
    for i in range(n):
        for q in range(pixels):
            sums[worker, q] += x[i, channel, q]
    means[channel] = _total(sums, worker) / (n * pixels)
    mean = x.dtype.type(means[channel])
    _clear(sums, worker)
    for i in range(n):
        for q in range(pixels):
            d = x[i, channel, q] - mean
            sums[worker, q] += d * d
    variances[channel] = _total(sums, worker) / (n * pixels)


@jit.inner
def _normalise(x, u, y, channel, weight, bias, means, variances, eps):
    n, _, pixels = x.shape
    mean, w, b = x.dtype.type(means[channel]), weight[channel], bias[channel]
    scale = x.dtype.type(1 / math.sqrt(variances[channel] + eps))
    for i in range(n):
        for q in range(pixels):
            v = (x[i, channel, q] - mean) * scale
            u[i, channel, q] = v
            y[i, channel, q] = v * w + b


@jit.kernel
def gradient(workers, gy, u, gx, factor, by_bias, by_weight, estimated, sums):
    """Write by_bias = sum(gy), by_weight = sum(gy * u), and from them gx."""
    for worker in numba.prange(workers):
        first, last = part(u.shape[1], workers, worker), part(u.shape[1], workers, worker + 1)
        for channel in range(first, last):
            _gradient(gy, u, gx, channel, factor, by_bias, by_weight, estimated, sums, worker)


@jit.inner
def _gradient(gy, u, gx, channel, factor, by_bias, by_weight, estimated, sums, worker):
    n, _, pixels = u.shape
    _clear(sums, worker)
    for i in range(n):
        for q in range(pixels):
            sums[worker, q] += gy[i, channel, q]
    by_bias[channel] = _total(sums, worker)
    _clear(sums, worker)
    for i in range(n):
        for q in range(pixels):
            sums[worker, q] += gy[i, channel, q] * u[i, channel, q]
    by_weight[channel] = _total(sums, worker)
    f, mean, along = factor[channel], u.dtype.type(0), u.dtype.type(0)
    if estimated:
        mean = u.dtype.type(by_bias[channel] / (n * pixels))
        along = u.dtype.type(by_weight[channel] / (n * pixels))
    for i in range(n):
        for q in range(pixels):
            gx[i, channel, q] = f * (gy[i, channel, q] - mean - u[i, channel, q] * along)


@jit.inner
def _clear(sums, worker):
    for q in range(sums.shape[1]):
        sums[worker, q] = 0


@jit.inner
def _total(sums, worker):
    total = 0.0
    for q in range(sums.shape[1]):
        total += sums[worker, q]
    return total
