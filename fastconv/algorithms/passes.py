"""Forward and input gradient as one operation: a correlation without inserted zeros.

A pass computes, for every result channel m, phase i and position j along each axis,

    result[m, i + step*j] = sum over channel, tap of phase i of  source[channel, stride*j + offset(tap)] * w

Forward has one phase (step 1): ``stride`` and ``offset = tap*dilation - lo`` are the problem's.

The input gradient inverts  h = p*stride + r*dilation - lo.  For the pixels h = i, i + s, i + 2s, ... of
one phase i (s = stride) only taps with  r*dilation = i + lo  (mod s)  reach a whole p, and then
p = j + (i + lo - r*dilation)/s: a unit-stride correlation of grad_output, written s pixels apart.
So there are s phases along an axis, together as much work as the forward pass, and all of them read the
same source: they are computed side by side and woven together as they are written.

Where borders repeat the image, the source of the forward pass has a ``border``, and that of the input gradient around
a `circle`; else this is the one among zeros, to which `frame` adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np

from fastconv import borders, machine
from fastconv.gemm.pack import WeightView
from fastconv.problem import Axis, ConvProblem, Direction
from fastconv.typing import Array


@dataclass(frozen=True, slots=True)
class AxisPass:
    """One axis of a pass."""

    outputs: int  # positions computed of each phase
    result: int  #  pixels of the result along this axis
    source: int  #  pixels of the source
    stride: int  #  source pixels from one position to the next
    taps: tuple[tuple[tuple[int, int], ...], ...]  # of each phase: (index in the kernel, source offset)
    border: borders.Edges = ()  # of the source

    @property
    def step(self) -> int:
        """Result pixels from one position to the next: the number of phases."""
        return len(self.taps)

    @property
    def offsets(self) -> list[int]:
        """The source offsets that taps have, each once."""
        return sorted({offset for phase in self.taps for _, offset in phase})

    def meeting(self) -> tuple[Array, Array]:
        """Return for each of the offsets the first position that reads inside the source, and one past the last."""
        offsets = np.array(self.offsets, np.int64)
        lo = np.clip(-(offsets // self.stride), 0, self.outputs)
        return lo, np.clip((self.source - 1 - offsets) // self.stride + 1, lo, self.outputs)

    @property
    def met(self) -> float:
        """Return which part of the positions that taps have reads inside the source."""
        lo, hi = self.meeting()
        inside = dict(zip(self.offsets, (hi - lo).tolist(), strict=True))
        pairs = [inside[offset] for phase in self.taps for _, offset in phase]
        return sum(pairs) / max(1, len(pairs) * self.outputs)

    @property
    def reaching(self) -> AxisPass:
        """The same without taps that read zeros beside the source at every position, unless all do."""
        first = -self.stride * (self.outputs - 1)
        taps = tuple(tuple(tap for tap in phase if first <= tap[1] < self.source) for phase in self.taps)
        return replace(self, taps=taps) if any(taps) and not self.border else self

    @property
    def is_read_in_place(self) -> bool:
        """Whether position j of every phase reads source pixel j, if any."""
        return self.stride == 1 and self.outputs == self.source and self.offsets == [0]

    @property
    def is_identity(self) -> bool:
        """Whether, besides, there is one phase, of one tap."""
        return self.is_read_in_place and self.outputs == self.result and self.taps == (((0, 0),),)

    @property
    def pixels(self) -> Array:
        """[phase, position] -> pixel of the result, or -1 where the last phases have one position less."""
        pixels = np.arange(self.step)[:, None] + self.step * np.arange(self.outputs)
        return np.where(pixels < self.result, pixels, -1)

    def sources(self, at: Array) -> Array:
        """Return the source pixel that stands at each coordinate, or -1 for a zero."""
        return borders.sources(at, self.source, self.border)

    def edges(self, offsets: Sequence[int], apart: int = 1) -> list[int]:
        """Return the table of `segments.add_edges`: the positions that read the border from each offset."""
        found = [
            [
                ((at - o) // self.stride, pixel * apart)
                for at, pixel in self.border
                if (at - o) % self.stride == 0
            ]
            for o in offsets
        ]
        starts = np.cumsum([len(offsets) + 1, *(2 * len(pairs) for pairs in found)])
        return [*starts.tolist(), *(number for pairs in found for pair in pairs for number in pair)]


ONE_ROW = AxisPass(1, 1, 1, 1, (((0, 0),),))  # an axis of one pixel, for images that lack it


def axis_pass(axis: Axis, direction: Direction, padding_mode: str = "zeros") -> AxisPass:
    """Describe one axis of the forward direction or of the input gradient."""
    border = borders.edges(axis, padding_mode, direction)
    if direction is Direction.FORWARD:
        taps = tuple((r, r * axis.dilation - axis.lo) for r in range(axis.kernel))
        return AxisPass(axis.output, axis.output, axis.size, axis.stride, (taps,), border)
    phases = tuple(
        tuple(
            (r, (phase + axis.lo - r * axis.dilation) // axis.stride)
            for r in range(axis.kernel)
            if (phase + axis.lo - r * axis.dilation) % axis.stride == 0
        )
        for phase in range(min(axis.stride, axis.size))
    )
    return AxisPass(-(-axis.size // len(phases)), axis.size, axis.output, 1, phases, border)


@dataclass(frozen=True, slots=True)
class Pass:
    """A correlation: its axes and how it reads the weights (k, c/groups, r, s)."""

    n: int
    groups: int
    channels: int  # source channels in a group: what is summed over
    m: int  #        result channels in a group
    axes: tuple[AxisPass, ...]
    kernel: tuple[int, ...]
    group_stride: int  #   of the weight array, in elements
    row_stride: int  #     from one result channel to the next
    channel_stride: int  # from one source channel to the next
    last: bool = False  #  whether images are held pixel by pixel

    def steps_of(self, channels: int, size: int) -> tuple[int, int]:
        """Return from one of the ``channels`` of a group of images of ``size`` pixels to the next, and from pixel to pixel."""
        return (1, self.groups * channels) if self.last else (size, 1)

    @property
    def phases(self) -> int:
        """Phases over all axes."""
        return prod(a.step for a in self.axes)

    def taps(self, views: dict[tuple[int, ...], int]) -> list[list[tuple[int, int]]]:
        """Return for each phase its (index in the kernel, ``views[source offsets]``) by tap.

        Phases and taps come in row-major order, the last axis fastest.
        """
        return [
            [
                (int(np.ravel_multi_index([r for r, _ in tap], self.kernel)), views[tuple(o for _, o in tap)])
                for tap in product(*phase)
            ]
            for phase in product(*(a.taps for a in self.axes))
        ]

    @property
    def reduction(self) -> int:
        """Products summed into one result of every phase."""
        return self.channels * prod(sum(map(len, a.taps)) for a in self.axes)

    @property
    def columns(self) -> int:
        """Results per channel and phase, over the whole batch."""
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
        return itemsize * (source + self.results + self.groups * self.m * self.reduction)

    def weights(self, itemsize: int) -> WeightView:
        """Describe the weights where they are."""
        return WeightView(
            self.groups, self.m, self.channels, prod(self.kernel), self.group_stride, self.row_stride,
            self.channel_stride, machine.tile(itemsize).mr, False,
        )  # fmt: skip

    def collapsed(self) -> Pass:
        """Return a pass over pixels in one row where no axis looks beside its own pixel."""
        # of a larger kernel one tap alone may reach a pixel, but its weights stay apart in memory
        if not all(a.is_identity for a in self.axes) or max(self.kernel) > 1:
            return self
        pixels = prod(a.outputs for a in self.axes)
        axis = AxisPass(pixels, pixels, pixels, 1, (((0, 0),),))
        return Pass(
            self.n, self.groups, self.channels, self.m, (axis,), (1,),
            self.group_stride, self.row_stride, self.channel_stride, self.last,
        )  # fmt: skip


def pass_of(problem: ConvProblem, direction: Direction) -> Pass:
    """Return the pass that computes the forward direction or the input gradient."""
    c, k = problem.c // problem.groups, problem.k // problem.groups
    taps = prod(problem.kernel)
    forward = direction is Direction.FORWARD
    axes = tuple(axis_pass(a, direction, problem.padding_mode) for a in problem.axes)
    return Pass(
        problem.n, problem.groups, c if forward else k, k if forward else c, axes, problem.kernel,
        k * c * taps, c * taps if forward else taps, taps if forward else c * taps, problem.layout == "nhwc",
    ).collapsed()  # fmt: skip


def phase_tables(p: Pass, views: dict[tuple[int, ...], int], channels: int, size: int) -> dict[str, Any]:
    """Return how phases reduce: ``phases`` [phase] -> (taps, where its steps begin) and the steps.

    Step (channel, tap) multiplies row ``channel * kernel + index`` of a panel of weights with the row of B
    at ``channel * size + view``.  The steps are to be the first of the joined tables.
    """
    kernel, channel = prod(p.kernel), np.arange(channels).reshape(-1, 1, 1)
    steps, phases, at = [], [], 0
    for taps in p.taps(views):
        phases.append((len(taps), at))
        table = np.array(taps, np.int64).reshape(1, -1, 2) + channel * (kernel, size)
        steps.append(table.reshape(-1))
        at += table.size
    return {"steps": np.concatenate(steps), "phases": phases}


def combined(rows: Array, pixels: Array, size: int) -> Array:
    """Add an axis of ``size`` pixels to a table of rows; what is outside on one axis is outside."""
    both = rows[:, None, :, None], pixels[None, :, None, :]
    combined = np.where(np.minimum(*both) >= 0, both[0] * size + both[1], -1)
    return combined.reshape(rows.shape[0] * pixels.shape[0], rows.shape[1] * pixels.shape[1])


def source_rows(outer: Sequence[AxisPass]) -> Array:
    """Return [view, row of the result] -> row of the source, or -1 in the padding."""
    rows = np.zeros((1, 1), np.int64)
    for a in outer:
        pixel = np.array(a.offsets, np.int64).reshape(-1, 1) + a.stride * np.arange(a.outputs)
        rows = combined(rows, a.sources(pixel), a.source)
    return rows


def result_rows(outer: Sequence[AxisPass]) -> Array:
    """Return [phase, row] -> row of the result, or -1 past its end."""
    rows = np.zeros((1, 1), np.int64)
    for a in outer:
        rows = combined(rows, a.pixels, a.result)
    return rows
