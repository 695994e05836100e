"""Forward: a task is one stripe of rows of one channel of one image, for all outputs of that channel."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fastconv import activations, jit, machine, threads
from fastconv.activations import finish
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.direct.depthwise.plane import blocks, chunks, copy_plane, correlate, lattice
from fastconv.algorithms.direct.depthwise.pointer import pointer
from fastconv.algorithms.direct.depthwise.shape import PaddedRows, plane_axes, stripe_rows, take
from fastconv.algorithms.direct.depthwise.taps import most_taps
from fastconv.problem import ConvProblem


@jit.kernel
def forward(
    workers,
    x,
    w,
    y,
    bias,
    activation,
    residual,
    finishing,
    scratch,
    geometry,
    phases,
    columns,
    chunks,
    blocks,
):
    """Write y; the tables are those of `Forward`."""
    n, c, multiplier, stripes, stripe, vl, per_worker, lds, run, n_phases, e, m, lcm = geometry[:13]
    height, rows, r, vstride, extent, up, width, q, s, stride, left, n_blocks, last_blocks = geometry[13:26]
    n_chunks = chunks.size // 3
    tasks = c * n * stripes
    for worker in numba.prange(workers):
        source = pointer(scratch, worker * per_worker)
        border = True
        begin, end = tasks * worker // workers, tasks * (worker + 1) // workers
        channel, image, part = begin // (n * stripes), begin // stripes % n, begin % stripes
        for _ in range(begin, end):
            p = stripe * part
            count = min(stripe, rows - p)
            top, bottom = copy_plane(
                source, lds, (count - 1) * vstride + extent, run, pointer(x, (image * c + channel) * height * width),
                height, width, up - p * vstride, left, stride, pointer(phases, 0), n_phases, border,
            )  # fmt: skip
            border = stripes > 1  # else all copies have theirs in the same place
            last = part == stripes - 1
            for k in range(channel * multiplier, (channel + 1) * multiplier):
                out = ((image * c * multiplier + k) * rows + p) * q
                correlate(
                    pointer(y, out), q, q, source, lds, 1, 0, top, bottom,
                    pointer(blocks, 3 * n_blocks * last), last_blocks if last else n_blocks, e, lcm,
                    pointer(chunks, 0), n_chunks, pointer(columns, 0), s, pointer(w, k * r * s), 0, m * s, 1, vl,
                )  # fmt: skip
                if finishing:
                    finish(y, out, count * q, bias, k, activation, residual, out)
            part += 1
            if part == stripes:
                part = 0
                image += 1
                if image == n:
                    image = 0
                    channel += 1


class Forward(Execution):
    """Geometry and tables of the forward pass."""

    def __init__(self, problem: ConvProblem, limit: int) -> None:
        v, h = plane_axes(problem)
        vl = machine.lanes(problem.dtype)
        padded = PaddedRows(h, vl)
        multiplier = problem.k // problem.c
        stripe = stripe_rows(v, padded.pitch * problem.itemsize, limit)
        stripes = -(-v.output // stripe)
        # the last vector of outputs may read past the last row: + 2 * vl
        per_worker = ((stripe - 1) * v.stride + v.extent) * padded.pitch + 2 * vl
        e, m, lcm = lattice(v.kernel, v.stride, v.dilation)
        walk = (v.kernel, v.stride, v.dilation)
        some, rest = blocks(stripe, *walk), blocks(v.output - (stripes - 1) * stripe, *walk)
        counts = [
            problem.n, problem.c, multiplier, stripes, stripe, vl, per_worker,
            padded.pitch, padded.run, len(padded.phases), e, m, lcm,
            v.size, v.output, v.kernel, v.stride, v.extent, v.lo,
            h.size, h.output, h.kernel, h.stride, h.lo, len(some), len(rest),
        ]  # fmt: skip
        self.geometry = np.array(counts, np.int64)
        self.tables = [
            np.array(t, np.int64).ravel()
            for t in (padded.phases, padded.columns, chunks(*walk, most_taps(), h.kernel), some + rest)
        ]
        self.dtype, self.flops, self.per_worker = problem.dtype, problem.flops, per_worker
        self.workspace = per_worker * problem.itemsize * machine.machine().cores

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = take(self.per_worker, self.flops, self.dtype)
        finishing = bias.size + residual.size > 0 or activation != activations.NONE
        threads.launch(
            forward, self.flops, flat(first), flat(second), flat(out), bias, activation, flat(residual), finishing,
            scratch, self.geometry, *self.tables,
        )  # fmt: skip
