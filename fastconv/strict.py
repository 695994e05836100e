"""Infinite weights in strict mode meet the pixels of a gradient, and not the zeros around it.

Kernels of the input gradient read zeros beside grad_output, where the definition has no product at all.  That is the
same, but for a weight that is not finite, whose product with zero is NaN.  Such a weight leaves its mark in the
result, so the smaller of the two is looked through, and what is not finite is computed again, tap by tap: a tap adds to
the pixels that it reaches and to no others (`im2col/by_tap.py`).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastconv import borders
from fastconv.algorithms.base import Algorithm, Execution
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array


class Strict(Execution):
    """An input gradient, computed again where it is not finite."""

    def __init__(self, inner: Execution, problem: ConvProblem, limit: int) -> None:
        self.inner, self.problem, self.limit, self.workspace = inner, problem, limit, inner.workspace
        self.written = borders.written_out(problem)

    @functools.cached_property
    def again(self) -> Execution:
        """The same tap by tap, on the padded image; built when first needed."""
        from fastconv.algorithms.correlation import Correlation
        from fastconv.algorithms.im2col.by_tap import TapPass
        from fastconv.gemm.blocking import within

        return within(self.limit, functools.partial(Correlation, self.written, Direction.INPUT_GRAD, TapPass))

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        self.inner.run(first, second, out, bias, activation, residual)
        if not np.isfinite(min(second, out, key=np.size)).all():
            self._tap_by_tap(first, second, out, bias, activation, residual)

    def _tap_by_tap(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        from fastconv.algorithms import reference

        nothing = np.empty(0, out.dtype)
        padded = np.empty(self.written.input_shape, out.dtype)
        self.again.run(np.ascontiguousarray(first), second, padded, nothing, 0, nothing)
        reference.finished(reference.unpadded(self.problem, padded), out, bias, activation, residual)


def build(algorithm: Algorithm, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
    """Make an input gradient ready to run that looks at what kernels may have multiplied zeros with."""
    from fastconv.algorithms.passes import axis_pass

    inner = algorithm.build(problem, direction, limit)
    if all(borders.circle(a, problem.padding_mode) for a in problem.axes):
        return inner  # beside grad_output are no zeros
    axes = *problem.axes, *borders.written_out(problem).axes
    return inner if all(axis_pass(a, direction).met == 1 for a in axes) else Strict(inner, problem, limit)
