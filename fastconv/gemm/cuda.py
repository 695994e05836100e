"""The GEMM of a thread block: C[BM, BN] += A[BK, BM]^T * B[BK, BN] from shared memory, in registers.

A thread owns TM x 8 results: rows 4*ty + {0..3} and those a part of the tile further down, TM / 4 times, columns
4*tx + {0..3} and those half a tile to the right.  So a step k reads TM / 4 + 2 vectors of 16 bytes for TM * 8
multiplications: 64 FFMA to 4 LDS.128.  A load of 16 bytes takes a warp four passes over the banks, or two if lanes i and
i^1, or i and i^2, read the same: so two by two lanes share rows one way and columns the other (`placer`).  In the 64
cycles of four warps' FFMA their loads are 32 passes; with 16 neighbours side by side they would be 48.

Shared memory holds two stages of BK steps or twice as many, A before B, one in use and one being filled.  What comes
next goes there from global memory past the registers (``cp.async``), while the present stage is multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastconv.cuda.language import DTYPES, U, arrived, chained, inline, load4, outer, pointed, spot

BK = 8  # steps of a stage, or half of them, each written out in the main loop


@dataclass(frozen=True, slots=True)
class Tile:
    """What one thread block computes."""

    bm: int
    bn: int
    tm: int = 8
    blocks: int = 2  # on one multiprocessor: bounds the registers of a thread
    steps: int = BK  # of a stage: what one costs beside its copies is shared by more of them

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.bm // self.tm * (self.bn // 8)

    @property
    def part(self) -> int:
        """Rows from four of a thread's to its next four."""
        return 4 * self.bm // self.tm


# 65536 registers hold two blocks of 256 threads at 128 registers each: 64 sums, 16 operands of a step, and addresses.
# The fewer rows a tile has, the more of B its threads copy; those save elsewhere, with 16 x 8 results of a thread if
# they may have 255 registers.
TILES = {
    "float32": (
        Tile(128, 128), Tile(128, 64, blocks=3), Tile(64, 128, blocks=3, steps=2 * BK),
        Tile(64, 64, blocks=6, steps=2 * BK), Tile(32, 128, 16, 8, 2 * BK),
    ),
    "float64": (Tile(64, 64, blocks=4), Tile(32, 128, 4, 2)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stages:
    """Where things lie in shared memory; rows of A and B are ``pad`` elements longer than the tile."""

    tile: Tile
    steps: int = BK
    pad: int = 0

    @property
    def lda(self) -> int:
        """Elements of a row of A."""
        return self.tile.bm + self.pad

    @property
    def ldb(self) -> int:
        """Elements of a row of B."""
        return self.tile.bn + self.pad

    @property
    def b(self) -> int:
        """Where B begins."""
        return self.steps * self.lda

    @property
    def size(self) -> int:
        """Elements of a stage."""
        return self.steps * (self.lda + self.ldb)


def placer(across: int, deep: int = 8):
    """Return the device function that tells a thread its first row and column, of ``across`` times ``deep`` threads."""
    wide = max(min(8, across), 32 // deep)  # of a warp
    beside, high = across // wide, 32 // wide

    @inline
    def place(tid):
        warp, lane = U(tid // U(32)), U(tid % U(32))
        row = U(U(warp // U(beside) * U(high)) + U(lane // U(2 * wide) * U(2)) + U(lane % U(2)))
        column = U(U(warp % U(beside) * U(wide)) + U(lane // U(2) % U(wide)))
        return U(row * U(4)), U(column * U(4))

    return place


def multiplier(stages: Stages):
    """Return the device function of one stage: ``acc`` [TM, 8] gets a product of each step.

    ``at_a`` and ``at_b`` point to where the thread's operands begin.
    """
    tile, lda, ldb = stages.tile, stages.lda, stages.ldb
    tm, part_m, half_n, add = tile.tm, tile.part, tile.bn // 2, outer(tile.tm)

    def stepper(k):
        @inline
        def step(at_a, at_b, a, b, acc):
            for i in range(tm // 4):
                a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3] = load4(at_a, k * lda + i * part_m)
            b[0], b[1], b[2], b[3] = load4(at_b, k * ldb)
            b[4], b[5], b[6], b[7] = load4(at_b, k * ldb + half_n)
            add(a, b, acc)

        return step

    return chained([stepper(k) for k in range(stages.steps)])


@inline
def nothing(to_b, fixed):
    """Place what `bring` took to registers: nothing."""


def summer(dtype, stages: Stages, bring, place=nothing):
    """Return the device function of the main loop: ``acc`` [TM, 8] becomes the sums over so many stages.

    ``walk = bring(to_a, to_b, walk, fixed)`` starts to copy a stage, the thread's part of it to where ``to_a`` and ``to_b``
    point, and returns where the next one is; ``place(to_b, fixed)`` writes what it left in registers.
    ``a`` [TM] and ``b`` [8] hold the operands of a step.
    """
    zero, tile, begin_b, size = DTYPES[dtype](0), stages.tile, stages.b, stages.size
    multiply, tm, own = multiplier(stages), tile.tm, placer(tile.bn // 8, tile.bm // tile.tm)

    @inline
    def sum_stages(shared, to_a, to_b, count, walk, fixed, tid, a, b, acc):
        for i in range(tm):
            for j in range(8):
                acc[i, j] = zero
        at_a, at_b = own(tid)
        at_a, at_b = spot(shared, at_a), spot(shared, U(at_b + U(begin_b)))
        to_a, to_b = spot(shared, to_a), spot(shared, U(to_b + U(begin_b)))
        other = U(spot(shared, size) - spot(shared, 0))
        if count > U(0):
            walk = bring(pointed(shared, to_a), pointed(shared, to_b), walk, fixed)
            place(pointed(shared, to_b), fixed)
            arrived()
            while count > U(1):
                to_a, to_b = U(to_a + other), U(to_b + other)
                walk = bring(pointed(shared, to_a), pointed(shared, to_b), walk, fixed)
                multiply(pointed(shared, at_a), pointed(shared, at_b), a, b, acc)
                place(pointed(shared, to_b), fixed)
                at_a, at_b = U(at_a + other), U(at_b + other)
                other = U(U(0) - other)
                arrived()
                count = U(count - U(1))
            multiply(pointed(shared, at_a), pointed(shared, at_b), a, b, acc)

    return sum_stages
