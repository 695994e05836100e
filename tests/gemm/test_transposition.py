"""Transposition of every shape of block, touching nothing else."""

import numba
import numpy as np
import pytest

from fastconv import jit, machine
from fastconv.gemm.transposition import TAPS, transpose, turn_taps


@numba.njit(**jit.OPTIONS)
def turned(dst, d, ldd, src, s, lds, rows, columns):
    transpose(dst, d, ldd, src, s, lds, rows, columns)


@numba.njit(**jit.OPTIONS)
def turned_taps(dst, d, dst_step, apart, src, s, src_step, count, rows, taps):
    turn_taps(dst, d, dst_step, apart, src, s, src_step, count, rows, taps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transpose(dtype):
    rng = np.random.default_rng(0)
    for rows in range(20):
        for columns in range(20):
            src = rng.standard_normal((20, 23)).astype(dtype)
            dst = np.full((20, 21), 7, dtype)
            expected = dst.copy()
            expected[:columns, :rows] = src[:rows, :columns].T
            turned(dst.reshape(-1), 0, 21, src.reshape(-1), 0, 23, rows, columns)
            np.testing.assert_array_equal(dst, expected, f"{rows} x {columns}")
    row = np.full(40, 7, dtype)
    turned(row, 3, 1, src.reshape(-1), 5, 23, 1, 19)
    np.testing.assert_array_equal(row, np.r_[[7] * 3, src.reshape(-1)[5:24], [7] * 18].astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_turn_taps(dtype):
    for rows in range(1, machine.tile(np.dtype(dtype).itemsize).mr + 1):
        for taps in range(1, TAPS + 1):
            src = np.random.default_rng(0).standard_normal((3, rows * taps + 2)).astype(dtype)
            columns = src[:, 2:].reshape(3, rows, taps).swapaxes(1, 2)
            for apart in (rows, rows + 2):
                dst = np.full((3, taps * apart + 1), 7, dtype)
                expected = dst.copy()
                for j in range(taps):
                    expected[:, j * apart : j * apart + rows] = columns[:, j]
                turned_taps(
                    dst.reshape(-1), 0, dst.shape[1], apart, src.reshape(-1), 2, src.shape[1], 3, rows, taps
                )
                np.testing.assert_array_equal(dst, expected, f"{rows} x {taps}, {apart} apart")
