"""What this machine can do at most, measured beside the layers: multiply-adds, and copying.

The tile of the GEMM on operands that stay in L1: one row of B read again and again, so that nothing
but the FMA units can be the limit.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from fastconv import jit, machine, threads
from fastconv.bench.measure import race
from fastconv.gemm.tile import tile

DEPTH = 256  # steps of a tile: A's panel is 8 KiB
REPEATS = 64
COPIED = 2**24  # elements of float32, 64 MiB: beyond every cache


@jit.kernel
def _multiply(workers, c, a, b, depth, repeats, mr, nr):  # type: ignore[no-untyped-def]
    size = len(c) // workers
    for worker in numba.prange(workers):
        for _ in range(repeats):
            tile(c, worker * size, size // mr, a, 0, b, 0, 0, depth, mr, nr, True)  # type: ignore[call-arg]


@jit.kernel
def _copy(workers, to, source):  # type: ignore[no-untyped-def]
    for worker in numba.prange(workers):
        begin, end = len(to) * worker // workers, len(to) * (worker + 1) // workers
        to[begin:end] = source[begin:end]


def multiply(dtype: str) -> tuple[Callable[[], None], int]:
    """Return a function that only multiplies and adds, and the operations of a call."""
    shape = machine.tile(np.dtype(dtype).itemsize)
    workers = threads.count()
    a, b = np.zeros(DEPTH * shape.mr, dtype), np.zeros(shape.nr * shape.vl, dtype)
    c = np.zeros(workers * shape.mr * (shape.nr * shape.vl + 16), dtype)
    flops = 2 * workers * REPEATS * DEPTH * shape.mr * shape.nr * shape.vl

    def call() -> None:
        threads.launch(_multiply, flops, c, a, b, DEPTH, REPEATS, shape.mr, shape.nr)

    return call, flops


def bandwidth() -> float:
    """Return bytes a second, read and written, of copying from memory to memory."""
    to, source = np.ones(COPIED, "float32"), np.ones(COPIED, "float32")
    sample = race({"copy": lambda: threads.launch(_copy, COPIED, to, source)}, budget=0.5)["copy"]
    return 2 * to.nbytes / sample.best
