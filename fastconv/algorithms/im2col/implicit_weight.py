"""The kernel of the implicit GEMM for weight gradients: pixels of the batch are what is summed over.

    gw[m, column] = sum over t = (n, p, q) of  gy[n, m, p, q] * x[n, c, p*stride + r*dilation - lo, ...]

A column is a (channel, tap), whose offset stands in a table.  Sixteen neighbouring threads copy pixels of one
channel, 64 bytes side by side, to shared memory turned; rows there are four elements longer than the tile, so that
few of them meet in a bank.  With channels behind the pixels a column is a (tap, channel),
and half a warp copies channels of one pixel side by side, four to a thread, as they stand in shared memory.

A thread's positions t are STEPS apart.  Each is the one before with carries from axis to axis, and two tables tell
where it begins and, as a bit for each offset, which taps lie outside: one of positions in a row, one of rows.  Where
positions come in pairs that are neighbours in both images, a thread has both, at one address.
"""

from __future__ import annotations

from typing import NamedTuple

from fastconv.algorithms.im2col.implicit import ALL, OUTSIDE, seeing
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

    marked: bool  # by tables of positions, and taps have bits
    paired: bool  # two at once, which are neighbours in both images
    linked: bool  # four channels at once, behind the pixels

    @property
    def positions(self) -> int:
        """Positions of a thread at once."""
        return 2 if self.paired else 1

    @property
    def width(self) -> int:
        """Channels of a copy."""
        return 4 if self.linked else 1

    def loads(self, tile: Tile) -> tuple[int, int, int]:
        """Return how often a thread finds channels of the gradient and columns in a stage, and threads side by side."""
        lanes = tile.threads * self.positions // STEPS
        return -(-tile.bm // self.width // lanes), tile.bn // self.width // lanes, lanes


def walker(way: Way):
    """Return device functions that begin at a position t, and that go on to t + STEPS.

    Both return (t, its image, its place there, coordinates z, y, x of the input, offset in its image, bits of taps
    outside, and the same of t + 1); with bits, y and x are those of the result, y through all z.
    """
    marked = way.marked

    @inline
    def looked_up(t, n, line, x, tables, g):
        rows, places = tables
        offset, missing, _, _ = load4(spaced(rows, line, 16), 0)
        more, others, next_others, _ = load4(spaced(places, x, 16), 0)
        next_missing, missing = U(U(missing) | U(next_others)), U(U(missing) | U(others))
        if n >= g.images:
            missing, next_missing = U(ALL), U(ALL)
        return t, n, U(line * g.row + x), U(0), line, x, int32(offset + more), missing, next_missing

    @inline
    def begun(t, tables, g):
        n, place = divided(t, g.pixels, g.pixels_m, g.pixels_s)
        if marked:
            line, x = divided(place, g.row, g.row_m, g.row_s)
            return looked_up(t, n, line, x, tables, g)
        z, rest = divided(place, g.plane, g.plane_m, g.plane_s)
        y, x = divided(rest, g.row, g.row_m, g.row_s)
        x, y, z = U(x * g.stride_x), U(y * g.stride_y), U(z * g.stride_z)
        offset, missing = int32(U(U(U(U(z * g.height) + y) * g.width + x) * g.pixel_source)), U(0)
        if n >= g.images:
            x, missing = U(OUTSIDE), U(ALL)
        return t, n, place, z, y, x, offset, missing, missing

    @inline
    def onward(walk, tables, g):
        t, n, _, _, line, x, _, _, _ = walk
        t = U(t + U(STEPS))
        if not marked:
            return begun(t, tables, g)
        x, line, n = U(x + g.step_x), U(line + g.step_line), U(n + g.step_n)
        if x >= g.row:
            x, line = U(x - g.row), U(line + U(1))
        if line >= g.lines:
            line, n = U(line - g.lines), U(n + U(1))
        return looked_up(t, n, line, x, tables, g)

    return begun, onward


def bringer(stages: Stages, way: Way):
    """Return what `summer` takes: how a stage comes to shared memory."""
    bm, lda, ldb, (_, onward), seen = stages.tile.bm, stages.lda, stages.ldb, walker(way), seeing(way.marked)
    put, width, pairs, marked = copy4 if way.linked else copy, way.width, way.paired, way.marked
    a_loads, b_loads, lanes = way.loads(stages.tile)

    @inline
    def bring(shared, to_a, to_b, walk, fixed):
        _, n, place, z, y, x, offset, missing, next_missing = walk
        source, gy, tables, columns, rows, deltas, bits, lane, g = fixed
        to_a, to_b = uint64(to_a), uint64(to_b)
        gy = spaced(spaced(gy, n, g.image_output), place, g.pixel_output)
        for i in range(a_loads):
            if bm // width % lanes == 0 or U(lane + U(i * lanes)) < U(bm // width):
                at, to = spaced(gy, rows[i], 1), to_a + uint64(i * lanes * width)
                put(shared, to, at, 0, missing != U(ALL))
                if pairs:
                    put(shared, to + uint64(lda), at, 1, missing != U(ALL))
        source = further(spaced(source, n, g.image_source), offset)
        for i in range(b_loads):
            at, to = spaced(source, deltas[i], 1), to_b + uint64(i * lanes * width)
            inside = U(missing & bits[i]) == U(0)
            if not marked:
                _, inside = seen(further(columns, 4 * i * lanes * width), z, y, x, missing, g)
            put(shared, to, at, 0, inside)
            if pairs:
                put(shared, to + uint64(ldb), at, 1, U(next_missing & bits[i]) == U(0))
        return onward(walk, tables, g)

    return bring


def correlation(dtype, tile: Tile, way: Way, vector, added):
    """Make the kernel of a tile; ``vector``: columns come in whole vectors; ``added``: to what is there."""
    real, bm, bn, tm, width = DTYPES[dtype], tile.bm, tile.bn, tile.tm, way.width
    own_results = placer(bn // 8, bm // tm)
    stages, part_m, half_n, linked = Stages(tile, STEPS, pad=4), tile.part, bn // 2, way.linked
    lda, ldb, size, threads = stages.lda, stages.ldb, 2 * stages.size, STEPS // way.positions
    a_loads, b_loads, lanes = way.loads(tile)
    positions, item = way.positions, 4 if dtype == "float32" else 8
    begun, _ = walker(way)
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
        deltas, bits = cuda.local.array(b_loads, U), cuda.local.array(b_loads, U)
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
            rows[i] = U(U(min(m, U(g.m - U(width))) * g.channel_output) * U(item))
        columns = further(table, int64(U(column_tile * U(bn) + lane * U(width))) * int64(4))
        for i in range(b_loads):
            delta, bit, _, _ = load4(columns, 4 * i * lanes * width)
            deltas[i], bits[i] = U(U(delta) * U(item)), U(bit)
        lines = further(table, int64(U(g.column_tiles * U(bn))) * int64(4))
        tables = lines, further(lines, int64(g.lines) * int64(4))
        source = further(x, int64(group) * int64(g.group_source) + int64(int32(g.start)))
        gradient = further(gy, int64(group) * int64(g.group_output))
        fixed = source, gradient, tables, columns, rows, deltas, bits, lane, g
        walk = begun(U(first * U(STEPS) + step), tables, g)
        to_a, to_b = U(step * U(lda) + lane * U(width)), U(step * U(ldb) + lane * U(width))
        sum_stages(shared, to_a, to_b, count, walk, fixed, tid, a, b, acc)

        m_first, column = own_results(tid)
        m_first, column = U(m_begin + m_first), U(column_tile * U(bn) + column)
        write(out, acc, 0, m_first, column, group, split, g)
        write(out, acc, 4, m_first, U(column + U(half_n)), group, split, g)

    return implicit_weight_grad
