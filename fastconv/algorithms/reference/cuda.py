"""The definition on a GPU: a thread for each result, which adds its products one by one.

Nothing is shared between threads and all addresses have 64 bits, so this serves every problem there is,
bit for bit the same each time, as the oracle and the last resort.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from fastconv.algorithms.base import Algorithm, Execution
from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import DTYPES, activation, cuda, int64
from fastconv.problem import Axis, ConvProblem, Direction

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


def forward(dtype, name):
    """Make the kernel of y[n, k, o, p, q]."""
    zero, act = DTYPES[dtype](0), activation(name)

    def forward_kernel(x, w, bias, residual, out, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            q, rest = at % g.q, at // g.q
            p, rest = rest % g.p, rest // g.p
            o, rest = rest % g.o, rest // g.o
            k, n = rest % g.k, rest // g.k
            total = zero
            for c in range(g.cs):
                image = (n * g.c + k // g.ks * g.cs + c) * g.d
                taps = (k * g.cs + c) * g.t
                for t in range(g.t):
                    z = o * g.stride_z + t * g.dilation_z - g.lo_z
                    if z >= 0 and z < g.d:
                        for r in range(g.r):
                            y = p * g.stride_y + r * g.dilation_y - g.lo_y
                            if y >= 0 and y < g.h:
                                row, tap = ((image + z) * g.h + y) * g.w, ((taps + t) * g.r + r) * g.s
                                for s in range(g.s):
                                    pixel = q * g.stride_x + s * g.dilation_x - g.lo_x
                                    if pixel >= 0 and pixel < g.w:
                                        total += x[row + pixel] * w[tap + s]
            if g.has_bias:
                total += bias[k]
            if g.has_residual:
                total += residual[at]
            out[at] = act(total)

    return forward_kernel


def input_grad(dtype, name):
    """Make the kernel of gx[n, c, z, y, x]: h = p * stride + r * dilation - lo has a p where the stride divides."""
    zero, act = DTYPES[dtype](0), activation(name)

    def input_grad_kernel(gy, w, bias, residual, out, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            pixel, rest = at % g.w, at // g.w
            y, rest = rest % g.h, rest // g.h
            z, rest = rest % g.d, rest // g.d
            c, n = rest % g.c, rest // g.c
            group = c // g.cs
            total = zero
            for i in range(g.ks):
                k = group * g.ks + i
                image = (n * g.k + k) * g.o
                taps = (k * g.cs + c - group * g.cs) * g.t
                for t in range(g.t):
                    o = z + g.lo_z - t * g.dilation_z
                    if o >= 0 and o % g.stride_z == 0 and o // g.stride_z < g.o:
                        for r in range(g.r):
                            p = y + g.lo_y - r * g.dilation_y
                            if p >= 0 and p % g.stride_y == 0 and p // g.stride_y < g.p:
                                row = ((image + o // g.stride_z) * g.p + p // g.stride_y) * g.q
                                tap = ((taps + t) * g.r + r) * g.s
                                for s in range(g.s):
                                    q = pixel + g.lo_x - s * g.dilation_x
                                    if q >= 0 and q % g.stride_x == 0 and q // g.stride_x < g.q:
                                        total += gy[row + q // g.stride_x] * w[tap + s]
            if g.has_bias:
                total += bias[c]
            if g.has_residual:
                total += residual[at]
            out[at] = act(total)

    return input_grad_kernel


def weight_grad(dtype, name):
    """Make the kernel of gw[k, c, t, r, s]."""
    zero = DTYPES[dtype](0)

    def weight_grad_kernel(x, gy, bias, residual, out, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            s, rest = at % g.s, at // g.s
            r, rest = rest % g.r, rest // g.r
            t, rest = rest % g.t, rest // g.t
            c, k = rest % g.cs, rest // g.cs
            total = zero
            for n in range(g.n):
                image = (n * g.c + k // g.ks * g.cs + c) * g.d
                result = (n * g.k + k) * g.o
                for o in range(g.o):
                    z = o * g.stride_z + t * g.dilation_z - g.lo_z
                    if z >= 0 and z < g.d:
                        for p in range(g.p):
                            y = p * g.stride_y + r * g.dilation_y - g.lo_y
                            if y >= 0 and y < g.h:
                                row, to = ((image + z) * g.h + y) * g.w, ((result + o) * g.p + p) * g.q
                                for q in range(g.q):
                                    pixel = q * g.stride_x + s * g.dilation_x - g.lo_x
                                    if pixel >= 0 and pixel < g.w:
                                        total += x[row + pixel] * gy[to + q]
            out[at] = total

    return weight_grad_kernel


MAKERS = {Direction.FORWARD: forward, Direction.INPUT_GRAD: input_grad, Direction.WEIGHT_GRAD: weight_grad}


def kernel(direction: Direction, dtype: str, name: str) -> Kernel:
    """Return the kernel of a direction, with an activation by name."""
    return Kernel(MAKERS[direction], (dtype, name), (dtype,) * 5, Geometry, "int64", THREADS)


class Reference(Algorithm):
    """Rejects nothing that has at most three axes and its channels first."""

    name = "reference"
    exact = True

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        if problem.layout != "nchw":
            return f"kernels on a GPU read channels first, got {problem.layout}"
        return None

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        return 0

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        return (
            5e-6 + problem.flops / 2e12 + problem.bytes / 1e12
        )  # unmeasured: each product loads both factors

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        return Run(problem, direction)


class Run(Execution):
    """One launch."""

    def __init__(self, problem: ConvProblem, direction: Direction) -> None:
        a = (*[Axis(1, 1)] * (3 - len(problem.axes)), *problem.axes)
        shape = {
            Direction.FORWARD: problem.output_shape,
            Direction.INPUT_GRAD: problem.input_shape,
            Direction.WEIGHT_GRAD: problem.weight_shape,
        }[direction]
        self.direction, self.dtype = direction, problem.dtype
        self.geometry = Geometry(
            prod(shape), 0, 0, problem.c, problem.k, problem.c // problem.groups, problem.k // problem.groups,
            problem.n, *(x.size for x in a), *(x.kernel for x in a), *(x.output for x in a),
            *(x.stride for x in a), *(x.dilation for x in a), *(x.lo for x in a),
        )  # fmt: skip
        self.blocks = -(-self.geometry.count // THREADS)

    def run(self, first, second, out, bias, activation, residual=None):
        geometry = self.geometry._replace(
            has_bias=int(bias is not None), has_residual=int(residual is not None)
        )
        backend().launch(
            kernel(self.direction, self.dtype, activation), self.blocks, out.stream(), first, second, bias,
            residual, out, geometry,
        )  # fmt: skip
