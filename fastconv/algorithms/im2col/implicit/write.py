"""How results of the implicit GEMM are finished and stored: bias and residual added, activated, four at once or one by one.

``write(out, bias, residual, acc, part, m_first, column, phase, group, split, g)`` stores the four columns of a thread's sums
from ``part`` on, of rows from ``m_first``.
"""

from __future__ import annotations

from fastconv.algorithms.im2col.implicit.geometry import Traits
from fastconv.algorithms.im2col.implicit.places import result_finder
from fastconv.cuda.language import DTYPES, U, activation, chained, cuda, inline, int64, load4, store4
from fastconv.gemm.cuda import Tile


def writer(dtype, tile: Tile, traits: Traits, name):
    """Return the device function ``write``."""
    if traits.last and traits.vector:
        return of_channels(dtype, tile, traits, name)
    return of_rows(dtype, tile, traits, name)


def finisher(name):
    """Return the device function that finishes four sums, each with what is added to it, and stores them side by side."""
    act = activation(name)

    @inline
    def finish(out, residual, to, sums, added, g):
        a0, a1, a2, a3 = added
        if g.has_residual:
            v0, v1, v2, v3 = load4(residual, to)
            a0, a1, a2, a3 = a0 + v0, a1 + v1, a2 + v2, a3 + v3
        store4(out, to, act(sums[0] + a0), act(sums[1] + a1), act(sums[2] + a2), act(sums[3] + a3))

    return finish


def of_channels(dtype, tile: Tile, traits: Traits, name):
    """Return ``write`` for channels behind the pixels: four of them at once."""
    real, zero, tm, part_m = DTYPES[dtype], DTYPES[dtype](0), tile.tm, tile.part
    result_of, finish = result_finder(traits.plain), finisher(name)

    @inline
    def write(out, bias, residual, acc, part, m_first, column, phase, group, split, g):
        begin = int64(split) * int64(g.split_result) * int64(4)
        at, shift = cuda.local.array(4, int64), cuda.local.array(4, real)
        for j in range(4):
            at[j] = result_of(U(column + U(j)), phase, group, g)
        for i in range(tm // 4):
            k, a = U(m_first + U(i * part_m)), 4 * i
            if k < g.m:
                shift[0], shift[1], shift[2], shift[3] = zero, zero, zero, zero
                if g.has_bias:
                    for v in range(4):
                        shift[v] = bias[int64(U(group * g.m + k)) + int64(v)]
                for j in range(4):
                    if at[j] >= 0:
                        sums = (
                            acc[a, part + j],
                            acc[a + 1, part + j],
                            acc[a + 2, part + j],
                            acc[a + 3, part + j],
                        )
                        added = shift[0], shift[1], shift[2], shift[3]
                        finish(out, residual, begin + at[j] + int64(k), sums, added, g)

    return write


def of_rows(dtype, tile: Tile, traits: Traits, name):
    """Return ``write`` for pixels of a channel: four of them at once, or each where it lies."""
    zero, part_m, vector, act = DTYPES[dtype](0), tile.part, traits.vector, activation(name)
    result_of, finish = result_finder(traits.plain), finisher(name)

    def row_writer(i):
        @inline
        def write_row(out, bias, residual, acc, part, m_first, at, begin, group, g):
            k = U(m_first + U(i % 4 + i // 4 * part_m))
            if k < g.m:
                shift = zero
                if g.has_bias:
                    shift = bias[int64(U(group * g.m + k))]
                to = begin + int64(U(k * g.channel_result))
                if vector:
                    if at[0] >= 0:
                        sums = acc[i, part], acc[i, part + 1], acc[i, part + 2], acc[i, part + 3]
                        finish(out, residual, to + at[0], sums, (shift, shift, shift, shift), g)
                else:
                    for j in range(4):
                        if at[j] >= 0:
                            more = shift
                            if g.has_residual:
                                more += residual[to + at[j]]
                            out[to + at[j]] = act(acc[i, part + j] + more)

        return write_row

    write_rows = chained([row_writer(i) for i in range(tile.tm)])

    @inline
    def write(out, bias, residual, acc, part, m_first, column, phase, group, split, g):
        begin = int64(split) * int64(g.split_result) * int64(4)
        at = cuda.local.array(4, int64)
        at[0] = result_of(column, phase, group, g)
        if not vector:
            for j in range(1, 4):
                at[j] = result_of(U(column + U(j)), phase, group, g)
        write_rows(out, bias, residual, acc, part, m_first, at, begin, group, g)

    return write
