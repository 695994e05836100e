"""Arithmetic of block sizes."""

from __future__ import annotations

from collections.abc import Callable

from fastconv import machine
from fastconv.algorithms.base import Execution

TASK = 7e-7  # seconds: its segments, the calls for a panel of one row (im2col of depthwise layers, measured)
SMALLEST = 2**14  # bytes of cache: blocks below half of L1 are mostly edges


def within(limit: int, make: Callable[[int], Execution]) -> Execution:
    """Return ``make(cache)`` with blocks for L2, or for as much less as keeps ``limit`` bytes of scratch.

    The smallest is returned where none does.
    """
    cache = machine.machine().l2
    execution = make(cache)
    while execution.workspace > limit and cache > SMALLEST:
        cache //= 2
        execution = make(cache)
    return execution


def seconds(
    tasks: float, steps: float, mr: int, columns: float, moved: float, bytes: float, itemsize: int
) -> float:
    """Predict the time of ``tasks`` products of ``steps`` reduction steps on mr x ``columns`` results.

    A step takes the FMA units mr * nr slots, but not less than its loads (a row of B may straddle cache
    lines) or than the latency of 4 that its sums wait for.  ``moved`` elements pass through L2, in and
    out, and ``bytes`` come from memory once, half hidden behind arithmetic.  To begin a task costs TASK.
    """
    m, t = machine.machine(), machine.tile(itemsize)
    if not tasks:  # an empty batch
        return m.launch
    vectors = max(1.0, columns / t.vl)
    rows = mr / max(1, -(-mr // t.mr))  # of an equalised panel
    nr = vectors / -(-vectors // t.nr)
    slots = max(rows * nr, 1.5 * nr + rows / 2, 4.0) / (rows * nr)
    arithmetic = 2 * tasks * steps * mr * vectors * t.vl * slots / (0.96 * m.flops * 4 / itemsize)
    moving = moved * 2 * itemsize / (m.l2_bandwidth / 2)
    workers = min(m.cores, tasks)
    rounds = -(-tasks // workers) * workers / tasks if tasks < 8 * m.cores else 1.0
    return 2 * m.launch + (arithmetic + moving + tasks * TASK) * rounds / workers + bytes / m.bandwidth / 2


def streams(elements: int, itemsize: int) -> bool:
    """Tell whether a result is written past the caches: too large to be found near by its reader.

    That is beyond the second-level caches of all cores, or a quarter of the third if that is less.  An
    ordinary store reads its line first; 64 -> 128 channels of 16 x 56 x 56 took 1.5 times as long with it.
    """
    m = machine.machine()
    return elements * itemsize > min(m.cores * m.l2, m.l3 // 4)


def odd_lines(length: int, vl: int) -> int:
    """Round a row length up to an odd number of vectors.

    Rows an even number of cache lines apart share a fraction of the L1 sets; at 1 KB apart 8 ways hold
    32 of them, and a column walk over 192 rows misses every time (measured: 3.3 cycles an element).
    """
    vectors = -(-length // vl)
    return (vectors | 1) * vl
