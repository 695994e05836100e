"""The way of a tile through a block of threads on a GPU: t threads have t x wide pixels, a row and then a column each.

Pixels come to shared memory as neighbours in the image, rows are transformed in registers and left there as half
spectra, columns are transformed in registers; and back.  So a tile crosses shared memory twice each way.
Columns 0 and wide/2 of row spectra are real: half of their frequencies is kept, as on the CPU (`tile2d`).  A tile
of one column (``wide`` 1) serves one axis.
"""

from __future__ import annotations

from typing import Any

from fastconv.algorithms.fft.fourier import Fourier
from fastconv.cuda.codelet import codelet
from fastconv.cuda.language import DTYPES, U, activation, barrier, inline, int64

THREADS = 128
APART = {8: 6, 16: 4, 32: 8}  # banks from tile to tile, for the fewest passes over them on the whole way


def _paired(values: list[Any]) -> list[tuple[Any, Any]]:
    """Return complex numbers of real parts followed by imaginary parts."""
    half = len(values) // 2
    return list(zip(values[:half], values[half:], strict=True))


def _apart(pairs: list[tuple[Any, Any]]) -> list[Any]:
    return [re for re, _ in pairs] + [im for _, im in pairs]


def rows(on: Any, x: list[Any]) -> list[Any]:
    """Transform samples to half a spectrum."""
    return _apart(Fourier(on).real(x))


def rows_back(on: Any, x: list[Any]) -> list[Any]:
    """Undo `rows`, times their number."""
    return Fourier(on).inverse_real(_paired(x))


def columns(on: Any, x: list[Any]) -> list[Any]:
    """Transform complex samples."""
    return _apart(Fourier(on).complex(_paired(x)))


def columns_back(on: Any, x: list[Any]) -> list[Any]:
    """Undo `columns`, times their number."""
    return _apart(Fourier(on).inverse_complex(_paired(x)))


def frequencies(t: int, wide: int) -> int:
    """Complex numbers in the spectrum of a tile of t x wide pixels."""
    return t // 2 + 1 if wide == 1 else t * (wide // 2 - 1) + 2 * (t // 2 + 1)


def pitch(t: int, wide: int) -> int:
    """Elements of a tile in shared memory: as many as either form has, and tiles begin some banks apart."""
    size = max(t * (wide + 1), 2 * t * (wide // 2 + 1))
    return size + (APART[t] - size) % 32


def places(t: int, wide: int, near: bool, lane: int):
    """Return device functions that tell a thread its part.

    A block has ``items`` = THREADS / t tiles of channels at once; ``lane`` neighbouring items are channels of one
    tile; ``near``: channels are neighbours in memory.
    """
    items, half = THREADS // t, wide // 2

    @inline
    def pixels_of(tid):
        """Return (item, column of pixels), so that neighbours touch neighbours in the image."""
        if near:
            return U(tid % U(items)), U(tid // U(items))
        return U(tid // U(t)), U(tid % U(t))

    @inline
    def column_of(tid):
        """Return (item, column of the spectrum), so that neighbours touch neighbours in a plane."""
        return U(tid % U(items)), U(tid // U(items))

    @inline
    def item_of(item, block, g):
        """Return (channel, tile of this launch, group)."""
        c_block, block = U(block % U(g.channel_blocks)), U(block // U(g.channel_blocks))
        t_block, group = U(block % U(g.tile_blocks)), U(block // U(g.tile_blocks))
        return U(c_block * U(lane) + item % U(lane)), U(t_block * U(items // lane) + item // U(lane)), group

    @inline
    def first_of(q):
        """Return the first frequency of column q, and whether the column is real."""
        if q == U(0):
            return int64(0), True
        if q == U(half):
            return int64(t // 2 + 1), True
        return int64(q) * int64(t) + int64(2 * (t // 2 + 1) - t), False

    return pixels_of, column_of, item_of, first_of


def forward(dtype, t: int, wide: int, dilation):
    """Return device functions from an image to a column of the spectrum in ``values`` [2 t]: re, then im."""
    zero, tile, line = DTYPES[dtype](0), pitch(t, wide), wide // 2 + 1
    across, down, (dilation_y, dilation_x) = codelet(rows, wide), codelet(columns, 2 * t), dilation

    @inline
    def fetch(x, shared, item, j, at, y0, x0, plane, limits):
        """Bring pixels: ``plane`` is (height, width, row, pixel) of the image, the tile is 0 from ``limits`` on."""
        height, width, row, pixel = plane
        for i in range(wide):
            dy, dx = int64(i), int64(j)
            if wide == 1:
                dy, dx = int64(j), int64(0)
            y, xx = y0 + dy // dilation_y, x0 + dx // dilation_x
            inside = dy < limits[0] and dx < limits[1] and dy % dilation_y == 0 and dx % dilation_x == 0
            value = zero
            if inside and U(y) < U(height) and U(xx) < U(width):
                value = x[at + y * row + xx * pixel]
            shared[U(item * U(tile) + U(dy) * U(wide + 1) + U(dx))] = value
        barrier()

    @inline
    def to_rows(shared, values, tid):
        """Transform rows."""
        at, row = U(U(tid // U(t)) * U(tile)), U(tid % U(t))
        for i in range(wide):
            values[i] = shared[U(at + row * U(wide + 1) + U(i))]
        barrier()
        across(values)
        for i in range(line):
            shared[U(at + row * U(line) + U(i))] = values[i]
            shared[U(at + row * U(line) + U(t * line + i))] = values[line + i]
        barrier()

    @inline
    def to_column(shared, values, item, q):
        """Transform a column."""
        at = U(item * U(tile) + q)
        for i in range(t):
            values[i], values[t + i] = shared[U(at + U(i * line))], shared[U(at + U((t + i) * line))]
        down(values)

    return fetch, to_rows, to_column


def backward(t: int, wide: int, dilation, name):
    """Return device functions from a column of the spectrum back to an image."""
    tile, line, act = pitch(t, wide), wide // 2 + 1, activation(name)
    up, across, (dilation_y, dilation_x) = (
        codelet(columns_back, 2 * t),
        codelet(rows_back, 2 * line),
        dilation,
    )

    @inline
    def from_column(shared, values, item, q):
        """Transform a column back."""
        up(values)
        at = U(item * U(tile) + q)
        for i in range(t):
            shared[U(at + U(i * line))], shared[U(at + U((t + i) * line))] = values[i], values[t + i]

    @inline
    def from_rows(shared, values, tid):
        """Transform rows back, once all columns are there."""
        barrier()
        at, row = U(U(tid // U(t)) * U(tile)), U(tid % U(t))
        for i in range(line):
            values[i] = shared[U(at + row * U(line) + U(i))]
            values[line + i] = shared[U(at + row * U(line) + U(t * line + i))]
        barrier()
        across(values)
        for i in range(wide):
            shared[U(at + row * U(wide + 1) + U(i))] = values[i]
        barrier()

    @inline
    def deliver(out, shared, item, j, at, y0, x0, plane, limits, shift, residual, has_residual):
        """Add bias and residual, activate and store the pixels within ``limits``."""
        height, width, row, pixel = plane
        for i in range(wide):
            dy, dx = int64(i), int64(j)
            if wide == 1:
                dy, dx = int64(j), int64(0)
            y, xx = y0 + dy // dilation_y, x0 + dx // dilation_x
            inside = dy < limits[0] and dx < limits[1] and dy % dilation_y == 0 and dx % dilation_x == 0
            if inside and y < height and xx < width:
                to = at + y * row + xx * pixel
                value = shared[U(item * U(tile) + U(dy) * U(wide + 1) + U(dx))] + shift
                if has_residual:
                    value += residual[to]
                out[to] = act(value)

    return from_column, from_rows, deliver
