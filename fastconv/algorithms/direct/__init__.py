"""Convolution by its definition, arranged for registers and caches: nothing is lowered or transformed.

    y[n, k, p, q] = sum over c, r, s of  w[k, c, r, s] * x[n, c, p*stride + r*dilation - lo, q*stride + s*dilation - lo]

For one tap (r, s) the pixels that a row of results reads are a row of x that begins elsewhere.  So a tile of the GEMM engine
holds some k by some q in registers, and each of its steps is one (c, r, s): the weights of its k, times that row.

* `dense.py` and `cpu.py`: the forward pass and the input gradient, of images channel by channel;
* `weight_grad.py`: the steps are pixels, and the results taps;
* `pixels/`: of images pixel by pixel, whose vectors are channels;
* `depthwise/`: one channel a result, so that there is no matrix: a vector of results and its taps.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from math import prod

from fastconv import borders, machine
from fastconv.algorithms.base import Algorithm, Execution
from fastconv.algorithms.direct import depthwise, pixels
from fastconv.algorithms.direct.cost import cost, few, lanes
from fastconv.gemm.blocking import within
from fastconv.problem import FORWARD, INPUT_GRAD, WEIGHT_GRAD, ConvProblem, Direction
from fastconv.roofline import computing, least

TAPS = 49  # of one channel, that depthwise kernels sum before dense ones are faster
PASSING = 8  # second-level caches: results of so many and more are written past all caches


class Direct(Algorithm):
    """Any stride, dilation and groups; depthwise images by kernels of their own, volumes by the dense ones."""

    name = "direct"
    exact = True

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return self.build(problem, direction, limit).workspace

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        if problem.is_depthwise if problem.layout == "nhwc" else _by_plane(problem, direction):
            return depthwise.cost(problem, direction)
        return cost(problem, direction)

    def preparing(self, problem: ConvProblem) -> float:
        if problem.layout == "nhwc" and lanes(problem, FORWARD) == "channels":
            vectors = prod(problem.weight_shape) / machine.tile(problem.itemsize).vl
            return computing("direct pixels", problem, {"weights": vectors})
        return 0.0

    def floor(self, problem: ConvProblem, direction: Direction) -> float:
        if problem.groups == problem.c or few(problem, direction):  # by kernels of other costs
            return 0.0
        if problem.layout == "nhwc":
            return least("direct pixels", problem)
        return least("direct weight_grad" if direction is WEIGHT_GRAD else "direct", problem)

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        if problem.layout == "nhwc" and lanes(problem, direction) != "pixels":
            return pixels.build(problem, direction, limit)
        if problem.layout != "nhwc" and _by_plane(problem, direction):
            return depthwise.build(problem, direction)
        return within(limit, functools.partial(_make, problem, direction))


def _by_plane(problem: ConvProblem, direction: Direction) -> bool:
    """Tell whether depthwise kernels serve the problem: one channel makes a depthwise layer of one group.

    They take half the time of the dense ones (1 -> 16 channels 5x5, 64 x 28 x 28: 0.39 and 0.80 ms), until
    results pass by the caches: from 25 MB on the dense ones, which store past them, are faster.  So they are with
    many taps (1 -> 32 channels 5x20 at stride 2, 4 x 161 x 700: 21 and 5 ms), but for the input gradient; and at a
    stride, where each result channel splits the rows anew (1 -> 64 channels 5x5 at stride 2: 1.67 ms, im2col 0.52).
    """
    if len(problem.axes) > 2:
        return False
    if problem.c > 1 or problem.padding_mode != "zeros":
        return problem.is_depthwise
    if direction is not INPUT_GRAD and prod(problem.kernel) > TAPS:
        return False
    if direction is FORWARD:
        if problem.axes[-1].stride > 1:
            return problem.is_depthwise
        return prod(problem.output_shape) * problem.itemsize <= PASSING * machine.machine().l2
    return True


@functools.lru_cache(maxsize=256)
def _make(problem: ConvProblem, direction: Direction, cache: int) -> Execution:
    """Make ready to run with blocks for ``cache`` bytes."""
    if direction is WEIGHT_GRAD:
        from fastconv.algorithms.direct.weight_grad import WeightGrad

        return WeightGrad(problem, cache)
    if borders.framed(problem, direction):
        from fastconv.algorithms.frame import framed

        return framed(_make(replace(problem, padding_mode="zeros"), direction, cache), problem, cache)
    from fastconv.algorithms.correlation import Correlation
    from fastconv.algorithms.direct.dense import DensePass

    return Correlation(problem, direction, DensePass, cache)
