"""Direct convolution of images held pixel by pixel (nhwc): the lanes of vectors are result channels.

    result[pixel, k] = sum over taps and channels of  source[pixel + tap, c] * w[tap, c, k]

The channels of a pixel are a row of matrix A as it stands in memory, for any kernel, stride and dilation,
so nothing is lowered or transposed but the weights (`pack.py`); `correlation.py` computes the forward
direction and the input gradient.  The weight gradient (`direct/weight_grad.py`) reads both of its operands so.  Depthwise, lanes are the
channels themselves (`depthwise.py`, `depthwise_weight_grad.py`).
"""

from __future__ import annotations

import functools
from math import prod

from fastconv import borders
from fastconv.algorithms.base import CHANNELS_FIRST, Execution
from fastconv.gemm.blocking import within
from fastconv.problem import ConvProblem, Direction

TAPS = 49  # of a depthwise weight gradient: beyond, the transforms of `fft` win even if images are reordered


def reject(problem: ConvProblem, direction: Direction) -> str | None:
    """Return why these kernels cannot serve a problem, or None."""
    if not problem.is_depthwise:
        return None
    if problem.k != problem.c:
        return f"depthwise with {problem.k} results of {problem.c} channels {CHANNELS_FIRST}"
    if direction is Direction.WEIGHT_GRAD and prod(problem.kernel) > TAPS:
        return f"the weight gradient of more than {TAPS} taps a channel {CHANNELS_FIRST}"
    return None


def build(problem: ConvProblem, direction: Direction, limit: int) -> Execution:
    """Make ready to run within ``limit`` bytes of scratch."""
    return within(limit, functools.partial(_make, problem, direction))


@functools.lru_cache(maxsize=256)
def _make(problem: ConvProblem, direction: Direction, cache: int) -> Execution:
    """Make ready to run with blocks for ``cache`` bytes."""
    if direction is Direction.WEIGHT_GRAD and problem.is_depthwise:
        from fastconv.algorithms.direct.pixels.depthwise_weight_grad import DepthwiseWeightGrad

        return DepthwiseWeightGrad(problem, cache)
    if direction is Direction.WEIGHT_GRAD:
        from fastconv.algorithms.direct.weight_grad import WeightGrad

        return WeightGrad(problem, cache)
    if problem.is_depthwise:
        from fastconv.algorithms.direct.pixels.depthwise import Depthwise

        return Depthwise(problem, direction, cache)
    from fastconv.algorithms.direct.pixels.correlation import Correlation

    if borders.framed(problem, direction):
        from fastconv.algorithms.direct.pixels.frame import FramedPixels

        return FramedPixels(Correlation(problem, direction, cache), problem)
    return Correlation(problem, direction, cache)
