"""Direct convolution of images held pixel by pixel (nhwc): the lanes of vectors are result channels.

    result[pixel, k] = sum over tap, c of  source[pixel*stride + offset(tap), c] * w[tap, c, k]

The channels of a pixel are a row of matrix A as it stands in memory, for any kernel, stride and dilation,
so nothing is lowered or transposed but the weights (`pack.py`); `correlation.py` computes the forward
direction and the input gradient.  The weight gradient (`direct/weight_grad.py`) reads both of its operands so.
Lanes are groups where each has few channels, as depthwise (`by_groups.py`, `by_groups_weight_grad.py`).
"""

from __future__ import annotations

import functools

from fastconv import borders
from fastconv.algorithms.base import Execution
from fastconv.algorithms.direct.cost import lanes
from fastconv.gemm.blocking import within
from fastconv.problem import ConvProblem, Direction


def build(problem: ConvProblem, direction: Direction, limit: int) -> Execution:
    """Make ready to run within ``limit`` bytes of scratch."""
    return within(limit, functools.partial(_make, problem, direction))


@functools.lru_cache(maxsize=256)
def _make(problem: ConvProblem, direction: Direction, cache: int) -> Execution:
    """Make ready to run with blocks for ``cache`` bytes."""
    by_groups = lanes(problem, direction) == "groups"
    if direction is Direction.WEIGHT_GRAD and by_groups:
        from fastconv.algorithms.direct.pixels.by_groups_weight_grad import ByGroupsWeightGrad

        return ByGroupsWeightGrad(problem, cache)
    if direction is Direction.WEIGHT_GRAD:
        from fastconv.algorithms.direct.weight_grad import WeightGrad

        return WeightGrad(problem, cache)
    if by_groups:
        from fastconv.algorithms.direct.pixels.by_groups import ByGroups

        return ByGroups(problem, direction, cache)
    from fastconv.algorithms.direct.pixels.correlation import Correlation

    if borders.framed(problem, direction):
        from fastconv.algorithms.direct.pixels.frame import FramedPixels

        return FramedPixels(Correlation(problem, direction, cache), problem)
    return Correlation(problem, direction, cache)
