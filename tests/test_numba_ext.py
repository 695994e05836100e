"""Calls from jitted code give the bits of calls from Python, on the thread that calls."""

import subprocess
import sys
import threading

import numba
import numpy as np
import pytest
from numba import njit, prange

import fastconv
from fastconv import activations, compiled, jit, numba_ext, plan, testing, threads
from fastconv.config import config

X, W, B = (testing.normals(shape, "float32") for shape in ((4, 4, 9, 8), (6, 4, 3, 3), (6,)))


@njit(parallel=True)
def each(images, w, b):
    out = np.empty((len(images), len(w), 9, 8), images.dtype)
    for i in prange(len(images)):
        out[i] = fastconv.conv2d(images[i], w, b, padding="same", activation="relu")
    return out


@njit(nogil=True)
def strided(x, w, stride, padding, dilation, groups):
    return fastconv.conv2d(x, w, None, stride, padding, dilation, groups, algorithm="direct")


def same(a, b):
    assert a.dtype == b.dtype
    assert np.array_equal(a, b)


def test_in_a_prange_over_images():
    numba.set_num_threads(2)
    same(each(X, W, B), fastconv.conv2d(X, W, B, padding="same", activation="relu"))
    with pytest.raises(ValueError, match="expects 4 input channels per group, input has 3"):
        each(X[:, :3], W, B)


@pytest.mark.parametrize(
    "call",
    [
        ((2, 1), ((0, 2), (-1, 1)), (1, 2), 1),
        ((1, 1), ((1, 1), (1, 1)), (1, 1), 2),
        ((1, 1), ((6, 6), (6, 6)), (6, 6), 1),  # taps that meet nothing leave the problem: by the interpreter
    ],
)
def test_numbers(call):
    w = W[:, : 4 // call[-1]].copy()
    for x in (X, X[:0], X[:, :, ::-1]):
        same(strided(x, w, *call), fastconv.conv2d(x, w, None, *call, algorithm="direct"))


def test_what_python_refuses():
    """By the same messages, whether the sizes are new or not."""
    ones, none = (1, 1), ((0, 0), (0, 0))
    for _ in range(2):
        for rule, call in {
            "does not fit": (ones, none, (9, 9), 1),
            "stride must be at least 1": ((0, 1), none, ones, 1),
            "divisible by groups: 4 % 3": (ones, none, ones, 3),
        }.items():
            with pytest.raises(ValueError, match=rule):
                fastconv.conv2d(X, W, None, *call)
            with pytest.raises(ValueError, match=rule):
                strided(X, W, *call)


def test_settings_of_the_first_call_do_not_stay():
    with config(algorithm="fft"):
        y = each(X[:1], W, B)
    same(y, fastconv.conv2d(X[:1], W, B, padding="same", activation="relu"))


def test_threads_that_meet_a_problem_at_once():
    results = [None] * 4
    arguments = X[:3], W, (1, 1), ((1, 0), (0, 1)), (1, 1), 1

    def call(i):
        results[i] = strided(*arguments)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for y in results:
        same(y, fastconv.conv2d(X[:3], W, None, *arguments[2:], algorithm="direct"))


@pytest.mark.parametrize(
    ("rule", "call"),
    [
        ("float32 or float64", lambda x, w: fastconv.conv2d(x.astype(np.int64), w)),
        ("weight must be an array of float32 or float64, of one dtype", lambda x, w: fastconv.conv2d(x, w.astype(np.float64))),
        ("input must be .N, C, H, W. or .C, H, W., got 2 dim", lambda x, w: fastconv.conv2d(x[0, 0], w)),
        ("activation must be None or one of", lambda x, w: fastconv.conv2d(x, w, activation="softmax")),
        ("out is not served", lambda x, w: fastconv.conv2d(x, w, out=x)),
        ("stride must be an integer or a tuple", lambda x, w: fastconv.conv2d(x, w, stride=1.0)),
    ],
)  # fmt: skip
def test_types(rule, call):
    with pytest.raises(numba.TypingError, match=rule):
        njit(call).compile((numba.typeof(X), numba.typeof(W)))


def test_a_plan_that_computes_besides_its_kernels_is_not_compiled():
    """Where it writes to the result itself, or reads a number from an operand."""
    walk = 2, (1, 1), ((0, 0), (0, 0)), (1, 1), 1, "nchw", "zeros"
    made = plan.find("forward", X.shape, W.shape, X.dtype, walk, "direct", None)
    run = made.run
    assert compiled.function(made, 0, False, False)

    def filled(first, second, out, *rest):
        out.fill(0)
        run(first, second, out, *rest)

    def scaled(first, *rest):
        threads.start(kernel, 1, float(first.max()), first)
        run(first, *rest)

    @jit.kernel
    def kernel(workers, scale, first):
        for i in prange(workers):
            first[i] = scale

    try:
        for made.run in filled, scaled:
            assert compiled.function(made, 0, False, False) is None
    finally:
        made.run = run


def test_codes():
    assert {name: i for i, name in enumerate(numba_ext.ACTIVATIONS) if name} == activations.CODES


PROGRAM = """
import numpy as np, fastconv, numba
import fastconv.numba_ext  # where it is installed Numba does that

@numba.njit(cache=True)
def call(x, w):
    return fastconv.conv1d(x, w, padding=1, residual=x, padding_mode="reflect", algorithm="direct")

x, w = np.arange(18, dtype="f4").reshape(1, 2, 9), np.arange(12, dtype="f4").reshape(2, 2, 3)
y = fastconv.conv1d(x, w, padding=1, residual=x, padding_mode="reflect", algorithm="direct")
assert (call(x, w) == y).all()
print(len(call.stats.cache_hits))
"""


def test_cache(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    for hits in "01":
        result = subprocess.run(
            [sys.executable, tmp_path / "program.py"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == hits
