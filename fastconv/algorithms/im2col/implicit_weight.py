"""The kernel of the implicit GEMM for weight gradients: pixels of the batch are what is summed over.

    gw[m, column] = sum over t = (n, p, q) of  gy[n, m, p, q] * x[n, c, p*stride + r*dilation - lo, ...]

A column is a (channel, tap), whose offset stands in a table.  Eight neighbouring threads copy pixels of one
channel, 64 bytes side by side, to shared memory turned; rows there are four elements longer than the tile, so that
few of them meet in a bank.  With channels behind the pixels a column is a (tap, channel),
and half a warp copies channels of one pixel side by side, four to a thread, as they stand in shared memory.

A thread has two positions t and t + 1 at once, and goes STEPS further.  Each is the one before with carries from axis to
axis, and two tables tell where it begins and which taps lie outside (`marks`): one of positions in a row, one of rows.
Where positions come in pairs that are neighbours in both images, both are at one address.  Of too many positions for
tables a thread has one at a time, whose coordinates are compared.
"""

from __future__ import annotations

from typing import NamedTuple

from fastconv.algorithms.im2col.marks import asker
from fastconv.cuda.language import (
    DTYPES,
    U,
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
    uint64,
)
from fastconv.gemm.cuda import BK, Stages, Tile, placer, summer

STEPS = 2 * BK  # of a stage: finding a position is shared by more of them
OUTSIDE = 0x40000000  # a coordinate that no offset brings back


class Geometry(NamedTuple):
    """What the kernel needs to know; ``_m`` and ``_s`` are a divisor's multiplier and shift."""

    m: int  # output channels of a group
    m_tiles: int
    columns: int  # channels of a group times taps
    column_tiles: int
    splits: int
    stages: int  # of a split
    longer: int  # so many splits have one more
    images: int
    pixels: int  # of an output map
    pixels_m: int
    pixels_s: int
    plane: int
    plane_m: int
    plane_s: int
    row: int
    row_m: int
    row_s: int
    lines: int  # rows of an output map
    step_n: int  # STEPS positions on: so many images,
    step_line: int  # rows,
    step_x: int  # and positions
    stride_z: int
    stride_y: int
    stride_x: int
    depth: int  # input pixels
    height: int
    width: int
    start: int  # offset of the first tap, as 32 bits
    mask: int  # of `marks`, and the number of pixels past the last
    beyond: int
    pixel_source: int  # elements from one pixel, group and channel to the next
    group_source: int
    group_output: int
    channel_output: int
    image_source: int  # and bytes from one image and pixel to the next
    image_output: int
    pixel_output: int
    channels: int  # of the input in a group
    split_result: int  # in units of 4 elements


class Way(NamedTuple):
    """How a thread goes through its positions."""

    tabled: bool  # by tables of positions
    marked: bool  # in which taps have bits, not numbers
    paired: bool  # two that are neighbours in both images
    linked: bool  # or one, but four channels at once, behind the pixels

    @property
    def positions(self) -> int:
        """Positions of a thread at once."""
        return 2 if self.tabled and not self.linked else 1

    @property
    def width(self) -> int:
        """Channels of a copy."""
        return 4 if self.linked else 1

    def loads(self, tile: Tile) -> tuple[int, int, int]:
        """Return how often a thread finds channels of the gradient and columns in a stage, and threads side by side."""
        lanes = tile.threads * self.positions // STEPS
        return -(-tile.bm // self.width // lanes), tile.bn // self.width // lanes, lanes


def walker(way: Way):
    """Return device functions that begin at a position t, that tell what is there and at t + 1, and that go on to t + STEPS.

    What is at a position: the image, the place there, coordinates z, y, x of the input, the offset in its image, what
    tells which taps lie outside, the same of a neighbour, and bytes of an element, which are read each time, so that no
    product of them is kept.
    """
    tabled, alone = way.tabled, way.paired or way.positions == 1

    @inline
    def begun(t, g):
        n, place = divided(t, g.pixels, g.pixels_m, g.pixels_s)
        line, x = divided(place, g.row, g.row_m, g.row_s)
        return t, n, line, x

    @inline
    def looked_up(n, line, x, tables, g):
        rows, places = tables
        offset, pixel, size, _ = load4(spaced(rows, line, 16), 0)
        more, along, next_along, _ = load4(spaced(places, x, 16), 0)
        neighbour, pixel = U(pixel + next_along), U(pixel + along)
        if n >= g.images:
            pixel, neighbour = g.beyond, g.beyond
        return n, U(line * g.row + x), U(0), line, x, int32(offset + more), pixel, neighbour, U(size)

    @inline
    def computed(t, tables, g):
        _, _, size, _ = load4(tables[0], 0)
        n, place = divided(t, g.pixels, g.pixels_m, g.pixels_s)
        z, rest = divided(place, g.plane, g.plane_m, g.plane_s)
        y, x = divided(rest, g.row, g.row_m, g.row_s)
        x, y, z = U(x * g.stride_x), U(y * g.stride_y), U(z * g.stride_z)
        offset = int32(U(U(U(U(z * g.height) + y) * g.width + x) * g.pixel_source))
        return n, place, z, y, x, offset, U(0), U(0), U(size)

    @inline
    def carried(n, line, x, g):
        if x >= g.row:
            x, line = U(x - g.row), U(line + U(1))
        if line >= g.lines:
            line, n = U(line - g.lines), U(n + U(1))
        return n, line, x

    @inline
    def both(walk, tables, g):
        t, n, line, x = walk
        first = looked_up(n, line, x, tables, g) if tabled else computed(t, tables, g)
        if alone:
            return first, first
        n, line, x = carried(n, line, U(x + U(1)), g)
        return first, looked_up(n, line, x, tables, g)

    @inline
    def onward(walk, g):
        t, n, line, x = walk
        n, line, x = carried(U(n + g.step_n), U(line + g.step_line), U(x + g.step_x), g)
        return U(t + U(STEPS)), n, line, x

    return begun, both, onward


@inline
def leads_inside(line, z, y, x, g):
    """Return whether the offsets (dz, dy, dx) of a line lead inside from a pixel."""
    _, dz, dy, dx = load4(line, 0)
    return (U(x + dx) < g.width) & (U(y + dy) < g.height) & (U(z + dz) < g.depth)


def bringer(stages: Stages, way: Way):
    """Return what `summer` takes: how a stage comes to shared memory."""
    bm, lda, ldb, (_, both, onward), outside = (
        stages.tile.bm,
        stages.lda,
        stages.ldb,
        walker(way),
        asker(way.marked),
    )
    put, width, pairs, tabled = copy4 if way.linked else copy, way.width, way.paired, way.tabled
    a_loads, b_loads, lanes = way.loads(stages.tile)
    twice = way.positions == 2 and not pairs

    @inline
    def begins(source, gy, position, g):
        """Return where a position begins in both images, and whether there is one."""
        n, place, _, _, _, offset, _, _, _ = position
        source = further(spaced(source, n, g.image_source), offset)
        return source, spaced(spaced(gy, n, g.image_output), place, g.pixel_output), n < g.images

    @inline
    def reads(position, columns, taps, i, g):
        n, _, z, y, x, _, pixel, _, _ = position
        if tabled:
            return outside(pixel, taps[i], g.mask) == U(0)
        return (n < g.images) & leads_inside(further(columns, 4 * i * lanes * width), z, y, x, g)

    @inline
    def bring(shared, to_a, to_b, walk, fixed):
        source, gy, tables, columns, rows, deltas, taps, lane, g = fixed
        first, second = both(walk, tables, g)
        to_a, to_b, neighbour, size = uint64(to_a), uint64(to_b), first[7], first[8]
        source_1, gy_1, there_1 = begins(source, gy, first, g)
        source_2, gy_2, there_2 = begins(source, gy, second, g)
        for i in range(a_loads):
            if bm // width % lanes == 0 or U(lane + U(i * lanes)) < U(bm // width):
                at, to = spaced(gy_1, rows[i], size), to_a + uint64(i * lanes * width)
                put(shared, to, at, 0, there_1)
                if pairs:
                    put(shared, to + uint64(lda), at, 1, there_1)
                if twice:
                    put(shared, to + uint64(lda), spaced(gy_2, rows[i], size), 0, there_2)
        for i in range(b_loads):
            at, to = spaced(source_1, deltas[i], size), to_b + uint64(i * lanes * width)
            put(shared, to, at, 0, reads(first, columns, taps, i, g))
            if pairs:
                put(shared, to + uint64(ldb), at, 1, outside(neighbour, taps[i], g.mask) == U(0))
            if twice:
                at = spaced(source_2, deltas[i], size)
                put(shared, to + uint64(ldb), at, 0, reads(second, columns, taps, i, g))
        return onward(walk, g)

    return bring


def correlation(dtype, tile: Tile, way: Way, vector, added):
    """Make the kernel of a tile; ``vector``: columns come in whole vectors; ``added``: to what is there."""
    real, bm, bn, tm, width = DTYPES[dtype], tile.bm, tile.bn, tile.tm, way.width
    own_results = placer(bn // 8, bm // tm)
    stages, part_m, half_n, linked = Stages(tile, STEPS, pad=4), tile.part, bn // 2, way.linked
    lda, ldb, size, threads = stages.lda, stages.ldb, 2 * stages.size, STEPS // way.positions
    a_loads, b_loads, lanes = way.loads(tile)
    positions, begun = way.positions, walker(way)[0]
    put = storer(added)
    sum_stages = summer(dtype, stages, bringer(stages, way))

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

    def implicit_weight_grad(x, gy, table, out, g):
        shared = cuda.shared.array(size, real, alignment=16)
        a, b = cuda.local.array(tm, real), cuda.local.array(8, real)
        acc, rows = cuda.local.array((tm, 8), real), cuda.local.array(a_loads, U)
        deltas, taps = cuda.local.array(b_loads, U), cuda.local.array(b_loads, U)
        tid, block = U(cuda.threadIdx.x), U(cuda.blockIdx.x)
        m_tile, block = U(block % g.m_tiles), U(block // g.m_tiles)
        column_tile, block = U(block % g.column_tiles), U(block // g.column_tiles)
        split, group = U(block % g.splits), U(block // g.splits)
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
        tables = lines, further(lines, int64(g.lines) * int64(4))
        source = further(x, int64(group) * int64(g.group_source) + int64(int32(g.start)))
        gradient = further(gy, int64(group) * int64(g.group_output))
        fixed = source, gradient, tables, columns, rows, deltas, taps, lane, g
        walk = begun(U(first * U(STEPS) + step), g)
        to_a, to_b = U(step * U(lda) + lane * U(width)), U(step * U(ldb) + lane * U(width))
        sum_stages(shared, to_a, to_b, count, walk, fixed, tid, a, b, acc)

        m_first, column = own_results(tid)
        m_first, column = U(m_begin + m_first), U(column_tile * U(bn) + column)
        write(out, acc, 0, m_first, column, group, split, g)
        write(out, acc, 4, m_first, U(column + U(half_n)), group, split, g)

    return implicit_weight_grad
