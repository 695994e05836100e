"""The contract of `fastconv.algorithms.base`, asked of every algorithm in every direction on every case."""

import functools
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from fastconv import activations, config, testing, workspace
from fastconv.algorithms import registry
from fastconv.algorithms.direct.cost import can_turn, lanes
from fastconv.problem import ConvProblem, Direction

CASES = Path(__file__).parents[1] / "cases"
SAMPLED = ("validation", "asymmetric")  # lists drawn from larger ones; the others are written by hand
PROBLEMS = list(testing.cases(CASES))
WRITTEN = [p for file in sorted(CASES.glob("*.txt")) if file.stem not in SAMPLED for p in testing.cases(file)]
ALGORITHMS = sorted(registry())
UNLIMITED = 2**40

# Algorithms that only multiply and add the numbers given: integers come out exact.
EXACT = {"direct", "im2col", "reference"}

each_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
each_direction = pytest.mark.parametrize("direction", list(Direction), ids=str)
each_problem = pytest.mark.parametrize("problem", WRITTEN, ids=str)


@functools.cache
def operands(problem, direction, draw):
    first, second, _ = testing.shapes(problem, direction)
    return draw(first, problem.dtype, 1), draw(second, problem.dtype, 2)


@functools.cache
def allowed(problem, direction):
    return testing.tolerance(problem, direction, *operands(problem, direction, testing.normals))


def serves(name, problem, direction):
    """Return whether the algorithm takes the problem; its reason against must be in words."""
    reason = registry()[name].reject(problem, direction)
    assert reason is None or len(reason.split()) > 1, f"a reason in words, not {reason!r}"
    return reason is None


def blank(problem, direction):
    return np.full(testing.shapes(problem, direction)[2], np.nan, problem.dtype)


def run(execution, problem, direction, first, second):
    out = blank(problem, direction)
    execution.run(
        first, second, out, np.empty(0, problem.dtype), activations.NONE, np.empty(0, problem.dtype)
    )
    return out


# Kernels whose transforms are compiled by default; each other size compiles its own for 15 seconds.
USUAL_KERNELS = {"float32": {(3, 3), (2, 2), (5, 5), (3,)}, "float64": {(3, 3)}, "nhwc": {(3, 3), (3,)}}


def each_usual(problems):
    """Parametrize by name and problem; what compiles kernels for an unusual one is slow."""
    return pytest.mark.parametrize(
        ("name", "problem"),
        [
            pytest.param(name, p, marks=[pytest.mark.slow] * unusual(name, p), id=f"{name}-{p}")
            for name in ALGORITHMS
            for p in problems
        ],
    )


def unusual(name, problem):
    """Tell whether kernels are compiled for the problem that the usual ones have been written with."""
    borders = name in ("direct", "winograd") and problem.padding_mode != "zeros"  # 30 seconds in float64
    phases = name == "winograd" and not problem.unit_stride  # `test_winograd` has some by default
    usual = USUAL_KERNELS[problem.layout if problem.layout == "nhwc" else problem.dtype]
    transforms = name in ("winograd", "fft") and problem.kernel not in usual
    return (borders and problem.dtype == "float64") or phases or transforms


def check_result(name, problem, direction):
    if not serves(name, problem, direction):
        return
    algorithm = registry()[name]
    execution = algorithm.build(problem, direction, UNLIMITED)
    if name in EXACT:
        first, second = operands(problem, direction, testing.integers)
        result = run(execution, problem, direction, first, second)
        testing.assert_exact(problem, direction, first, second, result)
    first, second = operands(problem, direction, testing.normals)
    before = first.copy(), second.copy()
    result = run(execution, problem, direction, first, second)
    np.testing.assert_array_equal(first, before[0], "the first operand was changed")
    np.testing.assert_array_equal(second, before[1], "the second operand was changed")
    growth = algorithm.error_growth(problem, direction)
    testing.assert_right(problem, direction, first, second, result, growth, allowed(problem, direction))


@each_usual(PROBLEMS)
@each_direction
def test_result(name, direction, problem):
    check_result(name, problem, direction)


@each_usual([replace(p, dtype="float64") for p in WRITTEN])
@each_direction
def test_result_in_float64(name, direction, problem):
    check_result(name, problem, direction)


@pytest.mark.slow
@each_usual(WRITTEN)
@each_direction
def test_result_of_the_serial_twin(name, direction, problem, monkeypatch):
    """By default small calls of the functions run it."""
    monkeypatch.undo()
    with config(threads=1):
        check_result(name, problem, direction)


@pytest.mark.parametrize(
    "line", ["n2 c17 k20 i13x14 f3x3 p1", "n1 c3 k5 i4x4 f3x3", "n1 c6 k4 i7x9 f3x3 p2:0x1:3 g2"]
)
@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRAD], ids=str)
def test_small_tiles_are_exact(direction, line):
    """The matrices of F(2, 3) hold halves and ones: integers stay exact."""
    problem = ConvProblem.parse(line)
    algorithm = registry()["winograd"].variant("F(2,3)")
    assert algorithm.reject(problem, direction) is None
    first, second = operands(problem, direction, testing.integers)
    result = run(algorithm.build(problem, direction, UNLIMITED), problem, direction, first, second)
    testing.assert_exact(problem, direction, first, second, result)


@each_usual(WRITTEN)
@each_direction
def test_same_bits(name, direction, problem):
    """Prepared or not, on one worker or more, and a second time on used scratch."""
    if not serves(name, problem, direction):
        return
    algorithm = registry()[name]
    first, second = operands(problem, direction, testing.normals)
    execution = algorithm.build(problem, direction, UNLIMITED)
    result = run(execution, problem, direction, first, second)
    np.testing.assert_array_equal(run(execution, problem, direction, first, second), result, "second run")
    with config(threads=1):
        np.testing.assert_array_equal(run(execution, problem, direction, first, second), result, "one worker")
    if direction is not Direction.WEIGHT_GRAD:
        prepared = execution.prepare(second.copy())
        out = blank(problem, direction)
        execution.run_prepared(
            first, prepared, out, np.empty(0, problem.dtype), activations.NONE, np.empty(0, problem.dtype)
        )
        np.testing.assert_array_equal(out, result, "prepared")


@each_usual(WRITTEN)
@each_direction
def test_workspace_limit(name, direction, problem):
    """An algorithm asked for its least keeps to it, and what it says it takes is what it takes."""
    if not serves(name, problem, direction):
        return
    algorithm = registry()[name]
    least = algorithm.workspace(problem, direction, 0)
    first, second = operands(problem, direction, testing.normals)
    growth = algorithm.error_growth(problem, direction)
    for limit in (least, 3 * least // 2):
        said = algorithm.workspace(problem, direction, limit)
        assert said <= limit, f"says {said} bytes under a limit of {limit}, though it can do with {least}"
        execution = algorithm.build(problem, direction, limit)
        assert execution.workspace <= limit
        workspace.release()
        result = run(execution, problem, direction, first, second)
        assert workspace.high_water() <= execution.workspace
        testing.assert_right(problem, direction, first, second, result, growth, allowed(problem, direction))


@each_usual(WRITTEN)
def test_adjoint(name, problem):
    """One number ties the directions together; an algorithm that lacks one is joined by the reference."""
    x, w = operands(problem, Direction.FORWARD, testing.normals)
    g = testing.normals(problem.output_shape, problem.dtype, 3)
    results, growth, served = [], 1.0, 0
    for direction in Direction:
        first, second, _ = direction.roles(x, w, g)
        algorithm = registry()[name]
        if serves(name, problem, direction):
            served += 1
            growth = max(growth, algorithm.error_growth(problem, direction))
        else:
            algorithm = registry()["reference"]
        results.append(run(algorithm.build(problem, direction, UNLIMITED), problem, direction, first, second))
    if not served:
        return
    products = testing.adjoint_products(x, w, g, *results)
    # the results' own size, or one product's where the definition has none but zeros
    size = (np.linalg.norm(results[0]) + np.linalg.norm(w)) * np.linalg.norm(g)
    terms = max(testing.terms(problem, d) for d in Direction)
    assert np.ptp(products) <= growth * np.finfo("float32").eps * (2 + np.sqrt(terms)) * size, products


@each_algorithm
@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRAD], ids=str)
@pytest.mark.parametrize(
    "line",
    [
        "n2 c6 k10 i9x11 f3x3 p1 g2",
        "n2 c5 k5 i9x11 f3x3 p1 g5",
        "n2 c5 k5 i9x11 f3x3 s2 p1 g5",
        "n1 c4 k3 i13x10 f3x3 s3x2 p1",
        "n1 c5 k330 i14x14 f1x1 s2",
    ],
)
def test_bias_residual_and_activation(name, direction, line):
    """Each with the others or without; bias and residual are added where they belong, the activation comes last."""
    problem = ConvProblem.parse(line)
    if not serves(name, problem, direction):
        assert not problem.unit_stride
        return
    algorithm = registry()[name]
    x, w = operands(problem, direction, testing.normals)
    out = blank(problem, direction)
    bias, residual = (testing.normals(s, problem.dtype, 4 + len(s)) for s in ((out.shape[1],), out.shape))
    execution = algorithm.build(problem, direction, UNLIMITED)
    error = algorithm.error_growth(problem, direction) * allowed(problem, direction) + 1e-6
    plain = testing.definition(problem, direction, x, w)
    calls = ((execution.run, w), (execution.run_prepared, execution.prepare(w)))
    for b, r, activation in product(
        (bias, bias[:0]), (residual, residual[:0]), (activations.NONE, activations.RELU)
    ):
        expected = plain + (b.reshape(-1, 1, 1) if b.size else 0) + (r if r.size else 0)
        expected = np.maximum(expected, 0) if activation else expected
        for call, weight in calls:
            out.fill(np.nan)
            call(x, weight, out, b, activation, r)
            assert np.abs(out - expected).max() <= error


@each_algorithm
@pytest.mark.parametrize("channels", [4, 200])
def test_nan_and_infinity_reach_what_they_touch(name, channels):
    """No kernel may skip or invent one where the definition has it; transforms may spread them further."""
    problem = ConvProblem.parse(f"n1 c{channels} k6 i16x16 f3x3 p1")
    assert serves(name, problem, Direction.FORWARD)
    algorithm = registry()[name]
    x, w = (a.copy() for a in operands(problem, Direction.FORWARD, testing.normals))
    x[0, 1, 5, 6], x[0, 2, 12, 3] = np.nan, np.inf
    exact = testing.definition(problem, Direction.FORWARD, x, w)
    with np.errstate(invalid="ignore"):
        out = run(algorithm.build(problem, Direction.FORWARD, UNLIMITED), problem, Direction.FORWARD, x, w)
    assert not np.isfinite(out[~np.isfinite(exact)]).any()
    if name in EXACT:
        np.testing.assert_array_equal(np.isfinite(out), np.isfinite(exact))
        np.testing.assert_array_equal(np.isnan(out), np.isnan(exact))
    x, _ = operands(problem, Direction.FORWARD, testing.normals)
    w[2, 1, 0, 2], w[4] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        exact = testing.definition(problem, Direction.FORWARD, x, w)
        out = run(algorithm.build(problem, Direction.FORWARD, UNLIMITED), problem, Direction.FORWARD, x, w)
    inside = (..., slice(1, -1), slice(1, -1))  # beside them weights may or may not meet zeros
    assert not np.isfinite(out[inside][~np.isfinite(exact[inside])]).any()
    assert np.isfinite(out[:, [0, 1, 3, 5]]).all()


GUARD = """
import sys, numpy as np
from fastconv import activations, config, testing, threads
from fastconv.algorithms import registry
from fastconv.problem import ConvProblem, Direction

threads.SERIAL_FLOPS = -1
algorithm = registry()[sys.argv[1]]
def guarded(shape, dtype, at_end, last):
    if not last:
        return testing.guarded(shape, dtype, at_end)
    array = testing.guarded((shape[0], *shape[2:], shape[1]), dtype, at_end)
    return np.moveaxis(array, -1, 1)

for problem in map(ConvProblem.parse, sys.stdin):
    for direction in Direction:
        if algorithm.reject(problem, direction) is None:
            for at_end in (True, False):
                print(direction, problem, flush=True)
                shapes = testing.shapes(problem, direction)
                weight = 2 if direction is Direction.WEIGHT_GRAD else 1
                arrays = [
                    guarded(shape, problem.dtype, at_end, problem.layout == "nhwc" and i != weight)
                    for i, shape in enumerate(shapes)
                ]
                arrays[0][...] = testing.integers(shapes[0], problem.dtype, 1)
                arrays[1][...] = testing.integers(shapes[1], problem.dtype, 2)
                execution, nothing = algorithm.build(problem, direction, 2**40), np.empty(0, problem.dtype)
                with config(threads=1 if problem.dtype == "float64" else None):
                    execution.run(*arrays, nothing, activations.NONE, nothing)
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no mprotect")
@pytest.mark.parametrize("kernels", ["usual", pytest.param("unusual", marks=pytest.mark.slow)])
@each_algorithm
def test_nothing_outside_the_arrays_is_touched(name, kernels):
    """Each array stands against a page that kills the process: the last line printed is the culprit."""
    wanted = kernels == "unusual"
    problems = [p for p in PROBLEMS if unusual(name, p) is wanted]
    last = [q for p in PROBLEMS[::3] if unusual(name, q := replace(p, layout="nhwc")) is wanted]
    if not problems:
        pytest.skip("no kernels are unusual to it")
    lines = [str(p) for p in [*problems, *last]]
    result = subprocess.run(
        [sys.executable, "-c", GUARD, name], input="\n".join(lines),
        check=False, capture_output=True, text=True, timeout=600, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    last = result.stdout.splitlines()[-1] if result.stdout else ""
    assert last == "done", f"died ({result.returncode}) in {last}\n{result.stderr[-2000:]}"


def test_the_reference_serves_everything():
    reference = registry()["reference"]
    for problem in PROBLEMS:
        for direction in Direction:
            assert reference.reject(problem, direction) is None
            assert reference.workspace(problem, direction, 0) == 0


@each_algorithm
@each_direction
def test_costs_are_seconds(name, direction):
    """Positive, and growing with the batch about as the work does."""
    small, large = (ConvProblem.parse(f"n{n} c64 k64 i28x28 f3x3 p1") for n in (2, 64))
    assert serves(name, small, direction)
    costs = [registry()[name].cost(p, direction) for p in (small, large)]
    assert 0 < costs[0] < costs[1] < 100 * costs[0]


@each_algorithm
def test_reasons_against_are_few(name):
    """An algorithm that rejected all would pass every test above."""
    for direction in Direction:
        assert sum(serves(name, p, direction) for p in PROBLEMS) >= len(PROBLEMS) // 5


def pixel_by_pixel(array):
    """Return images (n, c, ...) whose memory holds them pixel by pixel."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


FEWER_PIXELS_THAN_STRIDE = ConvProblem.parse("n1 c3 k4 i4x4 f5x5 s5 p1")  # a tap that is in no phase
WIDE_DEPTHWISE = [  # vectors of channels that overlap, steps of many taps, at borders and inside
    ConvProblem.parse("n2 c33 k33 i10x21 f3x7 p1x2 s1x2 g33"),
    ConvProblem.parse("n1 c20 k20 i8x27 f4x12 p2x6 g20"),
]
MOSTLY_PADDING = [  # rows of taps that meet nothing else
    ConvProblem.parse("n1 c8 k20 i6 f11 p5 g2"),
    ConvProblem.parse("n2 c6 k9 i5x4 f7x3 p6x1 s2x1"),
]
BORDERS = [
    ConvProblem.parse("n2 c3 k4 i7x6 f3x3 p1 reflect"),
    ConvProblem.parse("n1 c4 k6 i2x3 f3x3 p4:1x5:2 g2 reflect"),  # wider than the image
    ConvProblem.parse("n2 c20 k20 i8x19 f3x4 p1 s1x2 g20 circular"),
    ConvProblem.parse("n1 c20 k20 i9x18 f5x5 p2 s2 g20 replicate"),
    ConvProblem.parse("n1 c18 k20 i11x10 f3x3 p1 replicate"),
    ConvProblem.parse("n1 c6 k9 i9x8 f5x3 p2x1 s2x1 reflect"),
    ConvProblem.parse("n2 c5 k7 i5 f4 p9 circular"),  # one axis, and most taps meet the border
    ConvProblem.parse("n2 c18 k20 i11x10 f3x3 p1 circular"),  # grad_output is a circle, too
    ConvProblem.parse("n1 c6 k9 i8x9 f5x4 p2:1x2:1 s2x1 circular"),
    ConvProblem.parse("n1 c20 k20 i8x9 f5x4 p2:1x3:0 s2x1 g20 circular"),
    ConvProblem.parse("n1 c20 k20 i8x9 f5x3 p2x0 g20 circular"),
    ConvProblem.parse("n2 c5 k7 i9x8 f1x1 p1 replicate"),
    ConvProblem.parse(
        "n1 c70 k70 i7x9 f5x7 p2x3 g70 reflect"
    ),  # vectors of channels side by side, and one more
    ConvProblem.parse("n1 c20 k20 i7x8 f7x5 p3x2 s1x2 g20 circular"),  # grad_output is a circle
]
VOLUMES = [
    ConvProblem.parse("n2 c18 k20 i4x5x6 f3x3x3 p1 circular"),
    ConvProblem.parse("n1 c16 k9 i6x7x18 f3x3x3 p1 s2"),
    ConvProblem.parse("n1 c16 k16 i6x7x18 f3x1x1 p1x0x0"),  # only sheets are padded: read in place
    ConvProblem.parse("n1 c16 k16 i5x7x8 f2x3x3"),
    ConvProblem.parse("n2 c20 k20 i6x7x8 f3x3x3 p1 g20"),
    ConvProblem.parse("n2 c32 k32 i6x7x8 f3x3x3 s2 g32"),
    ConvProblem.parse("n1 c5 k5 i6x7x8 f2x3x3 p0:1x1x1 s2x1x2 d2x1x1 g5 reflect"),
]
FEW_OF_A_GROUP = [
    ConvProblem.parse("n2 c40 k40 i11x12 f3x3 p1 g20"),
    ConvProblem.parse("n1 c36 k90 i9x7 f3x3 p1 s2x1 d1x2 g18"),
    ConvProblem.parse("n1 c80 k80 i7x9 f3x3 p1 g20 reflect"),
    ConvProblem.parse("n1 c40 k60 i8x9 f5x4 p2:1x3:0 s2x1 g20 circular"),
    ConvProblem.parse("n1 c30 k60 i7x9 f3x3 p1 g6"),  # more than pass through registers side by side
    ConvProblem.parse("n2 c20 k60 i9x18 f5x3 p2x1 s2 g20"),  # several results of a channel
    ConvProblem.parse("n1 c6 k12 i6x7x8 f3x3x3 p1 g6 replicate"),
    ConvProblem.parse("n1 c20 k40 i30 f71 p35 g20"),
]
FEW_BESIDE_MANY = [  # results of a weight gradient fill vectors, channels do not
    ConvProblem.parse("n2 c3 k32 i11x10 f3x3 s2 p1"),
    ConvProblem.parse("n1 c3 k16 i9x10 f3x3"),
    ConvProblem.parse("n1 c3 k48 i13x12 f3x3 p1:2x0:3 d2 reflect"),
    ConvProblem.parse("n1 c18 k64 i9x8 f3x3 p1 g2 circular"),
    ConvProblem.parse("n1 c2 k16 i5x6x7 f3x3x3 p1 float64"),
]
POWER_OF_TWO = ConvProblem.parse(
    "n1 c1024 k1024 i6x5 f3x3 p1 g1024"
)  # channels, which a copy keeps a vector apart
PIXEL_BY_PIXEL = [
    replace(p, layout="nhwc")
    for p in [
        *FEW_OF_A_GROUP,
        *FEW_BESIDE_MANY,
        POWER_OF_TWO,
        FEWER_PIXELS_THAN_STRIDE,
        *WIDE_DEPTHWISE,
        *MOSTLY_PADDING,
        *BORDERS,
        *VOLUMES,
        *WRITTEN[::2],
        *PROBLEMS[::9],
    ]
]


@each_algorithm
@each_direction
@pytest.mark.parametrize("kernels", ["usual", pytest.param("unusual", marks=pytest.mark.slow)])
def test_images_pixel_by_pixel(name, direction, kernels):
    """Right, from both dtypes, prepared or not, with the same bits from one worker (all of float64); or rejected in words."""
    check_pixel_by_pixel(name, direction, kernels == "unusual")


@pytest.mark.parametrize("kind", ["pixels", "groups"])
@each_direction
def test_other_lanes_than_channels(kind, direction, monkeypatch):
    """Direct takes them where result channels are few; here, wherever it can."""

    def forced(problem, direction):
        can = can_turn(problem, direction) if kind == "pixels" else problem.groups > 1
        return kind if can else lanes(problem, direction)

    direct = sys.modules[type(registry()["direct"]).__module__]
    for module in (direct, direct.pixels):
        monkeypatch.setattr(module, "lanes", forced)
        module._make.cache_clear()
    check_pixel_by_pixel("direct", direction)
    for module in (direct, direct.pixels):
        module._make.cache_clear()


def check_pixel_by_pixel(name, direction, wanted=False):
    algorithm, activation = registry()[name], activations.RELU
    for problem in [*PIXEL_BY_PIXEL, *(replace(p, dtype="float64") for p in PIXEL_BY_PIXEL[::8])]:
        if not serves(name, problem, direction) or unusual(name, problem) is not wanted:
            continue
        first, second = operands(problem, direction, testing.integers if name in EXACT else testing.normals)
        weight = direction is Direction.WEIGHT_GRAD
        a, b = pixel_by_pixel(first), pixel_by_pixel(second) if weight else second
        out = blank(problem, direction)
        out = out if weight else pixel_by_pixel(out)
        execution = algorithm.build(problem, direction, UNLIMITED)
        with config(threads=1 if problem.dtype == "float64" else None):
            execution.run(a, b, out, np.empty(0, problem.dtype), activations.NONE, np.empty(0, problem.dtype))
        if name in EXACT:
            testing.assert_exact(problem, direction, first, second, out)
        else:
            growth = algorithm.error_growth(problem, direction)
            testing.assert_right(problem, direction, first, second, out, growth, allowed(problem, direction))
        if weight:
            continue
        bias = testing.integers((out.shape[1],), problem.dtype, 4)
        expected = np.maximum(out + bias.reshape(-1, *[1] * len(problem.axes)), 0)
        with config(threads=1):
            execution.run_prepared(a, execution.prepare(b), out, bias, activation, np.empty(0, problem.dtype))
        # what pixels that repeat others add comes after the bias
        rounded = name not in EXACT and problem.padding_mode != "zeros"
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 if rounded else 0)


@each_algorithm
@each_direction
def test_same_bits_pixel_by_pixel(name, direction):
    """On one worker or more; and within the least workspace."""
    algorithm = registry()[name]
    for problem in PIXEL_BY_PIXEL[::5]:
        if serves(name, problem, direction) and not unusual(name, problem):
            growth = algorithm.error_growth(problem, direction)
            weight = direction is Direction.WEIGHT_GRAD
            first, second = operands(problem, direction, testing.normals)
            a, b = pixel_by_pixel(first), pixel_by_pixel(second) if weight else second
            least = algorithm.workspace(problem, direction, 0)
            for limit in (UNLIMITED, least):
                results, nothing = [], np.empty(0, problem.dtype)
                execution = algorithm.build(problem, direction, limit)
                assert execution.workspace <= limit
                for workers in (1, 2):
                    out = blank(problem, direction)
                    out = out if weight else pixel_by_pixel(out)
                    with config(threads=workers):
                        execution.run(a, b, out, nothing, activations.NONE, nothing)
                    results.append(out)
                np.testing.assert_array_equal(*results)
                testing.assert_right(
                    problem, direction, first, second, results[0], growth, allowed(problem, direction)
                )
