"""The executions of the route of small tiles (`cut`): which kernels run on what."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import machine, threads, workspace
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.fft import cpu, weight_grad
from fastconv.algorithms.fft.cut import Choice, Cut, gradient_parts
from fastconv.algorithms.fft.lanes import table_size
from fastconv.algorithms.fft.tiling import whole
from fastconv.problem import Axis, ConvProblem, Direction


def geometry(problem: ConvProblem, direction: Direction, cut: Cut) -> cpu.Geometry:
    """Put a problem and its cut into numbers; the input gradient is a correlation with turned kernels."""
    turn = direction is Direction.INPUT_GRAD
    axes = [
        _ends(a, turn, length) for a, length in zip((Axis(1, 1), *problem.axes)[-2:], cut.size, strict=True)
    ]
    (h, p, lo_h, skip_h), (w, q, lo_w, skip_w) = axes
    r, s = (1, *problem.kernel)[-2:]
    unit, (ah, aw), (mh, mw), (th, tw) = machine.tile(problem.itemsize), cut.size, cut.step, cut.count
    c, k, taps = cut.c, cut.k, r * s
    return cpu.Geometry(
        n=problem.n, groups=cut.groups, c=c, k=k, h=h, w=w, p=p, q=q, lo_h=lo_h, lo_w=lo_w, ah=ah, aw=aw,
        mh=mh, mw=mw, th=th, tw=tw, skip_h=skip_h, skip_w=skip_w,
        sign=1.0 if turn else -1.0, r=r, s=s, w_group=k * c * taps, w_k=taps if turn else c * taps,
        w_c=k * taps if turn else taps, frequencies=cut.bins, lanes=cut.lanes, vectors=cut.vectors, mr=unit.mr,
        nr=unit.nr, tile_scratch=cut.scratch, table=table_size(cut.lanes, aw),
    )  # fmt: skip


def _ends(axis: Axis, turn: bool, length: int) -> tuple[int, int, int, int]:
    """Return an axis' samples and results, the padding before the samples, and the first valid result of a tile."""
    if not turn:
        return axis.size, axis.output, axis.lo, 0
    if length >= whole(axis):
        return axis.output, axis.size, max(-axis.lo, 0), max(axis.lo, 0)
    return axis.output, axis.size, axis.extent - 1 - axis.lo, axis.extent - 1


class _Tiles(Execution):
    """What both executions share: U and the scratch of the workers."""

    def __init__(self, problem: ConvProblem, direction: Direction, choice: Choice) -> None:
        self.dtype, self.choice = problem.dtype, choice
        self.geometry = geometry(problem, direction, choice.cut)
        self.workspace = choice.bytes(problem.itemsize)

    def _scratch(self, before: int) -> Array:
        size = before + threads.count() * self.choice.worker
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
        kernel = cpu.depthwise_weights if self.choice.cut.per_channel else cpu.dense_weights
        threads.launch(kernel, self.choice.flops, flat(weight), u, scratch, self.geometry)

    def _multiply(
        self, x: Array, u: Array, out: Array, bias: Array, activation: Any, residual: Array, scratch: Array
    ) -> None:
        kernel = cpu.depthwise if self.choice.cut.per_channel else cpu.dense
        threads.launch(
            kernel, self.choice.flops, flat(x), u, flat(out), bias, activation, flat(residual), scratch,
            self.geometry,
        )  # fmt: skip


class WeightGrad(_Tiles):
    """Weight gradient by tiles, dense or per channel."""

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        g, flops = self.geometry, self.choice.flops
        operands = flat(first), flat(second), flat(out)
        scratch = self._scratch(self.choice.shared)
        if self.choice.cut.per_channel:
            threads.launch(weight_grad.depthwise_weight_grad, flops, *operands, scratch, g)
            return
        ends = np.cumsum(gradient_parts(self.choice.cut))
        a, v, m, rest = np.split(scratch, ends)
        threads.launch(weight_grad.dense_weight_grad, flops, *operands, a, v, m, rest, g)


def build(problem: ConvProblem, direction: Direction, choice: Choice) -> Execution:
    """Make the execution of a choice."""
    return (WeightGrad if direction is Direction.WEIGHT_GRAD else Spectral)(problem, direction, choice)
