"""Geometries drawn at random: against the definition, and against each other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv
from fastconv import activations, testing
from fastconv.algorithms import registry
from fastconv.config import current
from fastconv.problem import Axis, ConvProblem, Direction
from fastconv.select import select

EXACT = {"direct", "im2col", "reference"}
LUCK = 2  # the growth declared is that of many results: of 300 draws, each a few, three had more error, up to 1.45 times


@st.composite
def axes(draw, plain=False):
    """Draw an axis whose kernel fits; padding may crop.  A plain one has three taps side by side."""
    kernel, dilation, stride = 3, 1, 1
    if not plain:
        kernel, dilation, stride = (draw(st.integers(1, most)) for most in (5, 3, 4))
    lo, hi = draw(st.integers(-2, 6)), draw(st.integers(-2, 6))
    least = max(1, -min(lo, hi), dilation * (kernel - 1) + 1 - lo - hi)
    return Axis(draw(st.integers(least, least + 19)), kernel, stride, dilation, lo, hi)


@st.composite
def problems(draw, least=1, most=2, plain=False):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c, k = draw(st.integers(1, 9)), draw(st.integers(1, 19))
    along = tuple(draw(axes(plain)) for _ in range(draw(st.integers(least, most))))
    return ConvProblem(draw(st.integers(1, 3)), groups * c, groups * k, along, groups).checked()


seeds = st.integers(0, 2**32 - 1)


def arguments(problem):
    """Return the problem's geometry as the functions take it."""
    return {
        "stride": tuple(a.stride for a in problem.axes),
        "padding": tuple((a.lo, a.hi) for a in problem.axes),
        "dilation": tuple(a.dilation for a in problem.axes),
        "groups": problem.groups,
    }


def conv(problem, x, w, **changes):
    function = fastconv.conv1d if len(problem.axes) == 1 else fastconv.conv2d
    return function(x, w, **arguments(problem) | changes)


@pytest.mark.parametrize("direction", list(Direction), ids=str)
@pytest.mark.parametrize("name", sorted(set(registry()) - {"winograd"}))
@given(problem=problems(), seed=seeds)
def test_against_the_definition(name, direction, problem, seed):
    check(registry()[name], name in EXACT, direction, problem, seed)


@pytest.mark.parametrize("direction", list(Direction), ids=str)
@pytest.mark.parametrize("name", ["winograd"])
@given(problem=problems(least=2, plain=True), seed=seeds)
def test_smallest_tiles_against_the_definition(name, direction, problem, seed):
    """Other kernels compile transforms of their own, for each example that is not rejected."""
    check(registry()[name].variant("F(2,3)"), True, direction, problem, seed)


def check(algorithm, exact, direction, problem, seed):
    if algorithm.reject(problem, direction) is not None:
        return
    first, second, result = testing.shapes(problem, direction)
    draw = testing.integers if exact else testing.normals
    first, second = draw(first, problem.dtype, seed), draw(second, problem.dtype, seed + 1)
    out = np.full(result, np.nan, problem.dtype)
    algorithm.build(problem, direction, 2**40).run(
        first, second, out, np.empty(0, problem.dtype), activations.NONE, np.empty(0, problem.dtype)
    )
    if exact:
        testing.assert_exact(problem, direction, first, second, out)
    else:
        growth = LUCK * algorithm.error_growth(problem, direction)
        testing.assert_right(problem, direction, first, second, out, growth)


def operands(problem, seed):
    x = testing.integers(problem.input_shape, problem.dtype, seed)
    return x, testing.integers(problem.weight_shape, problem.dtype, seed + 1)


@given(problem=problems(), seed=seeds)
def test_images_do_not_know_of_each_other(problem, seed):
    x, w = operands(problem, seed)
    whole = conv(problem, x, w, algorithm="im2col")
    single = [conv(problem, image[None], w, algorithm="im2col") for image in x]
    np.testing.assert_array_equal(whole, np.concatenate(single))


@given(problem=problems(), seed=seeds)
def test_groups_are_convolutions_side_by_side(problem, seed):
    x, w = operands(problem, seed)
    g = problem.groups
    parts = [
        conv(problem, np.ascontiguousarray(xi), wi, groups=1, algorithm="im2col")
        for xi, wi in zip(np.split(x, g, axis=1), np.split(w, g), strict=True)
    ]
    np.testing.assert_array_equal(conv(problem, x, w, algorithm="im2col"), np.concatenate(parts, axis=1))


@given(problem=problems(), seed=seeds)
def test_linear_in_both_operands(problem, seed):
    """Integers, so exactly."""
    x, w = operands(problem, seed)
    x2, w2 = operands(problem, seed // 2)
    call = {"algorithm": "im2col"}
    y = conv(problem, x, w, **call)
    np.testing.assert_array_equal(conv(problem, x + 2 * x2, w, **call), y + 2 * conv(problem, x2, w, **call))
    np.testing.assert_array_equal(conv(problem, x, w - 3 * w2, **call), y - 3 * conv(problem, x, w2, **call))


@given(problem=problems(least=2), seed=seeds)
def test_swapping_the_axes_swaps_the_result(problem, seed):
    x, w = operands(problem, seed)
    turned = ConvProblem(problem.n, problem.c, problem.k, problem.axes[::-1], problem.groups)
    y = conv(turned, x.swapaxes(2, 3), w.swapaxes(2, 3), algorithm="im2col")
    np.testing.assert_array_equal(y.swapaxes(2, 3), conv(problem, x, w, algorithm="im2col"))


@given(problem=problems(most=1), seed=seeds)
def test_one_axis_is_two_with_one_pixel(problem, seed):
    x, w = operands(problem, seed)
    (axis,) = problem.axes
    flat = ConvProblem(problem.n, problem.c, problem.k, (Axis(1, 1), axis), problem.groups)
    y = conv(flat, x[:, :, None], w[:, :, None], algorithm="im2col")
    np.testing.assert_array_equal(y[:, :, 0], conv(problem, x, w, algorithm="im2col"))


@given(problem=problems(), seed=seeds)
def test_whatever_is_chosen_is_right(problem, seed):
    x, w = (
        testing.normals(problem.input_shape, "float32", seed),
        testing.normals(problem.weight_shape, "float32", 1),
    )
    result = conv(problem, x, w, algorithm="auto")
    chosen = select(problem, Direction.FORWARD, current()).algorithm
    growth = LUCK * registry()[chosen].error_growth(problem, Direction.FORWARD)
    testing.assert_right(problem, Direction.FORWARD, x, w, result, growth)


@given(problem=problems())
def test_the_printed_line_reads_back(problem):
    assert ConvProblem.parse(str(problem)) == problem
