"""The panels of weights that the tile broadcasts from: ``[t][mr]``, all of a panel ``[group][panel][T][mr]``.

Row m of a group's matrix A holds the weights of one result channel; column t = (channel, tap).  Its
element stands at ``w[group*group_stride + m*row_stride + channel*channel_stride + tap]``; forward and
input gradient differ only in these strides.  Panels have at most MR rows and are equalised: 20 rows
become 7 + 7 + 6, so no tile works on padding.

Where few blocks of columns use them, panels are loaded into cache right before: a packed copy of all weights
would be written to memory and read back (at 512 x 512 x 3 x 3 and 7 x 7 pixels, 2.5 ms beside 3.5 ms of
arithmetic).  Else they are packed once, ahead, and read where they stand.
"""

from __future__ import annotations

from typing import NamedTuple

import numba

from fastconv import jit
from fastconv.gemm.move import transpose, write_row
from fastconv.gemm.schedule import part


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


@jit.kernel
def pack_weights(workers, w, packed, views):
    """Pack all panels; every worker reads its share of the weight array from end to end."""
    for worker in numba.prange(workers):
        _pack_share(worker, workers, w, packed, views[0])


@jit.inner
def _pack_share(worker, workers, w, packed, view):
    panels = -(-view.m // view.mr)
    rows_first = view.row_stride > view.channel_stride
    total = view.groups * (panels if rows_first else view.channels)
    for i in range(part(total, workers, worker), part(total, workers, worker + 1)):
        if rows_first:
            to = panel_start(view, i // panels, i % panels, panels)
            load_panel(packed, to, w, view, i // panels, i % panels, panels, 0, view.channels)
        else:
            group, c = i // view.channels, i % view.channels
            for panel in range(panels):
                rows = part(view.m, panels, panel + 1) - part(view.m, panels, panel)
                to = panel_start(view, group, panel, panels) + c * view.taps * rows
                load_panel(packed, to, w, view, group, panel, panels, c, c + 1)


@jit.inner
def panel_start(view, group, panel, panels):
    """Return where a panel begins among the packed ones."""
    return (group * view.m + part(view.m, panels, panel)) * view.channels * view.taps


@jit.inner
def load_panels(dst, to, w, view, group, p0, p1, panels, c0, c1):
    """Write channels c0..c1 of panels p0..p1 to ``dst[to:]``, if they are not packed."""
    if not view.packed:
        first = part(view.m, panels, p0)
        for p in range(p0, p1):
            at = panel_at(view, to, group, first, part(view.m, panels, p), 0, c0, c1)
            load_panel(dst, at, w, view, group, p, panels, c0, c1)


@jit.inner
def panel_at(view, to, group, first, m0, rows, c0, c1):
    """Return where channels c0..c1 of the panel of rows m0.. begin: packed, or loaded from row ``first`` on."""
    if view.packed:
        return ((group * view.m + m0) * view.channels + c0 * rows) * view.taps
    return to + (m0 - first) * (c1 - c0) * view.taps


@jit.inner
def load_panel(dst, to, w, view, group, panel, panels, c0, c1):
    """Write channels c0..c1 of a panel to ``dst[to:]``."""
    m0 = part(view.m, panels, panel)
    rows = part(view.m, panels, panel + 1) - m0
    at = group * view.group_stride + m0 * view.row_stride + c0 * view.channel_stride
    if view.channel_stride == view.taps:  # rows of A are rows of w
        transpose(dst, to, rows, w, at, view.row_stride, rows, (c1 - c0) * view.taps)
        return
    for _ in range(c0, c1):
        if view.taps == 1:  # then rows stand side by side
            write_row(dst, to, w, at, rows)
        else:
            transpose(dst, to, rows, w, at, view.row_stride, rows, view.taps)
        to += view.taps * rows
        at += view.channel_stride
