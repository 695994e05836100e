"""Depthwise convolution: each output channel reads one input channel, so the vectors run along the rows.

* forward: `forward`, from a padded copy of a stripe of one channel in cache;
* input gradient: `input_grad`, the same with turned taps, a sub-problem for each residue of the stride;
* weight gradient: `weight_grad`, blocks of taps as accumulators.
"""

from __future__ import annotations

import functools

from fastconv import machine
from fastconv.algorithms.base import Execution
from fastconv.algorithms.direct.depthwise.shape import plane_axes
from fastconv.problem import ConvProblem, Direction
from fastconv.roofline import seconds


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
    """Predict seconds: vectors copied into stripes, taps multiplied, and what is begun anew for each plane."""
    kind = "depthwise weight_grad" if direction is Direction.WEIGHT_GRAD else "depthwise"
    return seconds(kind, problem, work(problem, direction))


def work(problem: ConvProblem, direction: Direction) -> dict[str, float]:
    """Count a pass over all planes."""
    v, h = plane_axes(problem)
    vl, planes = machine.tile(problem.itemsize).vl, problem.n * problem.k
    strided = v.stride * h.stride > 1
    taps = v.kernel * h.kernel
    rows, across, source = v.output, -(-h.output // vl), planes * v.size * -(-h.size // vl)
    vectors = (
        rows * h.output / vl if h.output * 2 <= vl else rows * across
    )  # rows of small maps share vectors
    parts = {
        "planes": planes,
        "copy": 0.0 if strided else source,
        "copy strided": source if strided else 0.0,
        "single row": planes * taps * vectors if v.kernel == 1 else 0.0,  # whose taps share no loads
    }
    if direction is Direction.WEIGHT_GRAD:  # sums go through memory in each row that meets only some taps
        sums = planes * taps * min(rows, 2 * min(v.kernel, 5))
        return parts | {"taps": planes * taps * rows * across, "sums": sums}
    woven = source if strided and direction is Direction.INPUT_GRAD else 0.0  # short rows of few taps
    return parts | {"taps": planes * taps * vectors, "woven": woven}


def build(problem: ConvProblem, direction: Direction, limit: int) -> Execution:
    """Make ready to run within ``limit`` bytes of scratch, or as little more as can be."""
    execution = _make(problem, direction, limit)
    budget = limit
    while execution.workspace > limit and budget:  # a stripe needs some bytes beside its rows
        budget //= 2
        execution = _make(problem, direction, budget)
    return execution


@functools.lru_cache(maxsize=256)
def _make(problem: ConvProblem, direction: Direction, budget: int) -> Execution:
    """Make ready to run with stripes of about ``budget`` bytes, all workers together."""
    if direction is Direction.FORWARD:
        from fastconv.algorithms.direct.depthwise.forward import Forward

        return Forward(problem)
    if direction is Direction.INPUT_GRAD:
        from fastconv.algorithms.direct.depthwise.input_grad import InputGrad

        return InputGrad(problem)
    from fastconv.algorithms.direct.depthwise.weight_grad import WeightGrad

    return WeightGrad(problem, budget)
