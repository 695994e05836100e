"""The panels of weights that the tile broadcasts from: ``[t][mr]``, all of a panel ``[group][panel][T][mr]``.

Row m of a group's matrix A holds the weights of one result channel; column t = (channel, tap).  Its
element stands at ``w[group*group_stride + m*row_stride + channel*channel_stride + tap]``; forward and
input gradient differ only in these strides.  Panels have at most MR rows and are equalised: 20 rows
become 7 + 7 + 6, so no tile works on padding.

Weights that stand row by row, the forward direction's, need no packing: the tile reads its scalars from as many rows,
which is as fast as from panels, and two threads lost 60 us on copies of 256 x 256 weights that each then fetched
from the other's cache.  A prepared call has panels nevertheless: read end to end they come from memory sooner.

The input gradient's rows are columns of the array.  Where few blocks of columns use its panels, they are loaded into
cache right before: a packed copy of all weights would be written to memory and read back (at 512 x 512 x 3 x 3 and
7 x 7 pixels, 2.5 ms beside 3.5 ms of arithmetic).  Else they are packed once, ahead.
"""

from __future__ import annotations

from typing import NamedTuple

import numba

from fastconv import jit
from fastconv.gemm.schedule import part, span
from fastconv.gemm.transposition import TAPS, transpose, turn_taps

# of the sum packed at a time: their rows of w stay in cache for all panels, also a power of two apart
CHANNELS = 16


class WeightView(NamedTuple):
    """How the panels are read out of the weight array."""

    groups: int
    m: int  # rows of A in a group
    channels: int  # reduction channels in a group
    taps: int
    group_stride: int
    row_stride: int
    channel_stride: int
    mr: int
    packed: bool  # whether the array holds packed panels already
    apart: int = 0  # of taps in panels [tap][group][panel][channel][mr]; 0 where they are neighbours


@jit.kernel
def pack_weights(workers, w, packed, views):
    """Pack all panels; every worker packs some of them whole, so that tasks by rows find theirs in its cache."""
    for worker in numba.prange(workers):
        _pack_share(worker, workers, w, packed, views[0])


@jit.inner
def _pack_share(worker, workers, w, packed, view):
    panels = -(-view.m // view.mr)
    step = max(1, view.channels) if by_rows(view) else CHANNELS
    first, last = span(view.groups * panels, workers, worker)
    for group in range(first // panels, -(-last // panels)):
        for c in range(0, view.channels, step):
            for panel in range(max(0, first - group * panels), min(panels, last - group * panels)):
                m0, m1 = span(view.m, panels, panel)
                to = (group * view.m + m0) * view.channels + c * (m1 - m0)
                to *= 1 if view.apart else view.taps
                load_panel(packed, to, w, view, group, panel, panels, c, min(c + step, view.channels))


@jit.inner
def by_rows(view):
    """Tell whether rows of A are rows of w."""
    return view.channel_stride == view.taps


@jit.inner
def loaded(view):
    """Tell whether the tile needs panels in scratch."""
    return not view.packed and not by_rows(view)


@jit.inner
def load_panels(dst, to, w, view, group, p0, p1, panels, c0, c1):
    """Write channels c0..c1 of panels p0..p1 to ``dst[to:]``, if the tile needs them there."""
    if loaded(view):
        first = part(view.m, panels, p0)
        for c in range(c0, c1, CHANNELS):
            for p in range(p0, p1):
                m0, m1 = span(view.m, panels, p)
                at, _, _ = panel_at(view, to, group, first, m0, m1 - m0, c0, c1)
                at += (c - c0) * view.taps * (m1 - m0)
                load_panel(dst, at, w, view, group, p, panels, c, min(c + CHANNELS, c1))


@jit.inner
def panel_at(view, to, group, first, m0, rows, c0, c1):
    """Return where channels c0..c1 of the rows m0.. begin, how far rows are apart, and columns.

    They are packed, stand as they came, or are loaded from row ``first`` on.
    """
    if view.packed:
        return ((group * view.m + m0) * view.channels + c0 * rows) * view.taps, 1, rows
    if by_rows(view):
        return group * view.group_stride + m0 * view.row_stride + c0 * view.taps, view.row_stride, 1
    return to + (m0 - first) * (c1 - c0) * view.taps, 1, rows


@jit.inner
def load_panel(dst, to, w, view, group, panel, panels, c0, c1):
    """Write channels c0..c1 of a panel to ``dst[to:]``."""
    m0 = part(view.m, panels, panel)
    rows = part(view.m, panels, panel + 1) - m0
    at = group * view.group_stride + m0 * view.row_stride + c0 * view.channel_stride
    step, apart = (rows, view.apart) if view.apart else (view.taps * rows, rows)
    if by_rows(view) and not view.apart:
        transpose(dst, to, rows, w, at, view.row_stride, rows, (c1 - c0) * view.taps)
    elif view.row_stride == view.taps <= TAPS:  # rows stand side by side
        turn_taps(dst, to, step, apart, w, at, view.channel_stride, c1 - c0, rows, view.taps)
    else:
        for c in range(c1 - c0):
            source = at + c * view.channel_stride
            transpose(dst, to + c * step, apart, w, source, view.row_stride, rows, view.taps)
