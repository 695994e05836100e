"""Convolution by its definition, arranged for registers and caches: nothing is lowered or transformed."""

from __future__ import annotations

from fastconv import machine
from fastconv.algorithms.base import Algorithm, Execution
from fastconv.algorithms.correlation import Correlation
from fastconv.algorithms.direct.dense import DensePass
from fastconv.problem import ConvProblem, Direction


class Direct(Algorithm):
    """Any stride, dilation and groups; depthwise by kernels of its own."""

    name = "direct"

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        if len(problem.axes) > 2:
            return f"{len(problem.axes)} spatial axes; direct walks one or two"
        if direction is Direction.WEIGHT_GRAD:
            return "weight gradient not yet"
        return None

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return self.build(problem, direction, limit).workspace

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        return problem.flops / (0.88 * machine.machine().peak(problem.itemsize))

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        return Correlation(problem, direction, DensePass)
