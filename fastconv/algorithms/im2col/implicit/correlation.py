"""The kernel of the implicit GEMM for forward and input gradient.

    result[m, column] = sum over row of  packed[row, m] * source[pixel(column) + offset(row)]

A column is a position in the batch and belongs to one thread throughout; a row is a (channel, tap), whose
offset is looked up in a table that all threads of a warp read at the same place.  Which taps lie outside the source
a thread finds out once (`marks`).
"""

from __future__ import annotations

from fastconv.algorithms.im2col.implicit.bring import bringer
from fastconv.algorithms.im2col.implicit.geometry import Copies, Traits
from fastconv.algorithms.im2col.implicit.places import locator
from fastconv.algorithms.im2col.implicit.write import writer
from fastconv.cuda.language import DTYPES, U, block_anew, cuda, further, inline, int64, load4
from fastconv.gemm.cuda import BK, Stages, Tile, placer, summer


@inline
def work_of(block, g):
    """Return which tile, split, phase and group a block has."""
    m_tile, block = U(block % g.m_tiles), U(block // g.m_tiles)
    column_tile, block = U(block % g.column_tiles), U(block // g.column_tiles)
    split, block = U(block % g.splits), U(block // g.splits)
    return m_tile, column_tile, split, U(block % g.phases), U(block // g.phases)


def starter(tile: Tile, traits: Traits):
    """Return the device function that tells where a thread's work begins: its walk, what is fixed, and where its copies go."""
    bm, bn, steps, copies = tile.bm, tile.bn, tile.steps, Copies.of(tile)
    dense, even, linked = traits.dense and not traits.last, traits.even, traits.even and traits.last
    width = 4 if dense else 1  # of a copy
    step = tile.threads // (bn // 4) if dense else copies.step
    own = BK // step  # channels of a thread, side by side where channels stand behind the pixels
    together = 1 if even else 2  # rows of a line
    ints = 4 // together
    locate = locator(1 if dense else copies.columns, tile.threads)

    @inline
    def start(x, packed, table, tid, row, first, m_tile, column_tile, group, regs, g):
        column, b_row = U(U(tid % U(bn // width)) * U(width)), U(tid // U(bn // width))
        a_at = (int64(group) * int64(g.rows) + row + int64(U(tid // U(bm // 4)))) * int64(g.m_ld)
        a_at += int64(U(m_tile * U(bm) + U(tid % U(bm // 4)) * U(4)))
        line, channels = int64(g.phases) * int64(4) + row * int64(ints), U(U(step) * g.channel_source)
        base = int64(group) * int64(g.group_source)
        if dense:
            base += int64(U(U(first * U(steps)) + b_row)) * int64(g.channel_source)
        elif linked:
            base += int64(U(b_row * U(own)))
            channels = U(1)
        elif even:
            base += int64(U(b_row * g.channel_source))
        else:
            line += int64(b_row) * int64(4)
        marks = further(table, int64(g.phases) * int64(4) + int64(g.rows) * int64(ints))
        places = locate(base, marks, U(column_tile * U(bn) + column), g)
        walk = further(packed, a_at), further(x, places[0][0]), further(table, line)
        return walk, (tid, places, channels, regs, g), U(U(b_row * U(bn * together)) + column)

    return start


def correlation(dtype, tile: Tile, traits: Traits, name):
    """Make the kernel of a tile, with an activation by name; launch_bounds of its own."""
    real, bm, bn, tm, steps, phases = DTYPES[dtype], tile.bm, tile.bn, tile.tm, tile.steps, not traits.plain
    bring, place, held = bringer(dtype, tile, traits)
    start, write = starter(tile, traits), writer(dtype, tile, traits, name)
    own_results, stages = placer(bn // 8, bm // tm), Stages(tile, steps)
    sum_stages, size, half_n = summer(dtype, stages, bring, place), 2 * stages.size, bn // 2

    def implicit_gemm(x, packed, table, bias, residual, out, g):
        shared = cuda.shared.array(size, real, alignment=16)
        a, b = cuda.local.array(tm, real), cuda.local.array(8, real)
        acc, regs = cuda.local.array((tm, 8), real), cuda.local.array(held, real)
        tid = U(cuda.threadIdx.x)
        m_tile, column_tile, split, phase, group = work_of(U(cuda.blockIdx.x), g)
        begin, count, _, _ = load4(table, int64(phase) * int64(4))
        first = U(U(U(count) * split) // g.splits)
        last = U(U(U(count) * U(split + U(1))) // g.splits)
        row = int64(begin) + int64(first) * int64(steps)
        walk, fixed, to_b = start(x, packed, table, tid, row, first, m_tile, column_tile, group, regs, g)
        sum_stages(shared, U(tid * U(4)), to_b, U(last - first), walk, fixed, tid, a, b, acc)

        if phases:  # the loop leaves no register for these
            m_tile, column_tile, split, phase, group = work_of(block_anew(), g)
        m_first, column = own_results(tid)
        m_first, column = U(m_tile * U(bm) + m_first), U(column_tile * U(bn) + column)
        write(out, bias, residual, acc, 0, m_first, column, phase, group, split, g)
        write(out, bias, residual, acc, 4, m_first, U(column + U(half_n)), phase, group, split, g)

    return implicit_gemm
