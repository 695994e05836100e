"""Convolution by its definition, arranged for registers and caches: nothing is lowered or transformed."""

from __future__ import annotations

import functools
from dataclasses import replace

from fastconv.algorithms.base import ZEROS_AROUND, Algorithm, Execution
from fastconv.algorithms.direct import depthwise, pixels
from fastconv.algorithms.direct.cost import cost
from fastconv.gemm.blocking import within
from fastconv.problem import ConvProblem, Direction


class Direct(Algorithm):
    """Any stride, dilation and groups; depthwise by kernels of its own."""

    name = "direct"
    exact = True

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        if len(problem.axes) > 2:
            return f"{len(problem.axes)} spatial axes; direct walks one or two"
        if problem.is_depthwise and problem.padding_mode != "zeros":
            return f"depthwise, {ZEROS_AROUND}"
        return pixels.reject(problem, direction) if problem.layout == "nhwc" else None

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return self.build(problem, direction, limit).workspace

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        if problem.is_depthwise:
            return depthwise.cost(problem, direction)
        return cost(problem, direction)

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        if problem.layout == "nhwc":
            return pixels.build(problem, direction, limit)
        if problem.is_depthwise:
            return depthwise.build(problem, direction, limit)
        return within(limit, functools.partial(_make, problem, direction))


@functools.lru_cache(maxsize=256)
def _make(problem: ConvProblem, direction: Direction, cache: int) -> Execution:
    """Make ready to run with blocks for ``cache`` bytes."""
    if direction is Direction.WEIGHT_GRAD:
        from fastconv.algorithms.direct.weight_grad import WeightGrad

        return WeightGrad(problem, cache)
    if direction is Direction.INPUT_GRAD and problem.padding_mode != "zeros":
        from fastconv.algorithms.frame import framed

        return framed(_make(replace(problem, padding_mode="zeros"), direction, cache), problem, cache)
    from fastconv.algorithms.correlation import Correlation
    from fastconv.algorithms.direct.dense import DensePass

    return Correlation(problem, direction, DensePass, cache)
