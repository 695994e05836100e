"""The definition on a GPU: a thread for each result, which adds its products one by one.

Nothing is shared between threads and all addresses have 64 bits, so this serves every problem there is, in any
layout, bit for bit the same each time, as the oracle and the last resort.
"""

from __future__ import annotations

import functools
from math import prod
from typing import NamedTuple

from fastconv.algorithms.base import Algorithm, Execution
from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import DTYPES, activation, cuda, inline, int64
from fastconv.problem import ConvProblem, Direction

THREADS = 128


class Geometry(NamedTuple):
    """The problem with three axes: d h w input, t r s kernel, o p q output; cs, ks channels of a group."""

    count: int  # results
    has_bias: int
    has_residual: int
    c: int
    k: int
    cs: int
    ks: int
    n: int
    d: int
    h: int
    w: int
    t: int
    r: int
    s: int
    o: int
    p: int
    q: int
    stride_z: int
    stride_y: int
    stride_x: int
    dilation_z: int
    dilation_y: int
    dilation_x: int
    lo_z: int
    lo_y: int
    lo_x: int
    channel_in: int  # elements from one channel to the next
    pixel_in: int  # and from one pixel
    channel_out: int
    pixel_out: int


@inline
def of_input(g, n, c, z, y, x):
    """Return where an element of the input or its gradient lies."""
    return n * g.c * g.d * g.h * g.w + c * g.channel_in + ((z * g.h + y) * g.w + x) * g.pixel_in


@inline
def of_output(g, n, k, o, p, q):
    """Return where an element of the output or its gradient lies."""
    return n * g.k * g.o * g.p * g.q + k * g.channel_out + ((o * g.p + p) * g.q + q) * g.pixel_out


@inline
def of_weight(g, k, c, t, r, s):
    """Return where an element of the weight or its gradient lies."""
    return (((k * g.cs + c) * g.t + t) * g.r + r) * g.s + s


@inline
def seen(g, n, c, o, p, q, t, r, s):
    """Return where the pixel lies that a tap meets at a position of the kernel, or -1 beside the image."""
    z, y = o * g.stride_z + t * g.dilation_z - g.lo_z, p * g.stride_y + r * g.dilation_y - g.lo_y
    x = q * g.stride_x + s * g.dilation_x - g.lo_x
    if z < 0 or z >= g.d or y < 0 or y >= g.h or x < 0 or x >= g.w:
        return int64(-1)
    return of_input(g, n, c, z, y, x)


@inline
def along(pixel, tap, stride, dilation, lo, positions):
    """Return the position of the kernel at which a tap meets a pixel: pixel = p * stride + tap * dilation - lo; or -1."""
    away = pixel + lo - tap * dilation
    if away < 0 or away % stride != 0 or away // stride >= positions:
        return int64(-1)
    return away // stride


@inline
def split(at, a, b, c, d):
    """Return the coordinates of an element in an array (..., a, b, c, d)."""
    rest, i = at // d, at % d
    rest, h = rest // c, rest % c
    rest, g = rest // b, rest % b
    return rest // a, rest % a, g, h, i


def forward(dtype, name):
    """Make the kernel of y[n, k, o, p, q]."""
    zero, act = DTYPES[dtype](0), activation(name)

    def forward_kernel(x, w, bias, residual, out, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            n, k, o, p, q = split(at, g.k, g.o, g.p, g.q)
            total = zero
            for c in range(g.cs):
                for t in range(g.t):
                    for r in range(g.r):
                        for s in range(g.s):
                            pixel = seen(g, n, k // g.ks * g.cs + c, o, p, q, t, r, s)
                            if pixel >= 0:
                                total += x[pixel] * w[of_weight(g, k, c, t, r, s)]
            to = of_output(g, n, k, o, p, q)
            if g.has_bias:
                total += bias[k]
            if g.has_residual:
                total += residual[to]
            out[to] = act(total)

    return forward_kernel


def input_grad(dtype, name):
    """Make the kernel of gx[n, c, z, y, x]."""
    zero, act = DTYPES[dtype](0), activation(name)

    def input_grad_kernel(gy, w, bias, residual, out, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            n, c, z, y, x = split(at, g.c, g.d, g.h, g.w)
            group = c // g.cs
            total = zero
            for k in range(group * g.ks, (group + 1) * g.ks):
                for t in range(g.t):
                    o = along(z, t, g.stride_z, g.dilation_z, g.lo_z, g.o)
                    for r in range(g.r if o >= 0 else 0):
                        p = along(y, r, g.stride_y, g.dilation_y, g.lo_y, g.p)
                        for s in range(g.s if p >= 0 else 0):
                            q = along(x, s, g.stride_x, g.dilation_x, g.lo_x, g.q)
                            if q >= 0:
                                at_w = of_weight(g, k, c - group * g.cs, t, r, s)
                                total += gy[of_output(g, n, k, o, p, q)] * w[at_w]
            to = of_input(g, n, c, z, y, x)
            if g.has_bias:
                total += bias[c]
            if g.has_residual:
                total += residual[to]
            out[to] = act(total)

    return input_grad_kernel


def weight_grad(dtype, name):
    """Make the kernel of gw[k, c, t, r, s]."""
    zero = DTYPES[dtype](0)

    def weight_grad_kernel(x, gy, bias, residual, out, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            k, c, t, r, s = split(at, g.cs, g.t, g.r, g.s)
            total = zero
            for n in range(g.n):
                for o in range(g.o):
                    for p in range(g.p):
                        for q in range(g.q):
                            pixel = seen(g, n, k // g.ks * g.cs + c, o, p, q, t, r, s)
                            if pixel >= 0:
                                total += x[pixel] * gy[of_output(g, n, k, o, p, q)]
            out[at] = total

    return weight_grad_kernel


MAKERS = {Direction.FORWARD: forward, Direction.INPUT_GRAD: input_grad, Direction.WEIGHT_GRAD: weight_grad}


@functools.cache
def kernel(direction: Direction, dtype: str, name: str) -> Kernel:
    """Return the kernel of a direction, with an activation by name."""
    return Kernel(MAKERS[direction], (dtype, name), (dtype,) * 5, Geometry, "int64", THREADS)


class Reference(Algorithm):
    """Rejects nothing that has at most three axes."""

    name = "reference"
    exact = True

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        return None

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return 0

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        # unmeasured: each product loads both factors, and each result has but one thread
        busy = min(1, results(problem, direction) / 2**17)
        return 5e-6 + problem.flops / (2e12 * max(busy, 1e-9)) + problem.bytes / 1e12

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        return Run(problem, direction)


def described(problem: ConvProblem) -> Geometry:
    """Return what kernels need to know but the number of results."""
    a = problem.last_axes(3)
    last = problem.layout == "nhwc"
    steps_in = (1, problem.c) if last else (prod(x.size for x in a), 1)
    steps_out = (1, problem.k) if last else (prod(x.output for x in a), 1)
    return Geometry(
        0, 0, 0, problem.c, problem.k, problem.c // problem.groups, problem.k // problem.groups, problem.n,
        *(x.size for x in a), *(x.kernel for x in a), *(x.output for x in a), *(x.stride for x in a),
        *(x.dilation for x in a), *(x.lo for x in a), *steps_in, *steps_out,
    )  # fmt: skip


def results(problem: ConvProblem, direction: Direction) -> int:
    """Return the elements of the result."""
    *_, shape = direction.roles(problem.input_shape, problem.weight_shape, problem.output_shape)
    return prod(shape)


class Run(Execution):
    """One launch."""

    def __init__(self, problem: ConvProblem, direction: Direction) -> None:
        self.direction, self.dtype = direction, problem.dtype
        self.geometry = described(problem)._replace(count=results(problem, direction))
        self.blocks = -(-self.geometry.count // THREADS)

    def run(self, first, second, out, bias, activation, residual=None):
        geometry = self.geometry._replace(
            has_bias=int(bias is not None), has_residual=int(residual is not None)
        )
        backend().launch(
            kernel(self.direction, self.dtype, activation), self.blocks, out.stream(), first, second, bias,
            residual, out, geometry,
        )  # fmt: skip
