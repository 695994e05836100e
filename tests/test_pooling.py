"""Pooling against windows cut out one by one, against PyTorch, and its errors."""

import numpy as np
import pytest

import fastconv

# (input, kernel_size, arguments); all are served by max and, without dilation, by mean
CASES = [
    ((2, 3, 11), 3, {}),
    ((2, 3, 10), 2, {"stride": 3, "padding": 1, "ceil_mode": True}),
    ((2, 3, 12, 13), 2, {}),
    ((2, 2, 9, 34), 3, {"stride": 2, "padding": 1}),
    ((1, 3, 8, 40), 3, {"stride": 1, "padding": 1}),
    ((1, 2, 9, 12), (2, 5), {"stride": (3, 1), "padding": (1, 2), "ceil_mode": True}),
    ((1, 2, 13, 17), 3, {"stride": 2, "dilation": 2, "padding": 1}),
    ((1, 2, 2, 9), 2, {"stride": 1, "dilation": 3, "padding": 1}),
    ((3, 4, 7, 7), 7, {}),
    ((2, 3, 9, 31), (9, 31), {}),
    ((1, 2, 20, 21), 5, {"stride": 4, "padding": 2, "ceil_mode": True}),
    ((1, 2, 5, 6, 7), 2, {}),
    ((2, 1, 6, 7, 20), (3, 2, 3), {"stride": (1, 2, 2), "padding": (1, 1, 0), "ceil_mode": True}),
    ((0, 2, 6, 6), 3, {}),
    ((1, 2, 19, 71), 2, {}),
    ((1, 1, 11, 39), 3, {"stride": 1, "padding": 1}),
    ((1, 2, 4, 5, 18), (2, 3, 3), {"stride": 1, "padding": (1, 0, 1)}),
    ((2, 3, 41), 4, {}),
    ((1, 2, 8, 10, 14), (2, 2, 2), {"stride": (3, 4, 2), "padding": (1, 0, 0)}),
    ((2, 2, 11, 53), (3, 2), {"stride": (1, 2), "padding": (1, 1), "ceil_mode": True}),
    ((2, 2, 7, 47), 3, {"padding": 1}),
    ((2, 2, 15, 13), 2, {"stride": 1, "padding": 1}),
    ((2, 2, 7, 6, 33), 3, {"stride": 2, "padding": 1}),
]
each_case = pytest.mark.parametrize(("shape", "kernel", "arguments"), CASES)


def function(kind, shape, suffix=""):
    return getattr(fastconv, f"{kind}_pool{len(shape) - 2}d{suffix}")


def per_axis(value, rank):
    return value if isinstance(value, tuple) else (value,) * rank


def cut(x, output, kernel, stride, padding=0, dilation=1):
    """Yield every window's place and the pixels of the input in it, for one map."""
    rank = x.ndim
    kernel, stride, padding, dilation = (per_axis(v, rank) for v in (kernel, stride, padding, dilation))
    for place in np.ndindex(*output):
        lines = [
            [i for i in range(p * s - lo, p * s - lo + d * (k - 1) + 1, d) if 0 <= i < size]
            for p, s, lo, d, k, size in zip(place, stride, padding, dilation, kernel, x.shape, strict=True)
        ]
        yield place, np.ix_(*lines)


def draw(shape, seed=0):
    """Few different numbers, so that maxima are tied; all sums and products of them are exact."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype("float32")


@each_case
def test_max(shape, kernel, arguments):
    x = draw(shape)
    y, indices = function("max", shape)(x, kernel, **arguments, return_indices=True)
    np.testing.assert_array_equal(function("max", shape)(x, kernel, **arguments), y)
    gy = draw(y.shape, 1)
    gx = function("max", shape, "_backward")(x, gy, kernel, **arguments)
    expected = np.zeros_like(x)
    walk = {k: v for k, v in arguments.items() if k != "ceil_mode"}
    walk = {"stride": kernel} | walk
    for map in np.ndindex(*shape[:2]):
        for place, window in cut(x[map], y.shape[2:], kernel, **walk):
            places = np.arange(x[map].size).reshape(x[map].shape)[window].ravel()
            if not places.size:  # stepped over all pixels
                assert y[(*map, *place)] == -np.inf
                continue
            first = places[np.argmax(x[map][window])]
            assert indices[(*map, *place)] == first
            assert y[(*map, *place)] == x[map].flat[first]
            expected[map].flat[first] += gy[(*map, *place)]
    np.testing.assert_array_equal(gx, expected)
    again = function("max", shape, "_backward")(x, gy, kernel, **arguments, indices=indices)
    np.testing.assert_array_equal(again, expected)


@each_case
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_mean(shape, kernel, arguments, count_include_pad):
    if "dilation" in arguments:
        with pytest.raises(TypeError, match="dilation"):
            function("avg", shape)(draw(shape), kernel, **arguments)
        return
    rank = len(shape) - 2
    x = draw(shape)
    y = function("avg", shape)(x, kernel, **arguments, count_include_pad=count_include_pad)
    gy = draw(y.shape, 1)
    gx = function("avg", shape, "_backward")(
        shape, gy, kernel, **arguments, count_include_pad=count_include_pad
    )
    stride = per_axis(arguments.get("stride", kernel), rank)
    padding = per_axis(arguments.get("padding", 0), rank)
    expected, gradient = np.zeros(y.shape), np.zeros(shape)
    for map in np.ndindex(*shape[:2]):
        for place, window in cut(x[map], y.shape[2:], kernel, stride, padding):
            counted = x[map][window].size
            if count_include_pad:
                counted = np.prod(
                    [
                        min(p * s - lo + k, size + lo) - (p * s - lo)
                        for p, s, lo, k, size in zip(
                            place, stride, padding, per_axis(kernel, rank), shape[2:], strict=True
                        )
                    ]
                )
            expected[(*map, *place)] = x[map][window].sum() / counted
            gradient[map][window] += gy[(*map, *place)] / counted
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(gx, gradient, rtol=2e-6, atol=1e-6)


@each_case
def test_pytorch(shape, kernel, arguments):
    torch = pytest.importorskip("torch")
    if shape[0] == 0 or shape[2] == 2:  # PyTorch refuses the one and reads past the end in the other
        return
    rank = len(shape) - 2
    x = np.random.default_rng(0).standard_normal(shape)
    for kind in ("max", "avg"):
        if kind == "avg" and "dilation" in arguments:
            continue
        tensor = torch.from_numpy(x).requires_grad_()
        expected = getattr(torch.nn.functional, f"{kind}_pool{rank}d")(tensor, kernel, **arguments)
        y = function(kind, shape)(x, kernel, **arguments)
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-13, atol=1e-14)
        gy = np.random.default_rng(1).standard_normal(y.shape)
        expected.backward(torch.from_numpy(gy))
        first = x if kind == "max" else shape
        gx = function(kind, shape, "_backward")(first, gy, kernel, **arguments)
        np.testing.assert_allclose(gx, tensor.grad.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kernel", [(2, 2), (4, 4), (1, 8), (4, 8)])
def test_nan_wins(kernel):
    x = draw((1, 4, 8))
    x[0, 1, 3] = np.nan
    y, indices = fastconv.max_pool2d(x, kernel, return_indices=True)
    window = (0, 1 // kernel[0], 3 // kernel[1])
    assert np.isnan(y[window])
    assert indices[window] == 8 + 3
    assert np.isnan(y).sum() == 1
    np.testing.assert_array_equal(fastconv.max_pool2d(x, kernel), y)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 2), (4, 4), (4, 10), (4, 40)])
def test_last_of_nans(kernel):
    """PyTorch takes a NaN whenever it meets one."""
    x = draw((3, 4, 40))
    x[1, 0, 36] = x[1, 1, 36] = x[1, 1, 37] = np.nan
    y, indices = fastconv.max_pool2d(x, kernel, return_indices=True)
    window = (1, 0, 36 // kernel[1])
    assert np.isnan(y[window])
    assert indices[window] == 40 + 37
    gx = fastconv.max_pool2d_backward(x, np.ones_like(y), kernel)
    assert gx[1, 1, 37] == 1
    assert gx.sum() == y.size


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [(2, {}), (3, {"stride": 1, "padding": 1}), (3, {"stride": 2, "padding": 1}), (5, {"padding": 2}), ((6, 20), {})],
)  # fmt: skip
def test_first_of_equals(kernel, arguments):
    """Even of pixels that are all minus infinity, and where a window begins outside."""
    x = np.full((2, 6, 20), -np.inf)
    y, indices = fastconv.max_pool2d(x, kernel, **arguments, return_indices=True)
    assert (y == -np.inf).all()
    for place, window in cut(x[0], y.shape[1:], kernel, **({"stride": kernel} | arguments)):
        assert indices[(0, *place)] == np.arange(x[0].size).reshape(x[0].shape)[window].flat[0]
    gx = fastconv.max_pool2d_backward(x, np.ones_like(y), kernel, **arguments)
    assert gx.sum() == y.size
    np.testing.assert_array_equal(np.flatnonzero(gx[0]), np.unique(indices[0]))


def test_gradients_larger_than_the_caches():
    """They are written past the caches."""
    x = draw((8, 32, 129, 127))
    for kernel, stride in ((2, 2), (3, 2), (3, 1)):
        places = fastconv.max_pool2d(x, kernel, stride, return_indices=True)[1]
        gy = draw(places.shape, 1)
        expected = fastconv.max_pool2d_backward(x, gy, kernel, stride, indices=places)
        np.testing.assert_array_equal(fastconv.max_pool2d_backward(x, gy, kernel, stride), expected)
    gy = draw((8, 32, 64, 63), 2)
    expected = np.zeros_like(x)
    expected[:, :, :128, :126] = (gy / 4).repeat(2, 2).repeat(2, 3)
    np.testing.assert_array_equal(fastconv.avg_pool2d_backward(x.shape, gy, 2), expected)


def test_divisor_and_memory():
    """Any layout is read; a divisor replaces the count in both directions."""
    x = draw((2, 3, 6, 8))
    backwards = x.transpose(0, 1, 3, 2)[:, ::-1]
    np.testing.assert_array_equal(
        fastconv.max_pool2d(backwards, 2), fastconv.max_pool2d(np.ascontiguousarray(backwards), 2)
    )
    sums = fastconv.avg_pool2d(x, 2, divisor_override=1)
    np.testing.assert_array_equal(sums, 4 * fastconv.avg_pool2d(x, 2))
    gy = np.ones_like(sums)
    gx = fastconv.avg_pool2d_backward(x.shape, gy, 2, divisor_override=1)
    np.testing.assert_array_equal(gx, np.ones_like(x))


@each_case
def test_blocks(shape, kernel, arguments, monkeypatch):
    """Cut into blocks of a slice and a row or few, by rows and by turned maps, results and gradients stay what they are."""
    from fastconv.pooling import call, cpu, plan, rowwise

    x = draw((shape[0], 17, *shape[2:]))
    kinds = ["max"] if "dilation" in arguments else ["max", "avg"]

    def everything():
        plan.plan.cache_clear()
        rowwise._plan.cache_clear()
        found = []
        for kind in kinds:
            y = function(kind, x.shape)(x, kernel, **arguments)
            first = x if kind == "max" else x.shape
            found += [y, function(kind, x.shape, "_backward")(first, draw(y.shape, 1), kernel, **arguments)]
        return found + list(function("max", x.shape)(x, kernel, **arguments, return_indices=True))

    by_rows = everything()
    with monkeypatch.context() as small:
        small.setattr(plan, "BLOCK", 4096)
        rows_cut_up = everything()
    monkeypatch.setattr(call, "kernels", lambda *_: cpu)
    whole = everything()
    monkeypatch.setattr(plan, "BLOCK", 4096)
    cut_up = everything()
    plan.plan.cache_clear()
    rowwise._plan.cache_clear()
    for a, b, c, d in zip(whole, cut_up, by_rows, rows_cut_up, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(c, d)
        np.testing.assert_allclose(a, c, rtol=1e-6, atol=1e-6)  # shares of sums, not sums of shares


def test_same_bits_for_any_number_of_threads():
    x = np.random.default_rng(0).standard_normal((4, 32, 31, 33), dtype="float32")
    gy = np.random.default_rng(1).standard_normal((4, 32, 16, 17), dtype="float32")
    calls = [
        lambda: fastconv.max_pool2d(x, 3, 2, 1),
        lambda: fastconv.max_pool2d_backward(x, gy, 3, 2, 1),
        lambda: fastconv.avg_pool2d(x, 3, 2, 1),
        lambda: fastconv.avg_pool2d_backward(x.shape, gy, 3, 2, 1),
    ]
    for call in calls:
        with fastconv.config(threads=1):
            alone = call()
        np.testing.assert_array_equal(call(), alone)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel_size": 3, "padding": 2}, ValueError, "at most half of kernel_size, got 2 and 3"),
        ({"kernel_size": 9}, ValueError, r"spans 9 pixels, the input has 0 \+ 6 \+ 0 = 6"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
        ({"kernel_size": 2, "stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"kernel_size": (2, 2, 2)}, ValueError, "kernel_size must be an integer or 2 of them"),
        ({"kernel_size": 2.0}, TypeError, "kernel_size must be an integer"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_errors(name, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(fastconv, name)(np.ones((1, 2, 6, 6)), **arguments)


def test_errors_of_shapes():
    with pytest.raises(ValueError, match=r"input must be \(N, C, H, W\) or \(C, H, W\), got 2 dimensions"):
        fastconv.max_pool2d(np.ones((6, 6)), 2)
    with pytest.raises(ValueError, match=r"grad_output must have the output's shape \(1, 2, 3, 3\)"):
        fastconv.max_pool2d_backward(np.ones((1, 2, 6, 6)), np.ones((1, 2, 3, 2)), 2)
    with pytest.raises(ValueError, match=r"grad_output must have the output's shape \(2, 3, 3\)"):
        fastconv.avg_pool2d_backward((2, 6, 6), np.ones((2, 3, 2)), 2)
    with pytest.raises(ValueError, match="divisor_override must be at least 1, got 0"):
        fastconv.avg_pool2d(np.ones((2, 6, 6)), 2, divisor_override=0)


@pytest.mark.parametrize(
    ("shape", "output"), [((2, 3, 11), 4), ((2, 3, 7, 10), (3, 4)), ((2, 3, 6, 8), (None, 2)), ((1, 2, 4, 5, 7), (2, 5, 3))]
)  # fmt: skip
def test_adaptive(shape, output):
    """Maxima, places and means of windows that share out the input; the gradient is the means' transpose."""
    torch = pytest.importorskip("torch")
    rank = len(shape) - 2
    x = np.random.default_rng(0).standard_normal(shape)
    y, indices = getattr(fastconv, f"adaptive_max_pool{rank}d")(x, output, return_indices=True)
    theirs = getattr(torch.nn.functional, f"adaptive_max_pool{rank}d")(torch.from_numpy(x), output, True)
    np.testing.assert_array_equal(y, theirs[0].numpy())
    np.testing.assert_array_equal(indices, theirs[1].numpy())
    means = getattr(fastconv, f"adaptive_avg_pool{rank}d")(x, output)
    theirs = getattr(torch.nn.functional, f"adaptive_avg_pool{rank}d")(torch.from_numpy(x), output)
    np.testing.assert_allclose(means, theirs.numpy(), rtol=1e-13, atol=1e-14)
    if rank == 2:
        gy = np.random.default_rng(1).standard_normal(means.shape)
        gx = fastconv.adaptive_avg_pool2d_backward(shape, gy)
        assert (gx * x).sum() == pytest.approx((gy * means).sum())


@pytest.mark.parametrize("norm", [1, 2, 3, float("inf"), -float("inf")])
def test_norms(norm):
    torch = pytest.importorskip("torch")
    for rank in (1, 2, 3):
        x = np.random.default_rng(0).random((2, 3, *(7, 9, 6)[:rank]))
        expected = getattr(torch.nn.functional, f"lp_pool{rank}d")(torch.from_numpy(x), norm, 3, 2, True)
        y = getattr(fastconv, f"lp_pool{rank}d")(x, norm, 3, 2, True)
        np.testing.assert_allclose(y, expected.numpy(), rtol=1e-12)


@pytest.mark.parametrize("arguments", [(3,), ((2, 3), 2, 1, (1, 2)), (2, 1, (0, 1), 3)])
@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (3, 6, 8)])
def test_unfold_and_fold(shape, arguments):
    """Both as PyTorch's, and each the transpose of the other."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal(shape)
    columns = fastconv.unfold(x, *arguments)
    expected = torch.nn.functional.unfold(torch.from_numpy(x), *arguments)
    np.testing.assert_array_equal(columns, expected.numpy())
    g = np.random.default_rng(1).standard_normal(columns.shape)
    image = fastconv.fold(g, shape[-2:], *arguments)
    expected = torch.nn.functional.fold(torch.from_numpy(g), shape[-2:], *arguments)
    np.testing.assert_allclose(image, expected.numpy(), rtol=1e-13, atol=1e-14)
    assert (columns * g).sum() == pytest.approx((x * image).sum())


def test_errors_of_folding():
    with pytest.raises(ValueError, match=r"with R\*S = 4 and P\*Q = 2, got \(4, 3\)"):
        fastconv.fold(np.ones((4, 3)), (2, 3), 2)
    with pytest.raises(ValueError, match=r"spans \[3, 3\] pixels, the padded image has \[2, 5\]"):
        fastconv.unfold(np.ones((1, 2, 5)), 3)
    with pytest.raises(ValueError, match="norm_type must not be 0"):
        fastconv.lp_pool1d(np.ones((1, 4)), 0, 2)
    with pytest.raises(ValueError, match="each of output_size must be at least 1, got 0"):
        fastconv.adaptive_avg_pool2d(np.ones((1, 2, 4)), (0, 1))


@pytest.mark.parametrize("shape", [(2, 3, 11), (2, 3, 7, 10), (3, 8, 9), (1, 2, 4, 5, 7)])
def test_unpool(shape):
    """Maxima go back to their places, as PyTorch puts them; pooling again gives them back."""
    torch = pytest.importorskip("torch")
    rank = 2 if len(shape) == 3 and shape[0] == 3 else len(shape) - 2
    x = np.abs(np.random.default_rng(0).standard_normal(shape))
    y, indices = getattr(fastconv, f"max_pool{rank}d")(x, 2, return_indices=True)
    size = shape[-rank:]
    image = getattr(fastconv, f"max_unpool{rank}d")(y, indices, 2, output_size=size)
    unpool = getattr(torch.nn.functional, f"max_unpool{rank}d")
    expected = unpool(torch.from_numpy(y), torch.from_numpy(indices), 2, output_size=size)
    np.testing.assert_array_equal(image, expected.numpy())
    np.testing.assert_array_equal(getattr(fastconv, f"max_pool{rank}d")(image, 2), y)
    assert (getattr(fastconv, f"max_unpool{rank}d")(y[..., :1], indices[..., :1] * 0, 2) != 0).any()
    with pytest.raises(ValueError, match="indices must be from 0 to"):
        getattr(fastconv, f"max_unpool{rank}d")(y, indices + 1000, 2)
    with pytest.raises(ValueError, match="output_size must be nearer than stride"):
        getattr(fastconv, f"max_unpool{rank}d")(y, indices, 2, output_size=[n + 5 for n in size])
