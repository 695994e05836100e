"""The weight gradient along rows: a thread block for a block of taps of one pair of channels.

    gw[k, c, t, r, s] = sum over n, o, p, q of  gy[n, k, o, p, q] * x[n, c, o*stride + t*dilation - lo, ...]

The positions of the batch are shared out: first among splits, then among the threads of a block, four in a row to
each.  For these a thread loads the segment of x that its taps meet, row of taps by row, and adds RB x SB products of
each position to sums in registers.  At the end halves of the block add each other's sums, always in one order, and a
second kernel adds the splits, or they add to the result as they come.

Channels last, a block has 32 neighbouring channels of the output, one for each lane of its warps, which share out the
positions: so they read side by side what stands side by side.
"""

from __future__ import annotations

from typing import NamedTuple

from fastconv.algorithms.direct.cuda.row import TX, segment
from fastconv.algorithms.direct.cuda.rows import THREADS
from fastconv.cuda.language import DTYPES, U, chained, cuda, divided, inline, int32, int64, load4, storer


class Geometry(NamedTuple):
    """What the kernel needs to know; ``_m`` and ``_s`` are a divisor's multiplier and shift."""

    tiles: int  # of TX positions in the batch
    tiles_x: int  # in a row
    tiles_x_m: int
    tiles_x_s: int
    rows: int  # of positions in a slice
    rows_m: int
    rows_s: int
    slices: int  # in an image
    slices_m: int
    slices_s: int
    splits: int
    share: int  # tiles of a split
    blocks_y: int  # of RB rows of taps
    blocks_x: int  # of SB taps
    c: int  # channels of the input, of a group and of the output
    cs: int
    k: int
    ks: int
    depth: int  # input pixels
    height: int
    width: int
    columns: int  # positions of a row
    stride_z: int
    stride_y: int
    gap_z: int
    gap_y: int
    kernel_z: int
    kernel_y: int
    kernel_x: int
    lo_z: int
    lo_y: int
    lo_x: int  # less what is written out
    split_result: int  # elements


class Taps(NamedTuple):
    """A block of taps, and what is written out of their walk."""

    rb: int
    sb: int
    stride: int
    gap: int
    low: int  # offset of the first tap, where there is one block in a row: borders are written out
    quads: bool  # rows of the input begin on 16 bytes, and so far from them every segment does
    whole: bool  # rows of the output do
    lanes: int  # channels of the output in a thread block: 1, or 32 if they stand behind the pixels


def row_adder(taps: Taps, shift: int, r: int):
    """Return the device function that adds the products of row ``r`` of taps."""
    sb, stride, gap, whole = taps.sb, taps.stride, taps.gap, taps.whole

    @inline
    def add(acc, seg, gs, valid):
        for j in range(4):
            if whole or U(j) < valid:
                for s in range(sb):
                    acc[r * sb + s] += gs[j] * seg[shift + j * stride + s * gap]

    return add


def rows_adder(dtype, taps: Taps):
    """Return the device function that goes through the rows of taps, and the size of a segment."""
    length = (TX - 1) * taps.stride + (taps.sb - 1) * taps.gap + 1
    zero, last = DTYPES[dtype](0), taps.lanes > 1
    by_row, size, shift = segment(dtype, taps.low, length, taps.quads)

    @inline
    def fetch(x, slab, row, column, seg, g):
        """Load a segment; channels last, of one channel of each pixel."""
        if last:
            here = slab + (int64(row) * int64(g.width) + int64(int32(column))) * int64(g.c)
            for i in range(length):
                seg[i] = zero
                if U(column + U(i)) < g.width:
                    seg[i] = x[here]
                here += int64(g.c)
        else:
            by_row(x, slab + int64(row) * int64(g.width), column, g.width, seg)

    def line(r):
        add = row_adder(taps, shift, r)

        @inline
        def add_line(acc, seg, gs, x, slab, y, column, valid, g):
            row = U(y + U(U(r) * g.gap_y))
            if row < g.height:
                fetch(x, slab, row, column, seg, g)
                add(acc, seg, gs, valid)

        return add_line

    return chained([line(r) for r in range(taps.rb)]), size


def correlation(dtype, taps: Taps, added):
    """Make the kernel; ``added``: to what is there."""
    real, zero = DTYPES[dtype], DTYPES[dtype](0)
    rb, sb, stride, gap, whole = taps.rb, taps.sb, taps.stride, taps.gap, taps.whole
    sums = rb * sb
    put, (add, size) = storer(added), rows_adder(dtype, taps)
    held, lanes, steps = sums * THREADS, taps.lanes, THREADS // taps.lanes

    def direct_weight_rows(x, gy, out, g):
        shared = cuda.shared.array(held, real)
        seg = cuda.local.array(size, real)
        acc = cuda.local.array(sums, real)
        gs = cuda.local.array(4, real)
        tid, block = U(cuda.threadIdx.x), U(cuda.blockIdx.x)
        block_x, block = U(block % g.blocks_x), U(block // g.blocks_x)
        block_y, block = U(block % g.blocks_y), U(block // g.blocks_y)
        tap_z, block = U(block % g.kernel_z), U(block // g.kernel_z)
        split, block = U(block % g.splits), U(block // g.splits)
        c, k = U(block % g.cs), U(block // g.cs)
        lane = U(tid % U(lanes))
        k = U(k * U(lanes) + lane)
        channel = U(U(k // g.ks) * g.cs + c)
        r0, s0 = U(block_y * U(rb)), U(block_x * U(sb))
        for i in range(sums):
            acc[i] = zero
        slice_in = int64(U(g.height * g.width))
        tile = U(U(split * g.share) + U(tid // U(lanes)))
        last = min(U(U(split + U(1)) * g.share), g.tiles)
        if k >= g.k:
            last = U(0)
        while tile < last:
            rest, tile_x = divided(tile, g.tiles_x, g.tiles_x_m, g.tiles_x_s)
            q = U(tile_x * U(4))
            row, p = divided(rest, g.rows, g.rows_m, g.rows_s)
            n, o = divided(row, g.slices, g.slices_m, g.slices_s)
            z = U(U(o * g.stride_z) + U(tap_z * g.gap_z) - g.lo_z)
            if z < g.depth:
                valid = U(g.columns - q)
                if lanes > 1:
                    to = (int64(n) * int64(g.slices) + int64(o)) * int64(g.rows) + int64(p)
                    to = (to * int64(g.columns) + int64(q)) * int64(g.k) + int64(k)
                    slab = (int64(n) * int64(g.depth) + int64(z)) * slice_in * int64(g.c) + int64(channel)
                else:
                    to = (int64(n) * int64(g.k) + int64(k)) * int64(g.slices) + int64(o)
                    to = (to * int64(g.rows) + int64(p)) * int64(g.columns) + int64(q)
                    slab = ((int64(n) * int64(g.c) + int64(channel)) * int64(g.depth) + int64(z)) * slice_in
                if whole:
                    gs[0], gs[1], gs[2], gs[3] = load4(gy, to)
                else:
                    for j in range(4):
                        gs[j] = zero
                        if U(j) < valid:
                            gs[j] = gy[to]
                        to += int64(g.k) if lanes > 1 else int64(1)
                y = U(U(p * g.stride_y) + U(r0 * g.gap_y) - g.lo_y)
                column = U(U(q * U(stride)) + U(s0 * U(gap)) - g.lo_x)
                add(acc, seg, gs, x, slab, y, column, valid, g)
            tile = U(tile + U(steps))
        for i in range(sums):
            shared[U(U(i * THREADS) + tid)] = acc[i]
        half = U(THREADS // 2)
        while half >= U(lanes):
            cuda.syncthreads()
            e = tid
            while e < U(U(sums) * half):
                at = U(U(U(e // half) * U(THREADS)) + U(e % half))
                shared[at] += shared[U(at + half)]
                e = U(e + U(THREADS))
            half = U(half // U(2))
        cuda.syncthreads()
        e = U(tid // U(lanes))
        while e < U(sums):
            r, s = U(r0 + U(e // U(sb))), U(s0 + U(e % U(sb)))
            if r < g.kernel_y and s < g.kernel_x and k < g.k:
                to = ((int64(k) * int64(g.cs) + int64(c)) * int64(g.kernel_z) + int64(tap_z)) * int64(
                    g.kernel_y
                )
                to = (to + int64(r)) * int64(g.kernel_x) + int64(s)
                put(out, int64(split) * int64(g.split_result) + to, shared[U(U(e * U(THREADS)) + lane)])
            e = U(e + U(steps))

    return direct_weight_rows
