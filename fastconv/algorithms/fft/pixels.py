"""Dense tiles of images held pixel by pixel (nhwc): the lanes of vectors are channels.

    V[f, plane, tile, c]     M[f, plane, tile, k] = sum over c  V[f, plane, tile, c] . U[f, plane, c, k]

A pixel's channels are neighbours, so that nothing is transposed, and lanes have one tile, so that a table of its rows and
columns tells all of it (`lanes`): what stands in the padding is a pixel of the image like all others.

Spectra of some tiles are more than a cache holds, and product by product they would be fetched a line here and a line there.
So rows are transformed first; then, column by column of these spectra, come the other half of the transform, the products and
the way back, within cache; and then the rows.  Workers share out each of the three.

Input gradients where borders repeat the image add tiles of grad_output up::

    padded[a + r] += sum over the tile's a  gy[a] w[r]         (overlap-add)

each pixel where the one stands that it repeats, so that borders cost the additions of tiles that overlap.
"""

from __future__ import annotations

import numba
import numpy as np

from fastconv import jit
from fastconv.algorithms.fft.cpu import finish_pixels
from fastconv.algorithms.fft.places import place_vector, result_pixels
from fastconv.algorithms.fft.tile2d import (
    column_bins,
    column_samples_gauss,
    column_spectrum_sum,
    columns,
    row_spectra,
    write,
)
from fastconv.gemm.gathered import tile_over_pixels
from fastconv.gemm.schedule import span


@jit.inner
def _multiply(v, v0, wide, u, u0, m, m0, width, one, count, g):
    """Multiply a plane of ``count`` tiles over the channels."""
    vectors = width // g.lanes
    parts, across = (count + g.mr - 1) // g.mr, (vectors + g.nr - 1) // g.nr
    for j in range(across):
        first, end = span(vectors, across, j)
        for i in range(parts):
            t, t_end = span(count, parts, i)
            tile_over_pixels(
                m, m0 + t * width + first * g.lanes, width, v, v0 + t * wide, wide, 1, u, u0 + first * g.lanes, g.k,
                one, 1, g.c, t_end - t, end - first, False, None,
            )  # fmt: skip


@jit.inner
def _column(q, group, count, sources, results, u, own, one, g):
    """Transform a column of ``count`` tiles' row spectra, multiply it with that of the kernels, and transform it back."""
    first, bins = column_bins(q, g.ah, g.aw)
    wide, width = (g.c + g.lanes - 1) // g.lanes * g.lanes, (g.k + g.lanes - 1) // g.lanes * g.lanes
    v_row, m_row = 3 * count * wide + g.lanes, 3 * count * width + g.lanes
    v, m = own[: bins * v_row], own[bins * v_row :]
    for i in range(count * wide // g.lanes):
        rows = sources[i * g.tile_scratch : (i + 1) * g.tile_scratch]
        column_spectrum_sum(rows, q, g.ah, g.aw, g.lanes, v, i * g.lanes, v_row, count * wide)
    plane = g.k * g.c + g.lanes
    u0 = 3 * (group * g.frequencies + first) * plane
    for f in range(bins):
        for p in range(3):
            _multiply(
                v, f * v_row + p * count * wide, wide, u, u0 + (3 * f + p) * plane, m, f * m_row + p * count * width, width,
                one, count, g,
            )  # fmt: skip
    for i in range(count * width // g.lanes):
        rows = results[i * g.tile_scratch : (i + 1) * g.tile_scratch]
        column_samples_gauss(m, i * g.lanes, m_row, count * width, m, 0, 0, 0, q, g.ah, g.aw, g.lanes, rows)


@jit.inner
def _store(run, vector, results, y, group, first, count, bias, activation, residual, table, maps, g):
    """Transform the rows of a vector of channels back, of a tile or of those of an image that are added up."""
    vectors = (g.k + g.lanes - 1) // g.lanes
    k0 = vector * g.lanes
    channel, lanes = group * g.k + k0, min(g.lanes, g.k - k0)
    n, end = run * g.together // (g.th * g.tw), (run + 1) * g.together
    for t in range(max(first, run * g.together), min(first + count, end)):
        i, j = t // g.tw % g.th, t % g.tw
        at = ((t - first) * vectors + vector) * g.tile_scratch
        result_pixels(table, maps, n, i, j, channel, lanes, g)
        rows = results[at : at + g.tile_scratch]
        write(y, 0, maps, table, g.ah, g.aw, g.lanes, rows, (0, 0), g.aw)
        if not g.added:
            finish_pixels(y, n, i * g.mh, g.mh, j * g.mw, g.mw, channel, lanes, bias, activation, residual, g)
    if g.added and end <= first + count:
        finish_pixels(y, n, 0, g.p, 0, g.q, channel, lanes, bias, activation, residual, g)


@jit.kernel
def dense_pixels(workers, x, u, y, bias, activation, residual, sources, results, scratch, maps, geos):
    """Source, spectra of kernels -> result, some tiles after the others."""
    geo = geos[0]  # read again by each loop over workers: Numba passes no structure to one
    tiles, size = geo.n * geo.th * geo.tw, scratch.size // workers
    wide, vectors = (geo.c + geo.lanes - 1) // geo.lanes, (geo.k + geo.lanes - 1) // geo.lanes
    for group in range(geo.groups):
        for first in range(0, tiles, geo.vectors):
            count = min(geo.vectors, tiles - first)
            run = first // geo.together
            runs = (first + count - 1) // geo.together + 1 - run
            for worker in numba.prange(workers):
                g = geos[0]
                table = np.empty(g.table, np.int64)
                begin, end = span(count * wide, workers, worker)
                for i in range(begin, end):
                    place_vector(table, first + i // wide, i % wide, group, maps, g)
                    rows = sources[i * g.tile_scratch : (i + 1) * g.tile_scratch]
                    row_spectra(x, 0, maps, table, g.ah, g.aw, g.lanes, rows)
            for worker in numba.prange(workers):
                g = geos[0]
                own = scratch[worker * size : (worker + 1) * size]
                one = np.zeros(2, np.int64)
                begin, end = span(columns(g.ah, g.aw), workers, worker)
                for q in range(begin, end):
                    _column(q, group, count, sources, results, u, own, one, g)
            for worker in numba.prange(workers):
                g = geos[0]
                table = np.empty(g.table, np.int64)
                begin, end = span(runs * vectors, workers, worker)
                for i in range(begin, end):
                    _store(
                        run + i // vectors, i % vectors, results, y, group, first, count, bias, activation, residual,
                        table, maps, g,
                    )  # fmt: skip
