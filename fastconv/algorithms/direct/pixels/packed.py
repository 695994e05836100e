"""A pass over images held pixel by pixel whose weights are packed first: the order of its steps."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from fastconv import threads, workspace
from fastconv.activations import NONE
from fastconv.algorithms.base import pixels
from fastconv.algorithms.direct.pixels.frame import NOWHERE, Bordered
from fastconv.typing import Array


class PackedPass(Bordered):
    """Pack the weights, lay out what sums begin with, and correlate.

    A subclass sets the lengths below and says how weights are packed and which kernel runs.
    """

    dtype: str
    flops: int
    packed: int  #  elements of the packed weights
    groups: int
    m: int  #       result channels in a group
    lanes: int  #   these in whole vectors
    scratch: int  # elements of a worker
    pixels: int  #  of a full area

    @abstractmethod
    def pack(self, weight: Array, packed: Array) -> None:
        """Fill ``packed``."""

    @abstractmethod
    def correlate(
        self, x: Array, packed: Array, out: Array, around: Array, scratch: Array, lists: Array, start: Array,
        plain: bool, activation: Any, residual: Array,
    ) -> None:  # fmt: skip
        """Launch the kernel; sums begin with ``start`` [group][lane], and that is all where ``plain``."""

    def begins(self, bias: Array) -> Array:
        """Return what sums begin with, of each group."""
        return bias.reshape(self.groups, self.m)

    def prepare(self, weight: Array) -> Array:
        packed = workspace.aligned(self.packed, self.dtype)
        self.pack(weight, packed)
        return packed

    def run_around(
        self, first: Array, second: Array, out: Array, around: Array, bias: Array, activation: Any, residual: Array
    ) -> None:  # fmt: skip
        scratch = workspace.take(self.packed + self._elements(), self.dtype)
        packed, scratch = scratch[: self.packed], scratch[self.packed :]
        self.pack(second, packed)
        self._correlate(first, packed, out, around, scratch, bias, activation, residual)

    def run_prepared(
        self, first: Array, prepared: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = workspace.take(self._elements(), self.dtype)
        self._correlate(first, prepared, out, NOWHERE[self.dtype], scratch, bias, activation, residual)

    def _elements(self) -> int:
        return self.groups * self.lanes + threads.workers(self.flops) * self.scratch

    def _correlate(
        self, x: Array, packed: Array, out: Array, around: Array, scratch: Array, bias: Array, activation: Any,
        residual: Array,
    ) -> None:  # fmt: skip
        size = self.groups * self.lanes
        start, scratch = scratch[:size], scratch[size:]
        start.fill(0)
        if bias.size:
            start.reshape(self.groups, self.lanes)[:, : self.m] = self.begins(bias)
        lists = np.empty(3 * threads.workers(self.flops) * self.pixels, np.int64)
        plain = residual.size == 0 and isinstance(activation, int) and activation == NONE
        self.correlate(
            pixels(x), packed, pixels(out), around, scratch, lists, start, plain, activation,
            pixels(residual) if residual.size else residual,
        )  # fmt: skip
