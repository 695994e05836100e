"""Kernels of the implicit GEMM: pixels go from the image to shared memory tile by tile, lowered nowhere.

    result[m, column] = sum over row of  packed[row, m] * source[pixel(column) + offset(row)]

A column is a position in the batch and belongs to one thread throughout; a row is a (channel, tap), whose
offset is looked up in a table that all threads of a warp read at the same place.  Which taps lie outside the source
a thread finds out once (`marks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fastconv.algorithms.im2col.marks import ALL, asker, found
from fastconv.cuda.language import (
    DTYPES,
    U,
    activation,
    block_anew,
    chained,
    copy,
    copy4,
    cuda,
    divided,
    further,
    inline,
    int32,
    int64,
    load4,
    spaced,
    store,
    store4,
)
from fastconv.gemm.cuda import BK, Stages, Tile, nothing, placer, summer


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
    marks: int  # lines of the table that tell which taps lie outside
    has_bias: int
    has_residual: int


class Traits(NamedTuple):
    """What is true of a problem and saves instructions."""

    marked: bool  # offsets along the axes are few enough for a bit each, else they have numbers
    even: bool  # a stage is BK channels of one tap
    dense: bool  # the source is read by 16 bytes: four positions of one tap without borders, or four channels
    plain: bool  # results lie side by side: one phase
    vector: bool  # results are written by 16 bytes: four positions, or four channels
    last: bool = False  # channels stand behind the pixels


@dataclass(frozen=True, slots=True)
class Copies:
    """What a thread copies of B in BK steps: ``loads`` rows, ``step`` apart, of each of its columns."""

    columns: int  # ``threads`` apart
    step: int
    loads: int

    @classmethod
    def of(cls, tile: Tile) -> Copies:
        """Return how a tile's threads share them out."""
        step = max(1, tile.threads // tile.bn)
        return cls(max(1, tile.bn // tile.threads), step, BK // step)


def bringer(dtype, tile: Tile, traits: Traits):
    """Return what `summer` takes: how a stage comes to shared memory; and the elements on their way in registers."""
    zero, outside, threads, bm, bn = DTYPES[dtype](0), asker(traits.marked), tile.threads, tile.bm, tile.bn
    steps, even, copies = tile.steps, traits.even, Copies.of(tile)
    columns, step, loads, parts = copies.columns, copies.step, copies.loads, steps // BK
    vectors = steps * bm // 4  # of packed weights in a stage
    quads = -(-steps * bn // 4 // threads)  # of a thread's pixels
    held = columns * parts * loads
    # looked up: a row of each part, which stands for all of its tap, or else all rows, two in a line
    rows, lines, apart = (parts, parts, BK) if even else (parts * loads, parts * loads // 2, step)

    @inline
    def bring_weights(to, packed, tid, g):
        for i in range(-(-vectors // threads)):
            if vectors % threads == 0 or tid < U(vectors):
                row = U(U(4 * i * threads // bm) * g.m_ld)
                copy4(to, 4 * i * threads, packed, row, True)
        return further(packed, U(U(steps) * g.m_ld))

    @inline
    def bring_quads(to_a, to_b, walk, fixed):
        packed, source, line = walk
        tid, places, channels, _, g = fixed
        packed = bring_weights(to_a, packed, tid, g)
        wanted = places[0][1] != U(ALL)
        for i in range(quads):
            copy4(to_b, 4 * i * threads, source, int32(U(i) * channels), wanted)
        return packed, further(source, U(U(steps) * g.channel_source)), line

    @inline
    def look_up(line, offsets, taps, sizes):
        for i in range(lines):
            at = further(line, 4 * i * apart)
            if even:
                offsets[i], taps[i], sizes[i], _ = load4(at, 0)
            else:
                offsets[2 * i], taps[2 * i], offsets[2 * i + 1], taps[2 * i + 1] = load4(at, 0)

    def beginning(c):
        @inline
        def begin(source, places):
            return further(source, places[c][0] - places[0][0]) if c else source

        return begin

    def putter(c):
        begin = beginning(c)

        @inline
        def put(to_b, source, offsets, taps, sizes, places, channels):
            source = begin(source, places)
            _, pixel, mask = places[c]
            for i in range(rows):
                row = i * BK if even else i // 2 * 2 * step + i % 2
                to, at = c * threads + row * bn, further(source, offsets[i])
                inside = outside(pixel, taps[i], mask) == U(0)
                for j in range(loads if even else 1):
                    copy(to_b, to + j * step * bn, at, 0, inside)
                    if even:
                        at = spaced(at, channels, sizes[i])

        return put

    put = chained([putter(c) for c in range(columns)])

    @inline
    def bring(to_a, to_b, walk, fixed):
        offsets, taps = cuda.local.array(rows, int32), cuda.local.array(rows, int32)
        sizes = cuda.local.array(rows, int32)  # bytes, read each time: no product of them is kept
        packed, source, line = walk
        tid, places, channels, _, g = fixed
        packed = bring_weights(to_a, packed, tid, g)
        look_up(line, offsets, taps, sizes)  # first all look-ups, then all copies
        put(to_b, source, offsets, taps, sizes, places, channels)
        return packed, source, further(line, 4 * steps if even else 2 * steps)

    def loader(which):
        c, first = which // parts, which * loads
        begin = beginning(c)

        @inline
        def fetch(source, line, places, regs):
            _, pixel, mask = places[c]
            offset, tap, _, _ = load4(further(line, 4 * BK * (which % parts)), 0)
            for i in range(loads):
                regs[first + i] = zero
            if outside(pixel, tap, mask) == U(0):
                at = further(begin(source, places), offset)
                for j in range(loads // 4):
                    i = first + 4 * j
                    regs[i], regs[i + 1], regs[i + 2], regs[i + 3] = load4(further(at, 4 * j), 0)

        return fetch

    fetch = chained([loader(which) for which in range(columns * parts)])

    @inline
    def bring_linked(to_a, to_b, walk, fixed):
        packed, source, line = walk
        tid, places, _, regs, g = fixed
        packed = bring_weights(to_a, packed, tid, g)
        fetch(source, line, places, regs)
        return packed, source, further(line, 4 * steps)

    @inline
    def place(to_b, fixed):
        regs = fixed[3]
        for i in range(held):
            column, row = i // loads // parts * threads, i // loads % parts * BK + i % loads * step
            store(to_b, column + row * bn, regs[i])

    if traits.dense and traits.last:
        return bring_linked, place, held
    return (bring_quads if traits.dense else bring), nothing, 1


def writer(dtype, tile: Tile, traits: Traits, name):
    """Return the device function that adds bias and residual, activates and stores a thread's results."""
    real, zero, act = DTYPES[dtype], DTYPES[dtype](0), activation(name)
    tm, part_m = tile.tm, tile.part
    plain, vector = traits.plain, traits.vector

    @inline
    def place_of(column, phase, group, g):
        """Return where the first channel of a column's result lies, or -1 where there is none."""
        if column >= g.columns:
            return int64(-1)
        n, rest = divided(column, g.positions, g.positions_m, g.positions_s)
        at = int64(n) * int64(g.image_result) + int64(group) * int64(g.group_result)
        if plain:
            return at + int64(rest) * int64(g.pixel_result)
        z, rest = divided(rest, g.plane, g.plane_m, g.plane_s)
        y, x = divided(rest, g.row, g.row_m, g.row_s)
        x = U(x * g.step_x + phase % g.step_x)
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
            k = U(m_first + U(i * part_m))
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

        return write_row

    write_rows = chained([row_writer(i) for i in range(tm)])

    @inline
    def write(out, bias, residual, acc, part, m_first, column, phase, group, split, g):
        """Store the four columns of ``acc`` from ``part``."""
        begin = int64(split) * int64(g.split_result) * int64(4)
        at = cuda.local.array(4, int64)
        at[0] = place_of(column, phase, group, g)
        if not vector:
            for j in range(1, 4):
                at[j] = place_of(U(column + U(j)), phase, group, g)
        write_rows(out, bias, residual, acc, part, m_first, at, begin, group, g)

    return write_linked if traits.last and vector else write


def correlation(dtype, tile: Tile, traits: Traits, name):
    """Make the kernel of a tile, with an activation by name; launch_bounds of its own."""
    real, bm, bn, tm, threads = DTYPES[dtype], tile.bm, tile.bn, tile.tm, tile.threads
    dense, linked, even = traits.dense and not traits.last, traits.even and traits.last, traits.even
    phases = not traits.plain
    half_n, copies = bn // 2, Copies.of(tile)
    width = 4 if dense else 1  # of a copy
    step = threads // (bn // 4) if dense else copies.step
    together = 1 if even else 2  # rows of a line
    ints = 4 // together
    own = BK // step  # channels of a thread, side by side where channels stand behind the pixels
    bring, place, held = bringer(dtype, tile, traits)
    stages = Stages(tile, tile.steps)
    write, own_results = writer(dtype, tile, traits, name), placer(bn // 8, bm // tm)
    sum_stages, size, steps = summer(dtype, stages, bring, place), 2 * stages.size, tile.steps

    @inline
    def located(base, marks, column, g):
        """Return how far into the source a column's pixel lies, and what tells which taps lie outside."""
        n, rest = divided(column, g.positions, g.positions_m, g.positions_s)
        z, rest = divided(rest, g.plane, g.plane_m, g.plane_s)
        y, x = divided(rest, g.row, g.row_m, g.row_s)
        z, y, x = U(z * g.stride_z), U(y * g.stride_y), U(x * g.stride_x)
        base += int64(n) * int64(g.image_source)
        base += int64(U(U(U(z * g.height) + y) * g.width + x)) * int64(g.pixel_source)
        pixel, mask, beyond = found(marks, g.marks, (z, y, x), (g.depth, g.height, g.width))
        if column >= g.columns:
            pixel = beyond
        return base, pixel, mask

    def locator(count):
        others = locator(count - 1) if count > 1 else None

        @inline
        def one(base, marks, column, g):
            return (located(base, marks, column, g),)

        @inline
        def more(base, marks, column, g):
            here = located(base, marks, U(column + U((count - 1) * threads)), g)
            return others(base, marks, column, g) + (here,)  # noqa: RUF005  (Numba's)

        return one if count == 1 else more

    locate = locator(1 if dense else copies.columns)

    @inline
    def work_of(block, g):
        """Return which tile, split, phase and group a block has."""
        m_tile, block = U(block % g.m_tiles), U(block // g.m_tiles)
        column_tile, block = U(block % g.column_tiles), U(block // g.column_tiles)
        split, block = U(block % g.splits), U(block // g.splits)
        return m_tile, column_tile, split, U(block % g.phases), U(block // g.phases)

    def implicit_gemm(x, packed, table, bias, residual, out, g):
        shared = cuda.shared.array(size, real, alignment=16)
        a, b = cuda.local.array(tm, real), cuda.local.array(8, real)
        acc, regs = cuda.local.array((tm, 8), real), cuda.local.array(held, real)
        tid = U(cuda.threadIdx.x)
        m_tile, column_tile, split, phase, group = work_of(U(cuda.blockIdx.x), g)
        begin, count, _, _ = load4(table, int64(phase) * int64(4))
        first = U(U(U(count) * split) // g.splits)
        last = U(U(U(count) * U(split + U(1))) // g.splits)

        in_tile, b_row = U(U(tid % U(bn // width)) * U(width)), U(tid // U(bn // width))
        row = int64(begin) + int64(first) * int64(steps)
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
        places = locate(base, marks, U(column_tile * U(bn) + in_tile), g)
        walk = further(packed, a_at), further(x, places[0][0]), further(table, line)
        fixed = tid, places, channels, regs, g
        to_a, to_b = U(tid * U(4)), U(U(b_row * U(bn * together)) + in_tile)
        sum_stages(shared, to_a, to_b, U(last - first), walk, fixed, tid, a, b, acc)

        if phases:  # the loop leaves no register for these
            m_tile, column_tile, split, phase, group = work_of(block_anew(), g)
        m_first, column = own_results(tid)
        m_first, column = U(m_tile * U(bm) + m_first), U(column_tile * U(bn) + column)
        write(out, bias, residual, acc, 0, m_first, column, phase, group, split, g)
        write(out, bias, residual, acc, 4, m_first, U(column + U(half_n)), phase, group, split, g)

    return implicit_gemm
