"""How a stage of the implicit GEMM comes to shared memory: weights by 16 bytes, pixels in one of three ways.

* `quads`: four positions of a channel by 16 bytes, where there is one tap and it leads nowhere outside;
* `by_tap`: element by element, where a table tells of each row how far its tap leads, and a bit or a number whether outside;
* `linked`: four channels that stand behind a pixel by 16 bytes, which wait in registers while a stage is multiplied, as
  they are to stand one below the other.

A walk is a thread's (packed weights, pixel of its first column, line of the table); what is fixed are (its number, its
columns' places, elements from one of its channels to the next, registers, geometry).
"""

from __future__ import annotations

from fastconv.algorithms.im2col.implicit.geometry import Copies, Traits
from fastconv.algorithms.im2col.implicit.marks import ALL, asker
from fastconv.cuda.language import (
    DTYPES,
    U,
    chained,
    copy,
    copy4,
    cuda,
    further,
    inline,
    int32,
    load4,
    spaced,
    store,
)
from fastconv.gemm.cuda import BK, Tile, nothing


def bringer(dtype, tile: Tile, traits: Traits):
    """Return the two device functions that `summer` takes, and how many elements wait in registers."""
    if traits.dense and traits.last:
        return linked(dtype, tile, traits)
    return (quads(tile) if traits.dense else by_tap(tile, traits)), nothing, 1


def weights(tile: Tile):
    """Return the device function that starts to copy packed weights, and returns where the next are."""
    threads, bm, steps = tile.threads, tile.bm, tile.steps
    vectors = steps * bm // 4

    @inline
    def bring_weights(to, packed, tid, g):
        for i in range(-(-vectors // threads)):
            if vectors % threads == 0 or tid < U(vectors):
                row = U(U(4 * i * threads // bm) * g.m_ld)
                copy4(to, 4 * i * threads, packed, row, True)
        return further(packed, U(U(steps) * g.m_ld))

    return bring_weights


def quads(tile: Tile):
    """Return the device function for whole vectors of positions."""
    threads, steps, bring_weights = tile.threads, tile.steps, weights(tile)
    vectors = -(-steps * tile.bn // 4 // threads)  # of a thread

    @inline
    def bring(to_a, to_b, walk, fixed):
        packed, source, line = walk
        tid, places, channels, _, g = fixed
        packed = bring_weights(to_a, packed, tid, g)
        wanted = places[0][1] != U(ALL)
        for i in range(vectors):
            copy4(to_b, 4 * i * threads, source, int32(U(i) * channels), wanted)
        return packed, further(source, U(U(steps) * g.channel_source)), line

    return bring


def beginning(c):
    """Return the device function that goes from the pixel of a thread's first column to that of another."""

    @inline
    def begin(source, places):
        return further(source, places[c][0] - places[0][0]) if c else source

    return begin


def by_tap(tile: Tile, traits: Traits):
    """Return the device function for elements wherever taps lead."""
    outside, even, copies, bring_weights = asker(traits.marked), traits.even, Copies.of(tile), weights(tile)
    threads, bn, steps, step = tile.threads, tile.bn, tile.steps, copies.step
    parts = steps // BK
    # looked up: a row of each part, which stands for all of its tap, or else all rows, two in a line
    rows, lines, apart = (
        (parts, parts, BK) if even else (parts * copies.loads, parts * copies.loads // 2, step)
    )

    alike = copies.loads if even else 1  # rows of a look-up

    @inline
    def look_up(line, offsets, taps, sizes):
        for i in range(lines):
            at = further(line, 4 * i * apart)
            if even:
                offsets[i], taps[i], sizes[i], _ = load4(at, 0)
            else:
                offsets[2 * i], taps[2 * i], offsets[2 * i + 1], taps[2 * i + 1] = load4(at, 0)

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
                for j in range(alike):
                    copy(to_b, to + j * step * bn, at, 0, inside)
                    if even:
                        at = spaced(at, channels, sizes[i])

        return put

    put = chained([putter(c) for c in range(copies.columns)])

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

    return bring


def linked(dtype, tile: Tile, traits: Traits):
    """Return the device functions that fetch channels and place them, and how many a thread has of them."""
    zero, outside, copies, bring_weights = (
        DTYPES[dtype](0),
        asker(traits.marked),
        Copies.of(tile),
        weights(tile),
    )
    threads, bn, steps, loads, step = tile.threads, tile.bn, tile.steps, copies.loads, copies.step
    parts = steps // BK
    held = copies.columns * parts * loads

    def fetcher(which):
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

    fetch = chained([fetcher(which) for which in range(copies.columns * parts)])

    @inline
    def bring(to_a, to_b, walk, fixed):
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

    return bring, place, held
