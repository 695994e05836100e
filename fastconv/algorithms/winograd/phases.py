"""Strided convolutions as sums of convolutions at stride 1, so that tiles serve them too.

Forward at stride 2: of the source its even and its odd pixels are told apart along each axis, and so are the
kernel's taps.  Each phase i of the source meets its taps at stride 1, and phases are summed over as channels are:

    y[k, p] = sum over c, i of  (x[c, i::2] * w[k, c, i::2])[p]        3 taps: 2 and 1, 5: 3 and 2

The input gradient is the transpose: all phases of the result read the same tiles of grad_output, each by its
own taps, and are woven together as they are stored.  Tiles of all phases have the taps of the largest; where
a smaller one lacks the last tap, or the first, its transform is zero at infinity, or at the point 0, and nothing is multiplied there.
F(4x4, 3x3) then multiplies 11 * 11 times for 16 results of a 5x5 kernel instead of 400 times; 3x3 by F(4x4, 2x2) 9 * 9 times
instead of 144, by F(2x2, 2x2) 25 times for 4 instead of 36.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

from fastconv.algorithms.passes import AxisPass, axis_pass
from fastconv.algorithms.winograd.transforms import Tiles
from fastconv.problem import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Axis, ConvProblem, Direction, told


@dataclass(frozen=True, slots=True)
class TileAxis:
    """One axis of tiles: tap ``a`` of a phase of the source reads pixel ``first + phase + stride*(position + a)``."""

    taps: int  # of each phase: r of F(m, r)
    first: int
    stride: int
    sources: int  # phases of the source that are read, from 0 on
    steps: int  #   phases of the result
    outputs: int  # positions of a phase
    places: dict[int, tuple[int, int]]  # of taps of the kernel: (phase of the result or of the source, tap)

    @classmethod
    def of(cls, axis: AxisPass) -> TileAxis:
        offsets = axis.offsets or [0]
        first = offsets[0]
        places = {
            tap: (step + (offset - first) % axis.stride, (offset - first) // axis.stride)
            for step, phase in enumerate(axis.taps)
            for tap, offset in phase
        }
        sources = 1 + max((o - first) % axis.stride for o in offsets)
        taps = 1 + (offsets[-1] - first) // axis.stride
        return cls(taps, first, axis.stride, sources, axis.step, axis.outputs, places)

    @property
    def phases(self) -> int:
        """Phases of the source or of the result."""
        return self.sources * self.steps

    @property
    def filled(self) -> list[bool]:
        """Of each phase, whether taps reach it: of a dilated input gradient some results are zeros."""
        return [any(phase == i for phase, _ in self.places.values()) for i in range(self.phases)]

    def reached(self, alpha: int) -> list[list[bool]]:
        """Return [phase][position]: whether transformed taps are not zero there; the point 0 sees the first tap alone, infinity the last."""
        taken = set(self.places.values())
        seen = ([0], *[range(self.taps)] * (alpha - 2), [self.taps - 1])[-alpha:]
        return [[any((phase, tap) in taken for tap in taps) for taps in seen] for phase in range(self.phases)]

    @property
    def lacking(self) -> tuple[int, ...]:
        """Of each phase of the source, how many taps it lacks at the end."""
        taken = set(self.places.values())
        last = self.taps - 1
        return tuple(int(self.sources > 1 and (i, last) not in taken) for i in range(self.sources))


POINT = TileAxis(1, 0, 1, 1, 1, 1, {0: (0, 0)})  # the axis that a row of pixels lacks


@functools.lru_cache(maxsize=64)
def tile_axes(problem: ConvProblem, direction: Direction) -> tuple[TileAxis, TileAxis]:
    """Return the axes of the tiles of forward, which are the weight gradient's, or of the input gradient."""
    if direction is WEIGHT_GRAD:
        direction = FORWARD
    axes = (TileAxis.of(axis_pass(a, direction)) for a in problem.axes)
    return (POINT, *axes)[-2:]  # type: ignore[return-value]


def undilated(problem: ConvProblem, direction: Direction) -> ConvProblem:
    """Return the problem between the images of every d-th pixel; itself where there are none, or strides."""
    return problem if problem.plain or problem.layout == "nhwc" else _undilated(problem, direction)


@told
def _undilated(problem: ConvProblem, direction: Direction) -> ConvProblem:
    if problem.undilated or not problem.unit_stride:
        return problem
    count, axes = problem.n, []
    for axis in problem.axes:
        around = axis.kernel - 1
        results = axis.size if direction is INPUT_GRAD else axis.output
        positions = -(-results // axis.dilation)
        count *= min(axis.dilation, results)
        if direction is INPUT_GRAD:  # grad_output has its padding already, as the input has
            axes.append(Axis(positions, axis.kernel, lo=around, hi=around))
        else:
            axes.append(Axis(positions + around, axis.kernel))
    return ConvProblem(count, problem.c, problem.k, tuple(axes), problem.groups, problem.dtype)


class Counts(NamedTuple):
    """The sizes of tiles, without the tables to build them."""

    source: int  # what is summed over in a group: channels with their phases
    result: int  # and its results
    phases: int  # that taps reach
    taps: tuple[int, int]  #    r of F(m, r) along both axes
    outputs: tuple[int, int]  # positions of a phase


@told
def counts(problem: ConvProblem, direction: Direction) -> Counts:
    """Return what `tile_axes` would tell, by closed forms: a choice has no time to list taps."""
    source, result = problem.c // problem.groups, problem.k // problem.groups
    backward = direction is INPUT_GRAD
    if problem.plain:
        outputs = [a.size for a in problem.axes] if backward else problem.output
        source, result = (result, source) if backward else (source, result)
        return Counts(source, result, 1, (1, *problem.kernel)[-2:], (1, *outputs)[-2:])
    along = map(count, problem.axes, problem.output, (backward, backward))
    (r, i, p), (s, j, q) = ((1, 1, 1), *along)[-2:]
    if backward:
        return Counts(result, source * i * j, i * j, (r, s), (p, q))
    return Counts(source * i * j, result, i * j, (r, s), (p, q))


def share(problem: ConvProblem, tiles: Tiles) -> float:
    """Return which part of the products of all phases is not with zeros, by a closed form of `TileAxis.reached`."""
    if problem.plain:
        return 1.0
    part = 1.0
    pairs = zip(problem.axes, tiles[-len(problem.axes) :], strict=True)
    for (_, kernel, stride, dilation, _, _), (m, r) in pairs:
        if dilation % stride:
            phases = min(kernel, stride)
            part *= 1 - (phases * r - kernel) / (phases * (m + r - 1))
    return part


def count(axis: Axis, output: int, backward: bool) -> tuple[int, int, int]:
    """Return taps of a phase, the phases that taps reach, and positions; strides and dilations as tiles serve them."""
    size, kernel, stride, dilation, lo, _ = axis
    span, phases = (kernel - 1) * dilation, min(kernel, stride) if dilation % stride else 1
    if not backward:
        return 1 + span // stride, phases, output
    if size < stride:
        some = TileAxis.of(axis_pass(axis, INPUT_GRAD))
        return some.taps, sum(some.filled), some.outputs
    return 1 + (span - lo) // stride - -lo // stride, phases, -(-size // stride)
