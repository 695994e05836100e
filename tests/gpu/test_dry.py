"""What needs a GPU, run through without one (`borrowed`), so that a first contact stumbles over nothing trivial."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda")
import test_device

from fastconv.cuda import ahead
from fastconv.problem import Direction

RACE = """
import sys, borrowed, torch
from fastconv.bench import gpu
from fastconv.bench.corpus import Layer
from fastconv.cuda import ahead
from fastconv.problem import ConvProblem

if __name__ == "__main__":
    gpu.ROUNDS = gpu.CALLS = gpu.REPEATS = 1
    gpu.much = lambda: torch.zeros(1)
    gpu.NAMED = ()
    gpu.corpus.load = lambda suite: [Layer(ConvProblem.parse("n1 c2 k2 i4x4 f3x3 p1"), "3x3")]
    gpu.compile_all = lambda kernels, *rest: ahead.compile_all(kernels[:1], *rest)
    sys.argv = ["gpu", "core", "-o", sys.argv[1]]
    gpu.main()
"""


def run(*command):
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, *command], cwd=Path(__file__).parent, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False, capture_output=True, text=True, timeout=500
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_race(tmp_path):
    script, output = tmp_path / "race.py", tmp_path / "race.json"
    script.write_text(RACE)
    told = run(str(script), str(output))
    assert told.rstrip().endswith("done")
    assert "FAILED" not in told
    assert "WRONG" not in told
    found = json.loads(output.read_text())
    assert all(seconds > 0 for seconds in found["launch"].values())
    assert "4/4" in told
    assert len(found["rows"]) == 4
    assert "TFLOP/s" in found["table"][0]


def test_the_tests_of_a_device():
    """A few of each kind; the problems of others are those of the contract on the CPU."""
    right = [f"right_and_repeatable[n1 c1 k1 i1x1 f1x1-forward-{name}]" for name in ("reference", "direct")]
    kinds = [f"results_are_of_the_callers_kind_on_the_callers_stream[{name}]" for name in ("torch", "cupy")]
    some = [f"test_device.py::test_{name}" for name in (*right, *kinds, "pooling_and_numpy_arrays")]
    told = run("-m", "pytest", "-n0", "-q", "-p", "borrowed", "-m", "cuda", *some)
    assert f"{len(some)} passed" in told


def test_every_problem_of_a_device_is_described(monkeypatch):
    """What raises before a kernel is started would end all of the tests, when they compile ahead; grids are none a GPU refuses."""
    grids, note = [], ahead.Elsewhere.note

    def noted(gpu, kernel, blocks, *rest):
        grids.append((blocks, kernel.threads))
        return note(gpu, kernel, blocks, *rest)

    monkeypatch.setattr(ahead.Elsewhere, "note", noted)
    cases = product(test_device.PROBLEMS, Direction, test_device.NAMES)
    assert len(test_device.kernels_of(cases, 132)) > 500
    assert all(0 < blocks < 2**31 and threads <= 1024 for blocks, threads in grids)
