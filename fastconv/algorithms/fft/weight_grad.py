"""Weight gradients by small tiles: spectra ``conj(GY) X`` summed over tiles and images, one inverse at the end.

Lanes are channels.  Dense, for a block of B tiles, with the planes and the GEMM tile of `cpu`::

    A[f, plane, b, k]   planes Gr, -Gi, Gr - Gi, packed in panels        V[f, plane, b, c]   Xr, Xi, Xr + Xi
    M[f, plane, k, c] += sum over b  A[f, plane, b, k] . V[f, plane, b, c]

The blocks follow each other in one order whatever the number of workers, who share out the transforms,
then the frequencies.
"""

from __future__ import annotations

import numba
import numpy as np

from fastconv import jit
from fastconv.algorithms.fft.cpu import pack, place_channels
from fastconv.algorithms.fft.lanes import add_product, clear, place
from fastconv.algorithms.fft.tile2d import samples_gauss, samples_times, spectrum, spectrum_sum, write
from fastconv.gemm.tile import tile


@jit.inner
def _place_vector(table, lanes, base, stride, count, rows, columns):
    """Say where ``count`` planes lie, ``stride`` apart, of which the same pixels exist."""
    clear(table)
    for lane in range(count):
        place(table, lanes, lane, base + lane * stride, rows[0], rows[1], columns[0], columns[1])


@jit.inner
def _transform_unit(unit, x, gy, group, first, count, a, v, table, own, g):
    """Transform a vector of channels of a tile: ``unit`` counts those of x, then those of gy, tile by tile."""
    of_x, of_gy = (g.c + g.lanes - 1) // g.lanes, (g.k + g.lanes - 1) // g.lanes
    b, vector = unit // (of_x + of_gy), unit % (of_x + of_gy)
    n, i, j = (first + b) // (g.th * g.tw), (first + b) // g.tw % g.th, (first + b) % g.tw
    block, width = g.vectors, of_x * g.lanes
    if vector < of_x:
        c0 = vector * g.lanes
        row, column = i * g.mh - g.lo_h, j * g.mw - g.lo_w
        base = ((n * g.groups + group) * g.c + c0) * g.h * g.w + row * g.w + column
        _place_vector(
            table, g.lanes, base, g.h * g.w, min(g.lanes, g.c - c0),
            (max(-row, 0), min(g.h - row, g.ah)), (max(-column, 0), min(g.w - column, g.aw)),
        )  # fmt: skip
        spectrum_sum(
            x, 0, g.w, table, g.ah, g.aw, g.lanes, own, v, b * width + c0,
            3 * block * width + g.lanes, block * width,
        )  # fmt: skip
    else:
        k0 = (vector - of_x) * g.lanes
        row, column = i * g.mh, j * g.mw
        base = ((n * g.groups + group) * g.k + k0) * g.p * g.q + row * g.q + column
        _place_vector(
            table, g.lanes, base, g.p * g.q, min(g.lanes, g.k - k0),
            (0, min(g.p - row, g.mh)), (0, min(g.q - column, g.mw)),
        )  # fmt: skip
        spectrum_sum(gy, 0, g.q, table, g.ah, g.aw, g.lanes, own, own, g.tile_scratch, 3 * g.lanes, g.lanes)
        scale = gy.dtype.type(1.0 / (g.ah * g.aw))
        pack(own, g.tile_scratch, a, 0, k0, min(g.lanes, g.k - k0), b, count, scale, -scale, g)


@jit.inner
def _accumulate_products(f, a, v, m, count, adding, g):
    """Add the products of a block of ``count`` tiles at one frequency."""
    vectors, block = (g.c + g.lanes - 1) // g.lanes, g.vectors
    width = vectors * g.lanes
    for p in range(3):
        left = (3 * f + p) * (g.k * count + g.lanes)
        right = f * (3 * block * width + g.lanes) + p * block * width
        to = f * (3 * g.k * width + g.lanes) + p * g.k * width
        for first in range(0, vectors, g.nr):
            nr, c0 = min(g.nr, vectors - first), first * g.lanes
            for k in range(0, g.k, g.mr):
                rows = min(g.mr, g.k - k)
                tile(
                    m, to + k * width + c0, width, a, left + k * count, v, right + c0, width,
                    count, rows, nr, adding,
                )  # fmt: skip


@jit.inner
def _store_gradient(unit, m, gw, group, table, own, g):
    """Transform a vector of kernels back: ``unit`` counts vectors of c, row by row of k."""
    vectors = (g.c + g.lanes - 1) // g.lanes
    k, c0, width = unit // vectors, unit % vectors * g.lanes, vectors * g.lanes
    pixels = g.r * g.s
    _place_vector(table, g.lanes, c0 * pixels, pixels, min(g.lanes, g.c - c0), (0, g.r), (0, g.s))
    samples_gauss(
        m, k * width + c0, 3 * g.k * width + g.lanes, g.k * width, m, 0, 0, 0, g.ah, g.aw, g.lanes, own
    )
    start = (group * g.k + k) * g.c * pixels
    write(gw, start, g.s, table, g.ah, g.aw, g.lanes, own, (0, 0), g.s)


@jit.kernel
def dense_weight_grad(workers, x, gy, gw, a, v, m, scratch, g):
    """Input, gradient of the output -> gradient of the weight, block of tiles by block of tiles."""
    tiles, size = g.n * g.th * g.tw, scratch.size // workers
    vectors = (g.c + g.lanes - 1) // g.lanes
    units = vectors + (g.k + g.lanes - 1) // g.lanes
    for group in range(g.groups):
        for first in range(0, tiles, g.vectors):
            count = min(g.vectors, tiles - first)
            for worker in numba.prange(workers):
                own = scratch[worker * size : (worker + 1) * size]
                table = np.empty(g.table, np.int64)
                for unit in range(count * units * worker // workers, count * units * (worker + 1) // workers):
                    _transform_unit(unit, x, gy, group, first, count, a, v, table, own, g)
            for worker in numba.prange(workers):
                bins = g.frequencies
                for f in range(bins * worker // workers, bins * (worker + 1) // workers):
                    _accumulate_products(f, a, v, m, count, first > 0, g)
        for worker in numba.prange(workers):
            own = scratch[worker * size : (worker + 1) * size]
            table = np.empty(g.table, np.int64)
            for unit in range(g.k * vectors * worker // workers, g.k * vectors * (worker + 1) // workers):
                _store_gradient(unit, m, gw, group, table, own, g)


@jit.kernel
def depthwise_weight_grad(workers, x, gy, gw, scratch, g):
    """Input, gradient of the output -> gradient of the weight; a unit is VL channels.

    Spectra ``conj(GY) X`` are summed over images and tiles, in this order.
    """
    units, size = (g.groups * g.k + g.lanes - 1) // g.lanes, scratch.size // workers
    length, gap = g.frequencies * 2 * g.lanes, g.lanes
    scale = gw.dtype.type(1.0 / (g.ah * g.aw))
    for worker in numba.prange(workers):
        own = scratch[worker * size : (worker + 1) * size]
        v = own[g.tile_scratch : g.tile_scratch + length]
        z = own[g.tile_scratch + length : g.tile_scratch + 2 * length]
        total = own[g.tile_scratch + 2 * length : g.tile_scratch + 3 * length]
        one = np.zeros(2 * g.lanes, gw.dtype)
        one[: g.lanes] = 1
        table_in, table_out = np.empty(g.table, np.int64), np.empty(g.table, np.int64)
        for unit in range(units * worker // workers, units * (worker + 1) // workers):
            first = unit * g.lanes
            total[:] = 0
            for t in range(g.n * g.th * g.tw):
                n, i, j = t // (g.th * g.tw), t // g.tw % g.th, t % g.tw
                place_channels(table_in, table_out, first, n, i, j, g)
                spectrum(x, 0, g.w, table_in, g.ah, g.aw, g.lanes, own, v, 0, 2 * gap, gap)
                spectrum(gy, 0, g.q, table_out, g.ah, g.aw, g.lanes, own, z, 0, 2 * gap, gap)
                for at in range(0, length, 2 * gap):
                    add_product(total, at, v, at, z, at)
            total *= scale
            clear(table_out)
            for lane in range(min(g.lanes, g.groups * g.k - first)):
                place(table_out, g.lanes, lane, (first + lane) * g.r * g.s, 0, g.r, 0, g.s)
            samples_times(total, 0, 2 * gap, gap, one, 0, 0, gap, g.ah, g.aw, g.lanes, own)
            write(gw, 0, g.s, table_out, g.ah, g.aw, g.lanes, own, (0, 0), g.s)
