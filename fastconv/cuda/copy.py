"""Copies between arrays of any strides: a thread for each element, in the order of the target's axes."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import cuda, int64

THREADS, AXES = 256, 5


class Geometry(NamedTuple):
    """Sizes of five axes and, for source and target, the elements from one to the next along each."""

    count: int
    size_1: int
    size_2: int
    size_3: int
    size_4: int
    from_0: int
    from_1: int
    from_2: int
    from_3: int
    from_4: int
    to_0: int
    to_1: int
    to_2: int
    to_3: int
    to_4: int


def copying(dtype):
    """Make the kernel."""

    def copy_elements(source, target, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            i4, rest = at % g.size_4, at // g.size_4
            i3, rest = rest % g.size_3, rest // g.size_3
            i2, rest = rest % g.size_2, rest // g.size_2
            i1, i0 = rest % g.size_1, rest // g.size_1
            here = i0 * g.from_0 + i1 * g.from_1 + i2 * g.from_2 + i3 * g.from_3 + i4 * g.from_4
            target[i0 * g.to_0 + i1 * g.to_1 + i2 * g.to_2 + i3 * g.to_3 + i4 * g.to_4] = source[here]

    return copy_elements


@functools.cache
def kernel(dtype: str) -> Kernel:
    """Return the kernel for a dtype."""
    return Kernel(copying, (dtype,), (dtype,) * 2, Geometry, "int64", THREADS)


def transfer(source: Any, target: Any) -> None:
    """Copy elements between arrays of one shape."""
    count = target.nbytes // target.dtype.itemsize
    if not count:
        return
    missing = AXES - target.ndim
    sizes, zeros = (*[1] * missing, *target.shape), [0] * missing
    geometry = Geometry(count, *sizes[1:], *zeros, *source.strides, *zeros, *target.strides)
    backend().launch(
        kernel(target.dtype.name), -(-count // THREADS), target.stream(), source, target, geometry
    )
