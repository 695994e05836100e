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
