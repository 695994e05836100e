"""What this machine can do at most: multiply-adds, and copying; measured beside the layers, and for the choice.

The tile of the GEMM on operands that stay in L1: one row of B read again and again, so that nothing
but the FMA units can be the limit.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from fastconv import jit, machine, threads
from fastconv.bench.measure import race
from fastconv.gemm.move import stream_row
from fastconv.gemm.tile import tile
from fastconv.roofline import Rates, typical

DEPTH = 256  # steps of a tile: A's panel is 8 KiB
REPEATS = 64
COPIED = 2**28  # bytes of an array, and as many of its copy: a virtual machine may hide a cache of 480 MB


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
        stream_row(to, begin, source, begin, end - begin)


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
    """Return bytes a second, read and written, of copying from memory to memory, past the caches."""
    to, source = np.ones(COPIED // 4, "float32"), np.ones(COPIED // 4, "float32")
    sample = race({"copy": lambda: threads.launch(_copy, COPIED, to, source)}, budget=0.5)["copy"]
    return 2 * COPIED / sample.best


def rates() -> Rates:
    """Measure what `roofline` predicts from.

    The clock follows from the peak; so does the number of FMA units where the kind of CPU misleads, as no clock is
    beyond 6 GHz, nor one under load below 1.5.
    """
    call, flops = multiply("float32")
    little, copied = np.ones(64, "float32"), np.ones(64, "float32")
    samples = race({"peak": call, "launch": lambda: threads.launch(_copy, flops, copied, little)}, budget=0.5)
    units = typical().units
    clock = flops / samples["peak"].best / threads.count() / (2 * machine.tile(4).vl * units)
    if clock > 6e9 or (clock < 1.5e9 and units > 1):
        clock, units = (clock / 2, 2 * units) if clock > 6e9 else (2 * clock, units // 2)
    return Rates(clock, units, bandwidth(), samples["launch"].best)
