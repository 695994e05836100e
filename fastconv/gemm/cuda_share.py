"""How a GEMM is shared out on a GPU: a tile, and splits of the sum, by what its busiest multiprocessor has to do.

A multiprocessor multiplies what its blocks are at 128 FFMA a cycle, all that are resident by turns, but for the
instructions beside them and for cycles in which no warp is ready, the rarer the more warps there are.  So what
counts is the blocks of the busiest one: 140 tiles on 132 of them take as long as 264, and 64 leave half of them idle,
however many fit beside each other.  Splits make more and shorter blocks; that their sums are written and read
once more is what they cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fastconv.cuda import backend
from fastconv.gemm.cuda import Tile

# Guesses, of an H100
CLOCK, FFMA = 1.75e9, 128  # cycles a second; multiplications of a multiprocessor a cycle
START = 2000  # cycles before a block's first product and after its last, in which those beside it go on
BYTES = 2.5e12  # of sums, a second
LAUNCH, ADDED = 3e-6, 1.5e-8  # seconds to start adding splits, and for each of them


def busy(blocks: int, products: float, beside: float, threads: int, resident: int) -> float:
    """Return the seconds of the busiest multiprocessor.

    A block multiplies so many times, ``beside`` being all its instructions for one FFMA, and so many are ``resident``.
    """
    busiest = max(1, -(-blocks // backend().processors()))
    resident = min(busiest, resident)
    waiting = 1 + 2 / (resident * threads / 32)
    return busiest * (products * beside * waiting / FFMA + START / resident) / CLOCK


class Share(NamedTuple):
    """What was chosen, and the seconds that it takes."""

    tile: Tile
    splits: int
    seconds: float


def shared_out(
    tiles: Iterable[Tile], batches: int, m: int, n: int, steps: int, most_splits: int, itemsize: int
) -> Share:
    """Share out ``batches`` products of m x n results, sums of so many steps, in at most so many splits."""
    processors, slower = backend().processors(), itemsize // 4

    def seconds(tile: Tile, blocks: int, splits: int) -> float:
        products = slower * steps / splits * tile.bm * tile.bn
        beside = 1 + 16 / tile.bm + 16 / tile.bn
        sums = LAUNCH + splits * (ADDED + 2 * batches * m * n * itemsize / BYTES) if splits > 1 else 0.0
        return busy(blocks * splits, products, beside, tile.threads, tile.blocks) + sums

    found = []
    for tile in tiles:
        blocks = max(1, batches * -(-m // tile.bm) * -(-n // tile.bn))
        full = (blocks_each * processors // blocks for blocks_each in (1, 2, 3, 4, 6, 9))
        for splits in {max(1, min(most_splits, wanted)) for wanted in (1, *full)}:
            found.append(Share(tile, splits, seconds(tile, blocks, splits)))
    return min(found, key=lambda share: share.seconds)
