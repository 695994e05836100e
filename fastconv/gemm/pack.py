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
from fastconv.gemm.move import transpose, write_row
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
    """Pack every panel of every group, each worker an equal share of rows of the weight array."""
    panels = -(-view.m // view.mr)
    # A weight array is read from end to end: forward its rows are panels, else they are channels.
    total = view.groups * (panels if view.channels == 1 else view.channels)
    for worker in numba.prange(workers):
        for i in range(part(total, workers, worker), part(total, workers, worker + 1)):
            if view.channels == 1:
                _pack(w, packed, view, taps, i // panels, 0, i % panels, panels)
            else:
                for panel in range(panels):
                    _pack(w, packed, view, taps, i // view.channels, i % view.channels, panel, panels)


@jit.inner
def _pack(w, packed, view, taps, group, channel, panel, panels):
    """Pack the taps of one channel into one panel."""
    m0 = part(view.m, panels, panel)
    rows = part(view.m, panels, panel + 1) - m0
    to = ((group * view.m + m0) * view.channels + channel * rows) * view.taps
    at = group * view.group_stride + m0 * view.row_stride + channel * view.channel_stride
    if view.contiguous and view.taps > 1:
        transpose(packed, to, rows, w, at, view.row_stride, rows, view.taps)
    elif view.taps == view.row_stride == 1:
        write_row(packed, to, w, at + taps[0], rows)
    else:
        for tap in range(view.taps):
            for m in range(rows):
                packed[to + tap * rows + m] = w[at + taps[tap] + m * view.row_stride]
