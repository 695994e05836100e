"""Problems with taps that meet nothing but padding are served as smaller ones, with the results of the whole."""

import numpy as np
import pytest

import fastconv
from fastconv import plan, testing
from fastconv.problem import Axis, ConvProblem, Direction
from fastconv.taps import kept, without_padded

CUT = {
    "n2 c3 k4 i7x7 f3x3 p64 d64": "n2 c3 k4 i7x7 f1x1",
    "n2 c3 k4 i5x6 f7x9 p3x4": "n2 c3 k4 i5x6 f7x9 p3:3x4:4",  # every tap meets some pixel
    "n2 c3 k4 i1x3 f3x5 p1x2": "n2 c3 k4 i1x3 f1x5 p0:0x2:2",
    "n1 c4 k6 i5x4 f3x5 s2x1 d4x3 p4:9x6:7 g2": "n1 c4 k6 i5x4 f3x3 s2x1 p4:9x3:4 d4x3 g2",
    "n1 c4 k4 i6x6 f5x3 p8:0x1 g4": "n1 c4 k4 i6x6 f5x3 p8:0x1:1 g4",
    "n3 c2 k5 i4 f9 d2 p9:7": None,
    "n1 c2 k3 i3x2x4 f3x3x2 d4x1x5 p4x1x5:3": None,
    "n1 c2 k3 i5x5 f2x2 p1 d6": "n1 c2 k3 i5x5 f2x2 p1 d6",  # no tap meets any
}
WALKS = [
    line for line, cut in CUT.items() if cut is None or ConvProblem.parse(line) != ConvProblem.parse(cut)
]


@pytest.mark.parametrize(("line", "cut"), [(a, b) for a, b in CUT.items() if b])
def test_the_problem_that_is_served(line, cut):
    assert without_padded(ConvProblem.parse(line)) == ConvProblem.parse(cut)


def test_taps_that_meet_a_pixel_are_kept():
    numbers = np.random.default_rng(0).integers([1, 1, 1, 1, -3, -3], [10, 7, 5, 10, 13, 13], (20_000, 6))
    cut = 0
    for axis in (Axis(*map(int, row)) for row in numbers):
        if axis.extent > axis.lo + axis.size + axis.hi or min(axis.lo, axis.hi) < -axis.size:
            continue
        (served,) = without_padded(ConvProblem(1, 1, 1, (axis,))).checked().axes
        assert (served.output, served.kernel) == (axis.output, len(kept(axis)))
        positions = axis.stride * np.arange(axis.output) - axis.lo
        meeting = [
            r
            for r in range(axis.kernel)
            if np.any((positions + r * axis.dilation >= 0) & (positions + r * axis.dilation < axis.size))
        ]
        assert set(meeting) <= set(kept(axis))
        if axis.stride == 1 and meeting:
            assert (meeting[0], meeting[-1]) == (kept(axis)[0], kept(axis)[-1])
        cut += served != axis
    assert cut > 1000


@pytest.mark.parametrize("line", WALKS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "complex64"])
def test_results_are_those_of_the_whole(line, dtype):
    with fastconv.config(precision="strict"):  # then integers are exact
        results_are_those_of_the_whole(line, dtype)


@pytest.mark.parametrize("line", [*WALKS, "n2 c3 k4 i7 f9 s2 p5:4", "n1 c4 k6 i3x3 f5x4 p3 s2x1 g2"])
@pytest.mark.parametrize("algorithm", ["direct", "im2col"])
def test_weights_read_where_they_are(line, algorithm, monkeypatch):
    monkeypatch.setattr("fastconv.taps.LARGE", 0)
    plan.clear()
    with fastconv.config(algorithm=algorithm):
        results_are_those_of_the_whole(line, "float32")
    plan.clear()


def results_are_those_of_the_whole(line, dtype):
    p = ConvProblem.parse(f"{line} {dtype}")
    rank = len(p.axes)
    x, w, gy = (
        testing.integers(shape, dtype, i)
        for i, shape in enumerate((p.input_shape, p.weight_shape, p.output_shape))
    )
    b, r = testing.integers((p.k,), dtype, 3), testing.integers(p.output_shape, dtype, 4)
    given = {
        "stride": tuple(a.stride for a in p.axes),
        "padding": tuple((a.lo, a.hi) for a in p.axes),
        "dilation": tuple(a.dilation for a in p.axes),
        "groups": p.groups,
    }
    conv, backward = getattr(fastconv, f"conv{rank}d"), getattr(fastconv, f"conv{rank}d_backward")
    plain = testing.definition(p, Direction.FORWARD, x, w)
    whole = plain + b.reshape(-1, *[1] * rank) + r
    np.testing.assert_array_equal(conv(x, w, b, residual=r, **given), whole)
    np.testing.assert_array_equal(conv(x, w, algorithm="reference", **given), plain)
    np.testing.assert_array_equal(fastconv.prepare(w, x.shape, b, **given)(x, residual=r), whole)
    grads = backward(x, w, gy, **given)
    wide = gy, x.conj(), w.conj()
    np.testing.assert_array_equal(grads.input, testing.definition(p, Direction.INPUT_GRAD, wide[0], wide[2]))
    np.testing.assert_array_equal(
        grads.weight, testing.definition(p, Direction.WEIGHT_GRAD, wide[1], wide[0])
    )
    last = np.moveaxis(x, 1, -1).copy()
    layout = {1: "NLC", 2: "NHWC", 3: "NDHWC"}[rank]
    np.testing.assert_array_equal(np.moveaxis(conv(last, w, layout=layout, **given), -1, 1), plain)
    last = np.moveaxis(gy, 1, -1).copy()
    gx, gw, _ = backward(np.moveaxis(x, 1, -1).copy(), w, last, layout=layout, **given)
    np.testing.assert_array_equal(np.moveaxis(gx, -1, 1), grads.input)
    np.testing.assert_array_equal(gw, grads.weight)


def test_gradients_of_taps_in_the_padding_are_zeros():
    """Whatever they would have multiplied."""
    x, gy = np.full((1, 2, 4, 4), np.inf), np.full((1, 3, 4, 4), np.nan)
    gw = fastconv.conv2d_weight(x, (3, 2, 3, 3), gy, padding=9, dilation=9)
    assert np.isnan(gw[:, :, 1, 1]).all()
    gw[:, :, 1, 1] = 0
    assert not gw.any()


def test_transposed():
    x, w = testing.integers((2, 3, 5, 5), "float64"), testing.integers((3, 4, 3, 3), "float64", 1)
    y = fastconv.conv_transpose2d(x, w, padding=6, dilation=6)
    np.testing.assert_array_equal(y, np.einsum("nchw,ck->nkhw", x, w[:, :, 1, 1]))


def test_explained():
    x, w = np.ones((1, 2, 8, 8)), np.ones((3, 2, 3, 3))
    assert fastconv.explain(x, w, padding=9, dilation=9).problem.kernel == (1, 1)
