"""Is it right: every result that is timed is first compared with one in float64."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from math import isfinite, sqrt
from typing import NamedTuple

import numpy as np

from fastconv.bench.peers import Operands, Torch
from fastconv.problem import FLOATS, ConvProblem, Direction
from fastconv.typing import Array

LARGE = 2e9  # flops; float64 takes seconds beyond
LARGE_FOR_NUMPY = 2e8
# Largest error over the root mean square of the result.  Winograd and FFT kernels in float32 stay under
# 3e-5; an element left out is 1 and more.  Halves are rounded once, the largest by several times as much as the mean.
BOUND = {
    "float32": 1e-4, "float64": 1e-11, "complex64": 1e-4, "complex128": 1e-11, "float16": 5e-3, "bfloat16": 4e-2,
    "int64": 0.0,
}  # fmt: skip
LOOSER = 3  # times that, where the other result is not in float64 either


class Truth(NamedTuple):
    """What a result must be, and how near it must come."""

    values: Array
    bound: float

    def error(self, result: Array) -> float:
        """Return the largest error over the root mean square; infinity for NaN or a wrong shape."""
        if result.shape != self.values.shape:
            return float("inf")
        flat = self.values.reshape(-1).astype("complex128" if self.values.dtype.kind == "c" else "float64")
        scale = sqrt(float(np.vdot(flat, flat).real) / max(1, flat.size))
        worst = float(np.abs(result.reshape(-1) - flat).max(initial=0.0))
        return worst / (scale or 1.0) if isfinite(worst) else float("inf")


def truth(problem: ConvProblem, direction: Direction, operands: Operands, check_all: bool) -> Truth | None:
    """Compute a result another way; None where that would take too long."""
    bound = BOUND[problem.dtype]
    if find_spec("torch"):
        import torch

        torch_peer = Torch(torch.get_num_threads(), channels_last=False)
        real = replace(problem, layout="nchw", dtype="float64")  # the numbers are the same
        if "complex" not in problem.dtype and torch_peer.takes(real, direction):
            small = check_all or problem.flops <= LARGE or problem.dtype not in FLOATS
            values = torch_peer.make(real, direction, operands.doubled() if small else operands)().numpy()
            return Truth(values, bound if small else LOOSER * bound)
    if check_all or problem.flops <= LARGE_FOR_NUMPY:
        from fastconv.testing import definition

        x, w, gy = operands.doubled()
        pair = {
            Direction.FORWARD: (x, w),
            Direction.INPUT_GRAD: (gy, w.conj()),
            Direction.WEIGHT_GRAD: (x.conj(), gy),
        }[direction]
        return Truth(definition(problem, direction, *pair), bound)
    return None
