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

MANY = 2**22  # channels
WEIGHTS = [
    f"direct n40 c{MANY} k1 i4x4 f3",  # 2.7e9 elements of the input
    "im2col n40 c65536 k1 i32x32 f3 s29",
]
SLOW_WEIGHTS = [
    f"im2col n150 c1 k{MANY} i4x4 f3",  # 2.5e9 of the output
    f"reference n40 c{MANY} k1 i4x4 f3",
    f"winograd:F(2,3) n40 c{MANY} k1 i4x4 f3",
    f"winograd:F(4,3) n40 c{MANY} k1 i4x4 f3",
    f"winograd:F(2,3) n150 c1 k{MANY} i4x4 f3",
    f"fft n40 c{MANY} k1 i4x4 f3",
    f"fft n40 c{MANY} k{MANY} i4x4 f3 g{MANY}",
    f"direct n40 c{MANY} k{MANY} i4x4 f3 g{MANY}",
    f"direct n150 c1 k{MANY} i4x4 f3",
    "im2col n40 c65536 k1 i32x32 f3 s29 nhwc",
    f"direct n40 c{MANY} k{MANY} i4x4 f3 g{MANY} nhwc",
]

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


def ends_of_channels(kernel, blocks, geometry):
    """Return the first and last blocks, of transforms and products those of each tile and plane; or all of few."""
    if blocks <= 16 * ENDS:
        return range(blocks)
    whole = geometry.m_tiles * geometry.n_tiles if kernel.maker is batched.product else blocks
    if getattr(geometry, "channel_blocks", 0) > 2 * ENDS:
        whole = geometry.channel_blocks
    few = min(ENDS, whole)
    return sorted(
        {first + b for first in range(0, blocks, whole) for b in (*range(few), *range(whole - few, whole))}
    )


@pytest.mark.parametrize(
    "case", [*WEIGHTS, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW_WEIGHTS)]
)
def test_weight_gradients_of_images_beyond_31_bits(case, monkeypatch):
    """Those of the first and of the last channels, which alone are not zero."""
    monkeypatch.setattr(Launch, "some", staticmethod(ends_of_channels))
    name, _, line = case.partition(" ")
    problem = ConvProblem.parse(line)
    assert max(np.prod(problem.input_shape), np.prod(problem.output_shape)) > 2**31
    with emulated(), fastconv.config(workspace=2**45):
        assert not find(name, "cuda").reject(problem, Direction.WEIGHT_GRAD)
        there = []
        for seed, (n, channels, *pixels) in enumerate((problem.input_shape, problem.output_shape)):
            last = problem.layout == "nhwc"
            images = Array((n, *pixels, channels) if last else (n, channels, *pixels))
            there.append(images.transpose((0, 3, 1, 2)) if last else images)
            for channel in {*range(min(4, channels)), *range(max(0, channels - 4), channels)}:
                there[-1].numpy[:, channel] = testing.normals(
                    (n, *pixels), "float32", (channel + 7 * seed) % 97
                )
        result = solve(problem, Direction.WEIGHT_GRAD, *there, name).numpy
    x, gy = (images.numpy for images in there)
    for end in (np.s_[:4], np.s_[-4:]):
        own_x, own_gy = np.ascontiguousarray(x[:, end]), np.ascontiguousarray(gy[:, end])
        groups = 4 if problem.groups > 1 else 1
        shape = (own_gy.shape[1], own_x.shape[1] // groups, 3, 3)
        stride = problem.axes[0].stride
        expected = fastconv.conv2d_weight(own_x, shape, own_gy, groups=groups, stride=stride)
        ours = result[end] if problem.k > 1 else result[:, end]
        np.testing.assert_allclose(ours, expected, 1e-3, 1e-3)


def test_pooling_beyond_31_bits(monkeypatch):
    monkeypatch.setattr(Launch, "some", staticmethod(ends))
    size = 2**14
    first, last = np.s_[0, 0, :2, :200], np.s_[-1, -1, -2:, -200:]
    with emulated():
        x, gy = Array((5, 2, size, size)), Array((5, 2, size // 2, size // 2))
        for i, corner in enumerate((first, last)):
            x.numpy[corner] = testing.normals((2, 200), "float32", i)
        ends_of_gy = np.s_[0, 0, 0, :100], np.s_[-1, -1, -1, -100:]
        for i, corner in enumerate(ends_of_gy):
            gy.numpy[corner] = testing.normals((100,), "float32", 2 + i)
        y, places = fastconv.max_pool2d(x, 2, return_indices=True)
        computed = {
            "maxima": y, "to maxima": fastconv.max_pool2d_backward(x, gy, 2),
            "to places": fastconv.max_pool2d_backward(x, gy, 2, indices=places),
            "means": fastconv.avg_pool2d(x, 2), "to means": fastconv.avg_pool2d_backward(x.shape, gy, 2),
        }  # fmt: skip
    for i, corner in enumerate((first, last)):
        own, of_gy = x.numpy[corner][None], gy.numpy[ends_of_gy[i]][None, None]
        expected, where = fastconv.max_pool2d(own, 2, return_indices=True)
        to_maxima = fastconv.max_pool2d_backward(own, of_gy, 2)
        row, column = where // 200, where % 200
        begin = 0 if i == 0 else size
        far = (row + max(0, begin - 2)) * size + column + max(0, begin - 200)
        np.testing.assert_array_equal(places.numpy[ends_of_gy[i]], far[0, 0])
        line = 0 if i == 0 else -1  # of a window's two, which the blocks that run have
        for name, wanted in {
            "maxima": expected, "means": fastconv.avg_pool2d(own, 2), "to maxima": to_maxima[:, line],
            "to places": to_maxima[:, line], "to means": fastconv.avg_pool2d_backward(own.shape, of_gy, 2)[:, line],
        }.items():  # fmt: skip
            at = ends_of_gy[i] if name in ("maxima", "means") else (*corner[:2], line, corner[3])
            np.testing.assert_allclose(computed[name].numpy[at], wanted.ravel(), 1e-5, 1e-6, err_msg=name)
