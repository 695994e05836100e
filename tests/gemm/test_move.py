"""Transposition of every shape of block, touching nothing else."""

import numba
import numpy as np
import pytest

from fastconv import jit
from fastconv.gemm.move import transpose


@numba.njit(**jit.OPTIONS)
def turned(dst, d, ldd, src, s, lds, rows, columns):
    transpose(dst, d, ldd, src, s, lds, rows, columns)


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
