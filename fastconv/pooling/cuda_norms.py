"""Norms of windows on a GPU: powers, means of windows, roots; extremes as maxima of magnitudes."""

from __future__ import annotations

import math
from math import inf, prod
from typing import Any, NamedTuple

from fastconv.cuda import backend
from fastconv.cuda.call import handed
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import DTYPES, cuda, int64
from fastconv.cuda.memory import Memory
from fastconv.pooling import cuda as pooling
from fastconv.pooling.windows import Axes

THREADS = 128


class Geometry(NamedTuple):
    """Elements, and what each is multiplied by."""

    count: int
    factor: int


def mapping(dtype, exponent, magnitudes):
    """Make the kernel of (factor * v) ** exponent or of magnitudes times the factor."""
    real = DTYPES[dtype]

    def each(x, out, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            value = x[at]
            if magnitudes:
                out[at] = real(g.factor) * abs(value)
            else:
                value *= real(g.factor)
                if exponent == 2:
                    out[at] = value * value
                elif exponent == 0.5:
                    out[at] = math.sqrt(value)
                else:
                    out[at] = math.pow(value, real(exponent))

    return each


def mapped(x: Memory, exponent: float, factor: int = 1, magnitudes: bool = False) -> Memory:
    """Return a new array with a function of each element, which lie in the same order."""
    count, y = prod(x.shape), x.empty(x.shape, x.dtype)
    if count:
        dtype, packed = x.dtype.name, x.laid()
        kernel = Kernel(mapping, (dtype, exponent, magnitudes), (dtype,) * 2, Geometry, "int64", THREADS)
        backend().launch(kernel, -(-count // THREADS), y.stream(), packed, y, Geometry(count, factor))
    return y


def norms(x: Memory, axes: Axes, rank: int, norm_type: float, taps: int) -> Any:
    """Return the norms of windows of so many pixels."""
    if norm_type in (inf, -inf):
        sign = 1 if norm_type > 0 else -1
        y = pooling.pooled(mapped(x, 1.0, sign, True), axes, rank, False, False)[0]
        return handed(y if sign > 0 else mapped(y, 1.0, 1, True))
    y = pooling.pooled(mapped(x, float(norm_type)), axes, rank, True, False)[0]
    return handed(mapped(y, 1 / norm_type, taps))
