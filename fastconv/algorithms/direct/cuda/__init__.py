"""Direct convolution on a GPU: sums in registers, pixels from memory once; for few channels, above all depthwise.

* `forward` launches `rows`: forward and input gradient, channels first;
* `weight` launches `weight_rows`: the weight gradient of these, in parts that are added in one order.

Nothing is packed: a weight is read where it lies, by threads of a warp at one place.
"""

from __future__ import annotations

from math import prod

from fastconv.algorithms.base import Algorithm, Execution
from fastconv.algorithms.correlation import pass_of
from fastconv.algorithms.direct.cuda import weight
from fastconv.algorithms.direct.cuda.forward import Rows, Tiling
from fastconv.algorithms.direct.cuda.rows import TX
from fastconv.problem import ConvProblem, Direction

LIMIT = 2**31  # coordinates, pixels of a map and numbers of threads have 32 bits; maps have 64-bit addresses
MOST_PHASES = 16


class Direct(Algorithm):
    """Any stride, dilation and groups, on one to three axes."""

    name = "direct"
    exact = True

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        if problem.layout != "nchw":
            return f"reads channels first on a GPU, got {problem.layout}"
        of_weight = direction is Direction.WEIGHT_GRAD
        p = pass_of(problem, Direction.FORWARD if of_weight else direction)
        if p.axes[-1].step > MOST_PHASES:
            return f"stride {p.axes[-1].step} along rows has more phases than registers hold, {MOST_PHASES}"
        reach = max(a.stride * a.outputs + max((abs(o) for o in a.offsets), default=0) for a in p.axes)
        maps = (prod(a.source for a in p.axes), prod(a.result for a in p.axes))
        threads = weight.most_blocks(problem) if of_weight else Tiling(p).threads
        if max(reach, *maps, threads) >= LIMIT:
            return "a padded axis, a map or the number of threads has 2**31 elements"
        return None

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return weight.plan(problem, limit).workspace if direction is Direction.WEIGHT_GRAD else 0

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        # An H100 multiplies 60e12 times a second and copies 3e12 bytes; shares of those are guesses.
        slower = 1 if problem.dtype == "float32" else 2
        if direction is Direction.WEIGHT_GRAD:
            passes = weight.passes(problem)  # over both arrays, from the second-level cache
            return 1e-5 + slower * problem.flops / 15e12 + problem.bytes * (1 / 2.4e12 + (passes - 1) / 6e12)
        p = pass_of(problem, direction)
        t = Tiling(p)
        flops = 2 * t.threads * t.tm * t.ty * TX * p.axes[-1].step * p.reduction / p.phases
        again = (
            (t.tiles_m - 1) * problem.itemsize * p.n * p.groups * p.channels * prod(a.source for a in p.axes)
        )
        return 5e-6 + slower * flops / 20e12 + problem.bytes / 2.4e12 + again / 6e12

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        if direction is Direction.WEIGHT_GRAD:
            return weight.WeightRows(problem, weight.plan(problem, limit))
        return Rows(problem, direction)
