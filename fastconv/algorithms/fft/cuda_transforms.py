"""Tiles to planes of frequencies and back on a GPU, around the batched GEMM (`staged`).

Each frequency makes three planes, re, im and re + im, for complex products by three real multiplications;
kernels come conjugated and divided by the number of pixels, so that products are correlations.
"""

from __future__ import annotations

from fastconv.algorithms.fft.cuda_tile import THREADS, backward, forward, pitch, places
from fastconv.algorithms.staged import OUTSIDE, place_of
from fastconv.cuda.language import DTYPES, U, cuda, inline, int64


def entering(dtype, t: int, wide: int, role: str, near: bool, lane: int, dilation):
    """Make the kernel that transforms tiles of a source, of weights or of a gradient."""
    real, size, line = DTYPES[dtype], THREADS // t * pitch(t, wide), wide // 2 + 1
    scale, kernel, clipped, registers = (
        DTYPES[dtype](1 / (t * wide)),
        role != "source",
        role == "gradient",
        2 * t,
    )
    pixels_of, column_of, item_of, first_of = places(t, wide, near, lane)
    fetch, to_rows, to_column = forward(dtype, t, wide, dilation)

    def transform_tiles(x, v, g):
        shared = cuda.shared.array(size, real)
        values = cuda.local.array(registers, real)
        tid, block = U(cuda.threadIdx.x), U(cuda.blockIdx.x)
        item, j = pixels_of(tid)
        c, tile, group = item_of(item, block, g)
        n, y, xx = place_of(U(tile + U(g.first)), g)
        if c >= U(g.channels) or U(tile + U(g.first)) >= U(g.tiles):
            n, y = int64(0), int64(OUTSIDE)
        at = g.start + int64(group) * g.group + n * g.image + int64(c) * g.channel
        limits = int64(t), int64(t)
        if clipped:
            limits = g.step_y, g.step_x
        fetch(x, shared, item, j, at, y, xx, (g.height, g.width, g.row, g.pixel), limits)
        to_rows(shared, values, tid)

        item, q = column_of(tid)
        c, tile, group = item_of(item, block, g)
        if q < U(line) and c < U(g.channels_covered) and tile < U(g.tiles_covered):
            to_column(shared, values, item, q)
            first, is_real = first_of(q)
            to = int64(group) * g.to_group + int64(c) * g.to_channel + int64(tile) * g.to_tile
            to += first * int64(3) * g.plane
            for i in range(t):
                if i <= t // 2 or not is_real:
                    re, im = values[i], values[t + i]
                    if kernel:
                        re, im = re * scale, -im * scale
                    v[to], v[to + g.plane], v[to + g.plane + g.plane] = re, im, re + im
                    to += g.plane + g.plane + g.plane

    return transform_tiles


def leaving(dtype, t: int, wide: int, role: str, near: bool, lane: int, dilation, name):
    """Make the kernel that adds splits, transforms back, adds bias and residual, and activates."""
    real, zero, size, line = DTYPES[dtype], DTYPES[dtype](0), THREADS // t * pitch(t, wide), wide // 2 + 1
    whole, registers = role == "weights", 2 * t
    pixels_of, column_of, item_of, first_of = places(t, wide, near, lane)
    from_column, from_rows, deliver = backward(t, wide, dilation, name)

    @inline
    def add_column(m, values, at, is_real, g):
        """Add a column of products; the other half of a real one's is conjugate."""
        for i in range(t):
            place, sign = int64(3 * i), real(1)
            if i > t // 2 and is_real:
                place, sign = int64(3 * (t - i)), real(-1)
            to = at + place * g.plane
            first, second = m[to], m[to + g.plane]  # re = AC, im = BD, third = (A + B)(C + D)
            values[i] += first - second
            values[t + i] += sign * (m[to + g.plane + g.plane] - (first + second))

    def transform_back(m, bias, residual, out, g):
        shared = cuda.shared.array(size, real)
        values = cuda.local.array(registers, real)
        tid, block = U(cuda.threadIdx.x), U(cuda.blockIdx.x)
        item, q = column_of(tid)
        c, tile, group = item_of(item, block, g)
        for i in range(registers):
            values[i] = zero
        if q < U(line):
            if c < U(g.channels) and tile < U(g.tiles_covered):
                first, is_real = first_of(q)
                at = int64(group) * g.to_group + int64(c) * g.to_channel + int64(tile) * g.to_tile
                at += first * int64(3) * g.plane
                for _ in range(g.splits):
                    add_column(m, values, at, is_real, g)
                    at += g.split
            from_column(shared, values, item, q)
        from_rows(shared, values, tid)

        item, j = pixels_of(tid)
        c, tile, group = item_of(item, block, g)
        if c < U(g.channels) and tile < U(g.tiles_covered):
            n, y, xx = place_of(U(tile + U(g.first)), g)
            at = g.start + int64(group) * g.group + n * g.image + int64(c) * g.channel
            shift = zero
            if g.has_bias:
                shift = bias[int64(group) * g.channels + int64(c)]
            limits = g.step_y, g.step_x
            if whole:
                limits = int64(t), int64(t)
            plane = g.height, g.width, g.row, g.pixel
            deliver(out, shared, item, j, at, y, xx, plane, limits, shift, residual, g.has_residual)

    return transform_back
