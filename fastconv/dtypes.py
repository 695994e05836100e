"""Dtypes other than float32 and float64, by the algorithms for those: a real problem carries them.

    float16, bfloat16   stored narrow, summed in float32, rounded once at the end
    bool, integers      exact, as int64.  A bound on the sums, the largest |x| times the largest sum of |w|,
                        tells what holds them: float32 below 2**24, float64 below 2**53.  Beyond that operands are cut
                        into pieces of so few bits that it does, since the map is linear in each.
    complex             twice the channels, real parts beside imaginary ones, and weights [[re, -im], [im, re]]

The gradients of the real problem are those by real and imaginary parts, which complex ones combine: the
operands come conjugated, as in PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from math import ceil, log2, prod
from typing import Any, TypeAlias

import numpy as np

from fastconv import borders
from fastconv.algorithms.base import Adapter, Execution
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array

REAL = {"float16": "float32", "bfloat16": "float32", "int64": "float64"}
PARTS = {"complex64": "float32", "complex128": "float64"}
SAFE = 1 + 2.0**-30  # covers the rounding of a bound itself


def carrier(problem: ConvProblem) -> ConvProblem:
    """Return the problem in float32 or float64 that carries a problem."""
    if problem.dtype in REAL:
        return replace(problem, dtype=REAL[problem.dtype])
    if problem.dtype in PARTS:
        return replace(problem, c=2 * problem.c, k=2 * problem.k, dtype=PARTS[problem.dtype])
    return problem


Build: TypeAlias = Callable[[ConvProblem, Direction, int], Execution]  # an algorithm's


def build(make: Build, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
    """Make ready to run on operands of the problem's dtype."""
    if problem.dtype == "int64":
        return Exact(make, problem, direction, limit)
    execution = make(carrier(problem), direction, limit)
    if problem.dtype in REAL:
        return AsFloat32(execution)
    return Planar(execution, direction) if problem.dtype in PARTS else execution


class AsFloat32(Adapter):
    """Half precision: float32 while it is computed with."""

    def __init__(self, execution: Execution) -> None:
        self.inner, self.workspace = execution, execution.workspace

    def turned(self, second: Array) -> Array:
        return _wide(second)

    def through(
        self, run: Any, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        result = np.empty(out.shape, np.float32)
        run(_wide(first), second, result, _wide(bias), activation, _wide(residual))
        with np.errstate(over="ignore"):  # what is too large becomes infinite, as in any float
            out[...] = result


def _wide(array: Array) -> Array:
    return array.astype(np.float32)


class Planar(Adapter):
    """Complex numbers: channels of real parts beside those of imaginary parts."""

    def __init__(self, execution: Execution, direction: Direction) -> None:
        self.inner, self.workspace = execution, execution.workspace
        self.to_weight = direction is Direction.WEIGHT_GRAD

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        if not self.to_weight:
            super().run(first, second, out, bias, activation, residual)
            return
        (k, c), taps = out.shape[:2], out.shape[2:]
        real = out.real.dtype
        nothing = np.empty(0, real)
        blocks = np.empty((2 * k, 2 * c, *taps), real)
        self.inner.run(_planes(first), _planes(second), blocks, nothing, 0, nothing)
        blocks = blocks.reshape(k, 2, c, 2, *taps)
        out.real = blocks[:, 0, :, 0] + blocks[:, 1, :, 1]
        out.imag = blocks[:, 1, :, 0] - blocks[:, 0, :, 1]

    def turned(self, second: Array) -> Array:
        return _blocks(second)

    def through(
        self, run: Any, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        real = out.real.dtype
        result = np.empty((out.shape[0], 2 * out.shape[1], *out.shape[2:]), real)
        added = _planes(residual) if residual.size else residual.real
        run(_planes(first), second, result, np.ascontiguousarray(bias).view(real), activation, added)
        out.real, out.imag = result[:, ::2], result[:, 1::2]


def _planes(x: Array) -> Array:
    """Return (n, c, ...) as real channels (n, 2c, ...)."""
    n, c, *pixels = x.shape
    return np.stack((x.real, x.imag), axis=2).reshape(n, 2 * c, *pixels)


def _blocks(w: Array) -> Array:
    """Return (k, c, ...) as real weights (2k, 2c, ...)."""
    k, c, *taps = w.shape
    blocks = np.empty((k, 2, c, 2, *taps), w.real.dtype)
    blocks[:, 0, :, 0] = blocks[:, 1, :, 1] = w.real
    blocks[:, 1, :, 0] = w.imag
    np.negative(w.imag, out=blocks[:, 0, :, 1])
    return blocks.reshape(2 * k, 2 * c, *taps)


class Exact(Execution):
    """Integers: only sums that a float holds exactly are computed in one."""

    def __init__(self, make: Build, problem: ConvProblem, direction: Direction, limit: int) -> None:
        self.problem, self.direction = problem, direction
        self.make = functools.cache(lambda dtype: make(replace(problem, dtype=dtype), direction, limit))
        self.workspace = self.make("float64").workspace

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        bound = _largest(first) * self._sums(second) * SAFE
        if bound < 2**53:
            float_of_all = "float32" if bound < 2**24 else "float64"
            total = self._carried(first, second, out.shape, float_of_all).astype(np.int64)
        else:
            total = self._in_pieces(first, second, out.shape)
        if bias.size:
            _add(total, bias.reshape(-1, *[1] * (out.ndim - 2)))
        if residual.size:
            _add(total, residual)
        # relu: `activation_code` admits no other.  A caller's array is written when every sum is known to fit
        np.copyto(out, np.maximum(total, 0) if activation else total)

    def _carried(self, first: Array, second: Array, shape: tuple[int, ...], dtype: str) -> Array:
        """Return the result in a float that holds every sum."""
        result, nothing = np.empty(shape, dtype), np.empty(0, dtype)
        self.make(dtype).run(first.astype(dtype), second.astype(dtype), result, nothing, 0, nothing)
        return result

    def _sums(self, second: Array) -> float:
        """Return the largest sum of |second| over the products of one result."""
        sizes = np.abs(second.astype(np.float64))
        if self.direction is Direction.FORWARD:
            return float(sizes.reshape(len(sizes), -1).sum(axis=1).max())
        if self.direction is Direction.INPUT_GRAD:
            k, c, *_ = sizes.shape
            groups = self.problem.groups
            largest = sizes.reshape(groups, k // groups, c, -1).sum(axis=(1, 3)).max()
            return float(largest) * borders.repeats(self.problem)
        return float(sizes.sum(axis=(0, *range(2, sizes.ndim))).max())

    def _in_pieces(self, first: Array, second: Array, shape: tuple[int, ...]) -> Array:
        """Sum the products of all pieces, modulo 2**64 in integers and roughly in floats, which must agree."""
        bits = (52 - ceil(log2(terms(self.problem, self.direction)))) // 2
        total, rough, size = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape)
        for i, a in enumerate(_pieces(first, bits)):
            for j, b in enumerate(_pieces(second, bits)):
                part = self._carried(a, b, shape, "float64")
                if bits * (i + j) < 64:
                    total += part.astype(np.int64) << (bits * (i + j))
                rough += part * 2.0 ** (bits * (i + j))
                size += np.abs(part) * 2.0 ** (bits * (i + j))
        _refuse_beyond(np.abs(rough) + size * 2.0**-50)
        return total


def terms(problem: ConvProblem, direction: Direction) -> int:
    """Return how many products make one element of the result, at most."""
    return {
        Direction.FORWARD: problem.reduction,
        Direction.INPUT_GRAD: problem.k // problem.groups * prod(problem.kernel) * borders.repeats(problem),
        Direction.WEIGHT_GRAD: problem.n * prod(problem.output),
    }[direction]


def _largest(array: Array) -> float:
    return max(abs(float(array.min())), abs(float(array.max()))) if array.size else 0.0


def _pieces(array: Array, bits: int) -> list[Array]:
    """Cut integers into signed ones of ``bits`` bits, the lowest first: array = sum of pieces << bits*i."""
    pieces, mask = [], (1 << bits) - 1
    rest = array if array.dtype.kind == "u" else array.astype(np.int64)
    while _largest(rest) > mask:
        pieces.append((rest & rest.dtype.type(mask)).astype(np.int64))
        rest = rest >> rest.dtype.type(bits)
    return [*pieces, rest.astype(np.int64)]


def _add(total: Array, more: Array) -> None:
    """Add in place; a sum beyond int64 is refused."""
    if _largest(total) + _largest(more) >= 2**62:
        _refuse_beyond(np.abs(total.astype(np.float64) + more.astype(np.float64)))
    total += more.astype(np.int64)


def _refuse_beyond(size: Array) -> None:
    if size.size and size.max() >= 2**63 * (1 - 2.0**-50):
        raise OverflowError(
            f"a sum of about {size.max():.4g} exceeds the int64 of the result; convert the operands to float64"
        )
