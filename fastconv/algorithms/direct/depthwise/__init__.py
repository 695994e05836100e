"""Depthwise convolution: each output channel reads one input channel, so the vectors run along the rows.

* forward: `forward`, from a padded copy of a stripe of one channel in cache;
* input gradient: `input_grad`, the same with turned taps, a sub-problem for each residue of the stride;
* weight gradient: `weight_grad`, blocks of taps as accumulators.
"""

from __future__ import annotations

from fastconv import machine
from fastconv.algorithms.base import Execution
from fastconv.problem import ConvProblem, Direction


def reject(problem: ConvProblem, direction: Direction) -> str | None:
    """Return why depthwise kernels cannot serve the problem, or None."""
    if not problem.is_depthwise:
        return f"not depthwise: {problem.groups} groups of {problem.c // problem.groups} channels"
    if len(problem.axes) > 2:
        return f"{len(problem.axes)} spatial axes; depthwise kernels walk one or two"
    return None


def workspace(problem: ConvProblem, direction: Direction, limit: int) -> int:
    """Return the bytes of scratch that an execution within ``limit`` takes."""
    return build(problem, direction, limit).workspace


def cost(problem: ConvProblem, direction: Direction) -> float:
    """Predict seconds: arithmetic, or the copies and what memory brings, plus what every plane costs."""
    m = machine.machine()
    planes = problem.n * problem.k * 6e-8 / m.cores
    return (
        4e-6 + planes + problem.flops / (0.6 * m.peak(problem.itemsize)) + problem.bytes / (4 * m.bandwidth)
    )


def build(problem: ConvProblem, direction: Direction, limit: int) -> Execution:
    """Make ready to run within ``limit`` bytes of scratch."""
    if direction is Direction.FORWARD:
        from fastconv.algorithms.direct.depthwise.forward import Forward

        return Forward(problem, limit)
    if direction is Direction.INPUT_GRAD:
        from fastconv.algorithms.direct.depthwise.input_grad import InputGrad

        return InputGrad(problem, limit)
    from fastconv.algorithms.direct.depthwise.weight_grad import WeightGrad

    return WeightGrad(problem, limit)
