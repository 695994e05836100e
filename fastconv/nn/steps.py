"""The formulas of optimizers, number by number: w are weights, g the gradient of the loss by them.

``decay * w`` is the gradient of decay / 2 times the squared length of the weights.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numba

from fastconv import jit, threads
from fastconv.gemm.schedule import span
from fastconv.typing import Array

WORK = 20.0  # flops that a weight counts for


def run(kernel: jit.Kernel, w: Array, g: Array, *arguments: Any) -> None:
    """Run one of the kernels below."""
    threads.launch(kernel, WORK * w.size, w, g, *arguments)


@jit.kernel
def sgd(workers, w, g, velocity, lr, momentum, decay, nesterov):
    """V = momentum v + g, w -= lr v; with Nesterov's momentum w -= lr (g + momentum v)."""
    for worker in numba.prange(workers):
        first, last = span(w.size, workers, worker)
        _sgd(w[first:last], g[first:last], velocity[first:last], lr, momentum, decay, nesterov)


@jit.inner
def _sgd(w, g, velocity, lr, momentum, decay, nesterov):
    kind = w.dtype.type
    lr, momentum, decay = kind(lr), kind(momentum), kind(decay)
    more = momentum if nesterov else kind(0)
    for i in range(w.size):
        slope = g[i] + decay * w[i]
        v = momentum * velocity[i] + slope if momentum else slope
        velocity[i] = v
        w[i] -= lr * (slope + more * v if nesterov else v)


@jit.kernel
def adam(workers, w, g, m, v, b1, b2, size, root, eps, decay, shrink):
    """M and v are running averages of g and g^2: w = shrink w - size m / (root sqrt(v) + eps)."""
    for worker in numba.prange(workers):
        first, last = span(w.size, workers, worker)
        averages = (m[first:last], v[first:last])
        _adam(w[first:last], g[first:last], *averages, b1, b2, size, root, eps, decay, shrink)


@jit.inner
def _adam(w, g, m, v, b1, b2, size, root, eps, decay, shrink):
    kind = w.dtype.type
    a1, a2, size, root = kind(1 - b1), kind(1 - b2), kind(size), kind(root)
    eps, decay, shrink = kind(eps), kind(decay), kind(shrink)
    for i in range(w.size):
        slope = g[i] + decay * w[i]
        m[i] += a1 * (slope - m[i])
        v[i] += a2 * (slope * slope - v[i])
        w[i] = shrink * w[i] - size * m[i] / (sqrt(v[i]) * root + eps)


@jit.kernel
def rmsprop(workers, w, g, square, lr, alpha, eps, decay):
    """Square is a running average of g^2: w -= lr g / (sqrt(square) + eps)."""
    for worker in numba.prange(workers):
        first, last = span(w.size, workers, worker)
        _rmsprop(w[first:last], g[first:last], square[first:last], lr, alpha, eps, decay)


@jit.inner
def _rmsprop(w, g, square, lr, alpha, eps, decay):
    kind = w.dtype.type
    lr, rest, eps, decay = kind(lr), kind(1 - alpha), kind(eps), kind(decay)
    for i in range(w.size):
        slope = g[i] + decay * w[i]
        square[i] += rest * (slope * slope - square[i])
        w[i] -= lr * slope / (sqrt(square[i]) + eps)
