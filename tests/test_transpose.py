"""Transposed convolution and volumes: against a scatter by the definition, against PyTorch, and their errors."""

import numpy as np
import pytest

import fastconv

TRANSPOSE = {1: fastconv.conv_transpose1d, 2: fastconv.conv_transpose2d, 3: fastconv.conv_transpose3d}
BACKWARD = {
    1: fastconv.conv_transpose1d_backward,
    2: fastconv.conv_transpose2d_backward,
    3: fastconv.conv_transpose3d_backward,
}

# (input, weight, arguments)
CASES = [
    ((2, 3, 7), (3, 4, 3), {}),
    ((2, 4, 6), (4, 3, 4), {"stride": 2, "padding": 1, "groups": 2}),
    ((1, 2, 5), (2, 3, 3), {"stride": 1, "dilation": 3, "output_padding": 2}),
    ((2, 5, 4, 6), (5, 3, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    (
        (1, 6, 5, 4),
        (6, 2, 2, 3),
        {"stride": (3, 2), "padding": (0, 1), "groups": 3, "output_padding": (2, 0)},
    ),
    ((2, 4, 5, 5), (4, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 4}),
    ((1, 3, 4, 4), (3, 2, 3, 2), {"dilation": (2, 1), "padding": 2}),
    ((2, 3, 1, 1), (3, 8, 4, 4), {}),
    ((1, 3, 5, 5), (3, 2, 1, 1), {"stride": 3}),
    ((1, 3, 3, 2, 4), (3, 4, 2, 3, 2), {"stride": (2, 1, 2), "padding": (1, 0, 1)}),
    ((1, 4, 2, 3, 3), (4, 2, 3, 3, 3), {"groups": 2, "stride": 2, "output_padding": 1}),
]
each_case = pytest.mark.parametrize(("shape", "weight_shape", "arguments"), CASES)


def per_axis(value, rank):
    return value if isinstance(value, tuple) else (value,) * rank


def scatter(x, w, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """Add every product of a pixel and a tap where it belongs, one by one."""
    rank = x.ndim - 2
    s, pad, extra, d = (per_axis(v, rank) for v in (stride, padding, output_padding, dilation))
    full = [
        (size - 1) * a + b * (kernel - 1) + e + 1
        for size, a, b, kernel, e in zip(x.shape[2:], s, d, w.shape[2:], extra, strict=True)
    ]
    k = w.shape[1]
    y = np.zeros((x.shape[0], k * groups, *full))
    c = x.shape[1] // groups
    for g in range(groups):
        for pixel in np.ndindex(*x.shape[2:]):
            for tap in np.ndindex(*w.shape[2:]):
                at = tuple(p * a + r * b for p, a, r, b in zip(pixel, s, tap, d, strict=True))
                products = x[(slice(None), slice(g * c, (g + 1) * c), *pixel)] @ w[(slice(g * c, (g + 1) * c), slice(None), *tap)]  # fmt: skip
                y[(slice(None), slice(g * k, (g + 1) * k), *at)] += products
    return y[(..., *(slice(p, size - p) for p, size in zip(pad, full, strict=True)))]


def integers(shape, seed, dtype="float32"):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


@each_case
@pytest.mark.parametrize("algorithm", ["direct", "im2col", "reference"])
def test_scatter(shape, weight_shape, arguments, algorithm):
    x, w = integers(shape, 1), integers(weight_shape, 2)
    y = TRANSPOSE[len(shape) - 2](x, w, **arguments, algorithm=algorithm)
    np.testing.assert_array_equal(y, scatter(x, w, **arguments))


@each_case
def test_gradients_are_adjoint(shape, weight_shape, arguments):
    """<y, gy> = <x, gx> = <w, gw>, exactly on integers; the bias gradient sums gy."""
    rank = len(shape) - 2
    x, w = integers(shape, 1, "float64"), integers(weight_shape, 2, "float64")
    with fastconv.config(algorithm="im2col"):
        y = TRANSPOSE[rank](x, w, **arguments)
        gy = integers(y.shape, 3, "float64")
        grads = BACKWARD[rank](x, w, gy, **arguments)
    assert grads.input.shape == x.shape
    assert grads.weight.shape == w.shape
    assert (y * gy).sum() == (x * grads.input).sum() == (w * grads.weight).sum() != 0
    np.testing.assert_array_equal(grads.bias, gy.sum(axis=(0, *range(2, rank + 2))))


@each_case
def test_pytorch(shape, weight_shape, arguments):
    torch = pytest.importorskip("torch")
    rank = len(shape) - 2
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(shape), rng.standard_normal(weight_shape)
    bias = rng.standard_normal(weight_shape[1] * arguments.get("groups", 1))
    tensors = [torch.from_numpy(a).requires_grad_() for a in (x, w, bias)]
    expected = getattr(torch.nn.functional, f"conv_transpose{rank}d")(*tensors, **arguments)
    y = TRANSPOSE[rank](x, w, bias, **arguments)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    gy = rng.standard_normal(y.shape)
    expected.backward(torch.from_numpy(gy))
    for ours, tensor in zip(BACKWARD[rank](x, w, gy, **arguments), tensors, strict=True):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-12, atol=1e-12)


def test_bias_activation_and_out():
    x, w, bias = integers((2, 3, 4, 4), 1), integers((3, 5, 3, 3), 2), integers(5, 3)
    plain = scatter(x, w, stride=2) + bias.reshape(-1, 1, 1)
    out = np.empty((2, 5, 9, 9), "float32")
    with fastconv.config(algorithm="direct"):
        assert fastconv.conv_transpose2d(x, w, bias, stride=2, activation="relu", out=out) is out
    np.testing.assert_array_equal(out, np.maximum(plain, 0))


def test_need_leaves_out():
    x, w = integers((1, 2, 3), 1), integers((2, 2, 2), 2)
    grads = fastconv.conv_transpose1d_backward(x, w, integers((1, 2, 4), 3), need=("bias",))
    assert grads.input is None
    assert grads.weight is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"output_padding": 2, "stride": 2}, ValueError, "less than stride or dilation, got 2 with stride 2"),
        ({"output_padding": -1}, ValueError, "output_padding must be at least 0, got -1"),
        (
            {"output_padding": 2**62, "stride": 2**63},
            ValueError,
            r"problem too large: the output has \d+ pixels on",
        ),
        (
            {"output_padding": 2**62},
            ValueError,
            "less than stride or dilation, got 4611686018427387904 with stride 1",
        ),
        ({"padding": "same"}, TypeError, "must be numbers, got 'same'"),
        (
            {"padding": 3},
            ValueError,
            r"\(4 - 1\) \* 1 - 3 - 3 \+ 1 \* \(2 - 1\) \+ 0 \+ 1 = -1 on spatial axis 0",
        ),
        ({"groups": 2}, ValueError, "input channels must be divisible by groups: 3 % 2"),
        ({"stride": 0}, ValueError, "stride must be at least 1"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        fastconv.conv_transpose2d(np.ones((1, 3, 4, 4)), np.ones((3, 2, 2, 2)), **arguments)


def test_errors_of_shapes():
    with pytest.raises(ValueError, match="weight expects 4 input channels, input has 3"):
        fastconv.conv_transpose2d(np.ones((1, 3, 4, 4)), np.ones((4, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"input must be \(N, C, H, W\) or \(C, H, W\), got 2 dimensions"):
        fastconv.conv_transpose2d(np.ones((4, 4)), np.ones((4, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"weight must be \(C, K/groups, L\), got 4 dimensions"):
        fastconv.conv_transpose1d(np.ones((1, 4, 4)), np.ones((4, 2, 2, 2)))
    with pytest.raises(ValueError, match="output channels must be at least 1, got 0"):
        fastconv.conv_transpose2d(np.ones((1, 3, 4, 4)), np.ones((3, 0, 2, 2)))
    with pytest.raises(ValueError, match="bias must have one element for each of 2 output channels"):
        fastconv.conv_transpose2d(np.ones((1, 3, 4, 4)), np.ones((3, 2, 2, 2)), np.ones(3))
    with pytest.raises(
        ValueError, match=r"grad_output must have the output's shape \(1, 2, 5\), got \(1, 2, 4\)"
    ):
        fastconv.conv_transpose1d_backward(np.ones((1, 3, 4)), np.ones((3, 2, 2)), np.ones((1, 2, 4)))


def test_volumes():
    """conv3d is the sum of conv2d over the slices that a kernel's slices meet."""
    x, w, bias = integers((2, 3, 4, 6, 7), 1), integers((4, 3, 3, 3, 2), 2), integers(4, 3)
    with fastconv.config(algorithm="im2col"):
        y = fastconv.conv3d(x, w, bias, stride=(1, 2, 1), padding=((0, 0), (1, 1), (1, 0)), activation="relu")
        plain = [
            sum(
                fastconv.conv2d(x[:, :, d + t], w[:, :, t], stride=(2, 1), padding=((1, 1), (1, 0)))
                for t in range(3)
            )
            for d in range(2)
        ]
    expected = np.maximum(np.stack(plain, axis=2) + bias.reshape(-1, 1, 1, 1), 0)
    np.testing.assert_array_equal(y, expected)
    layer = fastconv.prepare(w, x.shape, bias, (1, 2, 1), ((0, 0), (1, 1), (1, 0)), activation="relu")
    np.testing.assert_allclose(layer(x), expected, atol=1e-3)


def test_gradients_of_volumes():
    x, w = integers((1, 2, 4, 5, 3), 1, "float64"), integers((4, 1, 2, 3, 3), 2, "float64")
    arguments = {"stride": 2, "padding": 1, "groups": 2}
    with fastconv.config(algorithm="im2col"):
        y = fastconv.conv3d(x, w, **arguments)
        gy = integers(y.shape, 3, "float64")
        grads = fastconv.conv3d_backward(x, w, gy, **arguments)
        np.testing.assert_array_equal(grads.input, fastconv.conv3d_input(x.shape, w, gy, **arguments))
        np.testing.assert_array_equal(grads.weight, fastconv.conv3d_weight(x, w.shape, gy, **arguments))
    assert (y * gy).sum() == (x * grads.input).sum() == (w * grads.weight).sum() != 0
