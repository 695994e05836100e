"""Convolution as a product of spectra, in overlap-save tiles."""

from __future__ import annotations

from fastconv.algorithms.base import Algorithm, Execution
from fastconv.algorithms.fft import signal
from fastconv.problem import ConvProblem, Direction


class Fft(Algorithm):
    """Stride 1, any kernel, dilation, groups and rank."""

    name = "fft"

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        if not problem.unit_stride:
            return "stride > 1: a product of spectra gives every position of the kernel"
        return None

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return signal.Signal(problem, direction, limit).blocks.bytes

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        return 1.0

    def error_growth(self, problem: ConvProblem, direction: Direction) -> float:
        return 2.0

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        return signal.Signal(problem, direction, limit)
