"""A GPU that is not here: calls tell what kernels they would start, to compile them ahead, and compute nothing.

with elsewhere(132) as gpu:
    fastconv.conv2d(Array((32, 64, 56, 56)), Array((64, 64, 3, 3)), padding=1)
compile_all(gpu.kernels, (9, 0))
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv import cuda, plan
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.tape import launcher
from fastconv.machine import cpus


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

    def __init__(self, processors: int) -> None:
        self.count = processors
        self.kernels: dict[Kernel, None] = {}  # in the order in which they were asked for
        self.launch = launcher(self.note)

    def processors(self) -> int:
        """Return the number of multiprocessors."""
        return self.count

    def context(self) -> int:
        """Return a number for the GPU, which no real one has."""
        return -1

    def check_here(self, pointer: int) -> None:
        """Refuse nothing."""

    def note(self, kernel: Kernel, blocks: int, pointers: Any, geometry: Any) -> Elsewhere:
        """Note a kernel where another would start it."""
        self.kernels[kernel] = None
        return self

    def start(self, pointers: list[int], stream: int) -> None:
        """Start nothing."""

    def fill_zero(self, pointer: int, count: int, stream: int) -> None:
        """Fill nothing."""

    def device_array(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any, stream: int
    ) -> tuple[Array, int]:
        """Return an array."""
        return Array(shape, strides, dtype), self.Block.pointer

    class Block:
        """Memory."""

        pointer = 2**40

        def __init__(self, count: int, stream: int = 0) -> None:
            self.nbytes = count

    def Buffer(self, content: Any) -> Block:
        """Return memory for a table."""
        return self.Block(content.nbytes)


@contextlib.contextmanager
def elsewhere(processors: int) -> Iterator[Elsewhere]:
    """Take calls on a GPU to one of so many multiprocessors that is not here."""
    plan.clear()
    cuda.stand_in = Elsewhere(processors)
    try:
        yield cuda.stand_in
    finally:
        cuda.stand_in = None
        plan.clear()


def compile_all(kernels: Iterable[Kernel], capability: tuple[int, int], seconds: float | None = None) -> None:
    """Put the machine code of kernels into the disk cache, in as many processes as there are cores; show how far it is.

    After so many seconds no further one is begun: the rest is compiled where it is called.
    """
    spawn = multiprocessing.get_context("spawn")  # children of a process that uses a GPU must not be forks
    with ProcessPoolExecutor(cpus(), mp_context=spawn) as pool:
        wanted = [
            pool.submit(replace(kernel).cubin, capability) for kernel in kernels
        ]  # without what it made
        try:
            for done, ready in enumerate(as_completed(wanted, seconds), 1):
                failed = f"; one fails: {ready.exception()}\n" if ready.exception() else ""
                print(f"compiled {done} of {len(wanted)} kernels{failed}", end="\r", flush=True)
        except TimeoutError:
            pool.shutdown(wait=False, cancel_futures=True)
    print()
