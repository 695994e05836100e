"""Planes parted and woven, touching nothing else."""

import numba
import numpy as np
import pytest

from fastconv import jit
from fastconv.gemm.interlace import MOST, part_lanes, weave_lanes


@numba.njit(**jit.OPTIONS)
def parted_and_woven(planes, back, src, apart, count, n):
    part_lanes(planes, 0, apart, src, 0, count, n)
    weave_lanes(back, 0, planes, 0, apart, count, n)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", range(2, MOST + 2))
def test_planes(n, dtype):
    for count in range(1, 40):
        src = np.arange(count * n, dtype=dtype)
        planes, back = np.full((n, 41), -1, dtype), np.full(40 * n, -1, dtype)
        parted_and_woven(planes.reshape(-1), back, src, 41, count, n)
        np.testing.assert_array_equal(planes[:, :count], src.reshape(count, n).T)
        np.testing.assert_array_equal(back[: count * n], src)
        assert (planes[:, count:] == -1).all()
        assert (back[count * n :] == -1).all()
