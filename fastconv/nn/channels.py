"""The passes of batch normalisation over some channels, whose pixels of the whole batch stay in cache meanwhile.

Arrays are x[n, c, pixel].  A channel is summed image upon image into a row of ``sums[worker, 2, together]``, which
vectorises without changing the order of any sum, and the row in float64.  Threads share out channels, and take as many
together as make a page of an image: small maps one by one are fetched from all over memory.

What moves through memory takes the time: the gradient computes u from x once more, which saves writing and
reading it, and a rectifier behind is no pass of its own.  ``floor`` is what results are raised to, 0 with a
rectifier and else minus infinity; where it was met, no gradient comes back.
"""

from __future__ import annotations

import math

import numba

from fastconv import jit
from fastconv.gemm.schedule import next_task, span
from fastconv.nn.pointwise import total

PAGE = 1024  # numbers


@jit.kernel
def normalise(
    workers, counters, x, y, other, weight, bias, running_means, running_variances, momentum, means, variances,
    scales, eps, floor, estimate, sums,
):  # fmt: skip
    """Write y, with another array added unless that is empty; means and variances are estimated from x, or the running.

    Those move towards the estimated by ``momentum``.  Scales, by which differences from the mean are multiplied, are written too.
    """
    count = len(x) * x.shape[2]
    for worker in numba.prange(workers):
        tasks = -(-x.shape[1] // sums.shape[2])
        task = next_task(counters, worker, tasks)
        while task < tasks:
            first, last = span(x.shape[1], tasks, task)
            if estimate:
                _estimate(x, first, last, means, variances, sums[worker])
            for channel in range(first, last):
                mean, variance = running_means[channel], running_variances[channel]
                if estimate:
                    running_means[channel] += momentum * (means[channel] - mean)
                    spread = variances[channel] * count / (count - 1)
                    running_variances[channel] += momentum * (spread - variance)
                else:
                    means[channel], variances[channel] = mean, variance
                scales[channel] = 1 / math.sqrt(variances[channel] + eps)
            _normalise(x, y, other, first, last, weight, bias, means, scales, floor)
            task = next_task(counters, worker, tasks)


@jit.inner
def _estimate(x, first, last, means, variances, sums):
    n, _, pixels = x.shape
    sums[0] = 0
    for i in range(n):
        for channel in range(first, last):
            for q in range(pixels):
                sums[0, channel - first, q] += x[i, channel, q]
    for channel in range(first, last):
        means[channel] = total(sums[0, channel - first]) / (n * pixels)
    sums[0] = 0
    for i in range(n):
        for channel in range(first, last):
            mean = x.dtype.type(means[channel])
            for q in range(pixels):
                d = x[i, channel, q] - mean
                sums[0, channel - first, q] += d * d
    for channel in range(first, last):
        variances[channel] = total(sums[0, channel - first]) / (n * pixels)


@jit.inner
def _normalise(x, y, other, first, last, weight, bias, means, scales, floor):
    n, _, pixels = x.shape
    least = x.dtype.type(floor)
    for i in range(n):
        for channel in range(first, last):
            mean, scale = x.dtype.type(means[channel]), scales[channel]
            w, b = weight[channel], bias[channel]
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
    workers, counters, gy, x, gx, weight, bias, means, scales, floor, by_bias, by_weight, estimated, sums
):
    """Write by_bias = sum(gy), by_weight = sum(gy * u), and from them gx."""
    for worker in numba.prange(workers):
        tasks = -(-x.shape[1] // sums.shape[2])
        task = next_task(counters, worker, tasks)
        while task < tasks:
            first, last = span(x.shape[1], tasks, task)
            line = (weight, bias, means, scales, x.dtype.type(floor))
            _sum(gy, x, first, last, line, by_bias, by_weight, sums[worker])
            _gradient(gy, x, gx, first, last, line, by_bias, by_weight, estimated)
            task = next_task(counters, worker, tasks)


@jit.inner
def _sum(gy, x, first, last, line, by_bias, by_weight, sums):
    n, _, pixels = x.shape
    weight, bias, means, scales, least = line
    sums[:] = 0
    for i in range(n):
        for channel in range(first, last):
            mean, scale = x.dtype.type(means[channel]), scales[channel]
            w, b = weight[channel], bias[channel]
            for q in range(pixels):
                u = (x[i, channel, q] - mean) * scale
                g = x.dtype.type(0) if u * w + b <= least else gy[i, channel, q]
                sums[0, channel - first, q] += g
                sums[1, channel - first, q] += g * u
    for channel in range(first, last):
        by_bias[channel] = total(sums[0, channel - first])
        by_weight[channel] = total(sums[1, channel - first])


@jit.inner
def _gradient(gy, x, gx, first, last, line, by_bias, by_weight, estimated):
    n, _, pixels = x.shape
    weight, bias, means, scales, least = line
    for i in range(n):
        for channel in range(first, last):
            mean, scale = x.dtype.type(means[channel]), scales[channel]
            w, b = weight[channel], bias[channel]
            level, along = x.dtype.type(0), x.dtype.type(0)
            if estimated:
                level = x.dtype.type(by_bias[channel] / (n * pixels))
                along = x.dtype.type(by_weight[channel] / (n * pixels))
            for q in range(pixels):
                u = (x[i, channel, q] - mean) * scale
                g = x.dtype.type(0) if u * w + b <= least else gy[i, channel, q]
                gx[i, channel, q] = w * scale * (g - level - u * along)
