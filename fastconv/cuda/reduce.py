"""The gradient by a bias: gb[k] = sum over n, p, q of gy[n, k, p, q], a thread block for each channel.

Every thread adds every THREADS-th pixel in float64, then halves of the block add each other: one order, always.
"""

from __future__ import annotations

import functools
from math import prod
from typing import Any, NamedTuple

from numba import float64

from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import DTYPES, cuda, int64

THREADS = 128


class Geometry(NamedTuple):
    """n images of so many pixels, and elements from one image, channel and pixel to the next."""

    n: int
    pixels: int
    image: int
    channel: int
    pixel: int


def bias_grad(dtype):
    """Make the kernel."""
    real = DTYPES[dtype]

    def bias_grad_kernel(gy, out, g):
        sums = cuda.shared.array(THREADS, float64)
        tid, k = int64(cuda.threadIdx.x), int64(cuda.blockIdx.x)
        total = float64(0)
        for n in range(g.n):
            i = tid
            while i < g.pixels:
                total += float64(gy[n * g.image + k * g.channel + i * g.pixel])
                i += THREADS
        sums[tid] = total
        cuda.syncthreads()
        half = THREADS // 2
        while half > 0:
            if tid < half:
                sums[tid] += sums[tid + half]
            cuda.syncthreads()
            half //= 2
        if tid == 0:
            out[k] = real(sums[0])

    return bias_grad_kernel


@functools.cache
def kernel(dtype: str) -> Kernel:
    """Return the kernel for a dtype."""
    return Kernel(bias_grad, (dtype,), (dtype,) * 2, Geometry, "int64", THREADS)


def launch(gy: Any, out: Any, layout: str) -> None:
    """Set ``out`` [k] to the sums of gy (n, k, p, q), which is in a layout."""
    n, k, pixels = gy.shape[0], gy.shape[1], prod(gy.shape[2:])
    channel, pixel = (1, k) if layout == "nhwc" else (pixels, 1)
    geometry = Geometry(n, pixels, k * pixels, channel, pixel)
    backend().launch(kernel(gy.dtype.name), k, out.stream(), gy, out, geometry)
