"""Forward and input gradient by a pass (`passes`), ready to run: weights packed where that pays, then its kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from fastconv import machine, threads, workspace
from fastconv.algorithms.base import Execution, flat, pixels
from fastconv.algorithms.passes import Pass, pass_of
from fastconv.gemm.pack import pack_weights
from fastconv.gemm.record import record
from fastconv.gemm.schedule import counters
from fastconv.jit import Kernel
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array

# Where weights cannot be read as they are, a panel loaded again for each of so few blocks of columns costs less than packing it ahead.
FEW_BLOCKS = 3


class BlockedPass:
    """A pass with its tables made and its blocks chosen; a subclass for each algorithm."""

    kernel: Kernel
    scratch: int  # elements that one worker needs
    segments: int  # and numbers in its list of segments
    column_blocks: int  # how often each panel of weights is loaded
    describe: Callable[[], tuple[Array, Array]]  # make geometry and tables for the kernel

    @functools.cached_property
    def described(self) -> tuple[Array, Array]:
        """Geometry and tables, made for the first call: a choice asks only for time and scratch."""
        return self.describe()

    def __init__(self, p: Pass, itemsize: int) -> None:
        taps = prod(p.kernel)
        self.flops = p.flops
        self.packed = p.groups * p.m * p.channels * taps  # elements of the packed weights
        view = p.weights(itemsize)
        self.in_place = view.channel_stride == view.taps  # as `gemm.pack` reads them
        self.view = record(view)
        self.packed_view = record(view._replace(packed=True))

    @property
    def pack_ahead(self) -> bool:
        """Whether a call should pack the weights before it runs the kernel."""
        return self.column_blocks > FEW_BLOCKS and not self.in_place

    @property
    def loads(self) -> bool:
        """Whether the kernel loads panels of weights into its scratch."""
        return not self.pack_ahead and not self.in_place


class Correlation(Execution):
    """Forward or input gradient by the pass of an algorithm."""

    def __init__(
        self,
        problem: ConvProblem,
        direction: Direction,
        kind: Callable[[Pass, int, int], BlockedPass],
        cache: int,
    ) -> None:
        self.dtype = problem.dtype
        self.again = functools.partial(Correlation, direction=direction, kind=kind, cache=cache)
        p = pass_of(problem, direction)
        p = replace(p, axes=tuple(a.reaching for a in p.axes))
        self.images = pixels if p.last else flat
        self.blocked = b = kind(p, problem.itemsize, cache)
        self.packed = -(-b.packed // 16) * 16 if b.pack_ahead else 0
        cores = machine.machine().cores
        self.workspace = (self.packed + cores * b.scratch) * problem.itemsize + 8 * cores * b.segments

    def of_more_taps(self, problem: ConvProblem) -> Execution:
        return self.again(problem)

    def prepare(self, weight: Array) -> Array:
        packed = workspace.aligned(self.blocked.packed, self.dtype)
        self._pack(flat(weight), packed)
        return packed

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        b, weight = self.blocked, flat(second)
        used = threads.workers(b.flops)
        scratch = workspace.take(self.packed + used * b.scratch, self.dtype)
        view = b.view
        if self.packed:
            self._pack(weight, scratch)
            weight, view, scratch = scratch, b.packed_view, scratch[self.packed :]
        self._correlate(used, first, weight, view, out, scratch, bias, activation, residual)

    def run_prepared(
        self, first: Array, prepared: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        b = self.blocked
        used = threads.workers(b.flops)
        scratch = workspace.take(used * b.scratch, self.dtype)
        self._correlate(used, first, prepared, b.packed_view, out, scratch, bias, activation, residual)

    def _pack(self, weight: Array, packed: Array) -> None:
        threads.launch(self.typed[pack_weights], 4.0 * self.blocked.packed, weight, packed, self.blocked.view)

    def _correlate(
        self, used: int, first: Array, weight: Array, view: Array, out: Array, scratch: Array, bias: Array,
        activation: Any, residual: Array,
    ) -> None:  # fmt: skip
        b, images = self.blocked, self.images
        lists = np.empty(used * b.segments, np.int64)
        threads.start(
            self.typed[b.kernel], used, counters(used), images(first), weight, view, images(out), scratch, lists,
            *b.described, bias, activation, images(residual) if residual.size else residual,
        )  # fmt: skip
