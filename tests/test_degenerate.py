"""The smallest and oddest shapes of every function: no batch, a batch of nothing, one pixel, a kernel over all of the image.

What is expected follows from a larger call or from NumPy in a line, so that nothing else needs to be installed.
"""

from math import prod

import numpy as np
import pytest

import fastconv
from fastconv import testing

RANKS = (1, 2, 3)
pytestmark = pytest.mark.usefixtures("strict")
SIZE = (6, 5, 4)
each_rank = pytest.mark.parametrize("rank", RANKS)


@pytest.fixture(name="strict", scope="module")
def sums_of_products():
    """Results are compared exactly: the choice is between algorithms that only multiply and add."""
    with fastconv.config(precision="strict"):
        yield


def draw(shape, seed=0):
    return testing.integers(shape, "float32", seed)


def named(name, rank, suffix=""):
    return getattr(fastconv, f"{name}{rank}d{suffix}")


def same(ours, expected):
    """Compare arrays, or tuples of them."""
    if not isinstance(ours, tuple):
        ours, expected = (ours,), (expected,)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def first(result):
    """Return the only image of a batch."""
    return tuple(a[0] for a in result) if isinstance(result, tuple) else result[0]


def convolutions(rank):
    """Yield (function of an image's array, input shape without a batch) of whatever takes an image."""
    size = SIZE[:rank]
    x, gy = (4, *size), (6, *(s - 1 for s in size))
    w, b = draw((6, 2, *(2,) * rank), 1), draw((6,), 2)
    wt, up = draw((4, 3, *(2,) * rank), 3), (6, *(s + 1 for s in size))
    yield lambda a: named("conv", rank)(a, w, b, groups=2), x
    yield lambda a: named("conv", rank)(a, w, padding="same", groups=2, padding_mode="circular"), x
    yield lambda a: named("conv", rank, "_input")(a.shape[: a.ndim - rank - 1] + x, w, a, groups=2), gy
    yield lambda a: named("conv", rank, "_backward")(of(x, a), w, a, groups=2, need=["input"]).input, gy
    yield lambda a: named("conv_transpose", rank)(a, wt, b, groups=2), x
    yield (
        lambda a: named("conv_transpose", rank, "_backward")(of(x, a), wt, a, groups=2, need=["input"]).input,
        up,
    )


def of(shape, like):
    """Draw an image, or as many as ``like`` has."""
    return draw((*like.shape[: like.ndim - len(shape)], *shape), 4)


def poolings(rank):
    """Yield the same of what pools."""
    x = (2, *SIZE[:rank])
    halves = (2, *(s // 2 for s in x[1:]))
    for kind in ("max", "avg"):
        yield lambda a, kind=kind: named(f"{kind}_pool", rank)(a, 3, 2, 1), x
        yield lambda a, kind=kind: named(f"adaptive_{kind}_pool", rank)(a, 2), x
    yield lambda a: named("max_pool", rank)(a, 2, return_indices=True), x
    yield lambda a: named("lp_pool", rank)(a, 1.0, 2), x
    yield lambda a: named("max_pool", rank, "_backward")(of(x, a), a, 2), halves
    yield lambda a: named("avg_pool", rank, "_backward")(a.shape[: a.ndim - rank - 1] + x, a, 2), halves
    yield lambda a: named("max_unpool", rank)(a, np.zeros(a.shape, "int64"), 2), halves
    if rank == 2:
        yield lambda a: fastconv.adaptive_avg_pool2d_backward(a.shape[: a.ndim - 3] + x, a), (2, 3, 3)
        yield lambda a: fastconv.unfold(a, 2), x
        yield lambda a: fastconv.fold(a, SIZE[:2], 2), (8, prod(s - 1 for s in SIZE[:2]))


CALLS = [
    pytest.param(call, shape, id=f"{kind.__name__}-{rank}-{i}")
    for kind in (convolutions, poolings)
    for rank in RANKS
    for i, (call, shape) in enumerate(kind(rank))
]


@pytest.mark.parametrize(("call", "shape"), CALLS)
def test_an_image_without_a_batch_and_a_batch_without_images(call, shape):
    x = draw((1, *shape))
    batch = call(x)
    same(call(x[0]), first(batch))
    nothing = call(x[:0])
    batch, nothing = (r if isinstance(r, tuple) else (r,) for r in (batch, nothing))
    for a, b in zip(nothing, batch, strict=True):
        assert a.shape == (0, *b.shape[1:])
        assert a.dtype == b.dtype


@each_rank
@pytest.mark.parametrize("transpose", [False, True])
def test_gradients_of_no_images_are_zeros(rank, transpose):
    x, gy = np.ones((0, 4, *(5,) * rank), "float32"), np.ones((0, 6, *(3,) * rank), "float32")
    operands = (gy, x) if transpose else (x, gy)
    w = draw((6, 4, *(3,) * rank))
    grads = named("conv_transpose" if transpose else "conv", rank, "_backward")(operands[0], w, operands[1])
    same(grads.input, np.zeros(operands[0].shape, "float32"))
    same(grads.weight, np.zeros(w.shape, "float32"))
    same(grads.bias, np.zeros(4 if transpose else 6, "float32"))
    if not transpose:
        same(named("conv", rank, "_weight")(x, w.shape, gy), np.zeros(w.shape, "float32"))


@each_rank
@pytest.mark.parametrize("algorithm", ["auto", "direct", "im2col"])
def test_one_pixel(rank, algorithm):
    """A 1x1 kernel is a matrix; of a padded 3x3 one only the middle meets the pixel, unless borders repeat it."""
    x, w, gy = draw((3, 4, *(1,) * rank)), draw((6, 4, *(3,) * rank), 1), draw((3, 6, *(1,) * rank), 2)
    middle = (..., *(slice(1, 2),) * rank)
    pixel = (..., *(0,) * rank)
    a, g = x[pixel], gy[pixel]
    for kernel, padding in ((w[middle], 0), (w, 1)):
        given = {"padding": padding, "algorithm": algorithm}
        m = kernel[middle if padding else ...][pixel]
        same(named("conv", rank)(x, kernel, **given)[pixel], a @ m.T)
        grads = named("conv", rank, "_backward")(x, kernel, gy, **given)
        same(grads.input[pixel], g @ m)
        expected = np.zeros_like(kernel)
        expected[middle if padding else ...] = (g.T @ a).reshape(6, 4, *(1,) * rank)
        same(grads.weight, expected)
        same(named("conv_transpose", rank)(gy, kernel, **given)[pixel], g @ m)
    whole = w.sum(axis=tuple(range(2, 2 + rank)))
    given = {"padding": 1, "padding_mode": "replicate", "algorithm": algorithm}
    same(named("conv", rank)(x, w, **given)[pixel], a @ whole.T)
    same(named("conv", rank, "_input")(x.shape, w, gy, **given)[pixel], g @ whole)


@each_rank
@pytest.mark.parametrize("algorithm", ["auto", "direct", "im2col"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_a_kernel_as_large_as_the_padded_input(rank, algorithm, depthwise):
    """One product of the image with the kernel."""
    size, pad = SIZE[:rank], 1
    kernel = tuple(s + 2 * pad for s in size)
    x, w, gy = (
        draw((2, 4, *size)),
        draw((4, 1 if depthwise else 4, *kernel), 1),
        draw((2, 4, *(1,) * rank), 2),
    )
    inside = (..., *(slice(pad, -pad),) * rank)
    part, g = w[inside], gy.reshape(2, 4)
    given = {"padding": pad, "groups": 4 if depthwise else 1, "algorithm": algorithm}
    forms = ("nc...,c...->nc", "nc,c...->nc...") if depthwise else ("nc...,kc...->nk", "nk,kc...->nc...")
    part = part[:, 0] if depthwise else part
    pixels = part.reshape(*part.shape[: part.ndim - rank], -1)
    flat = x.reshape(2, 4, -1)
    y = np.einsum(forms[0].replace("...", "p"), flat, pixels)
    same(named("conv", rank)(x, w, **given).reshape(2, 4), y)
    gx = np.einsum(forms[1].replace("...", "p"), g, pixels)
    same(named("conv", rank, "_input")(x.shape, w, gy, **given), gx.reshape(x.shape))
    gw = np.zeros_like(w)
    by_weight = np.einsum("nc,ncp->cp" if depthwise else "nk,ncp->kcp", g, flat)
    gw[inside] = by_weight.reshape(4, -1, *size)
    same(named("conv", rank, "_weight")(x, w.shape, gy, **given), gw)


@each_rank
def test_a_window_over_the_whole_image(rank):
    size = SIZE[:rank]
    x = draw((2, 3, *size))
    axes = tuple(range(2, 2 + rank))
    largest, mean = x.max(axis=axes, keepdims=True), x.mean(axis=axes, keepdims=True, dtype="float64")
    same(named("max_pool", rank)(x, size), largest)
    same(named("adaptive_max_pool", rank)(x, 1), largest)
    same(named("max_pool", rank)(x, tuple(s + 2 for s in size), padding=1), largest)
    for call in (lambda: named("avg_pool", rank)(x, size), lambda: named("adaptive_avg_pool", rank)(x, 1)):
        np.testing.assert_allclose(call(), mean, rtol=1e-6, atol=1e-6)
    y, at = named("max_pool", rank)(x, size, return_indices=True)
    restored = named("max_unpool", rank)(y, at, size)
    assert restored.shape == x.shape
    np.testing.assert_array_equal(restored.sum(axis=axes), largest.reshape(2, 3))
    gx = named("avg_pool", rank, "_backward")(x.shape, np.full(largest.shape, prod(size), "float32"), size)
    np.testing.assert_allclose(gx, np.ones_like(x), rtol=1e-6)
    norm = named("lp_pool", rank)(x, 2.0, size)
    np.testing.assert_allclose(norm, np.sqrt((x**2).sum(axis=axes, keepdims=True)), rtol=1e-5)


@each_rank
def test_windows_of_one_pixel(rank):
    """Nothing changes; with padding the mean counts it, or does not."""
    for x in (draw((2, 3, *SIZE[:rank])), draw((2, 3, *(1,) * rank), 1)):
        same(named("max_pool", rank)(x, 1), x)
        same(named("avg_pool", rank)(x, 1), x)
        same(named("adaptive_avg_pool", rank)(x, x.shape[2:]), x)
        same(named("adaptive_max_pool", rank)(x, x.shape[2:]), x)
        same(named("max_pool", rank, "_backward")(x, x, 1), x)
    same(named("max_pool", rank)(x, 3, padding=1), x)
    same(named("avg_pool", rank)(x, 3, padding=1, count_include_pad=False), x)
    np.testing.assert_allclose(named("avg_pool", rank)(x, 3, padding=1), x / 3**rank, rtol=1e-6)
    same(
        named("adaptive_avg_pool", rank)(x, 2),
        np.repeat(x.reshape(2, 3, 1), 2**rank, 2).reshape(2, 3, *(2,) * rank),
    )


def test_columns_of_the_whole_image():
    x = draw((2, 3, 6, 5))
    same(fastconv.unfold(x, (6, 5)), x.reshape(2, 90, 1))
    same(fastconv.fold(x.reshape(2, 90, 1), (6, 5), (6, 5)), x)
    same(fastconv.unfold(x, 1), x.reshape(2, 3, 30))
    pixel = x[..., :1, :1]
    padded = np.zeros((2, 3, 3, 3), "float32")
    padded[..., 1:2, 1:2] = pixel
    same(fastconv.unfold(pixel, 3, padding=1), padded.reshape(2, 27, 1))
    same(fastconv.fold(padded.reshape(2, 27, 1), (1, 1), 3, padding=1), pixel)
