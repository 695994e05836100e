"""Adding the sums of a reduction that was split on a GPU, and the numbers that both GEMMs divide by."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import DTYPES, activation, cuda, int64

THREADS = 256
MANY, PARTS = 32, 8  # a thread waits for each load, so of so many splits more than one adds up


class SumGeometry(NamedTuple):
    """Results of all, and what tells their channel."""

    count: int
    stride: int  # elements from one split's sums to the next
    splits: int
    pixels: int
    channels: int
    has_bias: int
    has_residual: int


def summing(dtype, name, parts: int):
    """Make the kernel that adds the sums of splits, bias and residual, and activates: ``parts`` threads a result."""
    real, zero, act, results = DTYPES[dtype], DTYPES[dtype](0), activation(name), THREADS // parts

    def add_splits(partial, bias, residual, out, g):
        tid = int64(cuda.threadIdx.x)
        part, at = tid // results, int64(cuda.blockIdx.x) * int64(results) + tid % results
        total = zero
        if at < g.count:
            split = part
            while split < g.splits:
                total += partial[split * g.stride + at]
                split += parts
        if parts > 1:
            shared = cuda.shared.array(THREADS, real)
            shared[tid] = total
            cuda.syncthreads()
            if part == 0:
                for other in range(1, parts):
                    total += shared[tid + other * results]
        if part == 0 and at < g.count:
            if g.has_bias:
                total += bias[at // g.pixels % g.channels]
            if g.has_residual:
                total += residual[at]
            out[at] = act(total)

    return add_splits


@functools.cache
def sum_kernel(dtype: str, name: str, parts: int) -> Kernel:
    """Return the kernel that adds splits."""
    return Kernel(summing, (dtype, name, parts), (dtype,) * 4, SumGeometry, "int64", THREADS)


def add_up(partial: Any, bias: Any, residual: Any, out: Any, activation: str, g: SumGeometry) -> None:
    """Start to add the splits."""
    parts = 1 if g.splits < MANY else PARTS
    kernel, blocks = sum_kernel(out.dtype.name, activation, parts), -(-g.count * parts // THREADS)
    backend().launch(kernel, blocks, out.stream(), partial, bias, residual, out, g)


def clear(out: Any, count: int) -> None:
    """Start to write zeros, the sum of no splits, to which kernels then add."""
    add_up(None, None, None, out, "none", SumGeometry(count, 0, 0, 1, 1, 0, 0))


def magic(divisor: int) -> tuple[int, int]:
    """Return (multiplier, shift) that divide numbers below 2**31 (Granlund and Montgomery, PLDI 1994)."""
    shift = 31 + (divisor - 1).bit_length()
    return -(-(1 << shift) // divisor), shift
