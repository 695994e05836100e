"""What the functions are to each other, and to NumPy: relations that hold for every algorithm, exactly on integers."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import fastconv
from fastconv import testing
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
def test_columns_times_weights_in_all_directions(algorithm):
    """`unfold` makes the matrix, and `fold` is its transpose."""
    x, w, walk = (
        draw((2, 3, 9, 8), 1),
        draw((5, 3, 3, 2), 2),
        {"stride": (2, 1), "padding": 1, "dilation": (1, 2)},
    )
    columns, matrix = fastconv.unfold(x, (3, 2), **walk), w.reshape(5, -1)
    y = fastconv.conv2d(x, w, algorithm=algorithm, **walk)
    np.testing.assert_array_equal(y, (matrix @ columns).reshape(y.shape))
    gy = draw(y.shape, 3)
    flat = gy.reshape(2, 5, -1)
    grads = fastconv.conv2d_backward(x, w, gy, algorithm=algorithm, **walk)
    np.testing.assert_array_equal(grads.input, fastconv.fold(matrix.T @ flat, (9, 8), (3, 2), **walk))
    by_image = flat @ columns.swapaxes(1, 2)
    np.testing.assert_array_equal(grads.weight, by_image.sum(axis=0).reshape(w.shape))


@each_exact
def test_a_transposed_convolution_is_an_input_gradient(algorithm):
    g, w = draw((2, 6, 5, 4), 1), draw((6, 2, 3, 2), 2)
    walk = {"stride": (3, 2), "padding": (1, 0), "dilation": 2, "groups": 2, "algorithm": algorithm}
    y = fastconv.conv_transpose2d(g, w, output_padding=(2, 1), **walk)
    np.testing.assert_array_equal(y, fastconv.conv2d_input(y.shape, w, g, **walk))


@each_exact
def test_a_depthwise_layer_is_a_convolution_of_each_channel(algorithm):
    x, w = draw((2, 5, 9, 8), 1), draw((10, 1, 3, 3), 2)
    y = fastconv.conv2d(x, w, padding=1, groups=5, algorithm=algorithm)
    for c in range(5):
        single = fastconv.conv2d(x[:, c : c + 1], w[2 * c : 2 * c + 2], padding=1, algorithm=algorithm)
        np.testing.assert_array_equal(y[:, 2 * c : 2 * c + 2], single)


@pytest.mark.parametrize(
    "number", [3e38, 1e-44, -1e-40], ids=["near overflow", "denormal", "negative denormal"]
)
@pytest.mark.parametrize("kernel", [1, 3])
def test_strict_keeps_the_largest_and_the_smallest_numbers(number, kernel):
    """Times 1 they stay as they are, and so does how the process treats denormals."""
    x, w = np.full((1, 64, 28, 28), number, "float32"), np.zeros((64, 64, kernel, kernel), "float32")
    w[range(64), range(64), kernel // 2, kernel // 2] = 1
    with fastconv.config(precision="strict"):
        for result in (
            fastconv.conv2d(x, w, padding=kernel // 2),
            fastconv.conv2d_input(x.shape, w, x, padding=kernel // 2),
        ):
            np.testing.assert_array_equal(result, x)
    assert np.float32(1e-44) / np.float32(2) != 0


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


def called(problem, direction, first, second, **settings):
    """Call the function of a direction, on images as the problem's layout has them in memory."""
    rank, (x, w, _) = len(problem.axes), testing.shapes(problem, Direction.FORWARD)
    walk = {
        "stride": tuple(a.stride for a in problem.axes), "padding": tuple((a.lo, a.hi) for a in problem.axes),
        "groups": problem.groups, "padding_mode": problem.padding_mode,
    }  # fmt: skip
    first, second = (
        np.moveaxis(np.ascontiguousarray(to_last(a)), -1, 1)
        if problem.layout == "nhwc" and a.shape != w
        else a
        for a in (first, second)
    )
    with fastconv.config(**settings):
        if direction is Direction.FORWARD:
            return getattr(fastconv, f"conv{rank}d")(first, second, **walk)
        if direction is Direction.INPUT_GRAD:
            return getattr(fastconv, f"conv{rank}d_input")(x, second, first, **walk)
        return getattr(fastconv, f"conv{rank}d_weight")(first, w, second, **walk)


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
    result = called(WINOGRADS, direction, first, second, precision="strict")
    np.testing.assert_array_equal(np.isfinite(result), np.isfinite(exact))
    assert np.isfinite(result).any()


@pytest.mark.parametrize(
    ("line", "direction", "most"),
    [
        ("n12 c2 k3 i40x40 f3x3 p1", Direction.FORWARD, 12), ("n12 c2 k3 i40x40 f3x3 p1", Direction.INPUT_GRAD, 12),
        ("n12 c2 k3 i60 f3 p1", Direction.FORWARD, 12), ("n12 c2 k3 i79x79 f3x3 s2 p1", Direction.INPUT_GRAD, 18),
    ],
)  # fmt: skip
def test_how_far_winograd_spreads_a_nan(line, direction, most):
    """Over the tiles that read it: each image has one a pixel further, through all places within a tile."""
    problem = ConvProblem.parse(line)
    first, second = (testing.normals(s, "float32") for s in testing.shapes(problem, direction)[:2])
    for i, image in enumerate(first):
        image[(0, *[14 + i] * len(problem.axes))] = np.nan
    bad = ~np.isfinite(called(problem, direction, first, second, algorithm="winograd"))
    for image in bad:
        places = np.argwhere(image.any(axis=0))
        assert 3 <= (np.ptp(places, axis=0) + 1).min() <= (np.ptp(places, axis=0) + 1).max() <= most


OTHERS = [  # each by kernels of another kind
    "n1 c32 k32 i28x28 f3x3 p1 nhwc", "n1 c16 k8 i24x24 f5x5 s2 p2 reflect", "n1 c32 k32 i24x24 f7x7 p3 g32",
    "n1 c16 k8 i200 f31 p15",
]  # fmt: skip


@each_direction
@pytest.mark.parametrize("problem", [WINOGRADS, *map(ConvProblem.parse, OTHERS)], ids=str)
def test_strict_keeps_each_result_as_exact_as_its_own_terms(problem, direction):
    """Pixels of 1e0 beside those of 1e12: |error| <= 64 eps (|x| * |w|), element by element."""
    first, second = (
        testing.normals(s, "float32", i) for i, s in enumerate(testing.shapes(problem, direction)[:2])
    )
    first[..., first.shape[-1] // 2 :] *= 1e12
    exact = testing.definition(problem, direction, first, second)
    sizes = testing.definition(problem, direction, np.abs(first), np.abs(second))
    result = called(problem, direction, first, second, precision="strict")
    assert (np.abs(result - exact) <= 64 * np.finfo("f").eps * sizes).all()


@each_exact
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("walk", ["p1", "p1 s2", "p0 s3 d2", "p1 g4", "p-1:-2"])
def test_an_infinite_weight_meets_no_zeros_around_a_gradient(algorithm, walk, mode, layout):
    """Strict mode: the definition has no products there, and kernels' would be NaN."""
    cropped = "-" in walk and mode != "zeros"
    problem = ConvProblem.parse(f"n1 c4 k4 i20x22 f3x3 {walk.replace('-', '') if cropped else walk} {mode}")
    first, second = (
        testing.normals(s, "float32", i)
        for i, s in enumerate(testing.shapes(problem, Direction.INPUT_GRAD)[:2])
    )
    second.reshape(-1)[[0, 20, -1]] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        exact = testing.definition(problem, Direction.INPUT_GRAD, first, second)
        with fastconv.config(precision="strict", algorithm=algorithm):
            last = layout == "NHWC"
            result = fastconv.conv2d_input(
                to_last(exact).shape if last else exact.shape, second, to_last(first) if last else first,
                stride=problem.axes[0].stride, padding=[a[-2:] for a in problem.axes],
                dilation=problem.axes[0].dilation, groups=problem.groups, padding_mode=problem.padding_mode,
                layout=layout,
            )  # fmt: skip
    np.testing.assert_allclose(np.moveaxis(result, -1, 1) if last else result, exact, rtol=1e-4, atol=1e-4)
    assert np.isfinite(result).any()


def test_what_computes_again_is_kept_with_the_plan(monkeypatch):
    """A gradient that is not finite step after step, as where a training diverges."""
    from fastconv.algorithms.im2col.by_tap import TapPass

    built = []
    monkeypatch.setattr(TapPass, "__init__", counted(TapPass.__init__, built))
    g, w = testing.normals((1, 4, 9, 7), "float32"), np.full((4, 3, 3, 3), np.inf, "float32")
    with fastconv.config(precision="strict", algorithm="im2col"), np.errstate(invalid="ignore"):
        results = [fastconv.conv2d_input((1, 3, 11, 9), w, g) for _ in range(3)]
    np.testing.assert_array_equal(results[0], results[2])
    assert len(built) == 1


def counted(function, calls):
    def wrapper(*arguments):
        calls.append(arguments)
        function(*arguments)

    return wrapper


def to_last(a):
    return np.moveaxis(a, 1, -1)


@pytest.mark.parametrize("dtype", ["float16", "float64", "complex64"])
def test_so_does_one_of_a_transposed_convolution(dtype):
    """With bias and activation, in whatever carries the dtype."""
    x, w, b = (testing.normals(s, "float32", i) for i, s in enumerate([(2, 3, 5, 6), (3, 4, 3, 3), (4,)]))
    whole = fastconv.conv_transpose2d(x, w, b, stride=2)
    w[0, 1, 0, 2] = np.inf
    given = {} if dtype.startswith("complex") else {"activation": "leaky_relu"}
    with fastconv.config(precision="strict"), np.errstate(invalid="ignore"):
        y = fastconv.conv_transpose2d(*(a.astype(dtype) for a in (x, w, b)), stride=2, **given)
    infinite = np.zeros(y.shape, bool)
    infinite[:, 1, 0:9:2, 2:14:2] = True
    np.testing.assert_array_equal(np.isfinite(y), ~infinite)
    expected = np.maximum(whole, 0.01 * whole) if given else whole
    np.testing.assert_allclose(y[~infinite], expected[~infinite], rtol=1e-2, atol=1e-2)
