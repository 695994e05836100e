"""Every step of the ladder computes the same convolution."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np

from fastconv.algorithms.reference import forward


def test_every_step_agrees_with_the_definition():
    spec = spec_from_file_location("ladder", Path(__file__).parents[1] / "bench" / "ladder.py")
    ladder = module_from_spec(spec)
    spec.loader.exec_module(ladder)
    problem, x, w, y, steps = ladder.ladder("n1 c3 k8 i9x39 f3x3")
    exact = forward(problem, x.astype("float64"), w.astype("float64"))
    assert len(steps) >= 8
    for name, call in steps.items():
        y.fill(np.nan)
        call()
        np.testing.assert_allclose(y, exact, atol=1e-4, err_msg=name)
