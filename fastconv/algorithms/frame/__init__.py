"""The input gradient where borders repeat the image: what the frame around it adds to the pixels inside.

The gradient of the padded image is the usual correlation of grad_output; inside, that is the input gradient among
zeros, by any algorithm.  Each pixel of the frame then hands what it receives to the one it repeats.

The frame is cut into pieces, whose pixels the same taps reach (`pieces.py`).  Each is a product of its own:

    C[c, j] = sum over k, t of  w[k, c, taps[t]] * gy[k, sources[t, j]]        gx[c, targets[j]] += C[c, j]

Everything about the geometry is in these tables (`tables.py`), which one kernel goes by (`cpu.py`).  Tiles may have added
some of it already: to the pixel that is repeated, or to another one, from where it is moved (`Added`).

Every image reads all weights.  For more than one they are packed once, ahead: a fourth of the frame's time otherwise.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from math import prod
from typing import Any

from fastconv import machine, threads, workspace
from fastconv.activations import NONE, finish_all
from fastconv.algorithms.base import Execution, flat, pixels
from fastconv.algorithms.frame.cpu import Geometry, add_frame
from fastconv.algorithms.frame.pieces import Added, batches, wide
from fastconv.algorithms.frame.tables import Layout, described, size
from fastconv.algorithms.passes import pass_of
from fastconv.gemm.blocking import within
from fastconv.gemm.move import SLACK
from fastconv.gemm.pack import pack_weights
from fastconv.gemm.record import record
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array

ROWS = 576  # of a panel of weights: with 8 columns 18 KB of L1


class Framed(Execution):
    """The input gradient among zeros, and what a frame around it adds."""

    view = staticmethod(flat)  # of the result, as kernels take it

    @abstractmethod
    def run_all(self, first: Array, second: Array, out: Array, nothing: Array) -> None:
        """Compute the gradient, the frame's too."""

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        self.run_all(first, second, out, bias[:0])
        if bias.size:  # once, and not with every pixel around
            out += bias.reshape(-1, *[1] * (out.ndim - 2))
        if residual.size:
            out += residual
        if not isinstance(activation, int) or activation != NONE:
            threads.launch(self.typed[finish_all], float(out.size), self.view(out), activation, bias[:0])


class FramedChannels(Framed):
    """Of channels one by one, wherever their pixels are."""

    def __init__(self, inner: Execution, problem: ConvProblem, added: Added, cache: int) -> None:
        self.inner, self.dtype, itemsize = inner, problem.dtype, problem.itemsize
        if problem.layout == "nhwc":
            self.view = pixels
        tile, cores = machine.tile(itemsize), machine.machine().cores
        p = pass_of(problem, Direction.INPUT_GRAD)
        batched = batches(problem.axes, problem.padding_mode, added, tile.vl)
        kernel = prod(p.kernel)
        ahead = p.n * len(batched) > 1
        view = p.weights(itemsize)
        self.packed = -(-p.groups * p.m * p.channels * kernel // 16) * 16 if ahead else 0
        ldc = max((sum(wide(len(piece.targets), tile.vl) for piece in batch) for batch in batched), default=0)
        most = max([size(batch, tile.vl) for batch in batched], default=0)
        per_chunk = min(ROWS // kernel, cache // 3 // itemsize // max(1, most))
        chunks = -(-p.channels // max(1, per_chunk))
        per_chunk = -(-p.channels // chunks)
        panels, planes = -(-p.m // tile.mr), p.n * p.groups
        m_blocks = 1 if planes % cores == 0 or planes >= 4 * cores else cores
        m_blocks = min(panels, max(m_blocks, -(-p.m * ldc * itemsize // (cache // 2))))
        panel = -(-(per_chunk * most + SLACK) // 16) * 16
        loaded = 0 if ahead else per_chunk * kernel * tile.mr
        c_start = -(-(panel + loaded + SLACK) // 16) * 16
        self.scratch = -(-(c_start + -(-panels // m_blocks) * tile.mr * ldc + SLACK) // 16) * 16
        self.workspace = max(inner.workspace, (self.packed + cores * self.scratch) * itemsize)
        products = sum(len(piece.taps) * len(piece.targets) for batch in batched for piece in batch)
        self.flops = 2.0 * planes * p.m * p.channels * products
        source, result = prod(problem.output), prod(a.size for a in problem.axes)
        (source_channel, source_pixel), (result_channel, result_pixel) = (
            p.steps_of(p.channels, source), p.steps_of(p.m, result)
        )  # fmt: skip
        layout = Layout(tile.vl, kernel, per_chunk, problem.output[-1], source_pixel, result_pixel)
        self.describe = functools.partial(described, batched, layout)
        self.as_given, self.read = record(view), record(view._replace(packed=ahead))
        self.geometry = record(
            Geometry(
                p.n, p.groups, p.channels, p.m, source, source_channel, source_pixel, result, result_channel,
                m_blocks, chunks, panel, c_start, ldc, self.scratch, tile.vl, tile.mr, tile.nr,
            )
        )  # fmt: skip

    @functools.cached_property
    def described(self) -> tuple[Array, Array]:
        """Batches and their tables, made for the first call."""
        return self.describe()

    def run_all(self, first: Array, second: Array, out: Array, nothing: Array) -> None:
        self.inner.run(first, second, out, nothing, NONE, nothing)
        if not self.flops:
            return
        scratch = workspace.take(self.packed + threads.workers(self.flops) * self.scratch, self.dtype)
        weight = flat(second)
        if self.packed:
            threads.launch(self.typed[pack_weights], 4.0 * self.packed, weight, scratch, self.as_given)
            weight = scratch
        threads.share_out(
            self.typed[add_frame], self.flops, self.view(first), weight,
            self.read, self.view(out), scratch[self.packed :],
            self.geometry, *self.described,
        )  # fmt: skip


def framed(inner: Execution, problem: ConvProblem, limit: int, added: Added = ()) -> Execution:
    """Add the frame's gradient to that of the image, if possible within ``limit`` bytes of scratch, or within its.

    ``inner`` has ``added`` what some of these pixels receive; among zeros there are none.
    """
    limit = max(limit, inner.workspace)
    return within(limit, functools.partial(FramedChannels, inner, problem, added))
