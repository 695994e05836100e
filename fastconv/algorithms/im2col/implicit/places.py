"""Where a column of the implicit GEMM begins in the source, and where it ends in the result."""

from __future__ import annotations

from fastconv.algorithms.im2col.implicit.marks import found
from fastconv.cuda.language import U, divided, inline, int64


@inline
def located(base, marks, column, g):
    """Return how far into the source a column's pixel lies, and what tells which taps lie outside."""
    n, rest = divided(column, g.positions, g.positions_m, g.positions_s)
    z, rest = divided(rest, g.plane, g.plane_m, g.plane_s)
    y, x = divided(rest, g.row, g.row_m, g.row_s)
    z, y, x = U(z * g.stride_z), U(y * g.stride_y), U(x * g.stride_x)
    base += int64(n) * int64(g.image_source)
    base += int64(U(U(U(z * g.height) + y) * g.width + x)) * int64(g.pixel_source)
    pixel, mask, beyond = found(marks, g.marks, (z, y, x), (g.depth, g.height, g.width))
    if column >= g.columns:
        pixel = beyond
    return base, pixel, mask


def locator(count, apart):
    """Return the device function that locates so many columns of a thread: a tuple, whose parts stay in registers."""
    others = locator(count - 1, apart) if count > 1 else None

    @inline
    def one(base, marks, column, g):
        return (located(base, marks, column, g),)

    @inline
    def more(base, marks, column, g):
        here = located(base, marks, U(column + U((count - 1) * apart)), g)
        return others(base, marks, column, g) + (here,)  # noqa: RUF005  (Numba's)

    return one if count == 1 else more


def result_finder(plain):
    """Return the device function that tells where the first channel of a column's result lies, or -1 if it has none."""

    @inline
    def result_of(column, phase, group, g):
        if column >= g.columns:
            return int64(-1)
        n, rest = divided(column, g.positions, g.positions_m, g.positions_s)
        at = int64(n) * int64(g.image_result) + int64(group) * int64(g.group_result)
        if plain:
            return at + int64(rest) * int64(g.pixel_result)
        z, rest = divided(rest, g.plane, g.plane_m, g.plane_s)
        y, x = divided(rest, g.row, g.row_m, g.row_s)
        x = U(x * g.step_x + phase % g.step_x)
        y = U(y * g.step_y + U(phase // g.step_x) % g.step_y)
        z = U(z * g.step_z + U(phase // g.step_x) // g.step_y)
        if x < g.result_x and y < g.result_y and z < g.result_z:
            return at + int64(U(U(U(z * g.result_y) + y) * g.result_x + x)) * int64(g.pixel_result)
        return int64(-1)

    return result_of
