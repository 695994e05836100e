"""im2col tap by tap: each result receives its own products and no other, whatever taps meet."""

import numpy as np
import pytest
from every_result import check

from fastconv import machine, testing
from fastconv.algorithms import find
from fastconv.algorithms.correlation import Correlation
from fastconv.algorithms.im2col.by_tap import TapPass
from fastconv.algorithms.im2col.cost import FEW, by_tap, share
from fastconv.algorithms.passes import pass_of
from fastconv.problem import ConvProblem, Direction

LINES = [
    "n2 c7 k11 i11x11 f3x3 p2 d4",
    "n3 c5 k10 i9x8 f4x3 p9:3x2:4 d3x2",
    "n2 c6 k20 i21x10 f5x5 s2x1 p0x3 d4x2 g2",
    "n2 c40 k6 i7x9 f3x3 p3 s2 d3",
    "n1 c3 k4 i5x7 f1x2 p2:1x0:3",  # results of nothing but bias
    "n2 c3 k4 i6x5 f1x1 s3x2",  # and of no tap
    "n2 c300 k40 i7x7 f1x1 p3 s2",
    "n2 c600 k70 i6x6 f3x3 p4 d4",  # chunks
    "n3 c4 k3 i12 f3 p5 d5 float64",
    "n1 c3 k4 i3x9x8 f2x3x3 p1x4x3 d1x4x3",
    "n4 c16 k16 i40x40 f3x3 p9 d9",
]
BOTH = pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRAD])


@pytest.mark.parametrize("line", LINES)
@BOTH
def test_every_result(line, direction):
    p = ConvProblem.parse(line)
    check(Correlation(p, direction, TapPass, machine.machine().l2), p, direction)


@pytest.mark.parametrize("cache", [2**14, 2**17])
@BOTH
def test_any_blocks(cache, direction):
    p = ConvProblem.parse("n3 c40 k60 i13x12 f3x3 p3 s1x2 d5x3")
    execution = Correlation(p, direction, TapPass, cache)
    first, second, shape = testing.shapes(p, direction)
    first, second = testing.integers(first, p.dtype), testing.integers(second, p.dtype, 1)
    out, nothing = np.full(shape, np.nan, p.dtype), np.empty(0, p.dtype)
    execution.run(first, second, out, nothing, 0, nothing)
    testing.assert_exact(p, direction, first, second, out)


@pytest.mark.parametrize("dilation", range(1, 10))
@pytest.mark.parametrize("direction", Direction)
def test_dilations_around_the_size_of_the_map(dilation, direction):
    """By what the model takes, which changes on the way."""
    for padding in {max(0, dilation - 2), dilation, 2 * dilation}:
        p = ConvProblem.parse(f"n2 c24 k17 i7x6 f3x3 p{padding} d{dilation}")
        first, second, shape = testing.shapes(p, direction)
        first, second = testing.integers(first, p.dtype), testing.integers(second, p.dtype, 1)
        out, nothing = np.full(shape, np.nan, p.dtype), np.empty(0, p.dtype)
        find("im2col").build(p, direction, 1 << 30).run(first, second, out, nothing, 0, nothing)
        testing.assert_exact(p, direction, first, second, out)


@BOTH
def test_chosen_where_padding_is_most_of_what_is_read(direction):
    far, near = ConvProblem.parse("n2 c256 i33x33 f3x3 p12 d12"), ConvProblem.parse("n2 c256 i33x33 f3x3 p1")
    assert by_tap(far, direction)
    assert not by_tap(near, direction)
    assert find("im2col").cost(far, direction) < 0.8 * find("im2col").cost(near, direction)


@pytest.mark.parametrize("line", LINES)
@BOTH
def test_the_model_counts_the_same_products(line, direction):
    p = ConvProblem.parse(line)
    counted = np.prod([axis.met for axis in pass_of(p, direction).axes])
    exact = all(a.stride % a.dilation == 0 or a.dilation % a.stride == 0 for a in p.axes)
    if direction is Direction.FORWARD or p.unit_stride:
        expected = pytest.approx(counted, rel=1e-6 if exact else 0.1)
        assert share(p, direction) == (expected if counted <= FEW else 1)
    else:  # a pass counts positions beyond the last pixel
        assert share(p, direction) <= counted
