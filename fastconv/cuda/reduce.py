"""The gradient by a bias: gb[k] = sum over n, p, q of gy[n, k, p, q], a thread block for each channel.

Every thread adds every THREADS-th pixel in float64, then halves of the block add each other: one order, always.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import float64

from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import DTYPES, cuda, int64

THREADS = 128


class Geometry(NamedTuple):
    """n images of k maps of so many pixels."""

    n: int
    k: int
    pixels: int


def bias_grad(dtype):
    """Make the kernel."""
    real = DTYPES[dtype]

    def bias_grad_kernel(gy, out, g):
        sums = cuda.shared.array(THREADS, float64)
        tid, k = int64(cuda.threadIdx.x), int64(cuda.blockIdx.x)
        total = float64(0)
        for n in range(g.n):
            begin = (n * g.k + k) * g.pixels
            i = tid
            while i < g.pixels:
                total += float64(gy[begin + i])
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


def kernel(dtype: str) -> Kernel:
    """Return the kernel for a dtype."""
    return Kernel(bias_grad, (dtype,), (dtype,) * 2, Geometry, "int64", THREADS)


def launch(gy, out, n: int, k: int, pixels: int) -> None:
    """Set ``out`` [k] to the sums."""
    backend().launch(kernel(gy.dtype.name), k, out.stream(), gy, out, Geometry(n, k, pixels))
