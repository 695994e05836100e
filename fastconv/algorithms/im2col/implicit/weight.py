"""The kernel of the implicit GEMM for weight gradients: pixels of the batch are what is summed over.

    gw[m, column] = sum over t = (n, p, q) of  gy[n, m, p, q] * x[n, c, p*stride + r*dilation - lo, ...]

A column is a (channel, tap), whose offset stands in a table.  Eight neighbouring threads copy pixels of one
channel, 64 bytes side by side, to shared memory turned; rows there are four elements longer than the tile, so that
few of them meet in a bank.  With channels behind the pixels a column is a (tap, channel),
and half a warp copies channels of one pixel side by side, four to a thread, as they stand in shared memory.

A thread has two positions t and t + 1 at once, and goes STEPS further.  A line of a table tells where both begin and which
taps lie outside (`marks`).  There is one for each place in an output map; of large maps two tables are added, one of
rows and one of places in a row.  Where rows are even, t and t + 1 are neighbours in the gradient, and with a stride of 1 in
both images: then they are at one address.
"""

from __future__ import annotations

from typing import NamedTuple

from fastconv.algorithms.im2col.implicit.marks import asker
from fastconv.cuda.language import (
    DTYPES,
    U,
    block_anew,
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
    store4,
    storer,
)
from fastconv.gemm.cuda import BK, Stages, Tile, placer, summer

STEPS = 2 * BK  # of a stage: finding a position is shared by more of them


class Geometry(NamedTuple):
    """What the kernel needs to know; ``_m`` and ``_s`` are a divisor's multiplier and shift."""

    m: int  # output channels of a group
    m_tiles: int
    columns: int  # channels of a group times taps
    column_tiles: int
    splits: int
    stages: int  # of a split
    longer: int  # so many splits have one more
    total: int  # positions
    pixels: int  # of an output map
    pixels_m: int
    pixels_s: int
    row: int  # places that have lines of the table: all of a map, or those in a row
    row_m: int
    row_s: int
    lines: int  # rows of an output map
    step_n: int  # STEPS positions on: so many images,
    step_line: int  # rows,
    step_x: int  # and places
    next_image: int  # places of all channels, which the gradient has from one image to the next
    start: int  # offset of the first tap, as 32 bits
    mask: int  # of `marks`, and the number of pixels past the last
    beyond: int
    group_source: int  # elements from one group and channel to the next
    group_output: int
    channel_output: int
    image_source: int  # and bytes from one image and pixel to the next
    image_output: int
    pixel_output: int
    channels: int  # of the input in a group
    split_result: int  # in units of 4 elements


class Way(NamedTuple):
    """How a thread goes through its positions."""

    flat: bool  # one table tells of all
    marked: bool  # in which taps have bits, not numbers
    pairs: int  # two positions are neighbours in so many images: the gradient, or both
    linked: bool  # only one position, but four channels at once, behind the pixels

    @property
    def positions(self) -> int:
        """Positions of a thread at once."""
        return 1 if self.linked else 2

    @property
    def width(self) -> int:
        """Channels of a copy."""
        return 4 if self.linked else 1

    def loads(self, tile: Tile) -> tuple[int, int, int]:
        """Return how often a thread finds channels of the gradient and columns in a stage, and threads side by side."""
        lanes = tile.threads * self.positions // STEPS
        return -(-tile.bm // self.width // lanes), tile.bn // self.width // lanes, lanes


def walker(way: Way):
    """Return device functions that begin at a position, that look up what is there and at the next, and that go STEPS on."""
    flat, even = way.flat, way.pairs > 0

    @inline
    def begun(t, g):
        n, x = divided(t, g.pixels, g.pixels_m, g.pixels_s)
        line = U(0)
        if not flat:
            line, x = divided(x, g.row, g.row_m, g.row_s)
        return t, n, line, x

    @inline
    def looked_up(walk, table, g):
        """Return (offset in the image, number, whether there is one) of both positions."""
        t, _, line, x = walk
        offset, number, next_offset, next_number = load4(spaced(table, x, 16), 4)
        if not flat:
            more, along, below, along_below = load4(spaced(table, U(line + g.row), 16), 4)
            offset, number = U(offset + more), U(number + along)
            if not even and U(x + U(1)) == g.row:
                more, along = below, along_below
            next_offset, next_number = U(next_offset + more), U(next_number + along)
        number, next_number, there = U(number), U(next_number), t < g.total
        next_there = there if even else U(t + U(1)) < g.total
        if not there:
            number = g.beyond
        if not next_there:
            next_number = g.beyond
        return (U(offset), number, there), (U(next_offset), next_number, next_there)

    @inline
    def carried(low, high, size):
        return (U(low - size), U(high + U(1))) if low >= size else (low, high)

    @inline
    def onward(walk, g):
        t, n, line, x = walk
        t, n, x = U(t + U(STEPS)), U(n + g.step_n), U(x + g.step_x)
        if flat:
            x, n = carried(x, n, g.row)
        else:
            x, line = carried(x, U(line + g.step_line), g.row)
            line, n = carried(line, n, g.lines)
        return t, n, line, x

    return begun, looked_up, onward


def bringer(stages: Stages, way: Way):
    """Return what `summer` takes: how a stage comes to shared memory."""
    bm, lda, ldb, flat = stages.tile.bm, stages.lda, stages.ldb, way.flat
    (_, looked_up, onward), outside = walker(way), asker(way.marked)
    put, width, twice, pairs = copy4 if way.linked else copy, way.width, way.positions == 2, way.pairs
    a_loads, b_loads, lanes = way.loads(stages.tile)

    @inline
    def bring(to_a, to_b, walk, fixed):
        source, gy, table, rows, deltas, taps, lane, g = fixed
        size = U(load4(table, 0)[0])  # bytes, read each time: no product of them is kept
        _, n, line, place = walk
        (offset, number, there), (next_offset, next_number, next_there) = looked_up(walk, table, g)
        if not flat:
            place = U(U(line * g.row) + place)
        after = U(place + U(1))
        if after == g.pixels:
            after = g.next_image
        source, gy = spaced(source, n, g.image_source), spaced(gy, n, g.image_output)
        next_source, next_gy = spaced(source, next_offset, size), spaced(gy, after, g.pixel_output)
        source, gy = spaced(source, offset, size), spaced(gy, place, g.pixel_output)
        for i in range(a_loads):
            if bm // width % lanes == 0 or U(lane + U(i * lanes)) < U(bm // width):
                at, to = spaced(gy, rows[i], size), i * lanes * width
                put(to_a, to, at, 0, there)
                if pairs:
                    put(to_a, to + lda, at, 1, next_there)
                elif twice:
                    put(to_a, to + lda, spaced(next_gy, rows[i], size), 0, next_there)
        for i in range(b_loads):
            at, to = spaced(source, deltas[i], size), i * lanes * width
            put(to_b, to, at, 0, outside(number, taps[i], g.mask) == U(0))
            next_inside = outside(next_number, taps[i], g.mask) == U(0)
            if pairs == 2:
                put(to_b, to + ldb, at, 1, next_inside)
            elif twice:
                put(to_b, to + ldb, spaced(next_source, deltas[i], size), 0, next_inside)
        return onward(walk, g)

    return bring


def writer(tile: Tile, way: Way, vector, added):
    """Return the device function that stores the four columns of ``acc`` from ``part``, or adds them to what is there."""
    tm, part_m, linked, put = tile.tm, tile.part, way.linked, storer(added)

    @inline
    def write(out, acc, part, m_first, column, group, split, g):
        begin = int64(split) * int64(g.split_result) * int64(4)
        for i in range(tm):
            m = U(m_first + U(i % 4 + i // 4 * part_m))
            if m < g.m:
                to = begin + (int64(group) * int64(g.m) + int64(m)) * int64(g.columns)
                if linked:  # from (tap, channel) to (channel, tap)
                    for j in range(4):
                        at = U(column + U(j))
                        if at < g.columns:
                            c = U(U(at % g.channels) * U(g.columns // g.channels))
                            put(out, to + int64(U(c + U(at // g.channels))), acc[i, part + j])
                    continue
                to += int64(column)
                if vector:
                    if column < g.columns:
                        store4(out, to, acc[i, part], acc[i, part + 1], acc[i, part + 2], acc[i, part + 3])
                else:
                    for j in range(4):
                        if U(column + U(j)) < g.columns:
                            put(out, to + int64(j), acc[i, part + j])

    return write


@inline
def work_of(block, g):
    """Return which tile, split and group a block has."""
    m_tile, block = U(block % g.m_tiles), U(block // g.m_tiles)
    column_tile, block = U(block % g.column_tiles), U(block // g.column_tiles)
    return m_tile, column_tile, U(block % g.splits), U(block // g.splits)


def correlation(dtype, tile: Tile, way: Way, vector, added):
    """Make the kernel of a tile; ``vector``: columns come in whole vectors; ``added``: to what is there."""
    real, bm, bn, tm, linked, width = DTYPES[dtype], tile.bm, tile.bn, tile.tm, way.linked, way.width
    own_results, stages, half_n = placer(bn // 8, bm // tm), Stages(tile, STEPS, pad=4), bn // 2
    lda, ldb, size = stages.lda, stages.ldb, 2 * stages.size
    positions, threads, (a_loads, b_loads, lanes) = way.positions, STEPS // way.positions, way.loads(tile)
    begun, write = walker(way)[0], writer(tile, way, vector, added)
    sum_stages = summer(dtype, stages, bringer(stages, way))

    def implicit_weight_grad(x, gy, table, out, g):
        shared = cuda.shared.array(size, real, alignment=16)
        a, b = cuda.local.array(tm, real), cuda.local.array(8, real)
        acc, rows = cuda.local.array((tm, 8), real), cuda.local.array(a_loads, U)
        deltas, taps = cuda.local.array(b_loads, U), cuda.local.array(b_loads, U)
        tid = U(cuda.threadIdx.x)
        m_tile, column_tile, split, group = work_of(U(cuda.blockIdx.x), g)
        first, count = U(split * g.stages + min(split, g.longer)), g.stages
        if split < g.longer:
            count = U(count + U(1))

        step, lane = U(tid % U(threads) * U(positions)), U(tid // U(threads))
        if linked:
            step, lane = U(tid // U(lanes)), U(tid % U(lanes))
        m_begin = U(m_tile * U(bm))
        for i in range(a_loads):  # channels past the last are sums that nobody writes: any other's will do
            m = U(m_begin + U(U(lane + U(i * lanes)) * U(width)))
            rows[i] = U(min(m, U(g.m - U(width))) * g.channel_output)
        columns = further(table, int64(U(column_tile * U(bn) + lane * U(width))) * int64(4))
        for i in range(b_loads):
            delta, tap, _, _ = load4(columns, 4 * i * lanes * width)
            deltas[i], taps[i] = U(delta), U(tap)
        lines = further(table, int64(U(g.column_tiles * U(bn))) * int64(4))
        source = further(x, int64(group) * int64(g.group_source) + int64(int32(g.start)))
        gradient = further(gy, int64(group) * int64(g.group_output))
        fixed = source, gradient, lines, rows, deltas, taps, lane, g
        walk = begun(U(first * U(STEPS) + step), g)
        to_a, to_b = U(step * U(lda) + lane * U(width)), U(step * U(ldb) + lane * U(width))
        sum_stages(shared, to_a, to_b, count, walk, fixed, tid, a, b, acc)

        m_tile, column_tile, split, group = work_of(block_anew(), g)  # the loop leaves no register for these
        m_first, column = own_results(tid)
        m_first, column = U(m_tile * U(bm) + m_first), U(column_tile * U(bn) + column)
        write(out, acc, 0, m_first, column, group, split, g)
        write(out, acc, 4, m_first, U(column + U(half_n)), group, split, g)

    return implicit_weight_grad
