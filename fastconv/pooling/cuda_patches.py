"""Unfolding, folding and unpooling on a GPU: a thread for each element that is written, or of unpooling read.

What is copied where is one tap after another of a convolution, which `im2col:explicit` has kernels for.
"""

from __future__ import annotations

import functools
from math import prod
from typing import Any, NamedTuple

from fastconv.algorithms.im2col.explicit import THREADS, fold_kernel, unfold_kernel
from fastconv.algorithms.reference.cuda import described
from fastconv.cuda import backend
from fastconv.cuda.call import handed
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import cuda, int64
from fastconv.cuda.memory import Memory
from fastconv.cuda.operands import together
from fastconv.problem import Axis, ConvProblem


def unfold(x: Memory, axes: tuple[Axis, ...]) -> Any:
    """Return the columns of images (n, c, h, w) or (c, h, w)."""
    *batch, c, _, _ = x.shape
    taps, places = prod(a.kernel for a in axes), prod(a.output for a in axes)
    columns = x.empty((*batch, c * taps, places), x.dtype)
    launch(unfold_kernel(x.dtype.name), axes, batch, c, prod(columns.shape), x.laid(), columns)
    return handed(columns)


def fold(columns: Memory, axes: tuple[Axis, ...]) -> Any:
    """Return the images of columns (n, c*r*s, p*q) or (c*r*s, p*q)."""
    *batch, rows, _ = columns.shape
    c = rows // prod(a.kernel for a in axes)
    y = columns.empty((*batch, c, *(a.size for a in axes)), columns.dtype)
    kernel = fold_kernel(columns.dtype.name, "none")
    launch(kernel, axes, batch, c, prod(y.shape), columns.laid(), None, None, y)
    return handed(y)


def launch(
    kernel: Kernel, axes: tuple[Axis, ...], batch: list[int], c: int, count: int, *arrays: Any
) -> None:
    """Start a kernel of a convolution's lowering."""
    if count:
        problem = ConvProblem(prod(batch), c, 1, axes, dtype=arrays[0].dtype.name)
        geometry = described(problem)._replace(count=count)
        backend().launch(kernel, -(-count // THREADS), arrays[0].stream(), *arrays, geometry)


class Scatter(NamedTuple):
    """Elements that are read; of a map, and of a map that is written."""

    count: int
    pixels: int
    result: int


def scattering(dtype):
    """Make the kernel that puts values at their places in each map; places beside it are left out."""

    def scatter(values, places, out, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            place = places[at]
            if place >= 0 and place < g.result:
                out[at // g.pixels * g.result + place] = values[at]

    return scatter


@functools.cache
def scatter_kernel(dtype: str) -> Kernel:
    """Return the kernel that unpools."""
    return Kernel(scattering, (dtype,), (dtype, "int64", dtype), Scatter, "int64", THREADS)


def unpool(x: Memory, places: Memory, size: tuple[int, ...], rank: int) -> Any:
    """Return maps of zeros with the values of x where ``indices`` points; to the same place the same, or either."""
    together(x, places)
    if places.shape != x.shape:
        raise ValueError(f"indices must have the input's shape {x.shape}, got {places.shape}")
    y = x.empty((*x.shape[:-rank], *size), x.dtype)
    y.fill(0)
    if count := prod(x.shape):
        geometry = Scatter(count, prod(x.shape[-rank:]), prod(size))
        arrays = x.laid(), places.laid(), y
        kernel = scatter_kernel(x.dtype.name)
        backend().launch(kernel, -(-count // THREADS), y.stream(), *arrays, geometry)
    return handed(y)
