"""Arithmetic of block sizes."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, gcd

from fastconv import machine
from fastconv.algorithms.base import Execution

WAY, WAYS = 4096, 8  # bytes of L1 that share no set, and how many there are at the least
PIECE = 256  # bytes of a row of B that a slice reads
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


def stays_in_l1(rows: int, apart: int) -> bool:
    """Tell whether a slice of so many rows, ``apart`` bytes from each other, stays in L1: a power of two apart they share sets."""
    pieces = WAY // PIECE
    return rows * max(1, gcd(apart, WAY) // PIECE) <= WAYS * pieces


EVEN = 4  # workers that tasks are shared out to evenly, whatever their number: it decides where sums are cut


def blocks_of_rows(
    tasks: int, columns: int, least: int, most: int, product: float, turning: float, adding: float
) -> int:
    """Return into how many blocks of rows a product over pixels is cut, beside ``columns`` blocks of columns.

    With splits of the pixels they make ``tasks``.  Each block of rows turns the other operand again, each split is
    a partial sum written and added; these and the product are in cycles.
    """

    def cycles(blocks: int) -> float:
        splits = max(1, -(-tasks // (columns * blocks)))
        shares = columns * blocks * splits / EVEN
        return (
            product * ceil(shares) / shares + blocks * turning + (adding * (splits + 1) if splits > 1 else 0)
        )

    return min(range(least, max(least, min(most, max(EVEN, -(-tasks // columns)))) + 1), key=cycles)
