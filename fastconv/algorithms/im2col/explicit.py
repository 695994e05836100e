"""The explicit way on a GPU, ``im2col:explicit``: pixels lowered in memory, then a convolution of one tap.

    columns[n, (c, t, r, s), (o, p, q)] = x[n, c, o*stride + t*dilation - lo, ...]

With the columns as images the forward direction and the weight gradient are those of one tap; the input gradient makes
gradients of the columns, which are folded: a pixel adds up those of the places it was copied to.  It takes a multiple of
the memory that the implicit product does without, and checks that: it has no index arithmetic in common with it but for
one tap.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from fastconv.algorithms.base import Algorithm, Execution
from fastconv.algorithms.im2col import cuda as implicit
from fastconv.algorithms.reference.cuda import Geometry, along, described, of_input, seen, split
from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import DTYPES, activation, cuda, inline, int64
from fastconv.problem import Axis, ConvProblem, Direction

THREADS = 128


def unfolding(dtype):
    """Make the kernel that lowers: a thread for each element of the columns."""
    zero = DTYPES[dtype](0)

    def unfold(x, columns, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            n, row, o, p, q = split(at, g.c * g.t * g.r * g.s, g.o, g.p, g.q)
            _, c, t, r, s = split(row, g.c, g.t, g.r, g.s)
            pixel = seen(g, n, c, o, p, q, t, r, s)
            columns[at] = x[pixel] if pixel >= 0 else zero

    return unfold


@inline
def position(g, z, y, x, t, r, s):
    """Return the number of the position of the kernel at which a tap meets a pixel, or -1."""
    o = along(z, t, g.stride_z, g.dilation_z, g.lo_z, g.o)
    p = along(y, r, g.stride_y, g.dilation_y, g.lo_y, g.p)
    q = along(x, s, g.stride_x, g.dilation_x, g.lo_x, g.q)
    return int64(-1) if min(o, min(p, q)) < 0 else (o * g.p + p) * g.q + q


def folding(dtype, name):
    """Make the kernel that folds: a thread for each pixel, which adds bias and residual and activates."""
    zero, act = DTYPES[dtype](0), activation(name)

    def fold(columns, bias, residual, out, g):
        at = int64(cuda.blockIdx.x) * int64(THREADS) + int64(cuda.threadIdx.x)
        if at < g.count:
            n, c, z, y, x = split(at, g.c, g.d, g.h, g.w)
            total = zero
            for t in range(g.t):
                for r in range(g.r):
                    for s in range(g.s):
                        place = position(g, z, y, x, t, r, s)
                        if place >= 0:
                            row = (((n * g.c + c) * g.t + t) * g.r + r) * g.s + s
                            total += columns[row * (g.o * g.p * g.q) + place]
            if g.has_bias:
                total += bias[c]
            if g.has_residual:
                total += residual[at]
            out[of_input(g, n, c, z, y, x)] = act(total)

    return fold


def unfold_kernel(dtype: str) -> Kernel:
    """Return the kernel that lowers."""
    return Kernel(unfolding, (dtype,), (dtype,) * 2, Geometry, "int64", THREADS)


def fold_kernel(dtype: str, name: str) -> Kernel:
    """Return the kernel that folds, with an activation by name."""
    return Kernel(folding, (dtype, name), (dtype,) * 4, Geometry, "int64", THREADS)


def lowered(problem: ConvProblem) -> ConvProblem:
    """Return the convolution of one tap of the columns."""
    positions = (Axis(prod(problem.output), 1),)
    return replace(problem, c=problem.c * prod(problem.kernel), axes=positions)


class Explicit(Algorithm):
    """Lowers, and leaves the product to the implicit way."""

    name = "im2col:explicit"
    exact = True

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        if problem.layout != "nchw":
            return f"lowers images that are channels first, got {problem.layout}"
        return implicit.Im2col().reject(lowered(problem), direction)

    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        columns = columns_of(problem) * problem.itemsize
        return columns + implicit.Im2col().workspace(lowered(problem), direction, max(0, limit - columns))

    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        columns = columns_of(problem) * problem.itemsize
        return columns / 1e12 + implicit.Im2col().cost(lowered(problem), direction)

    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        return Run(problem, direction, limit)


def columns_of(problem: ConvProblem) -> int:
    """Return the elements of the columns."""
    return problem.n * problem.c * prod(problem.kernel) * prod(problem.output)


class Run(Execution):
    """Lower and multiply, or multiply and fold."""

    def __init__(self, problem: ConvProblem, direction: Direction, limit: int) -> None:
        self.problem, self.direction, one_tap = problem, direction, lowered(problem)
        columns = columns_of(problem) * problem.itemsize
        self.product = implicit.Im2col().build(one_tap, direction, max(0, limit - columns))
        self.workspace = columns + self.product.workspace
        count = prod(problem.input_shape) if direction is Direction.INPUT_GRAD else columns_of(problem)
        self.geometry = described(problem)._replace(count=count)
        self.blocks = -(-count // THREADS)

    def run(self, first, second, out, bias, activation, residual=None):
        engine, stream, dtype = backend(), out.stream(), self.problem.dtype
        columns = out.empty((columns_of(self.problem),), out.dtype)
        if self.direction is not Direction.INPUT_GRAD:
            engine.launch(unfold_kernel(dtype), self.blocks, stream, first, columns, self.geometry)
            self.product.run(columns, second, out, bias, activation, residual)
            return
        self.product.run(first, second, columns, None, "none")
        added = {"has_bias": int(bias is not None), "has_residual": int(residual is not None)}
        kernel, geometry = fold_kernel(dtype, activation), self.geometry._replace(**added)
        engine.launch(kernel, self.blocks, stream, columns, bias, residual, out, geometry)
