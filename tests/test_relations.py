"""What the functions are to each other, and to NumPy: relations that hold for every algorithm, exactly on integers."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import fastconv
from fastconv import testing

EXACT = ("direct", "im2col")
each_exact = pytest.mark.parametrize("algorithm", EXACT)


def draw(shape, seed, dtype="float32"):
    return testing.integers(shape, dtype, seed)


@each_exact
def test_one_row_is_a_signal(algorithm):
    x, w = draw((2, 3, 17), 1), draw((4, 3, 3), 2)
    given = {"stride": 2, "dilation": 2, "algorithm": algorithm}
    row = fastconv.conv2d(x[:, :, None], w[:, :, None], padding=((0, 0), (1, 1)), **given)
    np.testing.assert_array_equal(fastconv.conv1d(x, w, padding=1, **given), row[:, :, 0])


@each_exact
def test_windows_times_weights(algorithm):
    x, w = draw((2, 3, 9, 8), 1), draw((5, 3, 3, 2), 2)
    windows = sliding_window_view(x, (3, 2), axis=(2, 3))[:, :, ::2]
    expected = np.einsum("ncpqrs,kcrs->nkpq", windows, w)
    np.testing.assert_array_equal(fastconv.conv2d(x, w, stride=(2, 1), algorithm=algorithm), expected)


@each_exact
def test_transposed_is_the_gradient_by_the_input(algorithm):
    gy, w = draw((2, 4, 5, 4), 1), draw((4, 3, 3, 3), 2)
    given = {"stride": 2, "padding": 1, "algorithm": algorithm}
    y = fastconv.conv_transpose2d(gy, w, output_padding=(1, 0), **given)
    np.testing.assert_array_equal(y, fastconv.conv2d_input((2, 3, 10, 7), w, gy, **given))


@each_exact
def test_depthwise_is_a_convolution_of_each_channel(algorithm):
    x, w = draw((2, 5, 9, 9), 1), draw((10, 1, 3, 3), 2)
    given = {"padding": 1, "algorithm": algorithm}
    parts = [fastconv.conv2d(x[:, i : i + 1], w[2 * i : 2 * i + 2], **given) for i in range(5)]
    np.testing.assert_array_equal(fastconv.conv2d(x, w, groups=5, **given), np.concatenate(parts, axis=1))


@each_exact
def test_flip_and_shift(algorithm):
    x, w = draw((1, 3, 10, 11), 1), draw((4, 3, 3, 3), 2)
    given = {"algorithm": algorithm}
    y = fastconv.conv2d(x, w, padding=1, **given)
    turned = fastconv.conv2d(x[..., ::-1, ::-1], w[..., ::-1, ::-1], padding=1, **given)
    np.testing.assert_array_equal(turned, y[..., ::-1, ::-1])
    moved = fastconv.conv2d(x[..., 2:, 3:], w, **given)
    np.testing.assert_array_equal(moved, fastconv.conv2d(x, w, **given)[..., 2:, 3:])


def test_both_layouts():
    x, w = draw((2, 6, 9, 8), 1), draw((5, 6, 3, 3), 2)
    y = fastconv.conv2d(x, w, padding=1, algorithm="direct")
    last = fastconv.conv2d(np.moveaxis(x, 1, -1).copy(), w, padding=1, algorithm="direct", layout="NHWC")
    np.testing.assert_array_equal(np.moveaxis(last, -1, 1), y)


def test_strict_keeps_nan_and_infinity_where_the_definition_has_them():
    """Chosen freely otherwise; 'fast' may spread them over a tile."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 16, 24, 24), dtype="f"), rng.standard_normal((16, 16, 3, 3), dtype="f")
    x[0, 3, 5, 6], x[0, 4, 15, 20] = np.nan, np.inf
    touched = np.zeros((1, 1, 24, 24), "f")
    touched[0, 0, 5, 6] = touched[0, 0, 15, 20] = 1
    reached = fastconv.conv2d(touched, np.ones((1, 1, 3, 3), "f"), padding=1, algorithm="direct")[0, 0] > 0
    with fastconv.config(precision="strict"):
        y = fastconv.conv2d(x, w, padding=1)
    np.testing.assert_array_equal(~np.isfinite(y[0]), np.broadcast_to(reached, (16, 24, 24)))


@pytest.mark.parametrize("kernel", [3, 7])
def test_strict_keeps_each_result_as_exact_as_its_own_terms(kernel):
    """Channels of 1e0 and of 1e15 side by side: |error| <= 64 eps (|x| * |w|), element by element."""
    rng = np.random.default_rng(1)
    x, w = (
        rng.standard_normal((1, 8, 24, 24), dtype="f"),
        rng.standard_normal((8, 4, kernel, kernel), dtype="f"),
    )
    x[:, 4:] *= 1e15
    x[..., :12] *= 1e-12
    exact, sizes = (
        fastconv.conv2d(*(f(a.astype("float64")) for a in (x, w)), padding=1, groups=2, algorithm="reference")
        for f in (np.array, np.abs)
    )
    with fastconv.config(precision="strict"):
        y = fastconv.conv2d(x, w, padding=1, groups=2)
    assert (np.abs(y - exact) <= 64 * np.finfo("f").eps * sizes).all()
