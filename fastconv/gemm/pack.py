"""Packing the weights into the panels that the tile broadcasts from: ``[group][panel][T][mr]``.

Row m of a group's matrix A holds the weights of one result channel; column t = (channel, tap).  Its
element stands at ``w[group*group_stride + m*row_stride + channel*channel_stride + taps[tap]]``; forward
and input gradient differ only in these strides.  Panels have at most MR rows and are equalised: 20 rows
become 7 + 7 + 6, so no tile works on padding.
"""

from __future__ import annotations

from typing import NamedTuple

import numba

from fastconv import jit
from fastconv.gemm.move import transpose
from fastconv.gemm.schedule import part


class WeightView(NamedTuple):
    """How a packed matrix is read out of the weight array."""

    groups: int
    m: int  # rows of A in a group
    channels: int  # reduction channels in a group
    taps: int
    group_stride: int
    row_stride: int
    channel_stride: int
    mr: int
    contiguous: bool  # whether the taps of a channel stand side by side, in order


@jit.kernel
def pack_weights(workers, w, packed, view, taps):
    """Pack every panel of every group; workers take equal shares of the panels."""
    panels = -(-view.m // view.mr)
    total = view.groups * panels
    for worker in numba.prange(workers):
        for i in range(part(total, workers, worker), part(total, workers, worker + 1)):
            pack_panel(w, packed, view, taps, i // panels, i % panels, panels)


@jit.inner
def pack_panel(w, packed, view, taps, group, panel, panels):
    """Pack one panel."""
    length = view.channels * view.taps
    m0 = part(view.m, panels, panel)
    rows = part(view.m, panels, panel + 1) - m0
    to = (group * view.m + m0) * length
    at = group * view.group_stride + m0 * view.row_stride
    for c in range(view.channels):
        if view.contiguous:
            transpose(packed, to, rows, w, at, view.row_stride, rows, view.taps)
        else:
            for tap in range(view.taps):
                for m in range(rows):
                    packed[to + tap * rows + m] = w[at + taps[tap] + m * view.row_stride]
        to += view.taps * rows
        at += view.channel_stride
