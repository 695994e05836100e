"""Adding the sums of a reduction that was split on a GPU, and the numbers that both GEMMs divide by."""

from __future__ import annotations

import functools
from typing import NamedTuple

from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import activation, cuda, int64

THREADS = 256


class SumGeometry(NamedTuple):
    """Results of all, and what tells their channel."""

    count: int
    stride: int  # elements from one split's sums to the next
    splits: int
    pixels: int
    channels: int
    has_bias: int
    has_residual: int


def summing(dtype, name):
    """Make the kernel that adds the sums of splits, bias and residual, and activates."""
    act = activation(name)

    def add_splits(partial, bias, residual, out, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            total = partial[at]
            for split in range(1, g.splits):
                total += partial[split * g.stride + at]
            if g.has_bias:
                total += bias[at // g.pixels % g.channels]
            if g.has_residual:
                total += residual[at]
            out[at] = act(total)

    return add_splits


@functools.cache
def sum_kernel(dtype: str, name: str) -> Kernel:
    """Return the kernel that adds splits."""
    return Kernel(summing, (dtype, name), (dtype,) * 4, SumGeometry, "int64", THREADS)


def magic(divisor: int) -> tuple[int, int]:
    """Return (multiplier, shift) that divide numbers below 2**31 (Granlund and Montgomery, PLDI 1994)."""
    shift = 31 + (divisor - 1).bit_length()
    return -(-(1 << shift) // divisor), shift
