"""Kernels of the implicit GEMM: pixels go from the image to shared memory tile by tile, lowered nowhere.

    result[m, column] = sum over row of  packed[row, m] * source[pixel(column) + offset(row)]

A column is a position in the batch and belongs to one thread throughout; a row is a (channel, tap), whose
offset is looked up in a table that all threads of a warp read at the same place.  Loads of the next stage
are under way while the present one is multiplied.
"""

from __future__ import annotations

from typing import NamedTuple

from fastconv.cuda.language import DTYPES, U, activation, cuda, divided, inline, int64, load4, store4, uint64
from fastconv.gemm.cuda import BK, Tile, multiplier

OUTSIDE = 0x40000000  # a coordinate that no offset brings back


class Geometry(NamedTuple):
    """What the kernel needs to know; ``_m`` and ``_s`` are a divisor's multiplier and shift."""

    m: int  # result channels of a group
    m_ld: int  # the same in whole tiles: elements of a packed row
    m_tiles: int
    column_tiles: int
    phases: int
    splits: int
    rows: int  # of the packed weights of a group, all phases
    columns: int  # n * positions
    positions: int  # of a phase in an image
    positions_m: int
    positions_s: int
    plane: int  # of them in the last two axes
    plane_m: int
    plane_s: int
    row: int  # and in the last
    row_m: int
    row_s: int
    stride_z: int
    stride_y: int
    stride_x: int
    depth: int  # source pixels
    height: int
    width: int
    pixel_source: int  # elements of the source from one pixel to the next
    group_source: int  # and from one group's channels to the next
    image_source: int
    channel_source: int
    group_result: int
    image_result: int
    channel_result: int
    pixel_result: int
    result_z: int  # result pixels
    result_y: int
    result_x: int
    step_z: int  # between positions
    step_y: int
    step_x: int
    split_result: int  # results of all, in units of 4 elements
    has_bias: int
    has_residual: int


class Traits(NamedTuple):
    """What is true of a problem and saves instructions."""

    deep: bool  # there are three axes
    even: bool  # a stage is BK channels of one tap
    solid: bool  # no tap looks outside the source
    dense: bool  # the source is read by 16 bytes: four positions of one tap without borders, or four channels
    plain: bool  # results lie side by side: one phase
    vector: bool  # results are written by 16 bytes: four positions, or four channels
    last: bool = False  # channels stand behind the pixels


def loader(dtype, tile: Tile, traits: Traits):
    """Return device functions that fetch a thread's elements of a stage of pixels, and place them."""
    zero = DTYPES[dtype](0)
    bn, threads = tile.bn, tile.threads
    loads, step, quads = BK * bn // threads, threads // bn, -(-BK * bn // 4 // threads)
    solid, deep = traits.solid, traits.deep

    @inline
    def fetch_even(x, table, at, base, channels, z, y, xx, g, regs):
        delta, dz, dy, dx = load4(table, at)
        for i in range(loads):
            regs[i] = zero
        if U(xx + dx) < g.width and U(y + dy) < g.height and (not deep or U(z + dz) < g.depth):
            begin = base + int64(delta)
            for i in range(loads):
                regs[i] = x[begin]
                begin += channels

    @inline
    def fetch(x, table, at, base, channels, z, y, xx, g, regs):
        for i in range(loads):
            delta, dz, dy, dx = load4(table, at + int64(4 * i * step))
            value = zero
            if solid:
                if delta >= 0 and xx < U(OUTSIDE):
                    value = x[base + int64(delta)]
            elif U(xx + dx) < g.width and U(y + dy) < g.height and (not deep or U(z + dz) < g.depth):
                value = x[base + int64(delta)]
            regs[i] = value

    @inline
    def place(b_tile, at, regs):
        for i in range(loads):
            b_tile[uint64(at) + uint64(i * threads)] = regs[i]

    @inline
    def fetch_dense(x, table, at, base, channels, z, y, xx, g, regs):
        for i in range(quads):
            regs[4 * i], regs[4 * i + 1], regs[4 * i + 2], regs[4 * i + 3] = zero, zero, zero, zero
        if xx < U(OUTSIDE):
            for i in range(quads):
                regs[4 * i], regs[4 * i + 1], regs[4 * i + 2], regs[4 * i + 3] = load4(x, base)
                base += channels

    @inline
    def place_dense(b_tile, at, regs):
        for i in range(quads):
            to = uint64(at) + uint64(4 * i * threads)
            store4(b_tile, to, regs[4 * i], regs[4 * i + 1], regs[4 * i + 2], regs[4 * i + 3])

    @inline
    def fetch_linked(x, table, at, base, channels, z, y, xx, g, regs):
        delta, dz, dy, dx = load4(table, at)
        for i in range(loads):
            regs[i] = zero
        if U(xx + dx) < g.width and U(y + dy) < g.height and (not deep or U(z + dz) < g.depth):
            begin = base + int64(delta)
            for i in range(loads // 4):
                j = 4 * i
                regs[j], regs[j + 1], regs[j + 2], regs[j + 3] = load4(x, begin + int64(j))

    if traits.dense:
        return (fetch_linked, place, loads) if traits.last else (fetch_dense, place_dense, 4 * quads)
    return fetch_even if traits.even else fetch, place, loads


def weight_loader(tile: Tile):
    """Return device functions that fetch a thread's vectors of a stage of packed weights, and place them."""
    quads, threads, vectors = -(-BK * tile.bm // 4 // tile.threads), tile.threads, BK * tile.bm // 4
    whole, across = vectors % threads == 0, tile.bm // 4

    @inline
    def fetch(packed, at, tid, g, regs):
        for i in range(quads):
            if whole or tid < U(vectors):
                to = at + int64(U(U(i * threads // across) * g.m_ld))
                regs[4 * i], regs[4 * i + 1], regs[4 * i + 2], regs[4 * i + 3] = load4(packed, to)

    @inline
    def place(a_tile, at, tid, regs):
        for i in range(quads):
            if whole or tid < U(vectors):
                to = uint64(at) + uint64(4 * i * threads)
                store4(a_tile, to, regs[4 * i], regs[4 * i + 1], regs[4 * i + 2], regs[4 * i + 3])

    return fetch, place, 4 * quads


def writer(dtype, tile: Tile, traits: Traits, name):
    """Return the device function that adds bias and residual, activates and stores a thread's results."""
    real, zero, act = DTYPES[dtype], DTYPES[dtype](0), activation(name)
    tm, half_m = tile.tm, tile.bm // 2
    plain, vector = traits.plain, traits.vector

    @inline
    def place_of(column, phase, group, g):
        """Return where the first channel of a column's result lies, or -1 where there is none."""
        if column >= g.columns:
            return int64(-1)
        n = divided(column, g.positions_m, g.positions_s)
        at = int64(n) * int64(g.image_result) + int64(group) * int64(g.group_result)
        rest = U(column - n * g.positions)
        if plain:
            return at + int64(rest) * int64(g.pixel_result)
        z = divided(rest, g.plane_m, g.plane_s)
        rest = U(rest - z * g.plane)
        y = divided(rest, g.row_m, g.row_s)
        x = U(U(rest - y * g.row) * g.step_x + phase % g.step_x)
        y = U(y * g.step_y + U(phase // g.step_x) % g.step_y)
        z = U(z * g.step_z + U(phase // g.step_x) // g.step_y)
        if x < g.result_x and y < g.result_y and z < g.result_z:
            return at + int64(U(U(U(z * g.result_y) + y) * g.result_x + x)) * int64(g.pixel_result)
        return int64(-1)

    @inline
    def write_linked(out, bias, residual, acc, part, m_first, column, phase, group, split, g):
        """Store the four columns of ``acc`` from ``part``, four channels at once."""
        begin = int64(split) * int64(g.split_result) * int64(4)
        at = cuda.local.array(4, int64)
        shift = cuda.local.array(4, real)
        for j in range(4):
            at[j] = place_of(U(column + U(j)), phase, group, g)
        for i in range(tm // 4):
            k = U(m_first + U(i * half_m))
            if k < g.m:
                shift[0], shift[1], shift[2], shift[3] = zero, zero, zero, zero
                if g.has_bias:
                    for v in range(4):
                        shift[v] = bias[int64(U(group * g.m + k)) + int64(v)]
                for j in range(4):
                    if at[j] >= 0:
                        to, a = begin + at[j] + int64(k), 4 * i
                        r0, r1, r2, r3 = shift[0], shift[1], shift[2], shift[3]
                        if g.has_residual:
                            v0, v1, v2, v3 = load4(residual, to)
                            r0, r1, r2, r3 = r0 + v0, r1 + v1, r2 + v2, r3 + v3
                        store4(
                            out, to, act(acc[a, part + j] + r0), act(acc[a + 1, part + j] + r1),
                            act(acc[a + 2, part + j] + r2), act(acc[a + 3, part + j] + r3),
                        )  # fmt: skip

    @inline
    def write(out, bias, residual, acc, part, m_first, column, phase, group, split, g):
        """Store the four columns of ``acc`` from ``part``."""
        begin = int64(split) * int64(g.split_result) * int64(4)
        at = cuda.local.array(4, int64)
        at[0] = place_of(column, phase, group, g)
        if not vector:
            for j in range(1, 4):
                at[j] = place_of(U(column + U(j)), phase, group, g)
        for i in range(tm):
            k = U(m_first + U(i % 4 + i // 4 * half_m))
            if k < g.m:
                shift = zero
                if g.has_bias:
                    shift = bias[int64(U(group * g.m + k))]
                to = begin + int64(U(k * g.channel_result))
                if vector:
                    if at[0] >= 0:
                        r0, r1, r2, r3 = shift, shift, shift, shift
                        if g.has_residual:
                            v0, v1, v2, v3 = load4(residual, to + at[0])
                            r0, r1, r2, r3 = r0 + v0, r1 + v1, r2 + v2, r3 + v3
                        store4(
                            out, to + at[0], act(acc[i, part] + r0), act(acc[i, part + 1] + r1),
                            act(acc[i, part + 2] + r2), act(acc[i, part + 3] + r3),
                        )  # fmt: skip
                else:
                    for j in range(4):
                        if at[j] >= 0:
                            more = shift
                            if g.has_residual:
                                more += residual[to + at[j]]
                            out[to + at[j]] = act(acc[i, part + j] + more)

    return write_linked if traits.last and vector else write


def correlation(dtype, tile: Tile, traits: Traits, name):
    """Make the kernel of a tile, with an activation by name; launch_bounds of its own."""
    real, zero = DTYPES[dtype], DTYPES[dtype](0)
    bm, bn, tm, threads = tile.bm, tile.bn, tile.tm, tile.threads
    a_size, b_size, a_stage, b_stage = 2 * BK * bm, 2 * BK * bn, BK * bm, BK * bn
    dense, linked = traits.dense and not traits.last, traits.even and traits.last
    half_n, step = bn // 2, threads // (bn // 4 if dense else bn)
    own = BK // step  # channels of a thread, side by side where channels stand behind the pixels
    fetch_b, place_b, b_count = loader(dtype, tile, traits)
    fetch_a, place_a, a_count = weight_loader(tile)
    write, multiply = writer(dtype, tile, traits, name), multiplier(tile, bm, bn)
    even, across = traits.even, bn // 8

    def implicit_gemm(x, packed, table, bias, residual, out, g):
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
        split, block = U(block % g.splits), U(block // g.splits)
        phase, group = U(block % g.phases), U(block // g.phases)
        begin, stages, _, _ = load4(table, int64(phase) * int64(4))
        first = U(U(U(stages) * split) // g.splits)
        last = U(U(U(stages) * U(split + U(1))) // g.splits)

        in_tile, b_row = U(tid % U(bn)), U(tid // U(bn))
        if dense:
            in_tile, b_row = U(U(tid % U(bn // 4)) * U(4)), U(tid // U(bn // 4))
        column = U(column_tile * U(bn) + in_tile)
        n = divided(column, g.positions_m, g.positions_s)
        rest = U(column - n * g.positions)
        z = divided(rest, g.plane_m, g.plane_s)
        rest = U(rest - z * g.plane)
        y = divided(rest, g.row_m, g.row_s)
        xx = U(U(rest - y * g.row) * g.stride_x)
        z, y = U(z * g.stride_z), U(y * g.stride_y)
        base = int64(n) * int64(g.image_source) + int64(group) * int64(g.group_source)
        base += int64(U(U(U(z * g.height) + y) * g.width + xx)) * int64(g.pixel_source)
        if column >= g.columns:
            xx = U(OUTSIDE)
        channels = int64(U(step)) * int64(g.channel_source)
        stage_channels = int64(BK) * int64(g.channel_source)
        row = int64(begin) + int64(first) * int64(BK)
        a_at = (int64(group) * int64(g.rows) + row + int64(U(tid // U(bm // 4)))) * int64(g.m_ld)
        a_at += int64(U(m_tile * U(bm) + U(tid % U(bm // 4)) * U(4)))
        a_step = int64(BK) * int64(g.m_ld)
        table_at = (int64(g.phases) + row) * int64(4)
        if dense:
            base += int64(U(U(first * U(BK)) + b_row)) * int64(g.channel_source)
        elif linked:
            base += int64(U(b_row * U(own)))
            channels = int64(1)
        elif even:
            base += int64(U(b_row * g.channel_source))
        else:
            table_at += int64(b_row) * int64(4)

        for i in range(tm):
            for j in range(8):
                acc[i, j] = zero
        at_a, at_b = U(U(tid // U(across)) * U(4)), U(U(tid % U(across)) * U(4))
        to_a, to_b = U(tid * U(4)), tid
        if dense:
            to_b = to_a
        if first < last:
            fetch_a(packed, a_at, tid, g, next_a)
            fetch_b(x, table, table_at, base, channels, z, y, xx, g, next_b)
            place_a(a_tile, to_a, tid, next_a)
            place_b(b_tile, to_b, next_b)
            cuda.syncthreads()
            stage = U(last - first)
            while stage > U(1):
                a_at += a_step
                if dense:
                    base += stage_channels
                else:
                    table_at += int64(4 * BK)
                fetch_a(packed, a_at, tid, g, next_a)
                fetch_b(x, table, table_at, base, channels, z, y, xx, g, next_b)
                multiply(a_tile, b_tile, at_a, at_b, a, b, acc)
                at_a, at_b = U(at_a ^ U(a_stage)), U(at_b ^ U(b_stage))
                to_a, to_b = U(to_a ^ U(a_stage)), U(to_b ^ U(b_stage))
                place_a(a_tile, to_a, tid, next_a)
                place_b(b_tile, to_b, next_b)
                cuda.syncthreads()
                stage = U(stage - U(1))
            multiply(a_tile, b_tile, at_a, at_b, a, b, acc)

        m_first = U(m_tile * U(bm) + U(tid // U(across)) * U(4))
        column = U(column_tile * U(bn) + U(tid % U(across)) * U(4))
        write(out, bias, residual, acc, 0, m_first, column, phase, group, split, g)
        write(out, bias, residual, acc, 4, m_first, U(column + U(half_n)), phase, group, split, g)

    return implicit_gemm
