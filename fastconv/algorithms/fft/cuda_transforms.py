"""The transforms of tiles on a GPU: t threads have a tile of t x t pixels, a row and then a column each.

Pixels come to shared memory as neighbours in the image, rows are transformed in registers and left there as half
spectra, columns are transformed in registers.  So a tile crosses shared memory twice and global memory once.
Columns 0 and t/2 of row spectra are real: half of them is kept, as on the CPU (`tile2d`).  Each frequency
makes three planes, re, im and re + im, for products by three multiplications; kernels come conjugated and divided
by the number of pixels.  A tile of one column (``wide`` 1) serves one axis.
"""

from __future__ import annotations

from typing import Any

from fastconv.algorithms.fft.fourier import Fourier
from fastconv.algorithms.winograd.cuda_transforms import OUTSIDE, place_of
from fastconv.cuda.codelet import codelet
from fastconv.cuda.language import DTYPES, U, activation, cuda, inline, int64

THREADS = 128


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
    """Elements of a tile in shared memory: as many as either form has, and tiles begin four banks apart."""
    size = max(t * (wide + 1), 2 * t * (wide // 2 + 1))
    return size + (4 - size) % 32


def walk(t: int, wide: int, near: bool, lane: int):
    """Return device functions: which item and pixel column are a thread's, where an item lies, where a column's planes begin.

    ``lane`` neighbouring items are channels of one tile; ``near``: these are neighbours in memory.
    """
    items, half = THREADS // t, wide // 2

    @inline
    def pixels_of(tid):
        if near:
            return U(tid % U(items)), U(tid // U(items))
        return U(tid // U(t)), U(tid % U(t))

    @inline
    def item_of(item, block, g):
        """Return (channel, tile of this launch, group)."""
        c_block, block = U(block % U(g.channel_blocks)), U(block // U(g.channel_blocks))
        t_block, group = U(block % U(g.tile_blocks)), U(block // U(g.tile_blocks))
        return U(c_block * U(lane) + item % U(lane)), U(t_block * U(items // lane) + item // U(lane)), group

    @inline
    def planes_of(q, c, tile, group, g):
        """Return where the planes of column q begin, and whether the column is real."""
        at = int64(group) * g.to_group + int64(c) * g.to_channel + int64(tile) * g.to_tile
        if q == U(0):
            return at, True
        if q == U(half):
            return at + int64(3 * (t // 2 + 1)) * g.plane, True
        return at + (int64(q) * int64(3 * t) + int64(6 * (t // 2 + 1) - 3 * t)) * g.plane, False

    return pixels_of, item_of, planes_of


def entering(dtype, t: int, wide: int, role: str, near: bool, lane: int, dilation):
    """Make the kernel that transforms tiles of a source, of weights or of a gradient."""
    real, zero = DTYPES[dtype], DTYPES[dtype](0)
    size, half, tile_size = THREADS // t * pitch(t, wide), wide // 2, pitch(t, wide)
    line, kernel, clipped = half + 1, role != "source", role == "gradient"
    scale, dilation_y, dilation_x = DTYPES[dtype](1 / (t * wide)), *dilation
    pixels_of, item_of, planes_of = walk(t, wide, near, lane)
    across, down = codelet(rows, wide), codelet(columns, 2 * t)
    registers = 2 * t

    def transform_tiles(x, v, g):
        shared = cuda.shared.array(size, real)
        values = cuda.local.array(registers, real)
        tid, block = U(cuda.threadIdx.x), U(cuda.blockIdx.x)
        item, j = pixels_of(tid)
        c, tile, group = item_of(item, block, g)
        n, y0, x0 = place_of(U(tile + U(g.first)), g)
        if c >= U(g.channels) or U(tile + U(g.first)) >= U(g.tiles):
            n, y0 = int64(0), int64(OUTSIDE)
        base = g.start + int64(group) * g.group + n * g.image + int64(c) * g.channel
        for i in range(wide):
            dy, dx = int64(i), int64(j)
            if wide == 1:
                dy, dx = int64(j), int64(0)
            y, xx = y0 + dy // dilation_y, x0 + dx // dilation_x
            value = zero
            inside = not clipped or (dy < g.step_y and dx < g.step_x)
            inside = inside and dy % dilation_y == 0 and dx % dilation_x == 0
            if inside and U(y) < U(g.height) and U(xx) < U(g.width):
                value = x[base + y * g.row + xx * g.pixel]
            shared[U(item * U(tile_size) + U(dy) * U(wide + 1) + U(dx))] = value
        cuda.syncthreads()

        item, row = U(tid // U(t)), U(tid % U(t))
        at = U(item * U(tile_size))
        for i in range(wide):
            values[i] = shared[U(at + row * U(wide + 1) + U(i))]
        cuda.syncthreads()
        across(values)
        for i in range(line):
            shared[U(at + row * U(line) + U(i))] = values[i]
            shared[U(at + row * U(line) + U(t * line + i))] = values[line + i]
        cuda.syncthreads()

        item, q = U(tid % U(THREADS // t)), U(tid // U(THREADS // t))
        c, tile, group = item_of(item, block, g)
        if q < U(line) and c < U(g.channels_covered) and tile < U(g.tiles_covered):
            at = U(item * U(tile_size) + q)
            for i in range(t):
                values[i], values[t + i] = shared[U(at + U(i * line))], shared[U(at + U((t + i) * line))]
            down(values)
            to, is_real = planes_of(q, c, tile, group, g)
            for i in range(t):
                if i <= t // 2 or not is_real:
                    re, im = values[i], values[t + i]
                    if kernel:
                        re, im = re * scale, -im * scale
                    v[to], v[to + g.plane], v[to + g.plane + g.plane] = re, im, re + im
                    to += g.plane + g.plane + g.plane

    return transform_tiles


def leaving(dtype, t: int, wide: int, role: str, near: bool, lane: int, dilation, name):
    """Make the kernel that adds splits, transforms back, adds bias and residual, and activates."""
    real, zero, act = DTYPES[dtype], DTYPES[dtype](0), activation(name)
    size, half, tile_size = THREADS // t * pitch(t, wide), wide // 2, pitch(t, wide)
    line, whole, (dilation_y, dilation_x) = half + 1, role == "weights", dilation
    pixels_of, item_of, planes_of = walk(t, wide, near, lane)
    up, across = codelet(columns_back, 2 * t), codelet(rows_back, 2 * line)
    registers = 2 * t

    @inline
    def load_column(m, values, at, is_real, g):
        """Add a column of products to ``values``; the other half of a real one's is conjugate."""
        for i in range(t):
            place, sign = int64(3 * i), real(1)
            if i > t // 2 and is_real:
                place, sign = int64(3 * (t - i)), real(-1)
            to = at + place * g.plane
            first, second = m[to], m[to + g.plane]  # re = AC, im = BD, third = (A + B)(C + D)
            values[i] += first - second
            values[t + i] += sign * (m[to + g.plane + g.plane] - (first + second))

    def transform_back(m, bias, residual, out, g):
        shared = cuda.shared.array(size, real)
        values = cuda.local.array(registers, real)
        tid, block = U(cuda.threadIdx.x), U(cuda.blockIdx.x)
        item, q = U(tid % U(THREADS // t)), U(tid // U(THREADS // t))
        c, tile, group = item_of(item, block, g)
        for i in range(registers):
            values[i] = zero
        if q < U(line):
            if c < U(g.channels) and tile < U(g.tiles_covered):
                at, is_real = planes_of(q, c, tile, group, g)
                for _ in range(g.splits):
                    load_column(m, values, at, is_real, g)
                    at += g.split
            up(values)
            at_q = U(item * U(tile_size) + q)
            for i in range(t):
                shared[U(at_q + U(i * line))], shared[U(at_q + U((t + i) * line))] = values[i], values[t + i]
        cuda.syncthreads()

        item, row = U(tid // U(t)), U(tid % U(t))
        begin = U(item * U(tile_size))
        for i in range(line):
            values[i] = shared[U(begin + row * U(line) + U(i))]
            values[line + i] = shared[U(begin + row * U(line) + U(t * line + i))]
        cuda.syncthreads()
        across(values)
        for i in range(wide):
            shared[U(begin + row * U(wide + 1) + U(i))] = values[i]
        cuda.syncthreads()

        item, j = pixels_of(tid)
        c, tile, group = item_of(item, block, g)
        if c < U(g.channels) and tile < U(g.tiles_covered):
            n, y0, x0 = place_of(U(tile + U(g.first)), g)
            base = g.start + int64(group) * g.group + n * g.image + int64(c) * g.channel
            shift = zero
            if g.has_bias:
                shift = bias[int64(group) * g.channels + int64(c)]
            for i in range(wide):
                dy, dx = int64(i), int64(j)
                if wide == 1:
                    dy, dx = int64(j), int64(0)
                y, xx = y0 + dy // dilation_y, x0 + dx // dilation_x
                inside = whole or (dy < g.step_y and dx < g.step_x)
                if inside and y < g.height and xx < g.width and dy % dilation_y == 0 and dx % dilation_x == 0:
                    at = base + y * g.row + xx * g.pixel
                    value = shared[U(item * U(tile_size) + U(dy) * U(wide + 1) + U(dx))] + shift
                    if g.has_residual:
                        value += residual[at]
                    out[at] = act(value)

    return transform_back
