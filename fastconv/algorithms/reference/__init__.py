"""The definition of convolution in NumPy: the oracle of every test, and the text to read first.

All three directions are one sum over (n, c, k, p, q, r, s) of x * w * y; they differ in which letters
survive.  For each tap (r, s) the pixels of x under it are a strided view of the padded input::

    view(r, s)[n, c, p, q] = padded[n, c, p*stride + r*dilation, q*stride + s*dilation]

    forward       y[n, k, p, q]  = sum over r, s of  w[k, c, r, s] . view[n, c, p, q]
    input_grad    view[n, c, p, q] += w[k, c, r, s] . gy[n, k, p, q]       for each r, s
    weight_grad   gw[k, c, r, s] = gy[n, k, p, q] . view[n, c, p, q]       for each r, s

where a dot sums over the letters that the left side lacks.  Borders are pixels of x again, or zeros: padding copies
pixels, and its adjoint adds what the copies receive.
"""

from __future__ import annotations

from itertools import product
from math import inf, prod
from typing import Any

import numpy as np

from fastconv import borders
from fastconv.algorithms.base import Algorithm, Execution
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array


class Reference(Algorithm):
    """NumPy only; rejects nothing."""

    name = "reference"
    exact = True

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return 0  # NumPy allocates for itself; the last resort under any limit

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        return 1e-4 * prod(problem.kernel) + problem.flops / 1e9 + problem.bytes / 1e9

    def floor(self, problem: ConvProblem, direction: Direction) -> float:
        return inf  # the last resort

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        return _Run(problem, direction)


class _Run(Execution):
    def __init__(self, problem: ConvProblem, direction: Direction) -> None:
        self.problem, self.direction = problem, direction

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        finished(DEFINITION[self.direction](self.problem, first, second), out, bias, activation, residual)


def finished(result: Array, out: Array, bias: Array, activation: Any, residual: Array) -> None:
    """Add bias and residual, and apply an activation, by code or jitted function, through the kernels' own epilogue."""
    from fastconv.activations import finish

    if bias.size:
        result += bias.reshape(-1, *[1] * (result.ndim - 2))
    if residual.size:
        result += residual
    nothing = np.empty(0, result.dtype)
    finish(result.reshape(-1), 0, result.size, nothing, 0, activation, nothing, 0)
    np.copyto(out, result)


def forward(problem: ConvProblem, x: Array, w: Array) -> Array:
    """Return y."""
    g = problem.groups
    w = w.reshape(g, problem.k // g, *w.shape[1:])
    y = np.zeros((problem.n, g, problem.k // g, *problem.output), x.dtype)
    for tap, view in _views(problem, padded(problem, x)):
        y += np.einsum("gkc,ngc...->ngk...", w[(..., *tap)], view)
    return y.reshape(problem.output_shape)


def input_grad(problem: ConvProblem, gy: Array, w: Array) -> Array:
    """Return the gradient of a loss by x, given its gradient ``gy`` by y."""
    g = problem.groups
    w = w.reshape(g, problem.k // g, *w.shape[1:])
    gy = gy.reshape(problem.n, g, problem.k // g, *problem.output)
    whole = np.zeros((problem.n, problem.c, *(a.lo + a.size + a.hi for a in problem.axes)), gy.dtype)
    for tap, view in _views(problem, whole):
        view += np.einsum("gkc,ngk...->ngc...", w[(..., *tap)], gy)
    return unpadded(problem, whole)


def weight_grad(problem: ConvProblem, x: Array, gy: Array) -> Array:
    """Return the gradient of a loss by w, given its gradient ``gy`` by y."""
    g = problem.groups
    pixels = prod(problem.output)
    gy = gy.reshape(problem.n, g, problem.k // g, pixels)
    gw = np.zeros((g, problem.k // g, *problem.weight_shape[1:]), x.dtype)
    for tap, view in _views(problem, padded(problem, x)):
        gw[(..., *tap)] = np.einsum("ngkx,ngcx->gkc", gy, view.reshape(*view.shape[:3], pixels))
    return gw.reshape(problem.weight_shape)


DEFINITION = {
    Direction.FORWARD: forward, Direction.INPUT_GRAD: input_grad, Direction.WEIGHT_GRAD: weight_grad,
}  # fmt: skip


def _views(problem: ConvProblem, padded: Array) -> Any:
    """Yield each tap (r, s) and the view of the padded input under it, channels split by group."""
    padded = padded.reshape(problem.n, problem.groups, problem.c // problem.groups, *padded.shape[2:])
    for tap in product(*map(range, problem.kernel)):
        firsts = [r * a.dilation for r, a in zip(tap, problem.axes, strict=True)]
        under = [
            slice(first, first + (a.output - 1) * a.stride + 1, a.stride)
            for first, a in zip(firsts, problem.axes, strict=True)
        ]
        yield tap, padded[(..., *under)]


def padded(problem: ConvProblem, x: Array) -> Array:
    """Copy x with its borders; negative padding crops."""
    for i, axis in enumerate(problem.axes, 2):
        source = borders.padded(axis, problem.padding_mode)
        x = np.take(x, source, axis=i)
        x[(slice(None),) * i + (source < 0,)] = 0
    return x


def unpadded(problem: ConvProblem, padded: Array) -> Array:
    """Undo `padded`: a pixel receives what all its copies do; one that was cropped away has none."""
    for i, axis in enumerate(problem.axes, 2):
        source = borders.padded(axis, problem.padding_mode)
        x = np.zeros((*padded.shape[:i], axis.size, *padded.shape[i + 1 :]), padded.dtype)
        to, kept = ((slice(None),) * i + (index,) for index in (source[source >= 0], source >= 0))
        if problem.padding_mode == "zeros":
            x[to] = padded[kept]
        else:
            np.add.at(x, to, padded[kept])
        padded = x
    return padded
