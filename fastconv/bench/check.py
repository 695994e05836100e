"""Is it right: every result that is timed is first compared with one in float64."""

from __future__ import annotations

from importlib.util import find_spec
from math import isfinite, sqrt
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import Array
from fastconv.bench.peers import Operands, Torch
from fastconv.problem import ConvProblem, Direction

LARGE = 2e9  # flops; float64 takes seconds beyond
LARGE_FOR_NUMPY = 2e8
# Largest error over the root mean square of the result.  Winograd and FFT kernels in float32 stay under
# 3e-5; an element left out is 1 and more.
BOUND = {"float32": 1e-4, "float64": 1e-11}
LOOSER = 3  # times that, where the other result is not in float64 either


class Truth(NamedTuple):
    """What a result must be, and how near it must come."""

    values: Array
    bound: float

    def error(self, result: Array) -> float:
        """Return the largest error over the root mean square; infinity for NaN or a wrong shape."""
        if result.shape != self.values.shape:
            return float("inf")
        flat = self.values.reshape(-1).astype("float64")
        scale = sqrt(float(flat @ flat) / max(1, flat.size))
        worst = float(np.abs(result.reshape(-1) - flat).max(initial=0.0))
        return worst / (scale or 1.0) if isfinite(worst) else float("inf")


def truth(problem: ConvProblem, direction: Direction, operands: Operands, check_all: bool) -> Truth | None:
    """Compute a result another way; None where that would take too long."""
    bound = BOUND[problem.dtype]
    if find_spec("torch"):
        import torch

        torch_peer = Torch(torch.get_num_threads(), channels_last=False)
        if torch_peer.applies(problem, direction):
            small = check_all or problem.flops <= LARGE
            values = torch_peer.make(problem, direction, operands.doubled() if small else operands)().numpy()
            return Truth(values, bound if small else LOOSER * bound)
    if check_all or problem.flops <= LARGE_FOR_NUMPY:
        from fastconv.testing import definition

        exact = operands.doubled()
        pair = {
            Direction.FORWARD: (exact.x, exact.w),
            Direction.INPUT_GRAD: (exact.gy, exact.w),
            Direction.WEIGHT_GRAD: (exact.x, exact.gy),
        }[direction]
        return Truth(definition(problem, direction, *pair), bound)
    return None
