"""Settings of the whole run, made before Numba is imported."""

import os
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


@pytest.fixture
def always_parallel(monkeypatch):
    """Give even the smallest problem to all threads."""
    from fastconv import threads

    monkeypatch.setattr(threads, "SERIAL_FLOPS", -1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep the tests of one algorithm in one process: what one compiles the next one has."""
    from fastconv.algorithms import registry

    for item in items:
        about = item.path.stem.removeprefix("test_")
        about = {"depthwise": "direct"}.get(about, about)
        if about in registry() and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(about))
