"""Forward and input gradient by `pixels`: weights packed, then the launch."""

from __future__ import annotations

import functools
from math import prod

import numpy as np

from fastconv.algorithms.base import Execution
from fastconv.algorithms.direct.cuda.forward import phases_of
from fastconv.algorithms.direct.cuda.pixels import LONGEST, SPAN, THREADS, Geometry, Walk, correlation
from fastconv.algorithms.direct.cuda.row import TX, equal_piece
from fastconv.algorithms.im2col.cuda import three
from fastconv.algorithms.im2col.splits import magic
from fastconv.algorithms.passes import Pass, pass_of
from fastconv.cuda import backend
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.copy import transfer
from fastconv.problem import ConvProblem, Direction


@functools.cache
def pixels_kernel(dtype: str, walk: Walk, name: str) -> Kernel:
    """Return the kernel of pixels, with an activation by name."""
    pointers = (dtype, dtype, "int32", dtype, dtype, dtype)
    return Kernel(correlation, (dtype, walk, name), pointers, Geometry, "uint32", THREADS, 4)


def threads(p: Pass) -> int:
    """Return the number of threads, of one channel each."""
    z, y, x = three(p.axes)
    return p.n * p.groups * p.m * z.outputs * z.step * y.outputs * y.step * -(-x.outputs // TX) * x.step


class Pixels(Execution):
    """Forward or input gradient, channels last."""

    def __init__(self, problem: ConvProblem, direction: Direction) -> None:
        self.dtype = problem.dtype
        p, back = pass_of(problem, direction), direction is Direction.INPUT_GRAD
        self.p, axes = p, three(p.axes)
        z, y, x = axes
        walks = [phases_of(a, back) for a in axes]
        gaps, skips = [w[1] for w in walks], [abs(w[2]) for w in walks]
        self.table = backend().Buffer(np.array([(*phase, 0) for w in walks for phase in w[0]], np.int32))
        own = p.channels == p.m == 1
        wide = problem.itemsize == 4 and (p.groups if own else p.m) % 4 == 0
        taps = max(phase.count for phase in walks[2][0])
        width = (TX - 1) * x.stride + 1
        piece = equal_piece(taps, gaps[2], width, LONGEST, SPAN)
        wide = wide and (width + (piece - 1) * gaps[2] <= 2 * SPAN or not own)
        self.walk = Walk(4 if wide else 1, own, piece, x.stride, gaps[2], back)
        self.kernel, self.results = (1, 1, *p.kernel)[-2:], p.groups * p.m
        self.taps = prod(p.kernel)
        self.packed = p.channels * self.taps * self.results
        self.workspace = self.packed * problem.itemsize
        self.tiles = (-(-x.outputs // TX) * x.step, y.outputs * y.step, z.outputs * z.step)
        self.rest = (
            z.step, y.step, x.step, p.channels, p.groups * p.channels, p.m, self.results, z.source, y.source,
            x.source, x.outputs, z.result, y.result, x.result, z.stride, y.stride, gaps[0], gaps[1], *skips,
            self.taps, *self.kernel, 0, 0,
        )  # fmt: skip

    def geometry(self, v: int) -> Geometry:
        """Return what the kernel needs to know where a thread has ``v`` channels."""
        vectors = self.results // v
        numbers = (vectors, *self.tiles)
        return Geometry(
            self.p.n * prod(numbers), *(part for n in numbers for part in (n, *magic(n))), *self.rest
        )

    def run(self, first, second, out, bias, activation, residual=None):
        p = self.p
        packed = out.empty((p.channels, self.taps, p.groups, p.m), out.dtype)
        steps = (p.channel_stride, 1, p.group_stride, p.row_stride)
        transfer(second.viewed(packed.shape, steps), packed)
        # callers' arrays may begin anywhere
        aligned = all(m is None or m.pointer % 16 == 0 for m in (first, out, residual))
        walk = self.walk if aligned else self.walk._replace(v=1)
        geometry = self.geometry(walk.v)
        geometry = geometry._replace(has_bias=int(bias is not None), has_residual=int(residual is not None))
        kernel = pixels_kernel(self.dtype, walk, activation)
        blocks = -(-geometry.threads // THREADS)
        backend().launch(
            kernel, blocks, out.stream(), first, packed, self.table, bias, residual, out, geometry
        )
