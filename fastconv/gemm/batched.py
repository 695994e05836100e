"""Many products of equal size on a GPU: C[b] = A[b]^T B[b], what transformed tiles are multiplied with.

    c[split][b][m][n] = sum over rows of the split of  a[b][row][m] * b[b][row][n]

Rows come in whole stages, m and n in whole tiles, so nothing in the kernel asks where an array ends.  Where the
tiles leave processors idle, rows are split; whoever reads C adds the splits, first to last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import DTYPES, U, copy4, cuda, further, inline, int64, load4, store4
from fastconv.gemm.cuda import BK, TILES, Stages, Tile, placer, summer
from fastconv.gemm.cuda_share import shared_out

SMALL = Tile(32, 64, blocks=12), Tile(64, 32, blocks=12)  # of one warp
MOST_SPLITS, FEWEST_STAGES = 16, 8  # a split shorter than that is mostly its beginning and end


class Geometry(NamedTuple):
    """What the kernel needs to know."""

    m_tiles: int
    n_tiles: int
    batches: int
    splits: int
    stages: int  # of all splits
    a_row: int  # elements of a row
    b_row: int
    a_batch: int
    b_batch: int
    add: int  # to what C holds, instead of writing it


def tiles(dtype: str) -> tuple[Tile, ...]:
    """Return the tiles to choose from."""
    return (*TILES[dtype][:4], *SMALL) if dtype == "float32" else (TILES[dtype][0], Tile(32, 32, 4, 12))


class Product(NamedTuple):
    """What was chosen for a product of m x n results."""

    tile: Tile
    m: int  # in whole tiles
    n: int
    splits: int
    seconds: float = 0.0


def choose(dtype: str, m: int, n: int, rows: int, batches: int) -> Product:
    """Choose the tile and splits."""
    most = min(MOST_SPLITS, -(-rows // BK) // FEWEST_STAGES)
    tile, splits, seconds = shared_out(tiles(dtype), batches, m, n, rows, most, np.dtype(dtype).itemsize)
    return Product(tile, up(m, tile.bm), up(n, tile.bn), splits, seconds)


def up(size: int, whole: int) -> int:
    """Return a size in whole tiles, at least one."""
    return max(1, -(-size // whole)) * whole


def bringer(tile: Tile):
    """Return the device function that starts to copy a stage: BK rows of A and of B, a thread's vectors some rows apart."""
    threads, bm, bn = tile.threads, tile.bm, tile.bn

    @inline
    def bring(to_a, to_b, walk, g):
        a, b = walk
        for i in range(BK * bm // 4 // threads):
            row = i * (4 * threads // bm) * g.a_row
            copy4(to_a, 4 * i * threads, a, row, True)
        for i in range(BK * bn // 4 // threads):
            row = i * (4 * threads // bn) * g.b_row
            copy4(to_b, 4 * i * threads, b, row, True)
        return further(a, BK * g.a_row), further(b, BK * g.b_row)

    return bring


def product(dtype, tile: Tile):
    """Make the kernel of a tile."""
    real, bm, bn, tm = DTYPES[dtype], tile.bm, tile.bn, tile.tm
    own_results = placer(bn // 8, bm // tm)
    stages, part_m, half_n = Stages(tile), tile.part, bn // 2
    sum_stages, size = summer(dtype, stages, bringer(tile)), 2 * stages.size

    @inline
    def write(out, acc, part, to, row, add):
        for i in range(tm):
            at = to + int64(i % 4 + i // 4 * part_m) * row
            c0, c1, c2, c3 = acc[i, part], acc[i, part + 1], acc[i, part + 2], acc[i, part + 3]
            if add:
                v0, v1, v2, v3 = load4(out, at)
                c0, c1, c2, c3 = c0 + v0, c1 + v1, c2 + v2, c3 + v3
            store4(out, at, c0, c1, c2, c3)

    def batched_gemm(a_array, b_array, out, g):
        shared = cuda.shared.array(size, real, alignment=16)
        a, b = cuda.local.array(tm, real), cuda.local.array(8, real)
        acc = cuda.local.array((tm, 8), real)
        tid, block = U(cuda.threadIdx.x), U(cuda.blockIdx.x)
        m_tile, block = U(block % U(g.m_tiles)), U(block // U(g.m_tiles))
        n_tile, block = U(block % U(g.n_tiles)), U(block // U(g.n_tiles))
        batch, split = U(block % U(g.batches)), U(block // U(g.batches))
        first = U(U(U(g.stages) * split) // U(g.splits))
        last = U(U(U(g.stages) * U(split + U(1))) // U(g.splits))

        a_row, b_row = U(tid // U(bm // 4)), U(tid // U(bn // 4))
        a_at = int64(batch) * g.a_batch + (int64(first) * int64(BK) + int64(a_row)) * g.a_row
        b_at = int64(batch) * g.b_batch + (int64(first) * int64(BK) + int64(b_row)) * g.b_row
        a_at += int64(U(m_tile * U(bm) + tid % U(bm // 4) * U(4)))
        b_at += int64(U(n_tile * U(bn) + tid % U(bn // 4) * U(4)))
        walk, to = (further(a_array, a_at), further(b_array, b_at)), U(tid * U(4))
        sum_stages(shared, to, to, U(last - first), walk, g, tid, a, b, acc)

        m_first, column = own_results(tid)
        row = int64(U(g.n_tiles)) * int64(bn)
        to = (int64(split) * g.batches + int64(batch)) * g.m_tiles * int64(bm) + int64(U(m_tile * U(bm)))
        to = (to + int64(m_first)) * row + int64(U(n_tile * U(bn) + column))
        write(out, acc, 0, to, row, g.add)
        write(out, acc, 4, to + int64(half_n), row, g.add)

    return batched_gemm


def kernel(dtype: str, tile: Tile) -> Kernel:
    """Return the kernel of a tile."""
    return Kernel(product, (dtype, tile), (dtype,) * 3, Geometry, "int64", tile.threads, tile.blocks)


def described(dtype: str, p: Product, batches: int, rows: int, add: bool) -> tuple[Kernel, int, Geometry]:
    """Return kernel, blocks and geometry; ``rows`` are a multiple of BK, ``add``: to what C holds."""
    g = Geometry(
        p.m // p.tile.bm, p.n // p.tile.bn, batches, p.splits, rows // BK, p.m, p.n, rows * p.m, rows * p.n, int(add)
    )  # fmt: skip
    return kernel(dtype, p.tile), g.m_tiles * g.n_tiles * batches * p.splits, g
