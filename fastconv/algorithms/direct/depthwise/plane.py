"""A padded copy of a stripe of rows of one channel, pixels of each residue modulo the stride in a run of their own."""

from __future__ import annotations

from fastconv import jit
from fastconv.algorithms.base import equalised
from fastconv.algorithms.direct.depthwise.move import clear, copy_rows
from fastconv.algorithms.direct.depthwise.pointer import after
from fastconv.algorithms.direct.depthwise.schedule import lattice

STRIP = 16  # rows copied together: a few pages, so memory is read nearly in order


def chunks(kernel: int, stride: int, dilation: int, most: int, pitch: int = 1) -> list[tuple[int, int, int]]:
    """List (first tap * pitch, taps, first padded row) of chunks of at most ``most`` rows of a kernel."""
    _, m, lcm = lattice(kernel, stride, dilation)
    return [
        (pitch * (f + m * t), tall, f * dilation + lcm * t)
        for f in range(min(m, kernel))
        for t, tall in equalised(-(-(kernel - f) // m), most)
    ]


@jit.inner
def copy_plane(dst, ldd, rows, columns, src, height, width, up, left, stride, phases, n_phases, border):
    """Copy padded rows ``0 <= row < rows``, which are input rows ``row - up``, in polyphase order.

    Phase f fills ``columns`` elements from ``f * columns`` on with the input columns
    ``phases[f] + stride*j - left``; whatever leaves the input of ``height`` x ``width`` is zero.
    Returns the range of rows that hold pixels; the others are cleared only if ``border`` is set.
    """
    top = min(rows, max(0, up))
    bottom = max(top, min(rows, height + up))
    if border:
        clear(dst, 0, top * ldd)
        clear(dst, bottom * ldd, (rows - bottom) * ldd)
    for row in range(top, bottom, STRIP):
        strip = min(STRIP, bottom - row)
        for f in range(n_phases):
            shift = phases[f] - left
            to = after(dst, row * ldd + f * columns)
            at = after(src, (row - up) * width + shift)
            copy_rows(to, ldd, at, width, strip, columns, -shift, width - shift, stride)
    return top, bottom
