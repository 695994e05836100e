"""Borders that repeat the image: reflect, replicate and circular padding, as small problems of their own.

Padding P is a linear map: the image among zeros, plus borders B that copy some of its pixels.  With C for the
convolution, y = C P x = C_zeros x + C B x.  The first term is the problem with zeros, by whatever algorithm
is chosen for it; the second touches the results near the border alone, and only by the taps that
reach over it.  For each axis both borders make one problem, side by side as groups::

    axis i           a frame: the padded pixels that those positions and taps read, those of the image zero
    axes before i    the image's own pixels, with their padding of zeros: corners belong to the first axis
    axes after i     all padded pixels

The gradients are linear in the same way: the adjoint of a copy adds the border's gradient to the pixels it
came from.  Nothing is padded as a whole.  Which pixel a border repeats is `numpy.pad`'s choice, of any width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastconv.algorithms import registry
from fastconv.algorithms.base import Algorithm, Array, Execution
from fastconv.problem import Axis, ConvProblem, Direction

NAMES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # in numpy.pad


def build(algorithm: Algorithm, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
    """Make ready to run with the problem's borders."""
    plain = replace(problem, padding_mode="zeros")
    execution = algorithm.build(plain, direction, limit)
    if problem.padding_mode == "zeros" or not any(a.lo or a.hi for a in problem.axes):
        return execution
    return Bordered(execution, algorithm, problem, direction, limit)


def pixels(axis: Axis, mode: str) -> Array:
    """Return which pixel of the image each padded pixel of an axis repeats."""
    return np.pad(np.arange(axis.size), (axis.lo, axis.hi), NAMES[mode])  # type: ignore[call-overload,no-any-return]


def repeats(problem: ConvProblem) -> int:
    """Return how often a pixel of the image appears in the padded one, at most."""
    most = 1
    for axis in problem.axes:
        if problem.padding_mode != "zeros":
            most *= int(np.bincount(pixels(axis, problem.padding_mode)).max())
    return most


@dataclass(frozen=True, slots=True)
class Side:
    """One border of an axis: who reads it, and what of it."""

    positions: slice
    taps: slice
    frame: Array  # [pixel of the frame] -> pixel of the image, or -1 where the frame is zero


def sides(axis: Axis, mode: str) -> list[Side]:
    """Return the borders of an axis that exist; all with as many positions, taps and pixels of frame."""
    image = range(axis.lo, axis.lo + axis.size)
    reads = np.arange(axis.output)[:, None] * axis.stride + np.arange(axis.kernel) * axis.dilation
    over = [reads < image.start, reads >= image.stop]
    count = max(int(o.any(axis=1).sum()) for o in over)
    taps = max(int(o.any(axis=0).sum()) for o in over)
    source = pixels(axis, mode)
    found = []
    for last, o in enumerate(over):
        if o.any():
            p = axis.output - count if last else 0
            r = axis.kernel - taps if last else 0
            first = p * axis.stride + r * axis.dilation
            at = np.arange(first, first + (count - 1) * axis.stride + (taps - 1) * axis.dilation + 1)
            border = at >= image.stop if last else at < image.start
            found.append(Side(slice(p, p + count), slice(r, r + taps), np.where(border, source[at], -1)))
    return found


class Strips:
    """The problem of both borders of one axis, which is moved to the front of the axes."""

    def __init__(
        self, algorithm: Algorithm, problem: ConvProblem, direction: Direction, limit: int, i: int
    ) -> None:
        self.i, self.sides = i, sides(problem.axes[i], problem.padding_mode)
        self.after = [
            (j, pixels(a, problem.padding_mode), slice(a.lo, a.lo + a.size))
            for j, a in enumerate(problem.axes)
            if j > i
        ]
        if not self.sides:
            return
        one, count = self.sides[0], len(self.sides)
        axis = replace(
            problem.axes[i], size=len(one.frame), kernel=one.taps.stop - one.taps.start, lo=0, hi=0
        )
        others = tuple(
            a if j < i else replace(a, size=a.lo + a.size + a.hi, lo=0, hi=0)
            for j, a in enumerate(problem.axes)
            if j != i
        )
        strip = ConvProblem(
            problem.n,
            count * problem.c,
            count * problem.k,
            (axis, *others),
            count * problem.groups,
            problem.dtype,
        ).checked()
        if algorithm.name != "reference":
            able = [a for a in registry().values() if a.exact and not a.reject(strip, direction)]
            algorithm = min(able, key=lambda a: a.cost(strip, direction))
        self.execution = algorithm.build(strip, direction, limit)
        self.problem, self.nothing = strip, np.empty(0, problem.dtype)

    def front(self, parts: list[Array], channels: int) -> Array:
        """Join the sides' arrays along their channels, this axis first of the others."""
        return np.concatenate([np.moveaxis(a, 2 + self.i, 2) for a in parts], axis=channels)

    def back(self, joined: Array, channels: int) -> list[Array]:
        """Undo `front`."""
        parts = np.split(joined, len(self.sides), axis=channels)
        return [np.moveaxis(a, 2, 2 + self.i) for a in parts]

    def cut(self, array: Array, name: str) -> list[Array]:
        """Return each side's positions or taps."""
        return [array[(*[slice(None)] * (2 + self.i), getattr(side, name))] for side in self.sides]

    def frames(self, x: Array) -> Array:
        """Copy the frames of x, joined as by `front`."""
        c, joined = x.shape[1], np.zeros(self.problem.input_shape, x.dtype)
        for s, side in enumerate(self.sides):
            for at, pixel in enumerate(side.frame):
                if pixel >= 0:
                    row = _row(x, 2 + self.i, pixel)
                    for j, source, _ in self.after:
                        row = np.take(row, source, axis=1 + j)
                    joined[:, s * c : (s + 1) * c, at] = row
        return joined

    def fold(self, gx: Array, frames: Array) -> None:
        """Add the frames' gradients to the pixels that they repeat."""
        for side, part in zip(self.sides, self.back(frames, 1), strict=True):
            for j, source, image in self.after:
                whole, part = part, part[(*[slice(None)] * (2 + j), image)].copy()
                for at in (*range(image.start), *range(image.stop, len(source))):
                    _row(part, 2 + j, source[at])[...] += _row(whole, 2 + j, at)
            for at, pixel in enumerate(side.frame):
                if pixel >= 0:
                    _row(gx, 2 + self.i, pixel)[...] += _row(part, 2 + self.i, at)

    def run(self, first: Array, second: Array, shape: tuple[int, ...]) -> Array:
        """Return the strips' result."""
        result = np.empty(shape, self.nothing.dtype)
        first, second = np.ascontiguousarray(first), np.ascontiguousarray(second)
        self.execution.run(first, second, result, self.nothing, 0, self.nothing)
        return result


def _row(array: Array, axis: int, at: Any) -> Array:
    """View one pixel of an axis."""
    return array[(*[slice(None)] * axis, at)]


class Bordered(Execution):
    """The problem with zeros, and what its borders add."""

    def __init__(
        self, inner: Execution, algorithm: Algorithm, problem: ConvProblem, direction: Direction, limit: int
    ) -> None:
        self.inner, self.direction = inner, direction
        strips = (Strips(algorithm, problem, direction, limit, i) for i in range(len(problem.axes)))
        self.strips = [s for s in strips if s.sides]
        self.nothing = np.empty(0, problem.dtype)
        self.workspace = max(inner.workspace, *(s.execution.workspace for s in self.strips), 0)

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        self.inner.run(first, second, out, bias, 0, residual)
        add = {
            Direction.FORWARD: _forward,
            Direction.INPUT_GRAD: _input_grad,
            Direction.WEIGHT_GRAD: _weight_grad,
        }[self.direction]
        for strips in self.strips:
            add(strips, first, second, out)
        if not isinstance(activation, int) or activation:
            from fastconv import threads  # imports Numba
            from fastconv.activations import finish_all

            threads.launch(finish_all, float(out.size), out.reshape(-1), activation, self.nothing)


def _forward(s: Strips, x: Array, w: Array, y: Array) -> None:
    result = s.run(s.frames(x), s.front(s.cut(w, "taps"), 0), s.problem.output_shape)
    for part, more in zip(s.cut(y, "positions"), s.back(result, 1), strict=True):
        part += more


def _input_grad(s: Strips, gy: Array, w: Array, gx: Array) -> None:
    gradients = s.front(s.cut(gy, "positions"), 1)
    s.fold(gx, s.run(gradients, s.front(s.cut(w, "taps"), 0), s.problem.input_shape))


def _weight_grad(s: Strips, x: Array, gy: Array, gw: Array) -> None:
    result = s.run(s.frames(x), s.front(s.cut(gy, "positions"), 1), s.problem.weight_shape)
    for part, more in zip(s.cut(gw, "taps"), s.back(result, 0), strict=True):
        part += more
