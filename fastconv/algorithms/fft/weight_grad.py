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
from fastconv.algorithms.fft.cpu import pack
from fastconv.algorithms.fft.lanes import add_product
from fastconv.algorithms.fft.places import (
    place_channels,
    place_kernels,
    place_result_vector,
    place_vector,
)
from fastconv.algorithms.fft.tile2d import samples_gauss, samples_times, spectrum, spectrum_sum, write
from fastconv.gemm.schedule import next_task
from fastconv.gemm.tile import tile


@jit.inner
def _source_spectra(b, vector, x, group, first, v, table, own, maps, g):
    """Transform a vector of channels of tile ``first + b`` of the source."""
    place_vector(table, first + b, vector, group, maps, g)
    block, width = g.vectors, (g.c + g.lanes - 1) // g.lanes * g.lanes
    spectrum_sum(
        x, 0, maps, table, g.ah, g.aw, g.lanes, own, v, b * width + vector * g.lanes,
        3 * block * width + g.lanes, block * width,
    )  # fmt: skip


@jit.inner
def _gradient_spectra(b, vector, gy, group, first, count, a, table, own, maps, g):
    """Do so with the gradient of the output."""
    place_result_vector(table, first + b, vector, group, maps, g)
    k0 = vector * g.lanes
    spectrum_sum(gy, 0, maps, table, g.ah, g.aw, g.lanes, own, own, g.tile_scratch, 3 * g.lanes, g.lanes)
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
def _store_gradient(unit, m, gw, group, table, own, maps, g):
    """Transform a vector of kernels back: ``unit`` counts vectors of c, row by row of k."""
    vectors = (g.c + g.lanes - 1) // g.lanes
    k, c0, width = unit // vectors, unit % vectors * g.lanes, vectors * g.lanes
    pixels = g.r * g.s
    place_kernels(table, c0 * pixels, pixels, min(g.lanes, g.c - c0), g)
    samples_gauss(
        m, k * width + c0, 3 * g.k * width + g.lanes, g.k * width, m, 0, 0, 0, g.ah, g.aw, g.lanes, own
    )
    start = (group * g.k + k) * g.c * pixels
    write(gw, start, maps, table, g.ah, g.aw, g.lanes, own, (0, 0), g.s)


@jit.kernel
def dense_weight_grad(workers, x, gy, gw, a, v, m, scratch, maps, geos):
    """Input, gradient of the output -> gradient of the weight, block of tiles by block of tiles."""
    geo = geos[0]  # read again by each loop over workers: Numba passes no structure to one
    tiles, size = geo.n * geo.th * geo.tw, scratch.size // workers
    vectors = (geo.c + geo.lanes - 1) // geo.lanes
    units = vectors + (geo.k + geo.lanes - 1) // geo.lanes
    for group in range(geo.groups):
        for first in range(0, tiles, geo.vectors):
            count = min(geo.vectors, tiles - first)
            for worker in numba.prange(workers):
                g = geos[0]
                own = scratch[worker * size : (worker + 1) * size]
                table = np.empty(g.table, np.int64)
                for unit in range(count * units * worker // workers, count * units * (worker + 1) // workers):
                    b, vector = unit // units, unit % units
                    if vector < vectors:
                        _source_spectra(b, vector, x, group, first, v, table, own, maps, g)
                    else:
                        _gradient_spectra(
                            b, vector - vectors, gy, group, first, count, a, table, own, maps, g
                        )
            for worker in numba.prange(workers):
                g = geos[0]
                bins = g.frequencies
                for f in range(bins * worker // workers, bins * (worker + 1) // workers):
                    _accumulate_products(f, a, v, m, count, first > 0, g)
        for worker in numba.prange(workers):
            g = geos[0]
            own = scratch[worker * size : (worker + 1) * size]
            table = np.empty(g.table, np.int64)
            for unit in range(g.k * vectors * worker // workers, g.k * vectors * (worker + 1) // workers):
                _store_gradient(unit, m, gw, group, table, own, maps, g)


@jit.kernel
def depthwise_weight_grad(workers, counters, x, gy, gw, scratch, maps, geos):
    """Input, gradient of the output -> gradient of the weight; a unit is VL channels.

    Spectra ``conj(GY) X`` are summed over images and tiles, in this order.
    """
    for worker in numba.prange(workers):
        g = geos[0]
        units, size = (g.groups * g.k + g.lanes - 1) // g.lanes, scratch.size // workers
        length, gap = g.frequencies * 2 * g.lanes, g.lanes
        scale = gw.dtype.type(1.0 / (g.ah * g.aw))
        own = scratch[worker * size : (worker + 1) * size]
        v = own[g.tile_scratch : g.tile_scratch + length]
        z = own[g.tile_scratch + length : g.tile_scratch + 2 * length]
        total = own[g.tile_scratch + 2 * length : g.tile_scratch + 3 * length]
        one = np.zeros(2 * g.lanes, gw.dtype)
        one[: g.lanes] = 1
        table_in, table_out = np.empty(g.table, np.int64), np.empty(g.table, np.int64)
        unit = next_task(counters, worker, units)
        while unit < units:
            first = unit * g.lanes
            total[:] = 0
            for t in range(g.n * g.th * g.tw):
                n, i, j = t // (g.th * g.tw), t // g.tw % g.th, t % g.tw
                place_channels(table_in, table_out, first, n, i, j, maps, g)
                spectrum(x, 0, maps, table_in, g.ah, g.aw, g.lanes, own, v, 0, 2 * gap, gap)
                spectrum(gy, 0, maps, table_out, g.ah, g.aw, g.lanes, own, z, 0, 2 * gap, gap)
                for at in range(0, length, 2 * gap):
                    add_product(total, at, v, at, z, at)
            total *= scale
            pixels = g.r * g.s
            place_kernels(table_out, first * pixels, pixels, min(g.lanes, g.groups * g.k - first), g)
            samples_times(total, 0, 2 * gap, gap, one, 0, 0, gap, g.ah, g.aw, g.lanes, own)
            write(gw, 0, maps, table_out, g.ah, g.aw, g.lanes, own, (0, 0), g.s)
            unit = next_task(counters, worker, units)
