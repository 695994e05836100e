"""Right results from many Python threads at once and in forked children, under every threading layer.

Each test is a process of its own with a time limit: a hang or an abort is a failure, not the end of the run.
"""

import os
import subprocess
import sys
import threading
from importlib.util import find_spec

import numba
import numpy as np
import pytest

import fastconv
from fastconv import config, testing, threads
from fastconv.problem import ConvProblem

LAYERS = ["omp", "workqueue", *(["tbb"] if find_spec("tbb") else [])]

BEGIN = """
import os, sys, threading, time
import numba, numpy as np
import fastconv
from fastconv import testing, threads
from fastconv.problem import ConvProblem, Direction

problem = ConvProblem.parse("n2 c16 k16 i20x20 f3x3 p1")  # 3.7 MFLOP: worth two threads
assert problem.flops > threads.SERIAL_FLOPS
x = testing.integers(problem.input_shape, "float32", 1)
w = testing.integers(problem.weight_shape, "float32", 2)
right = testing.definition(problem, Direction.FORWARD, x, w)

def convolve():
    return fastconv.conv2d(x, w, padding=1, algorithm="im2col")

def check():
    np.testing.assert_array_equal(convolve(), right)

def wait(child):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"child ended with {status}"
            return
        time.sleep(0.005)
    os.kill(child, 9)
    raise SystemExit("child hangs")

def fork():
    child = os.fork()
    if child == 0:
        try:
            check()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return child
"""

PROGRAMS = {
    "first calls from many threads at once": """
gate, failed = threading.Barrier(6), []
def work():
    gate.wait()
    try:
        for _ in range(20):
            check()
    except BaseException as error:
        failed.append(error)
workers = [threading.Thread(target=work) for _ in range(6)]
for t in workers: t.start()
for t in workers: t.join()
assert not failed, failed
check()
""",
    "child forked after a call": """
check()
for _ in range(3):
    wait(fork())
check()
""",
    "child forked before any call": """
wait(fork())
check()
""",
    "grandchild": """
check()
child = os.fork()
if child == 0:
    wait(fork())
    check()
    os._exit(0)
wait(child)
""",
    "pool of forked processes": """
import multiprocessing
check()
with multiprocessing.get_context("fork").Pool(2) as pool:
    results = [pool.apply_async(convolve) for _ in range(6)]
    for result in results:
        np.testing.assert_array_equal(result.get(60), right)
check()
""",
    "child forked while other threads compute": """
check()
stop = threading.Event()
def work():
    while not stop.is_set():
        check()
workers = [threading.Thread(target=work) for _ in range(2)]
for t in workers: t.start()
try:
    for _ in range(10):
        wait(fork())
finally:
    stop.set()
for t in workers: t.join()
""",
    "child forked from a thread": """
check()
t = threading.Thread(target=lambda: wait(fork()))
t.start(); t.join(90)
assert not t.is_alive()
""",
    "interrupted": """
import _thread, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
check()
for i in range(40):  # between any two instructions of a call
    timer = threading.Timer(1e-4 * i, _thread.interrupt_main)
    try:
        timer.start()
        for _ in range(1000):
            convolve()
    except KeyboardInterrupt:
        pass
    timer.join()
    check()
""",
    "exit while a daemon thread computes": """
check()
def work():
    while True:
        convolve()
threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
""",
}

END = """
if os.environ.get("NUMBA_THREADING_LAYER"):
    assert numba.threading_layer() == os.environ["NUMBA_THREADING_LAYER"], numba.threading_layer()
"""


def run(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", BEGIN + program + END],
        check=False, capture_output=True, text=True, timeout=240,
        env=os.environ | {"NUMBA_NUM_THREADS": "2"} | environment,
    )  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("what", PROGRAMS)
def test_under_each_layer(what, layer):
    if "fork" in PROGRAMS[what] and not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    result = run(PROGRAMS[what], NUMBA_THREADING_LAYER=layer)
    if "No threading layer could be loaded" in result.stderr:
        pytest.skip(f"Numba has no {layer} here")
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_child_forked_early_may_use_threads():
    result = run("""
child = os.fork()
if child == 0:
    check()
    os._exit(0 if threads.count() == 2 else 1)
wait(child)
check()
child = os.fork()
if child == 0:
    os._exit(0 if threads.count() == 1 else 1)
wait(child)
""")
    assert result.returncode == 0, result.stderr[-3000:]


def test_count_keeps_the_settings():
    available = numba.config.NUMBA_NUM_THREADS
    assert threads.count() == available
    with config(threads=1):
        assert threads.count() == 1
    with config(threads=1000):
        assert threads.count() == available


def test_numbas_own_limit_changes_no_result():
    x, w = testing.integers((2, 16, 20, 20), "float32", 1), testing.integers((16, 16, 1, 1), "float32", 2)
    seen = []

    def masked():
        numba.set_num_threads(1)
        seen.append(fastconv.conv2d(x, w))

    thread = threading.Thread(target=masked)
    thread.start()
    thread.join()
    assert np.array_equal(seen[0], fastconv.conv2d(x, w))


@numba.njit
def twice(value):
    return value + value


@pytest.mark.parametrize(
    ("algorithm", "layout", "count"),
    [
        ("im2col", "NCHW", 2),
        ("direct", "NHWC", 1),
        pytest.param("im2col", "NCHW", 1, marks=pytest.mark.slow),
        pytest.param("direct", "NHWC", 2, marks=pytest.mark.slow),
    ],
)
def test_one_plan_takes_whatever_follows(algorithm, layout, count):
    """Only its first call finds out types, so nothing that later ones may bring can have another."""
    problem = ConvProblem.parse("n1 c16 k16 i32x32 f1x1")  # 0.5 MFLOP: worth two threads
    assert problem.flops > threads.SERIAL_FLOPS
    shape = (0, 2, 3, 1) if layout == "NHWC" else (0, 1, 2, 3)
    x = testing.integers(problem.input_shape, "float32", 1).transpose(shape).copy()
    w = testing.integers(problem.weight_shape, "float32", 2)
    bias = testing.integers((problem.k,), "float32", 3)
    residual = testing.integers(problem.output_shape, "float32", 4).transpose(shape).copy()
    kept = [a.copy() for a in (x, w, bias, residual)]
    for a in kept:
        a.flags.writeable = False
    for images, weight, *terms in (
        (x, w, None, None),
        (x, w, bias, None),
        (x, w, bias, residual),
        kept,
        (x, w, None, residual),
    ):
        for activation, of in ((None, lambda y: y), (twice, lambda y: 2 * y), ("relu", lambda y: y.clip(0))):
            given = dict(zip(("bias", "residual"), terms, strict=True), layout=layout)
            with config(threads=count):
                y = fastconv.conv2d(images, weight, algorithm=algorithm, activation=activation, **given)
            assert np.array_equal(y, of(fastconv.conv2d(images, weight, algorithm="reference", **given)))


class _Spy:
    """Stands for a kernel and records which twin ran, on how many workers."""

    def __init__(self, inside=lambda: None):
        self.calls, self.inside = [], inside

    def serial(self, workers):
        self.calls.append(("serial", workers))

    def parallel(self, workers):
        self.calls.append(("parallel", workers))
        self.inside()


def test_little_work_and_single_threads_run_serially():
    spy = _Spy()
    threads.launch(spy, threads.SERIAL_FLOPS)
    with config(threads=1):
        threads.launch(spy, 1e9)
    assert spy.calls == [("serial", 1)] * 2
    threads.launch(spy, 1e9)
    assert spy.calls[2:] == [("parallel", numba.get_num_threads())]


def test_a_layer_that_takes_one_thread_gets_one(monkeypatch):
    monkeypatch.setattr(threads, "_layer", lambda: "workqueue")
    second = _Spy()
    first = _Spy(lambda: threads.launch(second, 1e9))
    threads.launch(first, 1e9)
    assert first.calls[0][0] == "parallel"
    assert second.calls == [("serial", 1)]
    threads.launch(second, 1e9)
    assert second.calls[1][0] == "parallel", "the region is free again"
