"""A GPU that is not here: calls compile their kernels for it, into the disk cache, and compute nothing.

with elsewhere((9, 0), 132):
    fastconv.conv2d(Array((32, 64, 56, 56)), Array((64, 64, 3, 3)), padding=1)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastconv import cuda, plan
from fastconv.cuda.tape import launcher


class Array:
    """An array of float32 on that GPU, C-contiguous, or of ``strides`` in elements."""

    def __init__(
        self, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, dtype: Any = np.float32
    ) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.strides = None if strides is None else tuple(s * self.dtype.itemsize for s in strides)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        told = {"shape": self.shape, "typestr": self.dtype.str, "strides": self.strides}
        return told | {"data": (2**40, False), "version": 3}


class Elsewhere:
    """The interface of `fastconv.cuda.driver`."""

    def __init__(self, capability: tuple[int, int], processors: int) -> None:
        self.capability, self.count = capability, processors
        self.launch = launcher(self.compile)

    def processors(self) -> int:
        """Return the number of multiprocessors."""
        return self.count

    def context(self) -> int:
        """Return a number for the GPU."""
        return 0

    def compile(self, kernel: Any, blocks: int, pointers: Any, geometry: Any) -> Elsewhere:
        """Compile a kernel where another would start it."""
        kernel.cubin(self.capability)
        return self

    def start(self, pointers: list[int], stream: int) -> None:
        """Start nothing."""

    def fill_zero(self, pointer: int, count: int, stream: int) -> None:
        """Fill nothing."""

    def device_array(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any, stream: int
    ) -> Array:
        """Return an array."""
        return Array(shape, strides, dtype)

    def viewed(self, array: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        """Return the array in another shape."""
        return Array(shape, strides, array.dtype)

    class Block:
        """Memory."""

        pointer = 2**40

        def __init__(self, count: int, stream: int = 0) -> None:
            self.nbytes = count

    def Buffer(self, content: Any) -> Block:
        """Return memory for a table."""
        return self.Block(content.nbytes)


@contextlib.contextmanager
def elsewhere(capability: tuple[int, int], processors: int) -> Iterator[None]:
    """Take calls on a GPU to one that is not here."""
    plan.clear()
    cuda.stand_in = Elsewhere(capability, processors)
    try:
        yield
    finally:
        cuda.stand_in = None
        plan.clear()
