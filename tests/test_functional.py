"""The public functions against the definition, written out as loops in float64."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastconv

rng = np.random.default_rng(0)


def definition(x, w, stride, pads, dilation, groups):
    """Return y by one multiplication at a time; pads are (lo, hi) of each axis."""
    n, _, *sizes = x.shape
    k, per_group, *kernels = w.shape
    output = [
        (lo + size + hi - d * (r - 1) - 1) // s + 1
        for size, r, s, d, (lo, hi) in zip(sizes, kernels, stride, dilation, pads, strict=True)
    ]
    y = np.zeros((n, k, *output))
    for i, j, *at in product(range(n), range(k), *map(range, output)):
        first = j // (k // groups) * per_group
        for t in product(*map(range, kernels)):
            pixel = [
                p * s + r * d - lo for p, r, s, d, (lo, _) in zip(at, t, stride, dilation, pads, strict=True)
            ]
            if all(0 <= h < size for h, size in zip(pixel, sizes, strict=True)):
                for ch in range(per_group):
                    y[(i, j, *at)] += float(x[(i, first + ch, *pixel)]) * float(w[(j, ch, *t)])
    return y


def integers(*shape, dtype=np.float32):
    """Small integers: every algorithm that only adds and multiplies is exact on them."""
    return rng.integers(-4, 5, shape).astype(dtype)


def close(a, b):
    return np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


# stride, padding as written, padding meant, dilation, groups
WALKS = [
    (1, 0, ((0, 0), (0, 0)), 1, 1),
    (2, 1, ((1, 1), (1, 1)), 1, 1),
    ((2, 1), (0, 2), ((0, 0), (2, 2)), (1, 2), 2),
    ([1, 3], [2], ((2, 2), (2, 2)), np.array([2, 1]), 4),
    (np.int64(2), ((0, 1), (2, 0)), ((0, 1), (2, 0)), (1,), 2),
    (1, [[-1, 2], [0, -2]], ((-1, 2), (0, -2)), 1, 1),
    (1, np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4)), 1, 1),
    (1, "valid", ((0, 0), (0, 0)), 1, 1),
    (1, "full", ((2, 2), (2, 2)), (1, 2), 1),  # 3x2 kernel
    (1, "same", ((1, 1), (0, 1)), 1, 1),
    (1, "same_lower", ((1, 1), (1, 0)), 1, 1),
    (2, "same", ((1, 1), (0, 0)), 1, 2),  # 9x8 pixels: 5x4 outputs
    (2**62, 1, ((1, 1), (1, 1)), 1, 1),
]


@pytest.mark.parametrize(("stride", "padding", "pads", "dilation", "groups"), WALKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_conv2d_and_gradients(stride, padding, pads, dilation, groups, dtype):
    x, w, b = (
        integers(2, 4, 9, 8, dtype=dtype),
        integers(8, 4 // groups, 3, 2, dtype=dtype),
        integers(8, dtype=dtype),
    )
    walk = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = fastconv.conv2d(x, w, b, **walk)
    pair = [tuple(np.broadcast_to(v, 2).tolist()) for v in (stride, dilation)]
    expected = definition(x, w, pair[0], pads, pair[1], groups)
    assert y.dtype == dtype
    assert y.flags.c_contiguous
    close(y, expected + b[:, None, None])

    # <y, gy> is linear in x and in w: a gradient's product with its operand gives it back
    gy = integers(*y.shape, dtype=dtype)
    gx = fastconv.conv2d_input(x.shape, w, gy, **walk)
    gw = fastconv.conv2d_weight(x, w.shape, gy, **walk)
    other_x, other_w = integers(*x.shape), integers(*w.shape)
    close((gx * other_x).sum(), (definition(other_x, w, pair[0], pads, pair[1], groups) * gy).sum())
    close((gw * other_w).sum(), (definition(x, other_w, pair[0], pads, pair[1], groups) * gy).sum())

    grads = fastconv.conv2d_backward(x, w, gy, **walk)
    np.testing.assert_array_equal(grads.input, gx)
    np.testing.assert_array_equal(grads.weight, gw)
    close(grads.bias, gy.sum(axis=(0, 2, 3)))
    added = fastconv.conv2d_backward(x, w, gy, need=("input",), residual=other_x, **walk).input
    assert added.dtype == np.result_type(gx, other_x)
    close(added, gx + other_x)


@pytest.mark.parametrize(
    ("stride", "padding", "pads", "dilation", "groups"),
    [
        (1, 0, (0, 0), 1, 1),
        ((2,), (3,), (3, 3), [2], 2),
        (1, ((2, -1),), (2, -1), 1, 1),
        (2, "same", (0, 1), 1, 1),  # 10 samples, 5 outputs
    ],
)
def test_conv1d_and_gradients(stride, padding, pads, dilation, groups):
    x, w, b = integers(2, 4, 10), integers(6, 4 // groups, 3), integers(6)
    walk = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = fastconv.conv1d(x, w, b, **walk)
    s, d = (np.broadcast_to(v, 1).tolist() for v in (stride, dilation))
    close(y, definition(x, w, s, [pads], d, groups) + b[:, None])
    gy = integers(*y.shape)
    grads = fastconv.conv1d_backward(x, w, gy, **walk)
    close((grads.input * x).sum(), (definition(x, w, s, [pads], d, groups) * gy).sum())
    close((grads.weight * w).sum(), (grads.input * x).sum())
    close(grads.bias, gy.sum(axis=(0, 2)))
    np.testing.assert_array_equal(fastconv.conv1d_input(x.shape, w, gy, **walk), grads.input)
    np.testing.assert_array_equal(fastconv.conv1d_weight(x, w.shape, gy, **walk), grads.weight)


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("kernel", range(1, 6))
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_has_ceil_size_over_stride(size, kernel, stride, dilation):
    x, w = np.ones((1, 1, size)), np.ones((1, 1, kernel))
    for rule in ("same", "same_lower"):
        y = fastconv.conv1d(x, w, stride=stride, padding=rule, dilation=dilation, algorithm="reference")
        assert y.shape == (1, 1, -(-size // stride))


def test_unbatched():
    x, w, b = integers(4, 9, 8), integers(6, 4, 3, 3), integers(6)
    y = fastconv.conv2d(x, w, b, padding=1)
    assert y.shape == (6, 9, 8)
    np.testing.assert_array_equal(y, fastconv.conv2d(x[None], w, b, padding=1)[0])
    out = np.empty_like(y)
    assert fastconv.conv2d(x, w, b, padding=1, out=out) is out
    np.testing.assert_array_equal(out, y)
    gy = integers(*y.shape)
    assert fastconv.conv2d_input(x.shape, w, gy, padding=1).shape == x.shape
    batched = fastconv.conv2d_backward(x[None], w, gy[None], padding=1)
    grads = fastconv.conv2d_backward(x, w, gy, padding=1)
    np.testing.assert_array_equal(grads.input, batched.input[0])
    np.testing.assert_array_equal(grads.weight, batched.weight)
    np.testing.assert_array_equal(fastconv.conv2d_weight(x, w.shape, gy, padding=1), batched.weight)
    np.testing.assert_array_equal(grads.bias, batched.bias)


@pytest.mark.parametrize("need", list(product(*[[None, n] for n in ("input", "weight", "bias")])))
def test_backward_computes_what_is_needed(need):
    need = tuple(n for n in need if n)
    x, w, gy = integers(1, 2, 5, 5), integers(3, 2, 3, 3), integers(1, 3, 3, 3)
    grads = fastconv.conv2d_backward(x, w, gy, need=need)
    assert {name for name in grads._fields if getattr(grads, name) is not None} == set(need)


def test_long_gradients_in_float32():
    """A running float32 sum of ones stops at 2**24."""
    gy = np.ones((2, 1, 2**24), np.float32)
    grads = fastconv.conv1d_backward(gy, np.ones((1, 1, 1), np.float32), gy, need=("weight", "bias"))
    assert grads.bias[0] == 2**25
    assert grads.weight.item() == 2**25


def test_bias_gradient_of_many_short_maps():
    gy = rng.standard_normal((300, 40, 3, 3), np.float32)
    x = np.zeros((300, 1, 3, 3), np.float32)
    grads = fastconv.conv2d_backward(x, np.ones((40, 1, 1, 1), np.float32), gy, need=("bias",))
    np.testing.assert_allclose(grads.bias, gy.sum(axis=(0, 2, 3), dtype=np.float64), rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------ arrays


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def unaligned(a):
    raw = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    raw[...] = a
    assert not raw.flags.aligned
    return raw


class Sub(np.ndarray):
    """A subclass that would notice being computed with."""

    def __array_finalize__(self, other):
        pass


def mapped(a, tmp_path):
    path = tmp_path / f"{a.size}.npy"
    np.save(path, a)
    return np.load(path, mmap_mode="r")


MEMORY = {
    "fortran": lambda a, _: np.asfortranarray(a),
    "swapped": lambda a, _: np.swapaxes(np.swapaxes(a, 0, -1).copy(), 0, -1),
    "strided": lambda a, _: np.repeat(a, 3, -1)[..., ::3],
    "negative": lambda a, _: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "read_only": lambda a, _: read_only(a),
    "big_endian": lambda a, _: a.astype(a.dtype.newbyteorder(">")),
    "unaligned": lambda a, _: unaligned(a),
    "subclass": lambda a, _: a.view(Sub),
    "mapped": mapped,
    "list": lambda a, _: a.tolist(),
}


@pytest.mark.parametrize("memory", MEMORY)
def test_any_memory_layout(memory, tmp_path):
    x, w, b = integers(2, 3, 7, 6), integers(4, 3, 3, 2), integers(4)
    expected = definition(x, w, (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    laid = [MEMORY[memory](a, tmp_path) for a in (x, w, b)]
    y = fastconv.conv2d(*laid, padding=1)
    assert type(y) is np.ndarray
    assert y.dtype.isnative
    close(y, expected + b[:, None, None])
    gy = MEMORY[memory](expected.astype(np.float32), tmp_path)
    grads = fastconv.conv2d_backward(laid[0], laid[1], gy, padding=1)
    close((grads.input * x).sum(), (expected**2).sum())
    close((grads.weight * w).sum(), (expected**2).sum())


@pytest.mark.parametrize(
    "memory", ["contiguous", "negative", "fortran", "big_endian", "unaligned", "read_only"]
)
def test_one_copy_at_most(memory, tmp_path):
    """Of what kernels cannot use as it is; of a read-only array none."""
    x, w = integers(1, 16, 96, 96), integers(4, 16, 1, 1)
    expected = fastconv.conv2d(x, w)
    if memory != "contiguous":
        x = MEMORY[memory](x, tmp_path)
    fastconv.conv2d(x, w)  # what is compiled and taken as scratch once
    tracemalloc.start()
    try:
        y = fastconv.conv2d(x, w)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(y, expected)
    copies = 0 if memory in ("contiguous", "read_only") else 1
    assert peak < y.nbytes + (copies + 0.3) * x.nbytes


def test_zero_strides():
    w = integers(4, 3, 3, 2)
    ones = np.ones((2, 4, 5, 5), np.float32)
    spread = np.broadcast_to(np.float32(1), ones.shape)  # what the gradient of a sum looks like
    np.testing.assert_array_equal(
        fastconv.conv2d_input((2, 3, 7, 6), w, spread), fastconv.conv2d_input((2, 3, 7, 6), w, ones)
    )


@pytest.mark.parametrize("layout", ["overlapping", "spread", "one channel, pixel by pixel"])
def test_operands_that_share_elements(layout):
    """Their strides tell nothing of the order in memory."""
    line = integers(40)
    x, w = {
        "overlapping": (
            as_strided(line, (2, 3, 7, 6), (8, 4, 8, 4)),
            as_strided(line, (4, 3, 3, 2), (4,) * 4),
        ),
        "spread": (
            np.broadcast_to(line[:6], (2, 3, 7, 6)),
            np.broadcast_to(line[:3].reshape(3, 1, 1), (4, 3, 3, 2)),
        ),
        "one channel, pixel by pixel": (
            np.moveaxis(integers(2, 7, 6, 1), -1, 1),
            np.moveaxis(integers(4, 3, 2, 1), -1, 1),
        ),
    }[layout]
    copies = x.copy(), w.copy()
    y = fastconv.conv2d(x, w)
    np.testing.assert_array_equal(y, fastconv.conv2d(*copies))
    for ours, theirs in zip(
        fastconv.conv2d_backward(x, w, y), fastconv.conv2d_backward(*copies, y), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_operands_stay_as_they_are():
    x, w, b = (read_only(a) for a in (integers(2, 3, 7, 6), integers(4, 3, 3, 2), integers(4)))
    copies = [a.copy() for a in (x, w, b)]
    fastconv.conv2d(x, w, b, activation="relu")
    for a, copy in zip((x, w, b), copies, strict=True):
        np.testing.assert_array_equal(a, copy)
        assert not a.flags.writeable


@pytest.mark.parametrize("doubles", [p for p in product([0, 1], repeat=3) if any(p)])
def test_mixed_floats_are_promoted(doubles):
    arrays = [
        a.astype(np.float64) if d else a
        for a, d in zip((integers(2, 3, 7, 6), integers(4, 3, 3, 2), integers(4)), doubles, strict=True)
    ]
    assert fastconv.conv2d(*arrays).dtype == np.float64


def test_out():
    x, w = integers(2, 3, 7, 6), integers(4, 3, 3, 2)
    y = fastconv.conv2d(x, w)
    buffer = np.zeros((2, 4, 5, 10), np.float32)
    for out in (np.empty_like(y), buffer[..., ::2], np.asfortranarray(y), unaligned(y)[:, :, ::-1]):
        out[...] = np.nan
        assert fastconv.conv2d(x, w, out=out) is out
        np.testing.assert_array_equal(out, y)
    assert not buffer[..., 1::2].any()
    gx, gw = np.empty_like(x), np.empty_like(w)
    assert fastconv.conv2d_input(x.shape, w, y, out=gx) is gx
    assert fastconv.conv2d_weight(x, w.shape, y, out=gw) is gw
    np.testing.assert_array_equal(gx, fastconv.conv2d_input(x.shape, w, y))
    np.testing.assert_array_equal(gw, fastconv.conv2d_weight(x, w.shape, y))


def test_out_may_interleave_with_an_operand():
    buffer = integers(1, 1, 4, 8)
    x, out = buffer[..., ::2], buffer[..., 1::2]
    expected = 2 * x
    fastconv.conv2d(x, np.full((1, 1, 1, 1), 2, np.float32), out=out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("algorithm", ["auto", "reference"])
def test_empty_batch(algorithm):
    x, w, b = integers(0, 3, 7, 6), integers(4, 3, 3, 2), integers(4)
    y = fastconv.conv2d(x, w, b, algorithm=algorithm)
    assert y.shape == (0, 4, 5, 5)
    grads = fastconv.conv2d_backward(x, w, y, algorithm=algorithm)
    assert grads.input.shape == x.shape
    np.testing.assert_array_equal(grads.weight, np.zeros_like(w))
    np.testing.assert_array_equal(grads.bias, np.zeros_like(b))
    layer = fastconv.prepare(w, x.shape, b, algorithm=algorithm)
    assert layer(x).shape == y.shape


# ------------------------------------------------------------------------------------ activation


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "sigmoid", "tanh", "silu", "gelu"])
def test_activations_against_torch(name):
    torch = pytest.importorskip("torch")
    x, w, b = (a.astype(np.float64) / 4 for a in (integers(2, 3, 7, 6), integers(4, 3, 3, 2), integers(4)))
    y = fastconv.conv2d(x, w, b, activation=name)
    plain = torch.from_numpy(fastconv.conv2d(x, w, b))
    np.testing.assert_allclose(y, getattr(torch.nn.functional, name)(plain).numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "sigmoid", "tanh", "silu", "gelu"])
def test_activations_keep_nan(name):
    x = np.full((1, 1, 3, 3), np.nan, np.float32)
    y = fastconv.conv2d(x, np.ones((1, 1, 2, 2), np.float32), activation=name)
    assert np.isnan(y).all()


def test_own_activation():
    import numba

    @numba.njit
    def cube(v):
        return v * v * v

    x, w = integers(1, 2, 5, 5), integers(3, 2, 3, 3)
    close(fastconv.conv2d(x, w, activation=cube), fastconv.conv2d(x, w).astype(np.float64) ** 3)


# ------------------------------------------------------------------------------------ prepare


def test_prepare():
    x, w, b = integers(2, 4, 9, 8), integers(6, 2, 3, 3), integers(6)
    walk = {"stride": 2, "padding": 1, "groups": 2, "activation": "relu"}
    expected = fastconv.conv2d(x, w, b, **walk)
    layer = fastconv.prepare(w, x.shape, b, **walk)
    w[...], b[...] = np.nan, np.nan  # it has copies
    for _ in range(2):
        np.testing.assert_array_equal(layer(x), expected)
    out = np.empty(expected.shape[::-1], np.float32).T
    assert layer(np.asfortranarray(x), out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert "n2 c4 k6" in repr(layer)


def test_prepare_unbatched_and_1d():
    x, w = integers(4, 9), integers(6, 4, 3)
    layer = fastconv.prepare(w, x.shape, padding="same")
    np.testing.assert_array_equal(layer(x), fastconv.conv1d(x, w, padding="same"))


def test_prepared_refuses():
    w = integers(6, 4, 3, 3)
    layer = fastconv.prepare(w, (2, 4, 9, 9))
    with pytest.raises(ValueError, match=r"shape \(2, 4, 9, 9\) prepared for, got \(1, 4, 9, 9\)"):
        layer(integers(1, 4, 9, 9))
    with pytest.raises(TypeError, match="dtype float32 prepared for, got float64"):
        layer(np.zeros((2, 4, 9, 9)))
    for dtype in (np.float64, np.complex64, np.int64):
        with pytest.raises(TypeError, match="residual must be held by the dtype float32 prepared for, got"):
            layer(integers(2, 4, 9, 9), residual=np.zeros(layer.output_shape, dtype))
    with pytest.raises(ValueError, match="out must have the result's shape"):
        layer(integers(2, 4, 9, 9), out=integers(2, 6, 9, 9))
    with pytest.raises(ValueError, match="weight must be"):
        fastconv.prepare(w[0, 0], (2, 4, 9, 9))
    with pytest.raises(ValueError, match="bias must have one element for each of 6"):
        fastconv.prepare(w, (2, 4, 9, 9), integers(4))
    with pytest.raises(ValueError, match="input must be"):
        fastconv.prepare(w, (9, 9))


@pytest.mark.parametrize("algorithm", ["direct", "im2col", "winograd"])
def test_residual(algorithm):
    """Added before the activation, by the function, the layer and the way back."""
    rng = np.random.default_rng(0)
    x, w, b, r = (rng.integers(-3, 4, s).astype("f") for s in ((2, 3, 9, 8), (4, 3, 3, 3), 4, (2, 4, 9, 8)))
    expected = np.maximum(fastconv.conv2d(x, w, b, padding=1, algorithm="reference") + r, 0)
    given = {"padding": 1, "activation": "relu", "algorithm": algorithm}
    strided = np.zeros((2, 4, 9, 16), "f")[..., ::2]
    strided[...] = r
    for added in (r, strided, r.astype(">f4")):
        y = fastconv.conv2d(x, w, b, residual=added, **given)
        np.testing.assert_allclose(y, expected, atol=1e-3)
    layer = fastconv.prepare(w, x.shape, b, **given)
    np.testing.assert_allclose(layer(x, residual=r), expected, atol=1e-3)
    np.testing.assert_allclose(fastconv.conv2d(x[0], w, b, residual=r[0], **given), expected[0], atol=1e-3)
    if algorithm == "direct":  # pixel by pixel
        last = [np.moveaxis(a, 1, -1).copy() for a in (x, r)]
        y = fastconv.conv2d(last[0], w, b, residual=last[1], layout="NHWC", **given)
        np.testing.assert_array_equal(y, np.moveaxis(expected, 1, -1))
    back = fastconv.conv_transpose2d(r, w, padding=1, algorithm="reference")
    y = fastconv.conv_transpose2d(r, w, residual=x, **given)
    np.testing.assert_allclose(y, np.maximum(back + x, 0), atol=1e-3)
