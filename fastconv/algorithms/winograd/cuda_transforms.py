"""The transforms of Winograd's tiles on a GPU: a thread has a tile of one channel in registers.

What comes in is ``B d B^T`` of pixels or ``G g G^T`` of kernels, what goes out ``A m A^T``; straight-line
code from the exact matrices does both passes (`transforms`).  All of it waits for memory: 16 or 36
numbers for each tile go one way, so neighbouring threads touch neighbouring numbers of a plane.
"""

from __future__ import annotations

from typing import Any

from fastconv.algorithms.staged import OUTSIDE, SLAB, place_of
from fastconv.algorithms.winograd.transforms import Matrix, apply, matrices
from fastconv.cuda.codelet import codelet
from fastconv.cuda.language import DTYPES, U, activation, cuda, inline, int64, load4, store4

THREADS = 128

Axis = tuple[str, int, int]  # which matrix of F(m, r): "A", "G" or "B"; m; r


def matrix(axis: Axis) -> Matrix:
    """Return a matrix by name."""
    which, m, r = axis
    return matrices(m, r)["AGB".index(which)]


def bilinear(left: Matrix, right: Matrix) -> Any:
    """Return the program of ``left @ x @ right^T``, x row by row."""
    wide = len(right[0])

    def program(on: Any, x: list[Any]) -> list[Any]:
        columns = [apply(on, left, x[j::wide]) for j in range(wide)]
        return [value for row in zip(*columns, strict=True) for value in apply(on, right, list(row))]

    return program


def entering(dtype, rows: Axis, columns: Axis, lane: int):
    """Make the kernel that transforms tiles; ``lane`` neighbouring threads have channels of one tile."""
    real, zero, per_block = DTYPES[dtype], DTYPES[dtype](0), THREADS // lane
    left, right = matrix(rows), matrix(columns)
    high, wide, planes = len(left[0]), len(right[0]), len(left) * len(right)
    transform = codelet(bilinear(left, right), high * wide)

    def transform_tiles(x, v, g):
        values = cuda.local.array(planes, real)
        tid, block = U(cuda.threadIdx.x), U(cuda.blockIdx.x)
        c_block, block = U(block % U(g.channel_blocks)), U(block // U(g.channel_blocks))
        t_block, group = U(block % U(g.tile_blocks)), U(block // U(g.tile_blocks))
        c, t = U(c_block * U(lane) + tid % U(lane)), U(t_block * U(per_block) + tid // U(lane))
        if c < U(g.channels_covered) and t < U(g.tiles_covered):
            n, y, xx = place_of(U(t + U(g.first)), g)
            if c >= U(g.channels) or U(t + U(g.first)) >= U(g.tiles):
                n, y = int64(0), int64(OUTSIDE)
            at = (
                g.start
                + int64(group) * g.group
                + n * g.image
                + int64(c) * g.channel
                + y * g.row
                + xx * g.pixel
            )
            for i in range(high):
                for j in range(wide):
                    value = zero
                    if U(y + i) < U(g.height) and U(xx + j) < U(g.width):
                        value = x[at + i * g.row + j * g.pixel]
                    values[i * wide + j] = value
            transform(values)
            to = int64(group) * g.to_group + int64(c) * g.to_channel + int64(t) * g.to_tile
            to += int64(U(t // U(SLAB))) * g.to_slab
            for i in range(planes):
                v[to] = values[i]
                to += g.plane

    return transform_tiles


def leaving(dtype, rows: Axis, columns: Axis, lane: int, name, vector):
    """Make the kernel that adds splits, transforms back, adds bias and residual, and activates."""
    real, zero, act, per_block = DTYPES[dtype], DTYPES[dtype](0), activation(name), THREADS // lane
    left, right = matrix(rows), matrix(columns)
    high, wide, planes = len(left), len(right), len(left[0]) * len(right[0])
    transform = codelet(bilinear(left, right), planes)

    @inline
    def write(out, residual, values, i, at, shift, count, g):
        """Store row ``i``; ``count`` of its pixels are inside."""
        if vector:
            v0, v1, v2, v3 = values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]
            v0, v1, v2, v3 = v0 + shift, v1 + shift, v2 + shift, v3 + shift
            if g.has_residual:
                r0, r1, r2, r3 = load4(residual, at)
                v0, v1, v2, v3 = v0 + r0, v1 + r1, v2 + r2, v3 + r3
            store4(out, at, act(v0), act(v1), act(v2), act(v3))
        else:
            for j in range(wide):
                if j < count:
                    value = values[i * wide + j] + shift
                    if g.has_residual:
                        value += residual[at + j * g.pixel]
                    out[at + j * g.pixel] = act(value)

    def transform_back(m, bias, residual, out, g):
        values = cuda.local.array(planes, real)
        tid, block = U(cuda.threadIdx.x), U(cuda.blockIdx.x)
        c_block, block = U(block % U(g.channel_blocks)), U(block // U(g.channel_blocks))
        t_block, group = U(block % U(g.tile_blocks)), U(block // U(g.tile_blocks))
        c, t = U(c_block * U(lane) + tid % U(lane)), U(t_block * U(per_block) + tid // U(lane))
        if c < U(g.channels) and t < U(g.tiles_covered):
            for i in range(planes):
                values[i] = zero
            source = int64(group) * g.to_group + int64(c) * g.to_channel + int64(t) * g.to_tile
            for split in range(g.splits):
                for i in range(planes):
                    values[i] += m[source + split * g.split + i * g.plane]
            transform(values)
            n, y, xx = place_of(U(t + U(g.first)), g)
            at = (
                g.start
                + int64(group) * g.group
                + n * g.image
                + int64(c) * g.channel
                + y * g.row
                + xx * g.pixel
            )
            shift = zero
            if g.has_bias:
                shift = bias[int64(group) * g.channels + int64(c)]
            for i in range(high):
                if y + i < g.height:
                    write(out, residual, values, i, at + i * g.row, shift, g.width - xx, g)

    return transform_back
