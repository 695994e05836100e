"""The GEMM of a thread block: C[BM, BN] += A[BK, BM]^T * B[BK, BN] from shared memory, in registers.

A thread owns TM x 8 results: rows 4*ty + {0..3} and those half a tile further down (TM = 8), columns
4*tx + {0..3} and those half a tile to the right.  So a step k reads two or four vectors of 16 bytes, which
neighbours read side by side without bank conflicts, for TM * 8 multiplications: 64 FFMA to 4 LDS.128.
Shared memory holds two stages of BK steps, one in use and one being filled.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastconv.cuda.language import inline, load4, uint64

BK = 8  # steps of a stage, each written out in the main loop


@dataclass(frozen=True, slots=True)
class Tile:
    """What one thread block computes."""

    bm: int
    bn: int
    tm: int = 8
    blocks: int = 2  # on one multiprocessor: bounds the registers of a thread

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.bm // self.tm * (self.bn // 8)


# 65536 registers hold two blocks of 256 threads at 128 registers each: 64 sums, 16 operands of a step, 8
# elements on their way to shared memory, and addresses.
TILES = {
    "float32": (
        Tile(128, 128), Tile(128, 64, blocks=3), Tile(64, 128, blocks=3), Tile(64, 64, blocks=6), Tile(32, 128, 4, 4),
    ),
    "float64": (Tile(64, 64, blocks=4), Tile(32, 128, 4, 2)),
}  # fmt: skip


def multiplier(tile: Tile, lda: int, ldb: int):
    """Return the device function of one stage: ``acc`` [TM, 8] gets BK products each.

    ``at_a`` and ``at_b`` are where the thread's operands begin in the stage; rows are ``lda`` and ``ldb`` apart.
    """
    tm, half_m, half_n = tile.tm, tile.bm // 2, tile.bn // 2

    @inline
    def step(a_tile, b_tile, at_a, at_b, a, b, acc):
        a[0], a[1], a[2], a[3] = load4(a_tile, at_a)
        if tm == 8:
            a[4], a[5], a[6], a[7] = load4(a_tile, at_a + uint64(half_m))
        b[0], b[1], b[2], b[3] = load4(b_tile, at_b)
        b[4], b[5], b[6], b[7] = load4(b_tile, at_b + uint64(half_n))
        for i in range(tm):
            for j in range(8):
                acc[i, j] += a[i] * b[j]

    @inline
    def multiply(a_tile, b_tile, at_a, at_b, a, b, acc):
        at_a, at_b = uint64(at_a), uint64(at_b)
        step(a_tile, b_tile, at_a, at_b, a, b, acc)
        step(a_tile, b_tile, at_a + uint64(lda), at_b + uint64(ldb), a, b, acc)
        step(a_tile, b_tile, at_a + uint64(2 * lda), at_b + uint64(2 * ldb), a, b, acc)
        step(a_tile, b_tile, at_a + uint64(3 * lda), at_b + uint64(3 * ldb), a, b, acc)
        step(a_tile, b_tile, at_a + uint64(4 * lda), at_b + uint64(4 * ldb), a, b, acc)
        step(a_tile, b_tile, at_a + uint64(5 * lda), at_b + uint64(5 * ldb), a, b, acc)
        step(a_tile, b_tile, at_a + uint64(6 * lda), at_b + uint64(6 * ldb), a, b, acc)
        step(a_tile, b_tile, at_a + uint64(7 * lda), at_b + uint64(7 * ldb), a, b, acc)

    return multiply
