"""Depthwise convolution by FFT tiles on a GPU: a channel meets its own kernel alone, so nothing leaves the block.

* `filtering`: a tile is transformed, multiplied by the spectrum of its channel's kernel in registers, transformed
  back and stored; forward and input gradient read the source once and write the result once.
* `correlating`: every item sums products of spectra of grad_output and input over tiles in registers, a block adds
  its items in order, and what blocks found is added and transformed back by `cuda_transforms.leaving`.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

from fastconv.algorithms.fft.cuda_tile import THREADS, backward, forward, frequencies, pitch, places
from fastconv.algorithms.staged import OUTSIDE, Geometry, place_of
from fastconv.cuda.language import DTYPES, U, cuda, inline, int64

SECOND = (
    "image",
    "channel",
    "row",
    "pixel",
    "height",
    "width",
)  # of the other array, which has the same tiles
_named: Any = namedtuple
Pair = _named("Pair", (*Geometry._fields, *(f"second_{name}" for name in SECOND), "rounds", "slots"))


def filtering(dtype, t: int, wide: int, near: bool, lane: int, name):
    """Make the kernel of forward and input gradient; ``g`` describes the source, its second array is the result."""
    real, zero, size, line = DTYPES[dtype], DTYPES[dtype](0), THREADS // t * pitch(t, wide), wide // 2 + 1
    planes, registers = 3 * frequencies(t, wide), 2 * t
    pixels_of, column_of, item_of, first_of = places(t, wide, near, lane)
    fetch, to_rows, to_column = forward(dtype, t, wide, (1, 1))
    from_column, from_rows, deliver = backward(t, wide, (1, 1), name)

    @inline
    def multiply(u, values, at, is_real):
        """Multiply a column by the kernel's, which is conjugated; the other half of a real one's is conjugate."""
        for i in range(t):
            place, sign = int64(3 * i), real(1)
            if i > t // 2 and is_real:
                place, sign = int64(3 * (t - i)), real(-1)
            a, b = u[at + place], sign * u[at + place + int64(1)]
            re, im = values[i], values[t + i]
            values[i], values[t + i] = re * a - im * b, re * b + im * a

    def filter_tiles(x, u, bias, residual, out, g):
        shared = cuda.shared.array(size, real)
        values = cuda.local.array(registers, real)
        tid, block = U(cuda.threadIdx.x), U(cuda.blockIdx.x)
        item, j = pixels_of(tid)
        c, tile, _ = item_of(item, block, g)
        n, y, xx = place_of(tile, g)
        inside = c < U(g.channels) and tile < U(g.tiles)
        top = y
        if not inside:
            n, top = int64(0), int64(OUTSIDE)
        plane = g.height, g.width, g.row, g.pixel
        fetch(x, shared, item, j, n * g.image + int64(c) * g.channel, top, xx, plane, (int64(t), int64(t)))
        to_rows(shared, values, tid)
        column_item, q = column_of(tid)
        channel, _, _ = item_of(column_item, block, g)
        if q < U(line):
            to_column(shared, values, column_item, q)
            if channel < U(g.channels):
                first, is_real = first_of(q)
                multiply(u, values, int64(channel) * int64(planes) + first * int64(3), is_real)
            from_column(shared, values, column_item, q)
        from_rows(shared, values, tid)
        if inside:
            shift = zero
            if g.has_bias:
                shift = bias[int64(c)]
            at = n * g.second_image + int64(c) * g.second_channel
            plane = g.second_height, g.second_width, g.second_row, g.second_pixel
            y, xx, limits = y + g.lo_y, xx + g.lo_x, (g.step_y, g.step_x)
            deliver(out, shared, item, j, at, y, xx, plane, limits, shift, residual, g.has_residual)

    return filter_tiles


def correlating(dtype, t: int, wide: int, near: bool, lane: int):
    """Make the kernel of the weight gradient; ``g`` describes the input, its second array is grad_output."""
    real, zero, tile_size, line = DTYPES[dtype], DTYPES[dtype](0), pitch(t, wide), wide // 2 + 1
    size, per_sweep, registers = THREADS // t * tile_size, THREADS // t // lane, 2 * t
    scale, planes = DTYPES[dtype](1 / (t * wide)), 3 * frequencies(t, wide)
    pixels_of, column_of, item_of, first_of = places(t, wide, near, lane)
    fetch, to_rows, to_column = forward(dtype, t, wide, (1, 1))

    def correlate_tiles(x, gy, m, g):
        shared = cuda.shared.array(size, real)
        values = cuda.local.array(registers, real)
        kernel = cuda.local.array(registers, real)
        total = cuda.local.array(registers, real)
        tid, block = U(cuda.threadIdx.x), U(cuda.blockIdx.x)
        item, j = pixels_of(tid)
        column_item, q = column_of(tid)
        c, tile, _ = item_of(item, block, g)
        for i in range(registers):
            total[i] = zero
        for _ in range(g.rounds):
            n, y, xx = place_of(tile, g)
            low, left = y + g.lo_y, xx + g.lo_x
            if c >= U(g.channels) or tile >= U(g.tiles):
                n, y, low = int64(0), int64(OUTSIDE), int64(OUTSIDE)
            plane = g.second_height, g.second_width, g.second_row, g.second_pixel
            at = n * g.second_image + int64(c) * g.second_channel
            fetch(gy, shared, item, j, at, low, left, plane, (g.step_y, g.step_x))
            to_rows(shared, values, tid)
            if q < U(line):
                to_column(shared, values, column_item, q)
            for i in range(registers):
                kernel[i] = values[i]
            cuda.syncthreads()
            plane = g.height, g.width, g.row, g.pixel
            fetch(x, shared, item, j, n * g.image + int64(c) * g.channel, y, xx, plane, (int64(t), int64(t)))
            to_rows(shared, values, tid)
            if q < U(line):
                to_column(shared, values, column_item, q)
                for i in range(t):
                    total[i] += kernel[i] * values[i] + kernel[t + i] * values[t + i]
                    total[t + i] += kernel[i] * values[t + i] - kernel[t + i] * values[i]
            cuda.syncthreads()
            tile = U(tile + U(g.slots))

        to = U(column_item % U(lane) * U(tile_size) + q)
        for k in range(per_sweep):
            if U(column_item // U(lane)) == U(k) and q < U(line):
                for i in range(registers):
                    if k > 0:
                        total[i] += shared[U(to + U(i * line))]
                    shared[U(to + U(i * line))] = total[i]
            cuda.syncthreads()
        channel, _, _ = item_of(column_item, block, g)
        if U(column_item // U(lane)) == U(per_sweep - 1) and q < U(line) and channel < U(g.channels):
            split = U(block // U(g.channel_blocks))
            first, is_real = first_of(q)
            at = (int64(split) * int64(planes) + first * int64(3)) * g.channels + int64(channel)
            for i in range(t):
                if i <= t // 2 or not is_real:  # as products by three multiplications whose second is 0
                    m[at], m[at + g.channels] = total[i] * scale, zero
                    m[at + g.channels + g.channels] = (total[i] + total[t + i]) * scale
                    at += int64(3) * g.channels

    return correlate_tiles
