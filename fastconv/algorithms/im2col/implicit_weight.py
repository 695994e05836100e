"""The kernel of the implicit GEMM for weight gradients: pixels of the batch are what is summed over.

    gw[m, column] = sum over t = (n, p, q) of  gy[n, m, p, q] * x[n, c, p*stride + r*dilation - lo, ...]

A column is a (channel, tap), whose offset stands in a table.  Eight neighbouring threads read eight pixels of
one channel, 32 bytes side by side, and write them to shared memory turned; rows there are four elements longer
than the tile, so that the eight meet different banks.  With channels behind the pixels a column is a (tap, channel),
and half a warp reads channels of one pixel side by side, four to a thread, as they stand in shared memory.
"""

from __future__ import annotations

from typing import NamedTuple

from fastconv.algorithms.im2col.implicit import OUTSIDE
from fastconv.cuda.language import DTYPES, U, cuda, divided, inline, int64, load4, store4, uint64
from fastconv.gemm.cuda import BK, Tile, multiplier


class Geometry(NamedTuple):
    """What the kernel needs to know; ``_m`` and ``_s`` are a divisor's multiplier and shift."""

    m: int  # output channels of a group
    m_tiles: int
    columns: int  # channels of a group times taps
    column_tiles: int
    splits: int
    stages: int  # of a split
    longer: int  # so many splits have one more
    total: int  # n * pixels
    pixels: int  # of an output map
    pixels_m: int
    pixels_s: int
    plane: int
    plane_m: int
    plane_s: int
    row: int
    row_m: int
    row_s: int
    stride_z: int
    stride_y: int
    stride_x: int
    depth: int  # input pixels
    height: int
    width: int
    pixel_source: int  # elements from one pixel, group and image to the next
    group_source: int
    image_source: int
    pixel_output: int
    group_output: int
    image_output: int
    channel_output: int
    channels: int  # of the input in a group
    split_result: int  # in units of 4 elements


@inline
def position(t, g):
    """Return a position's image, place in it, and first pixel along each axis; or one OUTSIDE past the last."""
    n = divided(t, g.pixels_m, g.pixels_s)
    place = U(t - n * g.pixels)
    z = divided(place, g.plane_m, g.plane_s)
    rest = U(place - z * g.plane)
    y = divided(rest, g.row_m, g.row_s)
    x = U(U(rest - y * g.row) * g.stride_x)
    if t >= g.total:
        x = U(OUTSIDE)
    return n, place, U(z * g.stride_z), U(y * g.stride_y), x


@inline
def starts(n, place, z, y, x, group, g):
    """Return where a position's first channels lie, of the gradient and of the input."""
    base = int64(n) * int64(g.image_source) + int64(group) * int64(g.group_source)
    base += int64(U(U(U(z * g.height) + y) * g.width + x)) * int64(g.pixel_source)
    at = int64(n) * int64(g.image_output) + int64(group) * int64(g.group_output)
    return at + int64(place) * int64(g.pixel_output), base


def loader(dtype, tile: Tile, deep):
    """Return the device function that fetches a thread's elements of a stage, and that which places them."""
    zero = DTYPES[dtype](0)
    lanes = tile.threads // BK
    a_loads, b_loads = tile.bm // lanes, tile.bn // lanes

    @inline
    def fetch(x, gy, table, table_at, t, lane, m_first, group, g, next_a, next_b):
        n, place, z, y, xx = position(t, g)
        at, base = starts(n, place, z, y, xx, group, g)
        inside = t < g.total
        m = U(m_first + lane)
        at += int64(m) * int64(g.channel_output)
        for i in range(a_loads):
            value = zero
            if inside and U(m + U(i * lanes)) < g.m:
                value = gy[at]
            next_a[i] = value
            at += int64(lanes) * int64(g.channel_output)
        for i in range(b_loads):
            delta, dz, dy, dx = load4(table, table_at + int64(4 * i * lanes))
            value = zero
            if U(xx + dx) < g.width and U(y + dy) < g.height and (not deep or U(z + dz) < g.depth):
                value = x[base + int64(delta)]
            next_b[i] = value

    @inline
    def place(a_tile, b_tile, to_a, to_b, lane, next_a, next_b):
        for i in range(a_loads):
            a_tile[uint64(to_a) + uint64(i * lanes)] = next_a[i]
        for i in range(b_loads):
            b_tile[uint64(to_b) + uint64(i * lanes)] = next_b[i]

    return fetch, place, a_loads, b_loads


def linked_loader(dtype, tile: Tile, deep):
    """Return the same for channels behind the pixels, in fours."""
    zero = DTYPES[dtype](0)
    lanes = tile.threads // BK
    a_quads, b_quads, bm = -(-tile.bm // 4 // lanes), tile.bn // 4 // lanes, tile.bm
    whole = bm % (4 * lanes) == 0

    @inline
    def fetch(x, gy, table, table_at, t, lane, m_first, group, g, next_a, next_b):
        n, place, z, y, xx = position(t, g)
        at, base = starts(n, place, z, y, xx, group, g)
        m = U(m_first + U(lane * U(4)))
        for i in range(a_quads):
            j, k = 4 * i, U(m + U(4 * i * lanes))
            next_a[j], next_a[j + 1], next_a[j + 2], next_a[j + 3] = zero, zero, zero, zero
            if t < g.total and k < g.m and (whole or lane < U(bm // 4)):
                next_a[j], next_a[j + 1], next_a[j + 2], next_a[j + 3] = load4(gy, at + int64(k))
        for i in range(b_quads):
            j = 4 * i
            delta, dz, dy, dx = load4(table, table_at + int64(16 * i * lanes))
            next_b[j], next_b[j + 1], next_b[j + 2], next_b[j + 3] = zero, zero, zero, zero
            if U(xx + dx) < g.width and U(y + dy) < g.height and (not deep or U(z + dz) < g.depth):
                next_b[j], next_b[j + 1], next_b[j + 2], next_b[j + 3] = load4(x, base + int64(delta))

    @inline
    def place(a_tile, b_tile, to_a, to_b, lane, next_a, next_b):
        for i in range(a_quads):
            if whole or lane < U(bm // 4):
                at = uint64(to_a) + uint64(4 * i * lanes)
                store4(a_tile, at, next_a[4 * i], next_a[4 * i + 1], next_a[4 * i + 2], next_a[4 * i + 3])
        for i in range(b_quads):
            at = uint64(to_b) + uint64(4 * i * lanes)
            store4(b_tile, at, next_b[4 * i], next_b[4 * i + 1], next_b[4 * i + 2], next_b[4 * i + 3])

    return fetch, place, 4 * a_quads, 4 * b_quads


def correlation(dtype, tile: Tile, deep, vector, linked):
    """Make the kernel of a tile; ``vector``: columns come in whole vectors, ``linked``: channels do, behind the pixels."""
    real, zero = DTYPES[dtype], DTYPES[dtype](0)
    bm, bn, tm = tile.bm, tile.bn, tile.tm
    fetch, place, a_count, b_count = (linked_loader if linked else loader)(dtype, tile, deep)
    lda, ldb, lanes = bm + 4, bn + 4, tile.threads // BK
    multiply = multiplier(tile, lda, ldb)
    a_stage, b_stage = BK * lda, BK * ldb
    a_size, b_size, across, half_m, half_n = 2 * a_stage, 2 * b_stage, bn // 8, bm // 2, bn // 2

    @inline
    def write(out, acc, part, m_first, column, group, split, g):
        begin = int64(split) * int64(g.split_result) * int64(4)
        for i in range(tm):
            m = U(m_first + U(i % 4 + i // 4 * half_m))
            if m < g.m:
                to = begin + (int64(group) * int64(g.m) + int64(m)) * int64(g.columns)
                if linked:  # from (tap, channel) to (channel, tap)
                    for j in range(4):
                        at = U(column + U(j))
                        if at < g.columns:
                            c = U(U(at % g.channels) * U(g.columns // g.channels))
                            out[to + int64(U(c + U(at // g.channels)))] = acc[i, part + j]
                    continue
                to += int64(column)
                if vector:
                    if column < g.columns:
                        store4(out, to, acc[i, part], acc[i, part + 1], acc[i, part + 2], acc[i, part + 3])
                else:
                    for j in range(4):
                        if U(column + U(j)) < g.columns:
                            out[to + int64(j)] = acc[i, part + j]

    def implicit_weight_grad(x, gy, table, out, g):
        a_tile = cuda.shared.array(a_size, real, alignment=16)
        b_tile = cuda.shared.array(b_size, real, alignment=16)
        acc = cuda.local.array((tm, 8), real)
        a = cuda.local.array(tm, real)
        b = cuda.local.array(8, real)
        next_a = cuda.local.array(a_count, real)
        next_b = cuda.local.array(b_count, real)
        tid = U(cuda.threadIdx.x)
        block = U(cuda.blockIdx.x)
        m_tile, block = U(block % g.m_tiles), U(block // g.m_tiles)
        column_tile, block = U(block % g.column_tiles), U(block // g.column_tiles)
        split, group = U(block % g.splits), U(block // g.splits)
        first = U(split * g.stages + min(split, g.longer))
        last = U(first + g.stages)
        if split < g.longer:
            last = U(last + U(1))

        step, lane, width = U(tid % U(BK)), U(tid // U(BK)), U(1)
        if linked:
            step, lane, width = U(tid // U(lanes)), U(tid % U(lanes)), U(4)
        t = U(first * U(BK) + step)
        m_begin = U(m_tile * U(bm))
        table_at = int64(U(column_tile * U(bn) + lane * width)) * int64(4)
        for i in range(tm):
            for j in range(8):
                acc[i, j] = zero
        at_a, at_b = U(U(tid // U(across)) * U(4)), U(U(tid % U(across)) * U(4))
        to_a, to_b = U(step * U(lda) + lane * width), U(step * U(ldb) + lane * width)
        flip_a, flip_b = U(U(2) * at_a + U(a_stage)), U(U(2) * at_b + U(b_stage))
        turn_a, turn_b = U(U(2) * to_a + U(a_stage)), U(U(2) * to_b + U(b_stage))
        if first < last:
            fetch(x, gy, table, table_at, t, lane, m_begin, group, g, next_a, next_b)
            place(a_tile, b_tile, to_a, to_b, lane, next_a, next_b)
            cuda.syncthreads()
            stage = U(last - first)
            while stage > U(1):
                t = U(t + U(BK))
                fetch(x, gy, table, table_at, t, lane, m_begin, group, g, next_a, next_b)
                multiply(a_tile, b_tile, at_a, at_b, a, b, acc)
                at_a, at_b = U(flip_a - at_a), U(flip_b - at_b)
                to_a, to_b = U(turn_a - to_a), U(turn_b - to_b)
                place(a_tile, b_tile, to_a, to_b, lane, next_a, next_b)
                cuda.syncthreads()
                stage = U(stage - U(1))
            multiply(a_tile, b_tile, at_a, at_b, a, b, acc)

        m_first = U(m_begin + U(tid // U(across)) * U(4))
        column = U(column_tile * U(bn) + U(tid % U(across)) * U(4))
        write(out, acc, 0, m_first, column, group, split, g)
        write(out, acc, 4, m_first, U(column + U(half_n)), group, split, g)

    return implicit_weight_grad
