"""Convolution by spectra against the definition in float64."""

from dataclasses import replace

import numpy as np
import pytest

from fastconv import activations, testing
from fastconv.algorithms.fft import Fft, cut, tiles
from fastconv.algorithms.fft.signal import Signal
from fastconv.algorithms.fft.tiling import fast_length
from fastconv.borders import circle
from fastconv.config import config
from fastconv.problem import ConvProblem, Direction

CASES = """
n2 c3 k4 i9x7 f3x3 p1
n1 c1 k1 i1x1 f1x1
n2 c4 k6 i13x11 f5x3 p4:1x2:0 g2
n2 c4 k4 i1x1 f3x3 p3
n1 c4 k8 i12x15 f3x5 d2x3 p2 g4
n3 c5 k5 i20x20 f7x7 p-2:3x1:-3 g5
n2 c6 k3 i40 f17 p8
n1 c2 k3 i3 f1 p10:0
n1 c1 k2 i6x6 f2x2 p-6:8x1
n1 c2 k3 i5000 f769 p100
n1 c20 k30 i33x29 f11x11 p5
n1 c33 k19 i17x19 f5x5 p2
n2 c3 k2 i7x6x5 f3x2x3 p1
n1 c18 k18 i40x41 f31x31 p15 g18
n1 c8 k16 i7x7 f13x13 p6 g8
n17 c2 k2 i6x6 f3x3 p1
n2 c8 k16 i40x41 f5x5 p3 g8
n2 c9 k6 i23x1 f3x1 p1:0x0
n3 c9 k6 i1x50 f1x5
n5 c4 k3 i14x12 f5x5
n2 c4 k4 i15x14 f9x5 p1:4x0:2
n2 c3 k5 i12x15 f5x3 p-1:4x9:1
""".strip().splitlines()


# sources in the same tile and in others, tiles that lie outside, lanes that are tiles or channels, one axis to three
BORDERS = """
n3 c3 k20 i31x29 f5x5 p4x2
n2 c18 k18 i33x20 f11x7 p5:2x3:6 g18
n1 c4 k8 i15x70 f5x5 p2 g4
n1 c2 k3 i5x6 f3x3 p9:4x11:13
n1 c3 k3 i7x5 f3x3 p6x4 g3
n2 c3 k4 i50 f9 p4
n1 c2 k2 i40 f70 p40:35
n1 c2 k3 i6x7x5 f3x3x2 p2:1x1x1
n1 c2 k2 i20x19 f3x3 p2 d2
n1 c17 k17 i56x56 f31x31 p15 g17
n1 c2 k2 i30x30 f1x5 p0x2
n2 c9 k4 i9x8 f5x4 p3:1x0:3
n1 c2 k3 i7 f60 p22:37
n1 c2 k4 i21x20 f7x5 p3x2 g2
n2 c5 k3 i28x30 f7x7 p3
n2 c8 k4 i12x11 f5x5 p2 g4
""".strip().splitlines()


def operands(problem, direction, rng):
    x, w, gy = (
        rng.standard_normal(shape).astype(problem.dtype)
        for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)
    )
    return direction.roles(x, w, gy)[:2]


def expected(problem, direction, first, second, bias, activation):
    result = testing.definition(problem, direction, first, second)
    if bias.size:
        result += bias.reshape(-1, *[1] * len(problem.axes))
    return np.maximum(result, 0) if activation == activations.RELU else result


def pixel_by_pixel(array):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def check(problem, direction, build):
    rng = np.random.default_rng(0)
    first, second = operands(problem, direction, rng)
    forward = direction is Direction.FORWARD
    bias = rng.standard_normal(problem.k if forward else 0).astype(problem.dtype)
    activation = activations.RELU if forward else activations.NONE
    want = expected(problem, direction, first, second, bias, activation)
    out, again = (np.full(want.shape, np.nan, problem.dtype) for _ in range(2))
    if problem.layout == "nhwc":
        first = pixel_by_pixel(first)
        if direction is Direction.WEIGHT_GRAD:
            second = pixel_by_pixel(second)
        else:
            out, again = pixel_by_pixel(out), pixel_by_pixel(again)
    execution = build(problem, direction, 2**30)
    execution.run(first, second, out, bias, activation, np.empty(0, problem.dtype))
    scale = max(np.sqrt(np.mean(want**2)), 0.1)
    assert np.abs(out - want).max() / scale < (2e-5 if problem.dtype == "float32" else 2e-13)
    if direction is not Direction.WEIGHT_GRAD:
        execution.run_prepared(
            first, execution.prepare(second), again, bias, activation, np.empty(0, problem.dtype)
        )
        np.testing.assert_array_equal(again, out)


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("dtype", ["", " float64"])
@pytest.mark.parametrize("line", CASES)
def test_against_definition(line, dtype, direction):
    problem = ConvProblem.parse(line + dtype)
    check(problem, direction, Fft().build)
    check(problem, direction, Signal)


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("line", BORDERS)
def test_borders_against_definition(line, mode, direction):
    problem = ConvProblem.parse(f"{line} {mode}")
    check(problem, direction, Fft().build)
    check(problem, direction, lambda p, d, _: Fft().build(p, d, 60_000))
    circles = all(circle(axis, mode) for axis in problem.axes)
    if direction is not Direction.INPUT_GRAD or circles:
        check(problem, direction, Signal)


@pytest.mark.parametrize(
    ("axes", "covered"),
    [
        ("i56x56 f7x7 p3", (2, 2)),  # 6 tiles of 10 results: all but a row at each end
        ("i60x60 f7x7 p3", (0, 0)),
        (
            "i7x7 f13x13 p6",
            (3, 3),
        ),  # a tile of 16, in which the other three of each side stand on one another
        ("i56x56 f5x5 p2", (2, 2)),
    ],
)
def test_tiles_hold_as_much_of_the_border_as_fits(axes, covered):
    problem = ConvProblem.parse(f"n1 c32 k32 {axes} reflect")
    choice = cut.choose(replace(problem, padding_mode="zeros"), Direction.INPUT_GRAD, 2**40)
    wide, found = cut.covering(problem, choice)
    assert found[0][:2] == covered
    assert wide.cut.count == choice.cut.count


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize(
    "line",
    [
        *(f"{c} nhwc{d}" for c in CASES for d in ("", " float64")),
        *(f"{b} {m} nhwc" for b in BORDERS for m in ("reflect", "replicate", "circular")),
    ],
)
def test_channels_last_against_definition(line, direction):
    problem = ConvProblem.parse(line)
    algorithm = Fft()
    if (reason := algorithm.reject(problem, direction)) is not None:
        assert problem.c == problem.groups != problem.k or "of any size" in reason
        return
    check(problem, direction, algorithm.build)
    least = algorithm.workspace(problem, direction, 0)
    check(problem, direction, lambda p, d, _: algorithm.build(p, d, least))


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("dtype", ["", " float64"])
@pytest.mark.parametrize("line", CASES)
def test_small_tiles_against_definition(line, dtype, direction):
    problem = ConvProblem.parse(line + dtype)
    choice = cut.choose(problem, direction, 2**40)
    if choice is None:
        assert cut.unsuited(problem)
    else:
        check(problem, direction, lambda p, d, _: tiles.build(p, d, choice))


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize(
    "line", ["n1 c64 k64 i56x56 f9x9 p4", "n1 c8 k8 i4x4 f3x3 p1", "n9 c4 k4 i90x90 f5x5"]
)
def test_takes_no_more_tiles_at_once_than_there_are(line, direction):
    choice = cut.choose(ConvProblem.parse(line), direction, 2**40).cut
    at_once = 1 if direction is Direction.WEIGHT_GRAD else choice.lanes
    fewer = choice.vectors // 2 if direction is Direction.WEIGHT_GRAD else choice.vectors - 1
    assert fewer * at_once < choice.tiles or choice.vectors in (1, min(cut.BLOCKS))


@pytest.mark.parametrize("direction", list(Direction))
def test_small_workspace_gives_the_same_within_its_limit(direction):
    problem = ConvProblem.parse("n3 c12 k10 i30x31 f9x7 p3 g2")
    limit = 200_000
    assert Fft().workspace(problem, direction, limit) <= limit
    check(problem, direction, lambda p, d, _: Fft().build(p, d, limit))


@pytest.mark.parametrize("direction", list(Direction))
def test_no_images(direction):
    problem = ConvProblem.parse("n0 c2 k3 i5x5 f3x3 p1")
    first, second, out = (np.ones(shape, "float32") for shape in testing.shapes(problem, direction))
    Fft().build(problem, direction, 2**30).run(
        first, second, out, np.empty(0, "float32"), 0, np.empty(0, "float32")
    )
    np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("line", ["n3 c18 k20 i30x31 f7x7 p3", "n2 c40 k40 i60x60 f15x15 p7 g40"])
def test_bits_do_not_depend_on_the_number_of_workers(line, direction):
    problem = ConvProblem.parse(line)
    first, second = operands(problem, direction, np.random.default_rng(0))
    choice = cut.choose(problem, direction, 2**40)
    results = []
    for threads in (1, 2):
        with config(threads=threads):
            out = np.empty(testing.shapes(problem, direction)[2], "float32")
            tiles.build(problem, direction, choice).run(
                first, second, out, np.empty(0, "float32"), 0, np.empty(0, "float32")
            )
            results.append(out)
    np.testing.assert_array_equal(*results)


def test_strict_precision_excludes_it():
    for direction in Direction:
        assert Fft().error_growth(ConvProblem.parse("n8 c512 k512 i56x56 f31x31 p15"), direction) > 1


def test_rejects_in_words():
    assert "stride" in Fft().reject(ConvProblem.parse("c1 i9x9 f3x3 s2"), Direction.FORWARD)


@pytest.mark.parametrize("n", [1, 2, 11, 13, 97, 1023, 4097])
def test_fast_length_is_the_smallest_smooth_number(n):
    def smooth(m):
        for p in (2, 3, 5):
            while m % p == 0:
                m //= p
        return m == 1

    assert fast_length(n) == next(m for m in range(n, 2 * n + 1) if smooth(m))
