"""Settings of the whole run, made before Numba is imported."""

import gc
import os
import re
from pathlib import Path

import hypothesis
import pytest

# Two threads even on one core, so that the parallel twins run everywhere.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, os.cpu_count() or 1)))

hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("dev", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

CASES = Path(__file__).parent / "cases"
collect_ignore = ["gpu/borrowed.py"]  # who imports it has a GPU that is none


def pytest_collection_finish():
    """Look for garbage less often, and not among ten thousand tests: a tenth of compiling, which makes millions of objects."""
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture
def always_parallel(monkeypatch):
    """Give even the smallest problem to all threads."""
    from fastconv import threads

    monkeypatch.setattr(threads, "SERIAL_FLOPS", -1)


@pytest.fixture(autouse=True)
def double_precision_on_one_worker(request):
    """Twins are compiled from one body, and compiling is what this run's time goes to: float64 has the serial one alone."""
    if "float64" not in request.node.name:
        yield
        return
    from fastconv import config

    with config(threads=1):
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of one algorithm in one process: what one test compiles the next one has.

    By the node's text, as the marks of ``--dist=loadgroup`` do nothing under pytest 9.
    """
    from xdist.scheduler import LoadScopeScheduling

    from fastconv.algorithms import registry

    kin = {"depthwise": "direct", "properties": "im2col"} | {name: name for name in registry()}

    class ByAlgorithm(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            if file.endswith("test_device.py"):
                return nodeid  # compiled ahead
            for word in re.split(r"[\[\]-]", test):
                if word in kin:
                    return kin[word]
            return kin.get(Path(file).stem.removeprefix("test_"), file)

    return ByAlgorithm(config, log)
