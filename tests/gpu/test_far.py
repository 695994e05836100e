"""More than 2**31 elements: the first and the last blocks of each kernel run in the emulator, in memory that is hardly touched."""

import numpy as np
import pytest

import fastconv
from fastconv import testing
from fastconv.algorithms import find
from fastconv.problem import ConvProblem, Direction

pytest.importorskip("numba_cuda")
from emulated import Array, Launch, emulated
from solving import solve

from fastconv.gemm import batched

ENDS = 8  # blocks of threads at either end
CORNER = (
    np.s_[0, :, :40, :200],
    np.s_[-1, :, -40:, -200:],
)  # pixels that are not zero, and results that are read
IMAGES = "n5 c2 k2 i16384x16384"  # 2.7e9 elements, 2**29 of each image
CASES = [
    f"reference {IMAGES} f3 p1",
    f"im2col {IMAGES} f3 p1",
    f"direct {IMAGES} f3 p1 g2",
    f"winograd:F(2,3) {IMAGES} f3 p1",
]
SLOW = [
    "reference n1 c1 k1 i50000x50000 f3 p1 nhwc",  # one image
    f"im2col {IMAGES} f3 p1 nhwc",
    "im2col n5 c8 k8 i8192x8192 f1",
    f"direct {IMAGES} f3 p1 g2 nhwc",
    f"winograd:F(4,3) {IMAGES} f3 p1",
    f"winograd:F(4,3) {IMAGES} f3 p1 nhwc",
    f"fft {IMAGES} f5 p2",
    f"fft {IMAGES} f5 p2 g2 nhwc",
]


def ends(kernel, blocks, geometry):
    """Return the first and last blocks, of a product those of each plane."""
    if kernel.maker is batched.product:
        tiles = geometry.m_tiles * geometry.n_tiles
        return sorted({b for first in range(0, blocks, tiles) for b in (first, first + tiles - 1)})
    return range(blocks) if blocks <= 2 * ENDS else [*range(ENDS), *range(blocks - ENDS, blocks)]


def far(problem, of_input, seed):
    """Return images whose corners are random numbers, and those corners alone."""
    n, channels, *pixels = problem.input_shape if of_input else problem.output_shape
    last = problem.layout == "nhwc"
    there = Array((n, *pixels, channels) if last else (n, channels, *pixels))
    there = there.transpose((0, 3, 1, 2)) if last else there
    for corner in CORNER:
        there.numpy[corner] = testing.normals(there.numpy[corner].shape, "float32", seed)
    return there


def check_corners(y, x, compute):
    """Compare results that are not zero, at least some at either end, with those of the corner alone."""
    for corner, inner in zip(CORNER, (np.s_[:, :20, :100], np.s_[:, -20:, -100:]), strict=True):
        ours, expected = y[corner][inner], compute(np.ascontiguousarray(x[corner][None]))[0][inner]
        there = ours != 0
        assert there.sum() >= 30
        np.testing.assert_allclose(ours[there], expected[there], 1e-3, 1e-3)


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)])
def test_results_beyond_31_bits(case, monkeypatch):
    monkeypatch.setattr(Launch, "some", staticmethod(ends))
    name, _, line = case.partition(" ")
    problem = ConvProblem.parse(line)
    assert np.prod(problem.input_shape) > 2**31
    w, pad = testing.normals(problem.weight_shape, "float32", 1), problem.axes[0].lo
    walk = {"padding": pad, "groups": problem.groups}
    for direction in (Direction.FORWARD, Direction.INPUT_GRAD):
        forward = direction is Direction.FORWARD
        with emulated(), fastconv.config(workspace=2**45):
            assert not find(name, "cuda").reject(problem, direction)
            images, weight = far(problem, forward, 2), Array.of(w)
            result = solve(problem, direction, images, weight, name)
        compute = fastconv.conv2d if forward else fastconv.conv_transpose2d
        check_corners(result.numpy, images.numpy, lambda corner, of=compute: of(corner, w, **walk))
