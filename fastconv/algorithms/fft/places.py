"""Where tiles lie in the source and in the result, and kernels in the weights: tables for the moves of `lanes`, lane by lane.

Lanes are tiles, or channels of one tile; ``g`` is the `cpu.Geometry`.
"""

from __future__ import annotations

from fastconv import jit
from fastconv.algorithms.fft.lanes import clear, place, place_border, place_pixels


@jit.inner
def place_kernels(table, at, stride, count, g):
    """Say where ``count`` kernels lie, ``stride`` apart."""
    clear(table, g.lanes, g.aw)
    for lane in range(count):
        place(table, g.lanes, lane, at + lane * stride, g.of_kernel, 0, g.r, 0, g.s)


@jit.inner
def place_block(table_in, table_out, table_rows, first, total, maps, g):
    """Say where the tiles of one vector lie, in the source and in the result, and which of their rows are folded."""
    clear(table_in, g.lanes, g.aw)
    clear(table_out, g.lanes, g.aw)
    clear(table_rows, g.lanes, g.aw)
    count = min(g.lanes, total - first)
    for lane in range(count):
        n, i, j = (first + lane) // (g.th * g.tw), (first + lane) // g.tw % g.th, (first + lane) % g.tw
        place_source(table_in, lane, n * g.groups * g.c, i, j, g)
        place_result(table_out, lane, n * g.groups * g.k, i, j, g)
    for j in range(g.tw):
        _place_lists(table_in, maps, g.border + j, first, count, 1, g.tw, j, g)
        _place_lists(table_out, maps, g.fold_w + j, first, count, 1, g.tw, j, g)
    for i in range(g.th):
        _place_lists(table_rows, maps, g.fold_h + i, first, count, g.tw, g.th, i, g)


@jit.inner
def _place_lists(table, maps, entry, first, count, apart, period, number, g):
    """Say what a list of ``maps`` adds to the lanes whose tiles have a number: ``apart`` of them do, once in a period."""
    at = maps[entry]
    if maps[at] + maps[at + 1] > 0:
        bits = 0
        for lane in range(count):
            bits |= int((first + lane) // apart % period == number) << lane
        if bits:
            place_border(table, g.lanes, bits, maps, at)


@jit.inner
def place_source(table, lane, plane, i, j, g):
    """Say where tile (i, j) of a plane of the source lies."""
    y, x = i * g.mh, j * g.mw - g.lo_w
    place(
        table, g.lanes, lane, plane * g.h * g.w + x, y,
        max(g.first_h - y, 0), min(g.last_h - y, g.ah), max(-x, 0), min(g.w - x, g.aw),
    )  # fmt: skip


@jit.inner
def place_result(table, lane, plane, i, j, g):
    """Say where the results of tile (i, j) of a plane lie."""
    y, x = i * g.mh - g.above, j * g.mw - g.left
    place(
        table, g.lanes, lane, plane * g.p * g.q + x, g.of_result + i * g.mh,
        max(-y, 0), min(g.p - y, g.mh), max(-x, 0), min(g.q - x, g.mw),
    )  # fmt: skip


@jit.inner
def source_pixels(table, maps, n, i, j, channel, count, g):
    """Say where tile (i, j) of ``count`` channels of an image lies, channels last."""
    channels = g.groups * g.c
    begin = n * g.h * g.w * channels + channel
    place_pixels(table, maps, i * g.ah, g.ah, g.columns_in + j * g.aw, channels, begin, count, 0)


@jit.inner
def result_pixels(table, maps, n, i, j, channel, count, g):
    """Say where its results lie."""
    channels, rows = g.groups * g.k, g.of_result + i * g.ah
    begin = n * g.p * g.q * channels + channel
    place_pixels(table, maps, rows, g.ah, g.columns_out + j * g.aw, channels, begin, count, g.added)


@jit.inner
def place_vector(table, tile, vector, group, maps, g):
    """Say where a vector of channels of a group lies in a tile of the source; tiles are counted over all images."""
    n, i, j = tile // (g.th * g.tw), tile // g.tw % g.th, tile % g.tw
    c0 = vector * g.lanes
    count = min(g.lanes, g.c - c0)
    if g.near:
        source_pixels(table, maps, n, i, j, group * g.c + c0, count, g)
    else:
        clear(table, g.lanes, g.aw)
        for lane in range(count):
            place_source(table, lane, (n * g.groups + group) * g.c + c0 + lane, i, j, g)
        place_border(table, g.lanes, (1 << count) - 1, maps, maps[g.border + j])


@jit.inner
def place_result_vector(table, tile, vector, group, maps, g):
    """Say where one lies in a tile of the result."""
    n, i, j = tile // (g.th * g.tw), tile // g.tw % g.th, tile % g.tw
    k0 = vector * g.lanes
    count = min(g.lanes, g.k - k0)
    if g.near:
        result_pixels(table, maps, n, i, j, group * g.k + k0, count, g)
    else:
        clear(table, g.lanes, g.aw)
        for lane in range(count):
            place_result(table, lane, (n * g.groups + group) * g.k + k0 + lane, i, j, g)


@jit.inner
def place_channels(table_in, table_out, first, n, i, j, maps, g):
    """Say where tile (i, j) of image n lies in VL channels of the result and their sources."""
    count = min(g.lanes, g.groups * g.k - first)
    if g.near:
        source_pixels(table_in, maps, n, i, j, first, count, g)
        result_pixels(table_out, maps, n, i, j, first, count, g)
        return
    clear(table_in, g.lanes, g.aw)
    clear(table_out, g.lanes, g.aw)
    for lane in range(count):
        channel = first + lane
        place_source(table_in, lane, n * g.groups + channel // g.k, i, j, g)
        place_result(table_out, lane, n * g.groups * g.k + channel, i, j, g)
    place_border(table_in, g.lanes, (1 << count) - 1, maps, maps[g.border + j])
