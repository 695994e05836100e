"""Forward and input gradient, channels last: neighbouring threads own neighbouring channels of the result.

    result[m, phase + step*j] = sum over c, tap of  source[c, stride*j + first + tap*dilation] * w[c, tap, m]

A thread owns V channels by four positions in a row, of one phase.  Of each row of the source that their taps meet it
loads the segment of pixels once, V channels at a time where each channel has its own source (depthwise), one number for
all of them where they share it.  Weights are packed [c][tap][m] first, so that they are read side by side, too.
"""

from __future__ import annotations

from typing import NamedTuple

from fastconv.algorithms.direct.cuda.row import TX
from fastconv.cuda.language import DTYPES, U, activation, cuda, divided, inline, int32, int64, load4, store4

THREADS = 128
LONGEST, SPAN = 5, 8  # taps of a row with one segment in registers: eight pixels of four channels


class Geometry(NamedTuple):
    """What the kernel needs to know; ``_m`` and ``_s`` are a divisor's multiplier and shift."""

    threads: int  # that have results
    vectors: int  # of V channels
    vectors_m: int
    vectors_s: int
    tiles_x: int  # of TX positions in all phases
    tiles_x_m: int
    tiles_x_s: int
    lines: int  # positions down, in all phases
    lines_m: int
    lines_s: int
    slices: int  # and in depth
    slices_m: int
    slices_s: int
    phases_z: int
    phases_y: int
    phases_x: int
    channels: int  # of the source in a group, and of all
    channels_in: int
    m: int  # and of the result
    channels_out: int
    depth: int  # source pixels
    height: int
    width: int
    positions_x: int
    result_z: int  # result pixels
    result_y: int
    result_x: int
    stride_z: int
    stride_y: int
    gap_z: int  # source pixels between taps
    gap_y: int
    skip_z: int  # taps of the kernel between taps of a phase
    skip_y: int
    skip_x: int
    taps: int  # of the kernel
    kernel_y: int
    kernel_x: int
    has_bias: int
    has_residual: int


class Walk(NamedTuple):
    """What is written out in the machine code."""

    v: int  # channels of a thread: 1 or 4
    own: bool  # each has a source of its own, and they lie side by side
    piece: int  # taps of a row at once
    stride: int  # of positions in a row
    gap: int
    back: bool  # the kernel is turned: an input gradient


def adder(dtype, walk: Walk):
    """Return the device function that adds what one row of taps, or a piece of it, meets; and a segment's size."""
    zero = DTYPES[dtype](0)
    v, piece, stride, gap, back = walk.v, walk.piece, walk.stride, walk.gap, walk.back
    pixels, each = (TX - 1) * stride + (piece - 1) * gap + 1, v if walk.own else 1

    @inline
    def add(acc, seg, w, source, packed, line, x, tap, left, g):
        at = line + int64(int32(x)) * int64(g.channels_in)
        for i in range(pixels):
            for u in range(each):
                seg[i * each + u] = zero
            if U(x + U(i)) < g.width:
                if each == 4:
                    a = 4 * i
                    seg[a], seg[a + 1], seg[a + 2], seg[a + 3] = load4(source, at)
                else:
                    seg[i * each] = source[at]
            at += int64(g.channels_in)
        step = int64(g.skip_x) * int64(g.channels_out)
        if back:
            step = -step
        to = tap
        for s in range(piece):
            if U(s) < left:
                if v == 4:
                    w[0], w[1], w[2], w[3] = load4(packed, to)
                else:
                    w[0] = packed[to]
                for j in range(TX):
                    for u in range(v):
                        acc[j * v + u] += seg[(j * stride + s * gap) * each + u % each] * w[u]
            to += step

    return add, pixels * each


def writer(dtype, v: int, name):
    """Return the device function that adds bias and residual, activates and stores a thread's results."""
    zero, act = DTYPES[dtype](0), activation(name)

    @inline
    def write(out, bias, residual, acc, r, begin, channel, x, left, g):
        for u in range(v):
            r[u] = zero
            if g.has_bias:
                r[u] = bias[int64(channel) + int64(u)]
        for j in range(TX):
            pixel = U(x + U(U(j) * g.phases_x))
            if U(j) < left and pixel < g.result_x:
                to = begin + int64(pixel) * int64(g.channels_out)
                a = j * v
                if v == 4:
                    r0, r1, r2, r3 = r[0], r[1], r[2], r[3]
                    if g.has_residual:
                        v0, v1, v2, v3 = load4(residual, to)
                        r0, r1, r2, r3 = r0 + v0, r1 + v1, r2 + v2, r3 + v3
                    store4(
                        out, to, act(acc[a] + r0), act(acc[a + 1] + r1), act(acc[a + 2] + r2), act(acc[a + 3] + r3)
                    )  # fmt: skip
                else:
                    more = r[0]
                    if g.has_residual:
                        more += residual[to]
                    out[to] = act(acc[a] + more)

    return write


def correlation(dtype, walk: Walk, name):
    """Make the kernel; ``table`` tells (taps, first offset, index of the first tap, 0) of phases of z, y, then x."""
    real, zero = DTYPES[dtype], DTYPES[dtype](0)
    v, piece, stride, gap, back, sums = walk.v, walk.piece, walk.stride, walk.gap, walk.back, TX * walk.v
    own = walk.own
    add, size = adder(dtype, walk)
    write = writer(dtype, v, name)

    @inline
    def kernel_index(first, r, skip):
        if back:
            return int64(first) - int64(U(r * skip))
        return int64(first) + int64(U(r * skip))

    def direct_pixels(source, packed, table, bias, residual, out, g):
        seg = cuda.local.array(size, real)
        acc = cuda.local.array(sums, real)
        w = cuda.local.array(v, real)
        at = U(U(cuda.blockIdx.x) * U(THREADS) + U(cuda.threadIdx.x))
        if at < g.threads:
            rest, vector = divided(at, g.vectors, g.vectors_m, g.vectors_s)
            channel = U(vector * U(v))
            line, tile = divided(rest, g.tiles_x, g.tiles_x_m, g.tiles_x_s)
            slab, line = divided(line, g.lines, g.lines_m, g.lines_s)
            n, slab = divided(slab, g.slices, g.slices_m, g.slices_s)
            first_x = U(U(tile // g.phases_x) * U(TX))
            taps_z, low_z, index_z, _ = load4(table, int64(U(slab % g.phases_z)) * int64(4))
            taps_y, low_y, index_y, _ = load4(table, int64(U(g.phases_z + line % g.phases_y)) * int64(4))
            phase_x = U(g.phases_z + g.phases_y + tile % g.phases_x)
            taps_x, low_x, index_x, _ = load4(table, int64(phase_x) * int64(4))
            z0 = U(U(U(slab // g.phases_z) * g.stride_z) + U(low_z))
            y0 = U(U(U(line // g.phases_y) * g.stride_y) + U(low_y))
            x0 = U(U(first_x * U(stride)) + U(low_x))
            for i in range(sums):
                acc[i] = zero
            first = channel
            if not own:
                first = U(U(channel // g.m) * g.channels)
            image = int64(n) * int64(g.depth)
            c = U(0)
            while c < g.channels:
                base = int64(first) + int64(c)
                t = U(0)
                while t < U(taps_z):
                    z, kz = U(z0 + t * g.gap_z), kernel_index(index_z, t, g.skip_z)
                    r = U(0)
                    while z < g.depth and r < U(taps_y):
                        y, ky = U(y0 + r * g.gap_y), kernel_index(index_y, r, g.skip_y)
                        if y < g.height:
                            row = ((image + int64(z)) * int64(g.height) + int64(y)) * int64(g.width)
                            row = row * int64(g.channels_in) + base
                            kernel_row = (kz * int64(g.kernel_y) + ky) * int64(g.kernel_x)
                            s = U(0)
                            while s < U(taps_x):
                                tap = (
                                    kernel_row + kernel_index(index_x, s, g.skip_x) + int64(c) * int64(g.taps)
                                )
                                tap = tap * int64(g.channels_out) + int64(channel)
                                x = U(x0 + s * U(gap))
                                add(acc, seg, w, source, packed, row, x, tap, U(U(taps_x) - s), g)
                                s = U(s + U(piece))
                        r = U(r + U(1))
                    t = U(t + U(1))
                c = U(c + U(1))
            if slab < g.result_z and line < g.result_y:
                begin = (int64(n) * int64(g.result_z) + int64(slab)) * int64(g.result_y) + int64(line)
                begin = begin * int64(g.result_x) * int64(g.channels_out) + int64(channel)
                x = U(U(first_x * g.phases_x) + U(tile % g.phases_x))
                write(out, bias, residual, acc, w, begin, channel, x, U(g.positions_x - first_x), g)

    return direct_pixels
