"""Images pixel by pixel: by name or by strides, in every function, beside the same images channel by channel."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import arrays, dtypes, plan, testing
from fastconv.algorithms.base import Adapter
from fastconv.algorithms.direct.cost import lanes
from fastconv.config import Settings
from fastconv.plan import Plan
from fastconv.problem import ConvProblem, Direction
from fastconv.select import select

LAST = {1: "NLC", 2: "NHWC", 3: "NDHWC"}


def to_last(a):
    """Return a copy with the channels last."""
    return np.ascontiguousarray(np.moveaxis(a, 1, -1))


def seen(a):
    """Return images (n, c, ...) whose memory holds them pixel by pixel."""
    return np.moveaxis(to_last(a), -1, 1)


def draw(rank):
    sizes = (7, 6, 5)[:rank]
    x, w = testing.normals((2, 4, *sizes), "float32", 1), testing.normals((6, 4, *[3] * rank), "float32", 2)
    return x, w, testing.normals((2, 6, *sizes), "float32", 3)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_forward_and_gradients(rank, mode):
    x, w, g = draw(rank)
    bias = np.arange(6, dtype="float32")
    name, options = f"conv{rank}d", {"padding": 1, "padding_mode": mode}
    forward, backward = getattr(fastconv, name), getattr(fastconv, f"{name}_backward")
    by_input, by_weight = getattr(fastconv, f"{name}_input"), getattr(fastconv, f"{name}_weight")
    y, grads = forward(x, w, bias, **options), backward(x, w, g, **options)
    close = {"rtol": 1e-4, "atol": 1e-4}

    strided = forward(seen(x), w, bias, **options)
    np.testing.assert_allclose(strided, y, **close)
    assert np.moveaxis(strided, 1, -1).flags.c_contiguous
    for a, b in zip(backward(seen(x), w, seen(g), **options), grads, strict=True):
        np.testing.assert_allclose(a, b, **close)

    options["layout"] = LAST[rank]
    named = forward(to_last(x), w, bias, **options)
    np.testing.assert_allclose(named, to_last(y), **close)
    gx, gw, gb = backward(to_last(x), w, to_last(g), **options)
    np.testing.assert_allclose(gx, to_last(grads.input), **close)
    np.testing.assert_allclose(gw, grads.weight, **close)
    np.testing.assert_allclose(gb, grads.bias, **close)
    gx = by_input(to_last(x).shape, w, to_last(g), **options)
    np.testing.assert_allclose(gx, to_last(grads.input), **close)
    gw = by_weight(to_last(x), w.shape, to_last(g), **options)
    np.testing.assert_allclose(gw, grads.weight, **close)


def test_one_channel_is_in_both_layouts():
    x, w = testing.normals((2, 6, 7, 1), "float32", 1), testing.normals((5, 1, 3, 3), "float32", 2)
    y = fastconv.conv2d(x, w, layout="NHWC")
    assert y.flags.c_contiguous
    np.testing.assert_allclose(y, to_last(fastconv.conv2d(x[:, None, :, :, 0], w)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "line",
    ["n2 c3 k24 i41x38 f5x5 p2", "n1 c40 k40 i17x19 f5x5 p2 g20 float64", "n2 c3 k24 i41x38 f7x7 p3 s2"],
)
def test_few_results_a_group_are_turned(line):
    """Task by task.  What is given, and handed back, is like the images of the call."""
    p = ConvProblem.parse(line)
    plan = Plan(replace(p, layout="nhwc"), Direction.INPUT_GRAD, Settings())
    assert plan.problem == replace(p, layout="nhwc")
    assert lanes(plan.problem, Direction.INPUT_GRAD) != "channels"
    shapes = p.input_shape, p.weight_shape, p.output_shape
    x, w, gy = (testing.normals(shape, p.dtype, i) for i, shape in enumerate(shapes))
    options = {"stride": p.axes[0].stride, "padding": p.axes[0].lo, "groups": p.groups}
    grads = fastconv.conv2d_backward(x, w, gy, **options)
    for a, b in zip(fastconv.conv2d_backward(seen(x), w, seen(gy), **options), grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    gx = fastconv.conv2d_input(to_last(x).shape, w, to_last(gy), layout="NHWC", **options)
    assert gx.flags.c_contiguous
    np.testing.assert_allclose(gx, to_last(grads.input), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("mode", ["", " reflect", " circular"])
def test_spectra_of_long_kernels_are_read_as_they_stand(direction, mode):
    problem = ConvProblem.parse(f"n4 c64 k64 i56x56 f11x11 p5 nhwc{mode}")
    chosen = select(problem, direction, Settings())
    assert (chosen.problem, chosen.algorithm) == (problem, "fft")
    assert select(problem, direction, Settings(precision="strict")).problem == problem


@pytest.mark.parametrize(
    "line",
    [
        "n1 c32 k48 i6x14x14 f3x3x3 p1",
        "n1 c16 k32 i6x14x14 f3x5x5 s2 p1x2x2 g2",
        "n1 c32 k32 i6x14x14 f3x3x3 p1 g32",
    ],
)
@pytest.mark.parametrize("direction", list(Direction), ids=str)
def test_volumes_are_read_as_they_stand(line, direction):
    p = replace(ConvProblem.parse(line), layout="nhwc")
    assert Plan(p, direction, Settings()).problem == p


@pytest.mark.parametrize("shape", [(2, 3, 60, 61), (1, 70, 9, 13), (3, 16, 128, 1), (1, 5, 1, 1000)])
@pytest.mark.parametrize("dtype", [np.dtype("float32"), np.dtype("float64")])
def test_turned(shape, dtype):
    x = testing.normals(shape, dtype.name, 1)
    for images, layout in ((seen(x), "nchw"), (x, "nhwc")):
        copy = arrays.contiguous(images, dtype, layout)
        assert (arrays.to_last(copy) if layout == "nhwc" else copy).flags.carray
        np.testing.assert_array_equal(copy, x)


def test_transposed():
    x, w, g = draw(2)
    gy = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y, grads = fastconv.conv_transpose2d(g, w), fastconv.conv_transpose2d_backward(g, w, gy)
    close = {"rtol": 1e-4, "atol": 1e-4}
    named = fastconv.conv_transpose2d(to_last(g), w, layout="NHWC")
    np.testing.assert_allclose(named, to_last(y), **close)
    back = fastconv.conv_transpose2d_backward(to_last(g), w, to_last(gy), layout="NHWC")
    np.testing.assert_allclose(back.input, to_last(grads.input), **close)
    np.testing.assert_allclose(back.weight, grads.weight, **close)


def test_prepared_and_out():
    x, w, _ = draw(2)
    y = fastconv.conv2d(x, w, padding=1)
    layer = fastconv.prepare(w, to_last(x).shape, padding=1, layout="NHWC")
    out = np.empty(to_last(y).shape, "float32")
    assert layer(to_last(x), out=out) is out
    np.testing.assert_allclose(out, to_last(y), rtol=1e-4, atol=1e-4)
    backwards = np.empty_like(out)[::-1]
    assert fastconv.conv2d(to_last(x), w, padding=1, layout="NHWC", out=backwards) is backwards
    np.testing.assert_array_equal(backwards, fastconv.conv2d(to_last(x), w, padding=1, layout="NHWC"))
    with pytest.raises(ValueError, match=r"shape \(2, 7, 6, 6\), got \(2, 6, 7, 6\)"):
        fastconv.conv2d(to_last(x), w, padding=1, layout="NHWC", out=np.empty_like(y))


def test_unbatched():
    x, w, _ = draw(2)
    y = fastconv.conv2d(to_last(x)[0], w, layout="NHWC")
    np.testing.assert_allclose(y, to_last(fastconv.conv2d(x, w))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["im2col", "winograd", "reference"])
def test_a_named_algorithm_serves_any_layout(algorithm):
    x, w, _ = draw(2)
    y = fastconv.conv2d(to_last(x), w, layout="NHWC", algorithm=algorithm)
    np.testing.assert_allclose(y, to_last(fastconv.conv2d(x, w)), rtol=1e-4, atol=1e-4)


def test_what_is_copied_channels_first_is_told():
    x, w, _ = draw(2)
    for algorithm, stride, copied in (
        ("winograd", 2, True),
        ("winograd", 1, False),
        ("fft", 1, False),
        ("auto", 2, False),
    ):
        told = str(fastconv.explain(to_last(x), w, stride=stride, layout="NHWC", algorithm=algorithm))
        assert ("copied channels first" in told) is copied


CASES = [p for p in testing.cases(Path(__file__).parent / "cases") if p.dtype == "float32" and p.c > 1 < p.k]


class Watched(Adapter):
    """An execution that notes which arrays it is given."""

    def __init__(self, inner, noted):
        self.inner, self.workspace, self.noted = inner, inner.workspace, noted

    def through(self, run, *arrays):
        self.noted.append(arrays[:3])
        run(*arrays)


@pytest.mark.parametrize("direction", list(Direction), ids=str)
@pytest.mark.parametrize("algorithm", ["direct", "im2col"])
def test_nothing_is_copied(algorithm, direction, monkeypatch):
    """Kernels read the caller's images and write the result that is handed back, each where it is."""
    noted, build = [], dtypes.build
    monkeypatch.setattr(dtypes, "build", lambda *arguments: Watched(build(*arguments), noted))
    monkeypatch.setattr(plan, "_plans", {})
    for p in CASES[::7]:
        x, w, gy = (np.ones(shape, p.dtype) for shape in (p.input_shape, p.weight_shape, p.output_shape))
        options = {
            "stride": tuple(a.stride for a in p.axes), "dilation": tuple(a.dilation for a in p.axes),
            "padding": tuple((a.lo, a.hi) for a in p.axes), "groups": p.groups, "padding_mode": p.padding_mode,
            "algorithm": algorithm,
        }  # fmt: skip
        x, gy = seen(x), seen(gy)
        name, operands, images = {
            Direction.FORWARD: ("", (x, w), (x,)),
            Direction.INPUT_GRAD: ("_input", (p.input_shape, w, gy), (gy,)),
            Direction.WEIGHT_GRAD: ("_weight", (x, p.weight_shape, gy), (x, gy)),
        }[direction]
        result = getattr(fastconv, f"conv{len(p.axes)}d{name}")(*operands, **options)
        *given, out = noted.pop()
        assert all(np.shares_memory(a, b) for a, b in zip(images, given, strict=False)), str(p)
        assert direction is Direction.WEIGHT_GRAD or np.shares_memory(out, result), str(p)


@pytest.mark.parametrize("direction", list(Direction), ids=str)
def test_no_choice_copies(direction):
    for p in CASES:
        assert Plan(replace(p, layout="nhwc"), direction, Settings()).problem.layout == "nhwc"


def test_names():
    x, w, _ = draw(2)
    with pytest.raises(ValueError, match="layout must be 'NCHW' or 'NHWC', got 'nhwc'"):
        fastconv.conv2d(x, w, layout="nhwc")
    problem = ConvProblem.parse("n1 c3 i5x5 f3x3 nhwc")
    assert str(problem) == "n1 c3 k3 i5x5 f3x3 nhwc"
    assert ConvProblem.parse(str(problem)) == problem != replace(problem, layout="nchw")
