"""Settings: where they come from and which wins."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastconv
from fastconv.config import Settings, current, override


def test_blocks_nest_and_restore():
    before = current()
    with fastconv.config(algorithm="reference") as outer:
        assert outer.algorithm == "reference"
        with fastconv.config(workspace=10, precision="strict"):
            assert current() == Settings("reference", "strict", 10, before.threads)
        assert current() == outer
    assert current() == before


def test_restored_after_an_error():
    before = current()
    with pytest.raises(RuntimeError), fastconv.config(threads=1):
        raise RuntimeError
    assert current() == before


def test_decorator():
    @fastconv.config(threads=1)
    def threads():
        return current().threads

    assert threads() == threads() == 1


def test_threads_see_their_own():
    seen = []
    with fastconv.config(threads=1):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen[0].threads is None


def test_arguments_win_but_auto_leaves():
    settings = Settings(algorithm="im2col", workspace=5)
    assert override(settings, "direct", None) == Settings(algorithm="direct", workspace=5)
    assert override(settings, "auto", 7) == Settings(algorithm="im2col", workspace=7)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"speed": 1}, TypeError, "no setting speed; it has algorithm, precision, workspace, threads"),
        ({"precision": "exact"}, ValueError, "precision must be 'fast' or 'strict', got 'exact'"),
        ({"workspace": -1}, ValueError, "workspace must be at least 0, got -1"),
        ({"workspace": 1.5}, TypeError, "workspace must be an integer, got 1.5"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"threads": True}, TypeError, "threads must be an integer"),
        ({"device": "gpu"}, ValueError, "device must be 'cpu' or 'cuda', got 'gpu'"),
        ({"algorithm": None}, TypeError, "algorithm must be a name, got NoneType"),
        ({"deterministic": 1}, TypeError, "deterministic must be True or False, got 1"),
        ({"precision": np.zeros(2)}, ValueError, "precision must be 'fast' or 'strict', got array"),
        ({"tune": np.zeros(2)}, ValueError, "tune must be 'off', 'on' or 'force', got array"),
        ({"device": np.zeros(2)}, ValueError, "device must be 'cpu' or 'cuda', got array"),
    ],
)
def test_bad_settings(changes, error, message):
    with pytest.raises(error, match=message), fastconv.config(**changes):
        pass


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_environment():
    done = run(
        "from fastconv.config import current; print(current())",
        FASTCONV_ALGORITHM="direct", FASTCONV_WORKSPACE="123", FASTCONV_THREADS="1", FASTCONV_PRECISION="",
    )  # fmt: skip
    expected = Settings("direct", "fast", 123, 1)
    assert done.stdout.strip() == str(expected), done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("FASTCONV_WORKSPACE", "1GB"), ("FASTCONV_THREADS", "0"), ("FASTCONV_PRECISION", "exact")],
)
def test_bad_environment_is_named(name, value):
    done = run("from fastconv.config import current; current()", **{name: value})
    assert done.returncode == 1
    assert f"ValueError: {name}={value}" in done.stderr


def test_import_is_light():
    """No compiler, no JIT and no file access until something is computed."""
    code = (
        "import sys, fastconv; heavy = {'numba', 'llvmlite', 'rich', 'torch', 'argparse'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
