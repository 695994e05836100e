"""The executions of the route of small tiles (`cut`): which kernels run on what."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastconv import threads, workspace
from fastconv.algorithms.base import Execution, flat, pixels
from fastconv.algorithms.fft import cpu, weight_grad
from fastconv.algorithms.fft.cut import Choice, Margin, gradient_parts, rows_of_source
from fastconv.algorithms.fft.geometry import NOTHING, geometry, of_pixels
from fastconv.algorithms.fft.pixels import dense_pixels
from fastconv.gemm.record import record
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array


class _Tiles(Execution):
    """What both executions share: U and the scratch of the workers."""

    def __init__(
        self, problem: ConvProblem, direction: Direction, choice: Choice, margins: tuple[Margin, Margin] = NOTHING,
        added: bool = False,
    ) -> None:  # fmt: skip
        self.dtype, self.choice = problem.dtype, choice
        near, per_channel = problem.layout == "nhwc", choice.cut.per_channel
        self.geometry, self.maps = (
            of_pixels(problem, direction, choice.cut, added)
            if near
            else geometry(problem, direction, choice.cut, margins)
        )
        self.view = pixels if near else flat
        self.workspace = choice.bytes(problem.itemsize)
        self.weights = cpu.depthwise_weights if per_channel else cpu.dense_weights
        self.kernel = cpu.depthwise if per_channel else dense_pixels if near else cpu.dense

    @functools.cached_property
    def described(self) -> Array:
        """The geometry, as kernels take it."""
        return record(self.geometry)

    def _scratch(self, before: int) -> Array:
        size = before + self.choice.between + threads.count() * self.choice.worker
        return workspace.take(size, self.dtype)[:size]  # kernels divide it among workers


class Spectral(_Tiles):
    """Forward or input gradient by tiles, dense or per channel."""

    def prepare(self, weight: Array) -> Array:
        u = workspace.aligned(self.choice.shared, self.dtype)
        self._transform(weight, u, self._scratch(0))
        return u

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = self._scratch(self.choice.shared)
        u, rest = scratch[: self.choice.shared], scratch[self.choice.shared :]
        self._transform(second, u, rest)
        self._multiply(first, u, out, bias, activation, residual, rest)

    def run_prepared(
        self, first: Array, prepared: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        self._multiply(first, prepared, out, bias, activation, residual, self._scratch(0))

    def _transform(self, weight: Array, u: Array, scratch: Array) -> None:
        threads.share_out(
            self.typed[self.weights], self.choice.flops, flat(weight), u, scratch, self.maps, self.described
        )

    def _multiply(
        self, x: Array, u: Array, out: Array, bias: Array, activation: Any, residual: Array, scratch: Array
    ) -> None:
        y = self.view(out)
        if self.geometry.added:
            y.fill(0)
        added = self.view(residual) if residual.size else residual
        operands = self.view(x), u, y, bias, activation, added
        if self.choice.between:
            at, end = rows_of_source(self.choice.cut), self.choice.between
            parts = scratch[:at], scratch[at:end], scratch[end:]
            threads.launch(
                self.typed[self.kernel], self.choice.flops, *operands, *parts, self.maps, self.described
            )
        else:
            threads.share_out(
                self.typed[self.kernel], self.choice.flops, *operands, scratch, self.maps, self.described
            )


class WeightGrad(_Tiles):
    """Weight gradient by tiles, dense or per channel."""

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        flops, tables = self.choice.flops, (self.maps, self.described)
        operands = self.view(first), self.view(second), flat(out)
        scratch = self._scratch(self.choice.shared)
        if self.choice.cut.per_channel:
            threads.share_out(
                self.typed[weight_grad.depthwise_weight_grad], flops, *operands, scratch, *tables
            )
            return
        ends = np.cumsum(gradient_parts(self.choice.cut))
        a, v, m, rest = np.split(scratch, ends)
        threads.launch(self.typed[weight_grad.dense_weight_grad], flops, *operands, a, v, m, rest, *tables)


def build(problem: ConvProblem, direction: Direction, choice: Choice) -> Execution:
    """Make the execution of a choice."""
    return (WeightGrad if direction is Direction.WEIGHT_GRAD else Spectral)(problem, direction, choice)
