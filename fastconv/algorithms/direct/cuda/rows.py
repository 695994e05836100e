"""Forward and input gradient along rows, channels first: a few channels' sums in the registers of a thread.

    result[m, phase + step*j] = sum over c, tap of  source[c, stride*j + first + tap*dilation] * w[m, c, tap]

A thread owns TM channels by TY rows by four positions in a row, and all phases of these (`correlation`: more than
one only in strided input gradients).  It goes through the rows of the source that they touch; of each it loads the
segment that all taps of its positions need once, by 16 bytes where rows begin on that boundary, and adds it to every
result row that has a tap there.  Neighbouring threads own neighbouring positions, then rows, then planes, so small maps
fill a block like large ones, and what a segment shares with the next is met in the first-level cache.

A 3x3 layer moves 8 bytes an output; at 3 TB/s an H100 has time for 77 instructions of one thread meanwhile.
"""

from __future__ import annotations

from typing import NamedTuple

from fastconv.algorithms.direct.cuda.row import Row, segment
from fastconv.cuda.language import (
    DTYPES,
    U,
    activation,
    chained,
    cuda,
    divided,
    inline,
    int64,
    load4,
    store4,
)

THREADS = 128


class Geometry(NamedTuple):
    """What the kernel needs to know; ``_m`` and ``_s`` are a divisor's multiplier and shift."""

    threads: int  # that have results
    tiles_x: int  # of TX positions
    tiles_x_m: int
    tiles_x_s: int
    tiles_y: int  # of TY positions, in all phases
    tiles_y_m: int
    tiles_y_s: int
    tiles_z: int  # positions in all phases
    tiles_z_m: int
    tiles_z_s: int
    tiles_m: int  # of TM channels
    groups: int
    channels: int  # of the source in a group
    m: int  # of the result
    phases_z: int
    phases_y: int
    depth: int  # source pixels
    height: int
    width: int
    positions_y: int
    result_z: int  # result pixels
    result_y: int
    result_x: int
    stride_z: int  # source pixels between positions
    stride_y: int
    gap_z: int  # and between taps
    gap_y: int
    skip_z: int  # taps of the kernel between taps of a phase
    skip_y: int
    spread: int  # positions between the rows of a thread
    rows: int  # taps between them
    kernel_y: int
    kernel_x: int
    group_stride: int  # of the weights
    row_stride: int
    channel_stride: int
    has_bias: int
    has_residual: int


class Column(NamedTuple):
    """The axis before, where its taps are few enough to be written out too, with their weights in registers."""

    count: int  # taps of the longest phase; 0: rows are gone through one by one
    rows: int  # taps between the rows of a thread
    alike: bool  # all phases have so many


def phase_adder(row: Row, shift: int, at: int, k: int):
    """Return the device function that adds a segment to phase ``k`` of a row of results, ``acc`` from ``at``."""
    phase = row.phases[k]
    count, place, index = phase.count, phase.first - row.low + shift, phase.index
    stride, gap, skip, step = row.stride, row.gap, row.skip, len(row.phases)
    written, split = min(row.piece, count), row.pieces > 1

    @inline
    def add(acc, seg, weight, to, i, piece, taps, g):
        for s in range(written):
            if not split or U(piece + U(s)) < U(count):
                w = weight[to + int64(index + s * skip)]
                for j in range(4):
                    acc[at + j * step + k] += seg[place + j * stride + s * gap] * w

    return add


def row_adder(row: Row, shift: int, ty: int, m: int, v: int):
    """Return the device function that adds a segment to row ``v`` of channel ``m`` of a thread, if a tap is there."""
    step, skip, back = len(row.phases), row.skip, row.skip < 0
    add = chained([phase_adder(row, shift, (m * ty + v) * 4 * step, k) for k in range(step)])

    @inline
    def add_row(acc, seg, weight, begin, i, piece, taps, g):
        r = U(i - U(U(v) * g.rows))
        if r < U(taps[0]):
            ky = int64(taps[1]) + int64(U(r * g.skip_y))
            if back:
                ky = int64(taps[1]) - int64(U(r * g.skip_y))
            channel = min(U(taps[2] + U(m)), U(g.m - U(1)))
            to = begin + int64(channel) * int64(g.row_stride) + ky * int64(g.kernel_x)
            add(acc, seg, weight, to + int64(piece) * int64(skip), i, piece, taps, g)

    return add_row


def row_by_row(dtype, row: Row, tm: int, ty: int):
    """Return the device function that adds all rows that the taps of one slice meet, weights read as they are needed."""
    fetch, _, shift = segment(dtype, row.low, row.length, row.aligned)
    add = chained([row_adder(row, shift, ty, m, v) for m in range(tm) for v in range(ty)])
    pieces, piece, gap = row.pieces, row.piece, row.gap

    @inline
    def walk(acc, seg, held, source, weight, slab, tap, y, x, taps, g):
        last = U(U(taps[0]) + U(U(ty - 1) * g.rows))
        if taps[0] == 0:
            last = U(0)
        i = U(0)
        while i < last:
            line = U(y + i * g.gap_y)
            if line < g.height:
                k = U(0)
                while k < U(pieces):
                    s = U(k * U(piece))
                    fetch(source, slab + int64(line) * int64(g.width), U(x + s * U(gap)), g.width, seg)
                    add(acc, seg, weight, tap, i, s, taps, g)
                    k = U(k + U(1))
            i = U(i + U(1))

    return walk


def written_out(dtype, row: Row, column: Column, ty: int, kernel_x: int):
    """Return the device function that does the same for one channel, every row and tap in a place of its own."""
    fetch, _, shift = segment(dtype, row.low, row.length, row.aligned)
    step, count, alike, back = len(row.phases), column.count, column.alike, row.skip < 0
    to_row = [chained([phase_adder(row, shift, v * 4 * step, k) for k in range(step)]) for v in range(ty)]

    def adder(v, r):
        add = to_row[v]

        @inline
        def add_tap(acc, seg, held, to, i, piece, taps, g):
            if alike or U(r) < U(taps[0]):
                add(acc, seg, held, r * kernel_x, i, piece, taps, g)

        return add_tap

    def line_walk(i):
        add = chained([adder(v, i - v * column.rows) for v in range(ty) if 0 <= i - v * column.rows < count])

        @inline
        def walk_line(acc, seg, held, source, slab, y, x, taps, g):
            line = U(y + U(i) * g.gap_y)
            if line < g.height:
                fetch(source, slab + int64(line) * int64(g.width), x, g.width, seg)
                add(acc, seg, held, 0, U(i), U(0), taps, g)

        return walk_line

    touched = [i for i in range(count + (ty - 1) * column.rows)
               if any(0 <= i - v * column.rows < count for v in range(ty))]  # fmt: skip
    lines = chained([line_walk(i) for i in touched])

    @inline
    def walk(acc, seg, held, source, weight, slab, tap, y, x, taps, g):
        tap += int64(taps[2]) * int64(g.row_stride)
        for r in range(count):
            if alike or U(r) < U(taps[0]):
                ky = int64(taps[1]) + int64(U(U(r) * g.skip_y))
                if back:
                    ky = int64(taps[1]) - int64(U(U(r) * g.skip_y))
                for s in range(kernel_x):
                    held[r * kernel_x + s] = weight[tap + ky * int64(kernel_x) + int64(s)]
        lines(acc, seg, held, source, slab, y, x, taps, g)

    return walk


def writer(dtype, row: Row, tm: int, ty: int, name):
    """Return the device function that adds bias and residual, activates and stores a thread's results."""
    zero, act = DTYPES[dtype](0), activation(name)
    step, whole = len(row.phases), row.whole

    def line_writer(m, v):
        @inline
        def write_line(out, bias, residual, acc, m_first, plane, pixel, y, x, group, g):
            channel, p = U(m_first + U(m)), U(y[0] + U(U(v) * g.spread))
            line = U(p * g.phases_y + y[1])
            if channel < g.m and p < g.positions_y and line < g.result_y:
                shift = zero
                if g.has_bias:
                    shift = bias[int64(U(group * g.m + channel))]
                to = (plane + int64(channel)) * int64(g.result_z) * int64(U(g.result_y * g.result_x))
                to += int64(pixel) + int64(U(line * g.result_x + x))
                for i in range(step):
                    at = (m * ty + v) * 4 * step + 4 * i
                    if whole:
                        if U(x + U(4 * i)) < g.result_x:
                            r0, r1, r2, r3 = shift, shift, shift, shift
                            if g.has_residual:
                                v0, v1, v2, v3 = load4(residual, to + int64(4 * i))
                                r0, r1, r2, r3 = r0 + v0, r1 + v1, r2 + v2, r3 + v3
                            store4(
                                out, to + int64(4 * i), act(acc[at] + r0), act(acc[at + 1] + r1),
                                act(acc[at + 2] + r2), act(acc[at + 3] + r3),
                            )  # fmt: skip
                    else:
                        for j in range(4):
                            if U(x + U(4 * i + j)) < g.result_x:
                                more = shift
                                if g.has_residual:
                                    more += residual[to + int64(4 * i + j)]
                                out[to + int64(4 * i + j)] = act(acc[at + j] + more)

        return write_line

    return chained([line_writer(m, v) for m in range(tm) for v in range(ty)])


def correlation(dtype, row: Row, column: Column, tm: int, ty: int, kernel_x: int, name):
    """Make the kernel; ``table`` tells (taps, first offset, index of the first tap, 0) of each phase of z, then of y."""
    real, zero = DTYPES[dtype], DTYPES[dtype](0)
    step, back = len(row.phases), row.skip < 0
    _, size, _ = segment(dtype, row.low, row.length, row.aligned)
    walk = written_out(dtype, row, column, ty, kernel_x) if column.count else row_by_row(dtype, row, tm, ty)
    write = writer(dtype, row, tm, ty, name)
    sums, weights, stride = tm * ty * 4 * step, max(1, column.count * kernel_x), row.stride

    def direct_rows(source, weight, table, bias, residual, out, g):
        seg = cuda.local.array(size, real)
        held = cuda.local.array(weights, real)
        acc = cuda.local.array(sums, real)
        at = U(U(cuda.blockIdx.x) * U(THREADS) + U(cuda.threadIdx.x))
        if at < g.threads:
            rest, tile_x = divided(at, g.tiles_x, g.tiles_x_m, g.tiles_x_s)
            plane, tile_y = divided(rest, g.tiles_y, g.tiles_y_m, g.tiles_y_s)
            rest, tile_z = divided(plane, g.tiles_z, g.tiles_z_m, g.tiles_z_s)
            m_first, rest = U(U(rest % g.tiles_m) * U(tm)), U(rest // g.tiles_m)
            group, n = U(rest % g.groups), U(rest // g.groups)
            phase_z, position_z = U(tile_z % g.phases_z), U(tile_z // g.phases_z)
            phase_y, tile_y = U(tile_y % g.phases_y), U(tile_y // g.phases_y)
            first_y = U(U(tile_y % g.spread) + U(tile_y // g.spread) * U(g.spread * U(ty)))
            taps_z, low_z, index_z, _ = load4(table, int64(phase_z) * int64(4))
            taps_y, low_y, index_y, _ = load4(table, int64(U(g.phases_z + phase_y)) * int64(4))
            y = U(U(first_y * g.stride_y) + U(low_y))
            x = U(tile_x * U(4 * stride))
            for i in range(sums):
                acc[i] = zero
            slice_ = int64(U(g.height * g.width))
            base = (int64(n) * int64(g.groups) + int64(group)) * int64(g.channels) * int64(g.depth) * slice_
            begin = int64(group) * int64(g.group_stride)
            c = U(0)
            while c < g.channels:
                t = U(0)
                while t < U(taps_z):
                    z = U(U(position_z * g.stride_z) + U(low_z) + t * g.gap_z)
                    if z < g.depth:
                        kz = int64(index_z) + int64(U(t * g.skip_z))
                        if back:
                            kz = int64(index_z) - int64(U(t * g.skip_z))
                        tap = begin + kz * int64(U(g.kernel_y * g.kernel_x))
                        taps = (U(taps_y), index_y, m_first)
                        walk(acc, seg, held, source, weight, base + int64(z) * slice_, tap, y, x, taps, g)
                    t = U(t + U(1))
                base += int64(g.depth) * slice_
                begin += int64(g.channel_stride)
                c = U(c + U(1))
            slab = U(position_z * g.phases_z + phase_z)
            if slab < g.result_z:
                image = (int64(n) * int64(g.groups) + int64(group)) * int64(g.m)
                slab = U(slab * U(g.result_y * g.result_x))
                x = U(tile_x * U(4 * step))
                write(out, bias, residual, acc, m_first, image, slab, (first_y, phase_y), x, group, g)

    return direct_rows
