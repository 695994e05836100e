"""What the functions are to each other, and to NumPy: relations that hold for every algorithm, exactly on integers."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import fastconv
from fastconv import borders, testing
from fastconv.config import Settings
from fastconv.problem import ConvProblem, Direction
from fastconv.select import select

EXACT = ("direct", "im2col")
each_exact = pytest.mark.parametrize("algorithm", EXACT)


def draw(shape, seed, dtype="float32"):
    return testing.integers(shape, dtype, seed)


@each_exact
def test_windows_times_weights(algorithm):
    x, w = draw((2, 3, 9, 8), 1), draw((5, 3, 3, 2), 2)
    windows = sliding_window_view(x, (3, 2), axis=(2, 3))[:, :, ::2]
    expected = np.einsum("ncpqrs,kcrs->nkpq", windows, w)
    np.testing.assert_array_equal(fastconv.conv2d(x, w, stride=(2, 1), algorithm=algorithm), expected)


@each_exact
def test_flip_and_shift(algorithm):
    x, w = draw((1, 3, 10, 11), 1), draw((4, 3, 3, 3), 2)
    given = {"algorithm": algorithm}
    y = fastconv.conv2d(x, w, padding=1, **given)
    turned = fastconv.conv2d(x[..., ::-1, ::-1], w[..., ::-1, ::-1], padding=1, **given)
    np.testing.assert_array_equal(turned, y[..., ::-1, ::-1])
    moved = fastconv.conv2d(x[..., 2:, 3:], w, **given)
    np.testing.assert_array_equal(moved, fastconv.conv2d(x, w, **given)[..., 2:, 3:])


WINOGRADS = ConvProblem.parse("n1 c64 k64 i56x56 f3x3 p1")  # chosen for it where that is left free
each_direction = pytest.mark.parametrize("direction", list(Direction), ids=str)


def strictly(direction, first, second):
    settings = {"padding": 1}
    with fastconv.config(precision="strict"):
        return {
            Direction.FORWARD: lambda: fastconv.conv2d(first, second, **settings),
            Direction.INPUT_GRAD: lambda: fastconv.conv2d_input(
                WINOGRADS.input_shape, second, first, **settings
            ),
            Direction.WEIGHT_GRAD: lambda: fastconv.conv2d_weight(
                first, WINOGRADS.weight_shape, second, **settings
            ),
        }[direction]()


@each_direction
def test_strict_keeps_nan_and_infinity_where_the_definition_has_them(direction):
    """'fast' may spread them over a tile."""
    assert "winograd" in select(WINOGRADS, direction, Settings()).algorithm
    first, second = (
        testing.normals(s, "float32", i) for i, s in enumerate(testing.shapes(WINOGRADS, direction)[:2])
    )
    first[0, 3, 5, 6], first[0, 4, 15, 20] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        exact = testing.definition(WINOGRADS, direction, first, second)
    result = strictly(direction, first, second)
    np.testing.assert_array_equal(np.isfinite(result), np.isfinite(exact))
    assert np.isfinite(result).any()


@each_direction
def test_strict_keeps_each_result_as_exact_as_its_own_terms(direction):
    """Pixels of 1e0 beside those of 1e12: |error| <= 64 eps (|x| * |w|), element by element."""
    first, second = (
        testing.normals(s, "float32", i) for i, s in enumerate(testing.shapes(WINOGRADS, direction)[:2])
    )
    first[..., 30:] *= 1e12
    exact = testing.definition(WINOGRADS, direction, first, second)
    sizes = testing.definition(WINOGRADS, direction, np.abs(first), np.abs(second))
    assert (np.abs(strictly(direction, first, second) - exact) <= 64 * np.finfo("f").eps * sizes).all()


@each_exact
@pytest.mark.parametrize("mode", ["", " reflect"])
@pytest.mark.parametrize("walk", ["", " s2", " s3 d2", " g4"])
def test_an_infinite_weight_meets_the_zeros_around_a_gradient_at_its_edges_alone(algorithm, walk, mode):
    """A pixel, or one that repeats it, that a tap would reach from an output outside may be NaN; others are as defined."""
    problem, direction = ConvProblem.parse(f"n1 c4 k4 i20x22 f3x3 p1{walk}{mode}"), Direction.INPUT_GRAD
    first, second = (
        testing.normals(s, "float32", i) for i, s in enumerate(testing.shapes(problem, direction)[:2])
    )
    r, s, c = 0, 2, 0
    second[1, c, r, s] = np.inf
    c = 1 if problem.groups > 1 else c
    with np.errstate(invalid="ignore"):
        exact = testing.definition(problem, direction, first, second)
        with fastconv.config(algorithm=algorithm):
            result = fastconv.conv2d_input(
                problem.input_shape, second, first, stride=problem.axes[0].stride, padding=1,
                dilation=problem.axes[0].dilation, groups=problem.groups, padding_mode=mode.strip() or "zeros",
            )  # fmt: skip
    meant, inside = [], []
    for axis, tap in zip(problem.axes, (r, s), strict=True):
        place = np.arange(axis.lo + axis.size + axis.hi) - tap * axis.dilation
        meant.append(place % axis.stride == 0)
        inside.append((place >= 0) & (place < axis.stride * axis.output))
    missed = np.logical_and.outer(*meant) & ~np.logical_and.outer(*inside)
    rows, columns = (borders.pixels(axis, problem.padding_mode) for axis in problem.axes)
    edge = np.zeros(exact.shape, bool)
    np.logical_or.at(
        edge[0, c], np.ix_(rows[rows >= 0], columns[columns >= 0]), missed[np.ix_(rows >= 0, columns >= 0)]
    )
    assert edge.any()
    result = np.where(edge & np.isnan(result), exact, result)
    np.testing.assert_allclose(result, exact, rtol=1e-4, atol=1e-4)
