"""Forward and input gradient as passes of one operation: a correlation without inserted zeros.

A pass computes, for every result channel m and position j along each axis,

    result[m, start + step*j] = sum over channel, tap of  source[channel, stride*j + offset(tap)] * w

Forward is one pass: ``stride`` and ``offset = tap*dilation - lo`` are the problem's.

The input gradient inverts  h = p*stride + r*dilation - lo.  For the pixels h = a, a + s, a + 2s, ... of
one phase a (s = stride) only taps with  r*dilation = a + lo  (mod s)  reach a whole p, and then
p = j + (a + lo - r*dilation)/s: a unit-stride correlation of grad_output, written s pixels apart.
So there are s phases along an axis, together as much work as the forward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from fastconv import machine, threads, workspace
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.gemm.pack import WeightView, pack_weights
from fastconv.gemm.record import record
from fastconv.problem import Axis, ConvProblem, Direction


@dataclass(frozen=True, slots=True)
class AxisPass:
    """One axis of a pass."""

    outputs: int  # positions computed
    start: int  #   where the first stands in the result
    step: int  #    how far apart they stand
    result: int  #  pixels of the result along this axis
    source: int  #  pixels of the source
    stride: int  #  source pixels from one position to the next
    taps: tuple[tuple[int, int], ...]  # (index in the kernel, source offset)

    @property
    def is_identity(self) -> bool:
        """Whether position j reads source pixel j and nothing else."""
        return (
            self.stride == self.step == 1
            and self.outputs == self.source == self.result
            and len(self.taps) == 1
            and self.taps[0][1] == 0
        )


def axis_passes(axis: Axis, direction: Direction) -> list[AxisPass]:
    """Cut one axis into passes."""
    if direction is Direction.FORWARD:
        taps = tuple((r, r * axis.dilation - axis.lo) for r in range(axis.kernel))
        return [AxisPass(axis.output, 0, 1, axis.output, axis.size, axis.stride, taps)]
    passes = []
    for phase in range(min(axis.stride, axis.size)):
        taps = tuple(
            (r, (phase + axis.lo - r * axis.dilation) // axis.stride)
            for r in range(axis.kernel)
            if (phase + axis.lo - r * axis.dilation) % axis.stride == 0
        )
        outputs = -(-(axis.size - phase) // axis.stride)
        passes.append(AxisPass(outputs, phase, axis.stride, axis.size, axis.output, 1, taps))
    return passes


@dataclass(frozen=True, slots=True)
class Pass:
    """One correlation: its axes and how it reads the weights (k, c/groups, r, s)."""

    n: int
    groups: int
    channels: int  # source channels in a group: what is summed over
    m: int  #        result channels in a group
    axes: tuple[AxisPass, ...]
    kernel: tuple[int, ...]
    group_stride: int  #   of the weight array, in elements
    row_stride: int  #     from one result channel to the next
    channel_stride: int  # from one source channel to the next

    @property
    def taps(self) -> list[int]:
        """Where each tap stands in a kernel, last axis fastest."""
        return [
            sum(t[0] * prod(self.kernel[i + 1 :]) for i, t in enumerate(tap))
            for tap in product(*(a.taps for a in self.axes))
        ]

    @property
    def reduction(self) -> int:
        """Products summed into one result."""
        return self.channels * prod(len(a.taps) for a in self.axes)

    @property
    def columns(self) -> int:
        """Results per channel, over the whole batch."""
        return self.n * prod(a.outputs for a in self.axes)

    @property
    def results(self) -> int:
        """Elements of the result."""
        return self.n * self.groups * self.m * prod(a.result for a in self.axes)

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.groups * self.m * self.columns * self.reduction

    def bytes(self, itemsize: int) -> int:
        """Size of what is read and written, in memory."""
        source = self.n * self.groups * self.channels * prod(a.source for a in self.axes)
        return itemsize * (source + self.groups * self.m * (self.columns + self.reduction))

    def collapsed(self) -> Pass:
        """Return a pass over pixels in one row where no axis looks beside its own pixel."""
        if not all(a.is_identity for a in self.axes):
            return self
        pixels = prod(a.outputs for a in self.axes)
        axis = AxisPass(pixels, 0, 1, pixels, pixels, 1, ((0, 0),))
        return Pass(
            self.n, self.groups, self.channels, self.m, (axis,), (1,),
            self.group_stride, self.row_stride, self.channel_stride,
        )  # fmt: skip


def passes(problem: ConvProblem, direction: Direction) -> list[Pass]:
    """Return the passes that together compute the forward direction or the input gradient."""
    c, k = problem.c // problem.groups, problem.k // problem.groups
    taps = prod(problem.kernel)
    forward = direction is Direction.FORWARD
    return [
        Pass(
            problem.n, problem.groups, c if forward else k, k if forward else c, axes,
            problem.kernel, k * c * taps, c * taps if forward else taps,
            taps if forward else c * taps,
        ).collapsed()
        for axes in product(*(axis_passes(a, direction) for a in problem.axes))
    ]  # fmt: skip


# A panel loaded again for each of so few blocks of columns costs less than packing it ahead.
FEW_BLOCKS = 3


class BlockedPass(ABC):
    """A pass with its tables made and its blocks chosen; a subclass for each algorithm."""

    scratch: int  # elements that one worker needs
    column_blocks: int  # how often each panel of weights is loaded
    seconds: float  # predicted
    tables: Array  # int64; what no formula gives

    def __init__(self, p: Pass, itemsize: int, taps_at: int) -> None:
        self.flops = p.flops
        self.packed = p.groups * p.m * p.reduction  # elements of the packed weights
        view = WeightView(
            p.groups, p.m, p.channels, len(p.taps), p.group_stride, p.row_stride, p.channel_stride,
            machine.tile(itemsize).mr, len(p.taps) == prod(p.kernel), False, taps_at,
        )  # fmt: skip
        self.view = record(view)
        self.packed_view = record(view._replace(packed=True))

    @property
    def pack_ahead(self) -> bool:
        """Whether a call should pack the weights before it runs the kernel."""
        return self.packed > 0 and self.column_blocks > FEW_BLOCKS

    def loaded(self, p: Pass) -> float:
        """Elements of weights that are moved; those not side by side in memory count fourfold."""
        times = 1 + self.column_blocks if self.pack_ahead else self.column_blocks
        return self.packed * (times + (0 if p.row_stride > p.channel_stride else 3))

    def pack(self, weight: Array, packed: Array) -> None:
        """Write the packed weights; both arrays are flat."""
        if self.packed:  # a phase of the stride that no tap reaches has none
            threads.launch(pack_weights, 4.0 * self.packed, weight, packed, self.view, self.tables)

    @abstractmethod
    def correlate(
        self, x: Array, w: Array, view: Array, out: Array, scratch: Array, bias: Array, activation: Any
    ) -> None:
        """Run the kernel on flat arrays; ``view`` describes the weights."""


class Correlation(Execution):
    """Forward or input gradient by the passes of an algorithm."""

    def __init__(
        self,
        problem: ConvProblem,
        direction: Direction,
        kind: Callable[[Pass, int, int], BlockedPass],
        cache: int,
    ) -> None:
        self.dtype = problem.dtype
        every = passes(problem, direction)
        # Pixels between the taps of a stride larger than the kernel have no influence: zeros, no pass.
        reached = [p for p in every if p.reduction]
        self.zeros = len(reached) < len(every)
        self.passes = [kind(p, problem.itemsize, cache) for p in reached]
        self.packed = -(-max((p.packed for p in self.passes if p.pack_ahead), default=0) // 16) * 16
        self.worker = max((p.scratch for p in self.passes), default=0)
        self.flops = max((p.flops for p in self.passes), default=0)  # of one launch
        self.seconds = sum(p.seconds for p in self.passes)
        self.workspace = (self.packed + machine.machine().cores * self.worker) * problem.itemsize

    def prepare(self, weight: Array) -> Array:
        packed = workspace.aligned(sum(p.packed for p in self.passes), self.dtype)
        at = 0
        for p in self.passes:
            p.pack(flat(weight), packed[at:])
            at += p.packed
        return packed

    def run(self, first: Array, second: Array, out: Array, bias: Array, activation: Any) -> None:
        scratch = workspace.take(self.packed + threads.workers(self.flops) * self.worker, self.dtype)
        first, weight, result = flat(first), flat(second), flat(out)
        if self.zeros:
            result.fill(0)
        for p in self.passes:
            w, view = weight, p.view
            if p.pack_ahead:
                p.pack(weight, scratch)
                w, view = scratch, p.packed_view
            p.correlate(first, w, view, result, scratch[self.packed :], bias, activation)

    def run_prepared(self, first: Array, prepared: Array, out: Array, bias: Array, activation: Any) -> None:
        scratch = workspace.take(threads.workers(self.flops) * self.worker, self.dtype)
        first, result = flat(first), flat(out)
        if self.zeros:
            result.fill(0)
        at = 0
        for p in self.passes:
            p.correlate(first, prepared[at:], p.packed_view, result, scratch, bias, activation)
            at += p.packed
