"""Settings of the whole run, made before Numba is imported."""

import gc
import os
import re
from pathlib import Path

import hypothesis
import numpy as np
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


@pytest.fixture(autouse=True)
def one_twin(request, monkeypatch):
    """In tests of algorithms give even the smallest problem to all threads, and what one gets to the parallel twin as well.

    Twins are compiled from one body, and compiling is what this run's time goes to: of float64 it is the serial one.
    """
    if request.path.parent.name != "algorithms" and request.path.stem != "test_properties":
        return
    from fastconv import threads

    def start(kernel, used, *arguments):
        double = any(isinstance(a, np.ndarray) and a.dtype == np.float64 for a in arguments)
        (kernel.serial if double else kernel.parallel)(used, *arguments)

    monkeypatch.setattr(threads, "SERIAL_FLOPS", -1)
    monkeypatch.setattr(threads, "start", start)


@pytest.fixture(autouse=True)
def double_precision_on_one_worker(request):
    """float64 has the serial twin alone."""
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
            # What compiles for a GPU shares that with the other targets alone: one by one, as the last.
            if Path(file).stem in ("test_device", "test_engine", "test_staged"):
                return re.sub(r"\(\d, 0\)", "", nodeid)
            for word in re.split(r"[\[\]-]", test):
                if word in kin:
                    return kin[word]
            return kin.get(Path(file).stem.removeprefix("test_"), file)

    return ByAlgorithm(config, log)
