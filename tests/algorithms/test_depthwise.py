"""Depthwise kernels against the definition: exact, because small integers leave no rounding."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fastconv import activations
from fastconv.algorithms import reference
from fastconv.algorithms.direct import depthwise
from fastconv.config import config
from fastconv.problem import ConvProblem, Direction

CASES = [
    "n2 c4 k4 i56x56 f3x3 p1 g4",
    "n2 c4 k8 i56x56 f3x3 s2 p1 g4",
    "n1 c5 k5 i7x7 f3x3 p1 g5",
    "n2 c4 k4 i31x45 f5x5 s2x1 p2:1x3:0 g4",
    "n2 c4 k4 i31x45 f5x4 s3x4 p2:1x3:0 d2x3 g4",
    "n2 c3 k6 i31x45 f5x4 s4x2 p2:1x3:0 d6x3 g3",
    "n2 c3 k6 i31x45 f5x4 s6x2 p2:1x3:0 d4x4 g3",
    "n1 c3 k3 i14x14 f27x27 p13 g3",  # most taps meet only padding
    "n1 c3 k9 i7x7 f13x13 p6 g3",
    "n1 c3 k3 i28x28 f31x31 p15 g3",
    "n2 c2 k4 i56x37 f7x7 p3 g2",  # many rows at once
    "n1 c2 k2 i14x7 f5x6 p2x3 g2 reflect",
    "n1 c2 k2 i28x20 f11x3 p5x1 d1x2 g2 replicate",
    "n1 c3 k3 i10x12 f3x3 p-1:-2x-3:1 g3",  # cropped
    "n1 c3 k3 i5x5 f2x2 p9 g3",  # outputs that meet only padding
    "n1 c3 k3 i1x1 f3x3 p1 g3",
    "n1 c2 k4 i1x1 f1x1 g2",
    "n1 c2 k2 i9x9 f1x1 s3 g2",  # pixels that no tap reads
    "n3 c3 k3 i200 f7 p3 g3",
    "n3 c3 k3 i1000 f70 s3 p3 d2 g3",
    "n1 c2 k2 i300x700 f3x3 p1 g2",  # several stripes
    "n1 c2 k4 i300x700 f3x3 s2 p1 g2",
    "n1 c2 k2 i9x9 f1x5 s2x3 p0:0x7:2 d1x2 g2",
    "n1 c2 k2 i40x20 f9x1 p4:4x0:0 d1x2 g2",
    "n1 c2 k2 i1x1 f5x5 s3 p7:9x6:6 d3x2 g2",
    "n2 c3 k6 i56x57 f3x3 p1 g3 reflect",
    "n2 c3 k3 i56x55 f5x3 s2 p2x1 g3 replicate",
    "n1 c3 k3 i21x40 f7x7 p3 d1x2 g3 circular",
    "n1 c3 k3 i9x7 f3x3 s1x2 p2 g3 reflect",  # rows are copied
    "n1 c3 k3 i5x35 f3x7 p9:4x30:20 g3 circular",  # borders that do not come from one vector
    "n2 c3 k3 i50 f5 p2 g3 reflect",
    "n1 c3 k6 i20x19 f5x4 s3x4 p4x3 d1x2 g3 circular",
    "n1 c3 k3 i28x27 f31x31 p15 g3 reflect",
    "n1 c2 k4 i20x21 f9x9 s2 p4 g2 replicate",
    "n1 c2 k2 i20x23 f7x7 s2 p3 g2 reflect",
    "n1 c2 k2 i20x40 f7x7 p3 g2 replicate",  # rows of the padding that repeat one row
    "n1 c2 k2 i56x56 f5x5 s2 p2 g2 circular",
    "n1 c2 k2 i7x7 f5x5 p2 g2 circular",  # both ends in a vector
    "n1 c2 k2 i20x70 f3x35 p1x17 g2 circular",  # rows go through scratch
    "n1 c2 k4 i20x33 f5x5 s2 p2 g2 circular",  # rows are copied, of gy not
    "n2 c2 k2 i32x40 f7x7 s2 p3 g2 circular",  # of gy, too
    "n1 c2 k2 i2x1 f5x5 p2 g2 circular",  # around the image twice
    "n1 c2 k2 i9x40 f11x3 p20x1 g2 reflect",  # rows around that repeat the image there and back
]


def operands(problem, direction, low=-3, high=4):
    rng = np.random.default_rng(7)
    x, w, gy = (
        rng.integers(low, high, shape).astype(problem.dtype)
        for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)
    )
    return {
        Direction.FORWARD: (x, w, problem.output_shape, reference.forward),
        Direction.INPUT_GRAD: (gy, w, problem.input_shape, reference.input_grad),
        Direction.WEIGHT_GRAD: (x, gy, problem.weight_shape, reference.weight_grad),
    }[direction]


def run(problem, direction, first, second, shape, bias=(), activation=activations.NONE):
    out = np.full(shape, np.nan, problem.dtype)
    execution = depthwise.build(problem, direction)
    execution.run(first, second, out, np.array(bias, problem.dtype), activation, np.empty(0, problem.dtype))
    return out


EACH = [  # borders are compiled apart, and one text serves both dtypes
    pytest.param(line, dtype, marks=[pytest.mark.slow] * (dtype == "float64" and line.split()[-1].isalpha()))
    for line in CASES
    for dtype in ("float32", "float64")
]


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize(("line", "dtype"), EACH)
def test_equals_the_definition(line, dtype, direction):
    problem = ConvProblem.parse(f"{line} {dtype}")
    first, second, shape, definition = operands(problem, direction)
    result = run(problem, direction, first, second, shape)
    np.testing.assert_array_equal(result, definition(problem, first, second))


@pytest.mark.parametrize("direction", Direction)
def test_random_geometries(direction):
    rng = np.random.default_rng(11)
    tried = 0
    while tried < 150:
        c, multiplier = int(rng.integers(2, 4)), int(rng.choice([1, 1, 2]))
        axes = []
        for _ in range(2):
            size, kernel = rng.choice([1, 2, 7, 14, 16, 17, 33]), rng.choice([1, 2, 3, 5, 8])
            axes.append((size, kernel, *rng.integers(1, 5, 2), *rng.integers(-2, 9, 2)))
        sizes, kernels, strides, dilations = ("x".join(str(a[i]) for a in axes) for i in range(4))
        mode = rng.choice(["", "", "reflect", "replicate", "circular"])
        padding = "x".join(f"{max(a[4], 0) if mode else a[4]}:{max(a[5], 0) if mode else a[5]}" for a in axes)
        line = f"n2 c{c} k{c * multiplier} i{sizes} f{kernels} s{strides} d{dilations} p{padding} g{c} {mode}"
        try:
            problem = ConvProblem.parse(line)
        except ValueError:  # the kernel does not fit
            continue
        tried += 1
        first, second, shape, definition = operands(problem, direction)
        result = run(problem, direction, first, second, shape)
        np.testing.assert_array_equal(result, definition(problem, first, second), err_msg=line)


@pytest.mark.parametrize("direction", Direction)
def test_bits_do_not_depend_on_threads(direction):
    problem = ConvProblem.parse("n3 c7 k14 i40x45 f5x5 s1x2 p2 g7")
    rng = np.random.default_rng(3)
    first, second, shape, _ = operands(problem, direction)
    first, second = (rng.standard_normal(a.shape).astype(a.dtype) for a in (first, second))
    with config(threads=1):
        alone = run(problem, direction, first, second, shape)
    np.testing.assert_array_equal(run(problem, direction, first, second, shape), alone)


def test_bias_and_activation():
    problem = ConvProblem.parse("n2 c3 k6 i19x21 f3x3 p1 g3")
    x, w, shape, definition = operands(problem, Direction.FORWARD)
    bias = np.arange(6) - 3.0
    y = run(problem, Direction.FORWARD, x, w, shape, bias=bias, activation=activations.RELU)
    np.testing.assert_array_equal(y, np.maximum(definition(problem, x, w) + bias.reshape(6, 1, 1), 0))


@pytest.mark.parametrize("direction", Direction)
def test_infinite_pixels_reach_only_what_they_should(direction):
    problem = ConvProblem.parse("n1 c2 k2 i9x21 f3x3 s2 g2")  # column 20 and row 8 are read by few
    first, second, shape, definition = operands(problem, direction, 1, 4)
    first[0, 0, -1, -1] = np.inf
    with np.errstate(invalid="ignore"):
        expected = definition(problem, first, second)
    np.testing.assert_array_equal(run(problem, direction, first, second, shape), expected)


@pytest.mark.parametrize("direction", Direction)
def test_no_images(direction):
    problem = ConvProblem.parse("n0 c3 k3 i10x10 f3x3 g3")
    first, second, shape, _ = operands(problem, direction)
    result = run(problem, direction, first, second, shape)
    assert result.shape == shape
    assert not result.any()


def test_rejects_in_words():
    assert "not depthwise" in depthwise.reject(ConvProblem.parse("n1 c4 k4 i8x8 f3x3"), Direction.FORWARD)
    problem = ConvProblem.parse("n1 c4 k4 i8x8x8 f3x3x3 g4")
    assert "3 spatial axes" in depthwise.reject(problem, Direction.FORWARD)
    problem = ConvProblem.parse("n1 c4 k8 i8x8 f3x3 g4")
    for direction in Direction:
        assert depthwise.reject(problem, direction) is None
        assert depthwise.cost(problem, direction) > 0
        assert depthwise.workspace(problem, direction) >= 0


GUARD = """
import sys
import numpy as np
from fastconv import activations, testing, threads
from fastconv.algorithms.direct import depthwise
from fastconv.problem import ConvProblem, Direction

threads.SERIAL_FLOPS = -1
for line in sys.argv[1:]:
    problem = ConvProblem.parse(line)
    for direction in Direction:
        for at_end in (True, False):
            print(direction, line, flush=True)
            shapes = testing.shapes(problem, direction)
            first, second, out = (testing.guarded(shape, problem.dtype, at_end) for shape in shapes)
            first[...], second[...] = testing.normals(shapes[0], problem.dtype, 1), 1
            nothing = np.empty(0, problem.dtype)
            depthwise.build(problem, direction).run(first, second, out, nothing, activations.NONE, nothing)
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no mprotect")
def test_images_read_in_place_are_not_read_beyond():
    """Masked lanes lie on a page that kills the process: the last line printed is the culprit."""
    done = subprocess.run([sys.executable, "-c", GUARD, *CASES], capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1] if done.stdout else ""
    assert last == "done", f"died ({done.returncode}) in {last}\n{done.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpu", "features"),
    [("haswell", "+avx,+avx2,+fma,+sse4.2,+f16c,+bmi,+bmi2"), ("nehalem", "+sse4.2")],
)
def test_narrower_vectors(cpu, features, tmp_path):
    environment = dict(os.environ, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features)
    environment["NUMBA_CACHE_DIR"] = str(tmp_path)
    tests = [f"{__file__}::{name}" for name in ("test_equals_the_definition", "test_random_geometries")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
