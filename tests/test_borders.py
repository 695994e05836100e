"""Borders that repeat the image, against `numpy.pad` of the whole and its adjoint."""

from dataclasses import replace

import numpy as np
import pytest

import fastconv
from fastconv import borders, testing
from fastconv.activations import NONE
from fastconv.algorithms import find, reference
from fastconv.algorithms.passes import axis_pass
from fastconv.problem import Axis, ConvProblem, Direction

MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
PROBLEMS = [
    "n2 c3 k4 i7x6 f3x3 p1",
    "n1 c4 k6 i9x8 f5x3 p2:1x0:3 s2x1 g2",
    "n2 c5 k5 i8x9 f3x3 p1 s2 g5",
    "n1 c4 k8 i6x7 f3x3 p2x1 g4",
    "n1 c2 k3 i5x5 f3x3 p2 d2",
    "n1 c2 k3 i9x9 f2x2 p3x2 d3x2 s3",
    "n1 c2 k2 i2x3 f3x2 p4:1x5:2",  # wider than the image
    "n1 c2 k2 i1x4 f3x3 p1",
    "n2 c3 k4 i11 f4 p3:2",
    "n1 c2 k3 i6x2 f4x5 p2:0x4 s2x1 d1x2",  # circular, gy is a circle, too
    "n1 c2 k3 i4x3x5 f3x2x3 p1:2x1:0x1 s1x1x2",
]
each_problem = pytest.mark.parametrize("line", PROBLEMS)
each_mode = pytest.mark.parametrize("mode", MODES)


def padded(problem, x, mode):
    return np.pad(x, [(0, 0), (0, 0), *((a.lo, a.hi) for a in problem.axes)], MODES[mode])


def walk(problem):
    return {
        "stride": tuple(a.stride for a in problem.axes),
        "dilation": tuple(a.dilation for a in problem.axes),
        "groups": problem.groups,
    }


def expected(problem, x, w, gy, mode):
    """Convolve what NumPy has padded; a pixel's gradient is the sum of those of its copies."""
    rank = len(problem.axes)
    big = padded(problem, x, mode)
    y = getattr(fastconv, f"conv{rank}d")(big, w, **walk(problem), algorithm="reference")
    grads = getattr(fastconv, f"conv{rank}d_backward")(big, w, gy, **walk(problem), algorithm="reference")
    origin = padded(problem, np.arange(x.size).reshape(x.shape), mode)
    gx = np.bincount(origin.reshape(-1), grads.input.reshape(-1), x.size).reshape(x.shape)
    return y, gx, grads.weight


@each_problem
@each_mode
def test_the_reference(line, mode):
    """The definition that the contract compares every algorithm with, against NumPy's padding."""
    problem = ConvProblem.parse(f"{line} float64")
    x, w, gy = (
        testing.integers(s, "float64", i)
        for i, s in enumerate((problem.input_shape, problem.weight_shape, problem.output_shape))
    )
    bordered = replace(problem, padding_mode=mode)
    ours = (
        reference.forward(bordered, x, w),
        reference.input_grad(bordered, gy, w),
        reference.weight_grad(bordered, x, gy),
    )
    for a, b in zip(ours, expected(problem, x, w, gy, mode), strict=True):
        np.testing.assert_array_equal(a, b)


@each_mode
def test_every_function(mode):
    problem = ConvProblem.parse("n2 c3 k4 i7x6 f3x3 p2:1x1")
    x, w, gy = (
        testing.integers(s, "float32", i)
        for i, s in enumerate((problem.input_shape, problem.weight_shape, problem.output_shape))
    )
    y, gx, gw = expected(problem, x, w, gy, mode)
    given = {"padding": ((2, 1), (1, 1)), "padding_mode": mode, "algorithm": "im2col"}
    np.testing.assert_array_equal(fastconv.conv2d(x, w, **given), y)
    grads = fastconv.conv2d_backward(x, w, gy, **given)
    np.testing.assert_array_equal(grads.input, gx)
    np.testing.assert_array_equal(grads.weight, gw)
    np.testing.assert_array_equal(fastconv.conv2d_input(x.shape, w, gy, **given), gx)
    np.testing.assert_array_equal(fastconv.conv2d_weight(x, w.shape, gy, **given), gw)


def test_nothing_padded_is_zeros():
    assert ConvProblem.parse("n1 c2 i5 f3 circular") == ConvProblem.parse("n1 c2 i5 f3")


@each_mode
def test_epilogue_dtypes_and_layouts(mode):
    problem = ConvProblem.parse("n2 c3 k4 i7x6 f3x3 p1")
    x, w = (
        testing.integers(problem.input_shape, "float32"),
        testing.integers(problem.weight_shape, "float32", 1),
    )
    b, r = np.arange(4, dtype="float32"), testing.integers(problem.output_shape, "float32", 2)
    plain = fastconv.conv2d(padded(problem, x, mode), w, algorithm="reference")
    given = {"padding": "same", "padding_mode": mode, "algorithm": "im2col"}
    y = fastconv.conv2d(x, w, b, residual=r, activation="relu", **given)
    np.testing.assert_array_equal(y, np.maximum(plain + b.reshape(-1, 1, 1) + r, 0))
    np.testing.assert_array_equal(fastconv.conv2d(x.astype("int8"), w.astype("int8"), **given), plain)
    np.testing.assert_array_equal(fastconv.conv2d(x.astype("float16"), w, **given), plain)
    np.testing.assert_array_equal(fastconv.conv2d(x * 1j, w, **given), plain * 1j)
    np.testing.assert_array_equal(fastconv.conv2d(x[0], w, **given), plain[0])
    np.testing.assert_array_equal(fastconv.prepare(w, x.shape, **given)(x), plain)
    last = fastconv.conv2d(np.moveaxis(x, 1, -1).copy(), w, layout="NHWC", **given)
    np.testing.assert_array_equal(last, np.moveaxis(plain, 1, -1))
    assert fastconv.explain(x, w, padding=1, padding_mode=mode).problem.padding_mode == mode
    assert ConvProblem.parse(f"n1 c2 i5 f3 p1 {mode}").padding_mode == mode


def test_what_is_refused():
    x, w = np.ones((1, 1, 5, 5)), np.ones((1, 1, 3, 3))
    with pytest.raises(
        ValueError, match="padding_mode must be one of zeros, reflect, replicate, circular, got 'edge'"
    ):
        fastconv.conv2d(x, w, padding=1, padding_mode="edge")
    with pytest.raises(
        ValueError, match=r"padding must be at least 0 where padding_mode is 'reflect', got \(1, -1\)"
    ):
        fastconv.conv2d(x, w, padding=((1, -1), (0, 0)), padding_mode="reflect")
    np.testing.assert_array_equal(
        fastconv.conv2d(x, w, padding_mode="circular", algorithm="im2col"), np.full((1, 1, 3, 3), 9)
    )
    with pytest.raises(
        ValueError,
        match=r"padding must be at most 1048576 where padding_mode is 'circular', got \(1048577, 1048577\)",
    ):
        fastconv.conv2d(x, w, stride=2**21, padding=2**20 + 1, padding_mode="circular")


@each_mode
def test_strides_over_most_of_a_wide_border(mode):
    """Only what some tap reads is looked at: eight padded pixels of 8197 a row."""
    x, w = np.ones((1, 2, 5, 5), "float32"), np.ones((2, 2, 3, 3), "float32")
    selection = fastconv.explain(
        x, w, stride=2**12, padding=2**12, padding_mode=mode, direction="input_grad", algorithm="im2col"
    )
    assert selection.algorithm == "im2col"


@pytest.mark.parametrize("line", ["f3x3 p1", "f5x5 p2", "f5x5 p2 s2", "f3x3 p1 s3", "f15x15 p7"])
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("operand", [0, 1])
@each_mode
def test_depthwise_multiplies_what_the_definition_multiplies(line, direction, operand, mode):
    """Lanes that a tap does not reach hold zeros, whose products with infinite numbers were NaN.

    A pixel that a result reads twice is multiplied once, by the sum of its weights: infinite, where products of two signs are NaN.
    """
    problem = ConvProblem.parse(f"n2 c3 k6 i20x37 {line} g3 {mode}")
    first, second, shape = testing.shapes(problem, direction)
    operands = [testing.normals(first, "float32", 1), testing.normals(second, "float32", 2)]
    operands[operand].reshape(-1)[[0, -1, operands[operand].size // 2]] = np.inf, -np.inf, np.nan
    out, nothing = np.empty(shape, "float32"), np.empty(0, "float32")
    find("direct").build(problem, direction, 2**40).run(*operands, out, nothing, NONE, nothing)
    with np.errstate(invalid="ignore"):
        exact = testing.definition(problem, direction, *operands)
    np.testing.assert_array_equal(np.isfinite(out), np.isfinite(exact))


@pytest.mark.parametrize("seed", range(40))
def test_the_gradient_around_a_circle_is_read_there(seed):
    """Each pixel of the image receives by each tap from one pixel of grad_output at the most, whatever the padding."""
    rng = np.random.default_rng(seed)
    kernel, stride, dilation, count, lo = (int(rng.integers(1, 6)) for _ in range(5))
    axis = Axis(count * stride, kernel, stride, dilation, lo)
    axis = axis._replace(hi=max(0, (count - 1) * stride + axis.extent - axis.size - lo))
    circle = borders.circle(axis, "circular")
    assert circle == (axis.output == count)
    walk = axis_pass(axis, Direction.INPUT_GRAD, "circular")
    received = np.zeros((axis.size, axis.kernel, axis.output), int)
    for pixels, taps in zip(walk.pixels, walk.taps, strict=True):
        for tap, offset in taps:
            np.add.at(received, (pixels, tap, walk.sources(np.arange(walk.outputs) + offset)), circle)
    expected = np.zeros_like(received)
    pixels = borders.padded(axis, "circular")
    for p, r in np.ndindex(axis.output, kernel):
        expected[pixels[p * stride + r * dilation], r, p] += circle
    np.testing.assert_array_equal(received, expected)
