"""One channel: every output of a stripe of rows from a padded copy of its input in cache.

Rows and taps fall into lattices on which they look like a convolution of stride and dilation 1.  With
g = gcd(stride, dilation), steps of e = dilation / g between rows and of m = stride / g between taps::

    row p = rho + e*j,  tap r = f + m*t   read padded row   rho*stride + f*dilation + lcm * (j + t)

so `taps` serves all.  `blocks` lists the rows as blocks of one rho each, `chunks` the taps as chunks of one f.
Columns need no lattice: the copy keeps pixels of each residue modulo the stride in a run of their own
(polyphase), where tap s is a fixed offset.
"""

from __future__ import annotations

from math import gcd

from fastconv import jit
from fastconv.algorithms.base import equalised
from fastconv.algorithms.direct.depthwise.move import clear, copy_rows
from fastconv.algorithms.direct.depthwise.pointer import after
from fastconv.algorithms.direct.depthwise.taps import ROWS, taps

STRIP = 16  # rows copied together: a few pages, so memory is read nearly in order


def lattice(kernel: int, stride: int, dilation: int) -> tuple[int, int, int]:
    """Return e, m and lcm; the only tap of a kernel of one shares no row whatever the steps."""
    if kernel == 1:
        return 1, 1, stride
    g = gcd(stride, dilation)
    return dilation // g, stride // g, stride * dilation // g


def blocks(rows: int, kernel: int, stride: int, dilation: int) -> list[tuple[int, int, int]]:
    """List (first row, rows, first padded row) of all blocks of ``rows`` outputs."""
    e, _, lcm = lattice(kernel, stride, dilation)
    return [
        (rho + e * j, height, rho * stride + lcm * j)
        for rho in range(min(e, rows))
        for j, height in equalised(-(-(rows - rho) // e), ROWS)
    ]


def chunks(kernel: int, stride: int, dilation: int, most: int, pitch: int = 1) -> list[tuple[int, int, int]]:
    """List (first tap * pitch, taps, first padded row) of chunks of at most ``most`` rows of a kernel."""
    _, m, lcm = lattice(kernel, stride, dilation)
    return [
        (pitch * (f + m * t), tall, f * dilation + lcm * t)
        for f in range(min(m, kernel))
        for t, tall in equalised(-(-(kernel - f) // m), most)
    ]


@jit.inner
def correlate(
    out, ldo, width, source, lds, sources, next_source, top, bottom, blocks, n_blocks, e, lcm, chunks, n_chunks,
    columns, tap_columns, weight, next_weight, row_step, column_step, vl,
):  # fmt: skip
    """Write a stripe of rows of ``width`` outputs, summed over ``sources`` planes of padded input.

    Only rows ``top <= row < bottom`` of a plane hold pixels; chunks of taps that meet none are skipped.
    Chunks name their first tap by its place in the weight.
    """
    lanes = min(vl, width)
    along = n_chunks == 1 and chunks[1] == 1 and width > vl  # one row of taps: no row of input is shared
    for block in range(0, 3 * n_blocks, 3):
        p, height, block_row = blocks[block], blocks[block + 1], blocks[block + 2]
        for strand in range(height if along else 1):
            first = 0
            while first < width:
                # the last vector reaches back over columns that are done, and writes them again
                q = min(first, width - lanes)
                to, at = (p + strand * e) * ldo + q, (block_row + strand * lcm) * lds + q
                # one row of taps: as many independent sums come from vectors of the same row
                rows = min(ROWS, max(1, (width - q) // vl)) if along else height
                ldr, ldi = (vl, vl) if along else (e * ldo, lcm * lds)
                started = False
                for u in range(sources):
                    for chunk in range(0, 3 * n_chunks, 3):
                        tall = chunks[chunk + 1]
                        row = block_row + strand * lcm + chunks[chunk + 2]
                        if row < bottom and row + lcm * ((1 if along else height) + tall - 2) >= top:
                            taps(
                                out, to, ldr, source, u * next_source + at + chunks[chunk + 2] * lds, ldi,
                                columns, tap_columns, weight, u * next_weight + chunks[chunk], row_step, column_step,
                                rows, tall, lanes, started,
                            )  # fmt: skip
                            started = True
                if not started:
                    for row in range(rows):
                        clear(out, to + row * ldr, lanes)
                first += rows * vl if along else vl


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
