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
    """Predict seconds, counted in steps of one vector FMA; the factors were measured on Zen 4."""
    m = machine.machine()
    v, h = plane_axes(problem)
    vl = machine.lanes(problem.dtype)
    step = 2 * vl * m.cores / m.peak(problem.itemsize)
    strided = v.stride * h.stride > 1
    taps = v.kernel * h.kernel * (2 if v.kernel == 1 else 1)  # a single row of taps shares no loads
    vectors = v.output * h.output / vl if h.output * 2 <= vl else v.output * -(-h.output // vl)
    # 140 steps to turn to a plane, 5 to copy a vector, 9 to copy one of every second pixel
    steps = 140.0 + (9 if strided else 5) * v.size * -(-h.size // vl)
    if direction is Direction.WEIGHT_GRAD:  # sums go through memory in each row that meets only some taps
        steps += taps * (1.2 * v.output * -(-h.output // vl) + 4 * min(v.output, 2 * min(v.kernel, 5)))
    else:
        steps += taps * vectors
    if strided and direction is Direction.INPUT_GRAD:  # short rows of few taps, interleaved
        steps += 30 * v.size * -(-h.size // vl)
    rate = 0.43 * m.l2_bandwidth * m.cores if problem.bytes < m.l3 / 4 else m.bandwidth
    return 4e-6 + problem.n * problem.k * steps * step / m.cores + problem.bytes / rate


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
