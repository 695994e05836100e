"""Direct convolution on a GPU: sums in registers, pixels from memory once; for few channels, above all depthwise.

* `forward` launches `rows`: forward and input gradient, channels first;
* `forward_pixels` launches `pixels`: the same, channels last;
* `weight` launches `weight_rows`: the weight gradient, in parts that are added in one order.
"""

from __future__ import annotations

from math import prod

from fastconv.algorithms.base import Algorithm, Execution
from fastconv.algorithms.direct.cuda import forward_pixels, weight
from fastconv.algorithms.direct.cuda.forward import Rows, Tiling, row_of
from fastconv.algorithms.direct.cuda.row import MOST, TX
from fastconv.algorithms.im2col.cuda import three
from fastconv.algorithms.passes import pass_of
from fastconv.cuda import backend
from fastconv.problem import ConvProblem, Direction

LIMIT = 2**31  # coordinates, pixels of a map and numbers of threads have 32 bits; maps have 64-bit addresses
MOST_PHASES = 16
LATENCY = 2.3e-7  # seconds from one load of a thread to the next that waits for it
RESIDENT = 512  # threads of a multiprocessor


def rounds(threads: int) -> int:
    """Return how often the GPU is full of so many threads."""
    return -(-threads // (RESIDENT * backend().processors()))


class Direct(Algorithm):
    """Any stride, dilation and groups, on one to three axes."""

    name = "direct"
    exact = True

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        of_weight = direction is Direction.WEIGHT_GRAD
        p = pass_of(problem, Direction.FORWARD if of_weight else direction)
        last = problem.layout == "nhwc"
        if p.axes[-1].step > MOST_PHASES and not last:
            return f"stride {p.axes[-1].step} along rows has more phases than registers hold, {MOST_PHASES}"
        if (span := row_of(three(p.axes)[-1], False).width) > MOST:
            return f"a thread's four positions in a row span {span} pixels, registers hold {MOST}"
        reach = max(a.stride * a.outputs + max((abs(o) for o in a.offsets), default=0) for a in p.axes)
        maps = (prod(a.source for a in p.axes), prod(a.result for a in p.axes))
        own_threads = forward_pixels.threads(p) if last else Tiling(p, problem.itemsize).threads
        threads = weight.most_blocks(problem) if of_weight else own_threads
        if max(reach, *maps, threads) >= LIMIT:
            return "a padded axis, a map or the number of threads has 2**31 elements"
        return None

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        if direction is Direction.WEIGHT_GRAD:
            return weight.plan(problem, limit).workspace
        return problem.itemsize * prod(problem.weight_shape) if problem.layout == "nhwc" else 0

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        # An H100 multiplies 60e12 times a second and copies 3e12 bytes; shares of those are guesses.
        slower = 1 if problem.dtype == "float32" else 2
        if direction is Direction.WEIGHT_GRAD:
            passes = weight.passes(problem)  # over both arrays, from the second-level cache
            moving = problem.bytes * (1 / 2.4e12 + (passes - 1) / 6e12)
            return 1e-5 + max(slower * problem.flops / 15e12, moving, LATENCY * weight.turns(problem))
        p = pass_of(problem, direction)
        last = p.axes[-1]
        turns = p.reduction / p.phases * last.step / max(1, sum(map(len, last.taps)))  # rows of the source
        if problem.layout == "nhwc":
            threads = forward_pixels.threads(p)
            flops = 2 * threads * TX * p.reduction / p.phases
            return 1e-5 + max(
                slower * flops / 15e12, problem.bytes / 2.4e12, LATENCY * turns * rounds(threads // 4)
            )
        t = Tiling(p, problem.itemsize)
        flops = 2 * t.threads * t.tm * t.ty * TX * last.step * p.reduction / p.phases
        again = (
            (t.tiles_m - 1) * problem.itemsize * p.n * p.groups * p.channels * prod(a.source for a in p.axes)
        )
        moving = problem.bytes / 2.4e12 + again / 6e12
        return 5e-6 + max(slower * flops / 20e12, moving, LATENCY * turns * rounds(t.threads))

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        if direction is Direction.WEIGHT_GRAD:
            return weight.WeightRows(problem, weight.plan(problem, limit))
        return (forward_pixels.Pixels if problem.layout == "nhwc" else Rows)(problem, direction)
