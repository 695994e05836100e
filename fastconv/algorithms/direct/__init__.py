"""Convolution by its definition, arranged for registers and caches: nothing is lowered or transformed."""

from __future__ import annotations

from fastconv import machine
from fastconv.algorithms.base import Algorithm, Execution
from fastconv.algorithms.direct import depthwise
from fastconv.gemm.blocking import within
from fastconv.problem import ConvProblem, Direction


class Direct(Algorithm):
    """Any stride, dilation and groups; depthwise by kernels of its own."""

    name = "direct"

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        if len(problem.axes) > 2:
            return f"{len(problem.axes)} spatial axes; direct walks one or two"
        return None

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return self.build(problem, direction, limit).workspace

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        if problem.is_depthwise:
            return depthwise.cost(problem, direction)
        return problem.flops / (0.88 * machine.machine().peak(problem.itemsize))

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        if problem.is_depthwise:
            return depthwise.build(problem, direction, limit)
        if direction is Direction.WEIGHT_GRAD:
            from fastconv.algorithms.direct.weight_grad import WeightGrad

            return within(limit, lambda cache: WeightGrad(problem, cache))
        from fastconv.algorithms.correlation import Correlation
        from fastconv.algorithms.direct.dense import DensePass

        return within(limit, lambda cache: Correlation(problem, direction, DensePass, cache))
