"""The route of small tiles: blocks of tiles through our own transforms, all in cache.

Dense.  For a block of R tiles (whole vectors, over all images) of a group::

    V[f, plane, c, tile]   planes Vr, Vi, Vr + Vi of the input's spectra
    M[f, plane, k, tile] = sum over c  U[f, plane, k, c] . V[f, plane, c, tile]     3 real products
    Yr = M0 - M1,  Yi = M2 - M0 - M1                                               (Gauss)

U holds the planes of the kernels' spectra, divided by the tile's pixels, packed in panels for the GEMM
tile.  Rows of f are a vector longer than their data, against collisions in the cache.

Depthwise.  Lanes are channels, V and U hold two planes, and the product is taken as the inverse loads it.

The forward pass correlates: U = conj(W).  The input gradient convolves: U = W, and the outputs that did
not wrap around are the last of a tile, from ``skip`` = extent - 1 on; a lone tile, which may wrap, skips the padding.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from fastconv import jit
from fastconv.activations import NONE, code_of, finish
from fastconv.algorithms.fft.lanes import HEAD, store_planes
from fastconv.algorithms.fft.places import place_block, place_channels, place_kernels
from fastconv.algorithms.fft.tile2d import (
    fold_rows,
    samples_gauss,
    samples_times,
    spectrum,
    spectrum_sum,
    write,
)
from fastconv.gemm.move import add_row
from fastconv.gemm.schedule import next_task
from fastconv.gemm.tile import tile


class Geometry(NamedTuple):
    """What the kernels need to know of a problem cut into tiles."""

    n: int
    groups: int
    c: int  # channels of a group in the source
    k: int  # channels of a group in the result
    h: int  # source
    w: int
    p: int  # result
    q: int
    first_h: int  # rows of the padded source that exist
    last_h: int
    lo_w: int  # padding before the source
    ah: int  # tile
    aw: int
    mh: int  # results of a tile
    mw: int
    th: int  # tiles of an image
    tw: int
    skip_h: int  # first valid result in a tile
    skip_w: int
    above: int  # rows that tiles hold before the result's first,
    left: int  # and columns
    sign: int  # of the imaginary part of a kernel's spectrum
    r: int  # kernel
    s: int
    w_group: int  # strides of the weight
    w_k: int
    w_c: int
    frequencies: int
    lanes: int
    vectors: int  # of tiles in a block; for a dense weight gradient: tiles
    panel: int  # rows of U that lie together: those of a tile, or all where their channels are lanes
    mr: int  # rows of the GEMM tile
    nr: int  # its vectors of columns
    tile_scratch: int  # elements of one vector of tiles
    table: int  # entries
    of_result: int  # in maps, behind where rows of the padded source lie: those of the result,
    of_kernel: int  # of a kernel,
    border: int  # and for each column of tiles where the list is of what borders add to it,
    fold_h: int  # for each row of tiles, of which of its rows repeat others in the result,
    fold_w: int  # and columns
    near: int = 0  # whether channels are last; maps have the columns of tiles then, too:
    columns_in: int = 0  # of the source,
    columns_out: int = 0  # and of the result,
    added: int = 0  # whose tiles are added up, or not
    together: int = 1  # tiles that one worker stores: those of an image, where they are added up


@jit.kernel
def dense_weights(workers, counters, w, u, scratch, maps, geos):
    """Fill U from the weights; a unit is a vector of results k and every c."""
    for worker in numba.prange(workers):
        g = geos[0]
        vectors = (g.k + g.lanes - 1) // g.lanes
        size, units = scratch.size // workers, g.groups * vectors
        scale, sign = u.dtype.type(1.0 / (g.ah * g.aw)), u.dtype.type(g.sign / (g.ah * g.aw))
        own = scratch[worker * size : (worker + 1) * size]
        table = np.empty(g.table, np.int64)
        unit = next_task(counters, worker, units)
        while unit < units:
            group, k0 = unit // vectors, unit % vectors * g.lanes
            place_kernels(table, 0, g.w_k, min(g.lanes, g.k - k0), g)
            for c in range(g.c):
                w0 = group * g.w_group + k0 * g.w_k + c * g.w_c
                spectrum_sum(
                    w, w0, maps, table, g.ah, g.aw, g.lanes, own, own, g.tile_scratch, 3 * g.lanes, g.lanes
                )
                u0 = group * g.frequencies * 3 * (g.k * g.c + g.lanes)
                count = min(g.lanes, g.k - k0)
                pack(own, g.tile_scratch, u, u0, k0, count, c, g.c, scale, sign, g)
            unit = next_task(counters, worker, units)


@jit.inner
def pack(spectra, s0, u, u0, k0, count, t, depth, scale, sign, g):
    """Put spectra of rows (k0 + lane) into the panels' column t of ``depth``, in three planes."""
    plane = g.k * depth + g.lanes
    lane = 0
    while lane < count:
        panel = (k0 + lane) // g.panel * g.panel
        rows = min(g.panel, g.k - panel)
        run = min(count - lane, panel + rows - k0 - lane)
        to = u0 + panel * depth + t * rows + k0 + lane - panel
        for f in range(g.frequencies):
            store_planes(u, to, plane, spectra, s0 + 3 * f * g.lanes + lane, scale, sign, run)
            to += 3 * plane
        lane += run


@jit.inner
def _products(u, u0, v, m, g):
    """Multiply spectra over the channels, frequency by frequency and plane by plane."""
    block = g.vectors * g.lanes
    plane, v_row, m_row = g.k * g.c + g.lanes, 3 * g.c * block + g.lanes, 3 * g.k * block + g.lanes
    for f in range(g.frequencies):
        for p in range(3):
            a, b = u0 + (3 * f + p) * plane, f * v_row + p * g.c * block
            for k in range(0, g.k, g.mr):
                rows = min(g.mr, g.k - k)
                to = f * m_row + (p * g.k + k) * block
                tile(m, to, block, u, a + k * g.c, v, b, block, g.c, rows, g.vectors, False)


@jit.kernel
def dense(workers, counters, x, u, y, bias, activation, residual, scratch, maps, geos):
    """Source, spectra of kernels -> result; a unit is a block of tiles."""
    for worker in numba.prange(workers):
        g = geos[0]
        total, block = g.n * g.th * g.tw, g.vectors * g.lanes
        units, size = (total + block - 1) // block, scratch.size // workers
        v_row, m_row = 3 * g.c * block + g.lanes, 3 * g.k * block + g.lanes
        own = scratch[worker * size : (worker + 1) * size]
        v = own[g.tile_scratch : g.tile_scratch + g.frequencies * v_row]
        m = own[g.tile_scratch + g.frequencies * v_row :]
        tables = np.empty((3 * g.vectors, g.table), np.int64)
        unit = next_task(counters, worker, units)
        while unit < units:
            for i in range(g.vectors):
                first = unit * block + i * g.lanes
                place_block(tables[3 * i], tables[3 * i + 1], tables[3 * i + 2], first, total, maps, g)
            for group in range(g.groups):
                for c in range(g.c):
                    for i in range(g.vectors):
                        spectrum_sum(
                            x, (group * g.c + c) * g.h * g.w, maps, tables[3 * i], g.ah, g.aw, g.lanes,
                            own, v, c * block + i * g.lanes, v_row, g.c * block,
                        )  # fmt: skip
                _products(u, group * g.frequencies * 3 * (g.k * g.c + g.lanes), v, m, g)
                for k in range(g.k):
                    channel = group * g.k + k
                    for i in range(g.vectors):
                        at = k * block + i * g.lanes
                        samples_gauss(m, at, m_row, g.k * block, m, 0, 0, 0, g.ah, g.aw, g.lanes, own)
                        fold_rows(tables[3 * i + 2], g.ah, g.aw, g.lanes, own, g.skip_h)
                        write(
                            y, channel * g.p * g.q, maps, tables[3 * i + 1], g.ah, g.aw, g.lanes, own,
                            (g.skip_h, g.skip_w), g.mw,
                        )  # fmt: skip
                        first = unit * block + i * g.lanes
                        _finish_tiles(
                            y, maps, tables[3 * i + 1], first, total, channel, bias, activation, residual, g
                        )
            unit = next_task(counters, worker, units)


@jit.kernel
def depthwise_weights(workers, counters, w, u, scratch, maps, geos):
    """Fill U from the weights; a unit is a vector of channels."""
    for worker in numba.prange(workers):
        g = geos[0]
        units, size = (g.groups * g.k + g.lanes - 1) // g.lanes, scratch.size // workers
        scale, sign = u.dtype.type(1.0 / (g.ah * g.aw)), u.dtype.type(g.sign / (g.ah * g.aw))
        own = scratch[worker * size : (worker + 1) * size]
        table = np.empty(g.table, np.int64)
        unit = next_task(counters, worker, units)
        while unit < units:
            first, u0 = unit * g.lanes, unit * g.frequencies * 2 * g.lanes
            count = min(g.lanes, g.groups * g.k - first)
            pixels = g.r * g.s
            place_kernels(table, 0, pixels, count, g)
            spectrum(w, first * pixels, maps, table, g.ah, g.aw, g.lanes, own, u, u0, 2 * g.lanes, g.lanes)
            for i in range(u0, u0 + g.frequencies * 2 * g.lanes, 2 * g.lanes):
                for j in range(g.lanes):
                    u[i + j] *= scale
                    u[i + g.lanes + j] *= sign
            unit = next_task(counters, worker, units)


@jit.inner
def _finish_tiles(y, maps, table_out, first, total, channel, bias, activation, residual, g):
    """Add bias and residual and activate where lanes are tiles of one channel; those that fold have neither."""
    for lane in range(min(g.lanes, total - first)):
        columns = min(g.q - (first + lane) % g.tw * g.mw, g.mw)
        row = (first + lane) // g.tw % g.th * g.mh
        at = channel * g.p * g.q + table_out[HEAD + g.lanes + 1 + lane]
        for start in range(at + row * g.q, at + min(row + g.mh, g.p) * g.q, g.q):
            finish(y, start, columns, bias, channel, activation, residual, start)


@jit.inner
def _finish_channels(y, table_out, first, row, columns, bias, activation, residual, g):
    """Do so where every lane is a channel of its own, channels first."""
    for lane in range(min(g.lanes, g.groups * g.k - first)):
        at = table_out[HEAD + g.lanes + 1 + lane]
        for start in range(at + row * g.q, at + min(row + g.mh, g.p) * g.q, g.q):
            finish(y, start, columns, bias, first + lane, activation, residual, start)


@jit.inner
def finish_pixels(y, n, row, rows, column, columns, channel, count, bias, activation, residual, g):
    """Do so, channels last, from (row, column) of an image on."""
    if bias.size or residual.size or code_of(activation) != NONE:
        for i in range(row, min(row + rows, g.p)):
            for j in range(column, min(column + columns, g.q)):
                at = ((n * g.p + i) * g.q + j) * g.groups * g.k + channel
                if bias.size:
                    add_row(y, at, bias, channel, count)
                finish(y, at, count, bias[:0], np.int64(0), activation, residual, at)


@jit.kernel
def depthwise(workers, counters, x, u, y, bias, activation, residual, scratch, maps, geos):
    """Source, spectra of kernels -> result; a unit is VL channels of a tile, or of all that are added up."""
    for worker in numba.prange(workers):
        g = geos[0]
        channels, runs = (g.groups * g.k + g.lanes - 1) // g.lanes, g.th * g.tw // g.together
        units, size, gap = g.n * channels * runs, scratch.size // workers, g.lanes
        own = scratch[worker * size : (worker + 1) * size]
        v = own[g.tile_scratch :]
        table_in, table_out = np.empty(g.table, np.int64), np.empty(g.table, np.int64)
        unit = next_task(counters, worker, units)
        while unit < units:
            block, n, run = unit // runs // g.n, unit // runs % g.n, unit % runs
            first, u0 = block * g.lanes, block * g.frequencies * 2 * g.lanes
            count = min(g.lanes, g.groups * g.k - first)
            for t in range(run * g.together, (run + 1) * g.together):
                i, j = t // g.tw, t % g.tw
                place_channels(table_in, table_out, first, n, i, j, maps, g)
                spectrum(x, 0, maps, table_in, g.ah, g.aw, g.lanes, own, v, 0, 2 * gap, gap)
                samples_times(v, 0, 2 * gap, gap, u, u0, 2 * gap, gap, g.ah, g.aw, g.lanes, own)
                write(
                    y, 0, maps, table_out, g.ah, g.aw, g.lanes, own,
                    (g.skip_h, g.skip_w), g.mw,
                )  # fmt: skip
                row, column = i * g.mh, j * g.mw
                if not g.near:
                    columns = min(g.q - column, g.mw)
                    _finish_channels(y, table_out, first, row, columns, bias, activation, residual, g)
                elif not g.added:
                    finish_pixels(y, n, row, g.mh, column, g.mw, first, count, bias, activation, residual, g)
            if g.added:
                finish_pixels(y, n, 0, g.p, 0, g.q, first, count, bias, activation, residual, g)
            unit = next_task(counters, worker, units)
