"""Depthwise convolution: each output channel reads one input channel, so the vectors run along the rows.

* forward: `forward`, from the image where it lies;
* input gradient: `input_grad`, the same with turned taps, a sub-problem for each residue of the stride;
* weight gradient: `weight_grad`, blocks of taps as accumulators.

What each does is written down once in tables (`rows`, `columns`, `schedule`), which two micro-kernels walk (`taps`, `outer`); the first two
have the walk over maps in common (`maps`).
"""

from __future__ import annotations

import functools

from fastconv import machine
from fastconv.algorithms.base import Execution
from fastconv.algorithms.direct.depthwise.move import WIDEST
from fastconv.algorithms.direct.depthwise.outer import most
from fastconv.algorithms.direct.depthwise.shape import family, plane_axes, stripe
from fastconv.problem import FORWARD, INPUT_GRAD, WEIGHT_GRAD, ConvProblem, Direction
from fastconv.roofline import seconds
from fastconv.taps import met


def reject(problem: ConvProblem, direction: Direction) -> str | None:
    """Return why depthwise kernels cannot serve the problem, or None."""
    if not problem.is_depthwise:
        return f"not depthwise: {problem.groups} groups of {problem.c // problem.groups} channels"
    if len(problem.axes) > 2:
        return f"{len(problem.axes)} spatial axes; depthwise kernels walk one or two"
    return None


def workspace(problem: ConvProblem, direction: Direction) -> int:
    """Return the bytes of scratch that an execution takes: a few rows at the most."""
    return build(problem, direction).workspace


def cost(problem: ConvProblem, direction: Direction) -> float:
    """Predict seconds: taps multiplied, and what is begun anew for each block and each plane."""
    kind = "depthwise weight_grad" if direction is WEIGHT_GRAD else "depthwise"
    return seconds(kind, problem, work(problem, direction))


def work(problem: ConvProblem, direction: Direction) -> dict[str, float]:
    """Count a pass over all planes: vectors multiplied by rows of taps that meet the image, and rows copied."""
    v, h = plane_axes(problem)
    planes, across = problem.n * problem.k, -(-h.output // machine.tile(problem.itemsize).vl)
    products = planes * met(v) * h.kernel * across
    for a in problem.axes[:-2]:  # of a volume, channels last
        products *= met(a)
    parts = {"taps": products, "single row": products if v.kernel == 1 else 0.0}
    pixels = 0 if family(problem) else planes * h.size * v.size
    copied, sorted_ = (0, pixels) if h.stride <= WIDEST else (pixels, 0)
    if direction is WEIGHT_GRAD:
        tall, wide = most()
        chunks = -(-v.kernel // tall) * -(-h.kernel // wide)
        stripes = -(-v.output // stripe(problem.itemsize, v, h, not family(problem)))
        return parts | {"blocks": planes * across * chunks * stripes, "copied": copied, "sorted": sorted_}
    if direction is INPUT_GRAD:
        copied, sorted_ = planes * v.size * h.size if h.stride > 2 else 0, 0  # woven
    return parts | {"copied": copied, "sorted": sorted_}


@functools.lru_cache(maxsize=256)
def build(problem: ConvProblem, direction: Direction) -> Execution:
    """Make ready to run."""
    if direction is FORWARD:
        from fastconv.algorithms.direct.depthwise.forward import Forward

        return Forward(problem)
    if direction is INPUT_GRAD:
        from fastconv.algorithms.direct.depthwise.input_grad import InputGrad

        return InputGrad(problem)
    from fastconv.algorithms.direct.depthwise.weight_grad import WeightGrad

    return WeightGrad(problem)
