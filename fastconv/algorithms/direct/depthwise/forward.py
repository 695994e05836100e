"""Forward: a task is one stripe of rows of one channel of one image, for all outputs of that channel."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fastconv import activations, jit, machine, threads
from fastconv.activations import finish
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.direct.depthwise.plane import blocks, chunks, copy_plane, correlate, lattice, pack
from fastconv.algorithms.direct.depthwise.pointer import pointer
from fastconv.algorithms.direct.depthwise.shape import PaddedRows, plane_axes, stripe_rows, take
from fastconv.algorithms.direct.depthwise.taps import most_taps
from fastconv.problem import ConvProblem


@jit.kernel
def forward(
    workers, x, w, y, bias, activation, finishing, scratch, geometry, phases, columns, chunks, blocks
):
    """Write y; the tables are those of `Forward`."""
    n, c, multiplier, stripes, stripe, vl, per_worker, weights, lds, run, n_phases, e, m, lcm = geometry[:14]
    height, rows, r, vstride, extent, up, width, q, s, stride, left, n_blocks, last_blocks = geometry[14:27]
    n_chunks = chunks.size // 3
    tasks = c * n * stripes
    for worker in numba.prange(workers):
        weight = pointer(scratch, worker * per_worker)
        source = pointer(scratch, worker * per_worker + weights)
        packed = -1
        for task in range(tasks * worker // workers, tasks * (worker + 1) // workers):
            channel, rest = divmod(task, n * stripes)
            image, part = divmod(rest, stripes)
            if channel != packed:
                packed = channel
                for k in range(multiplier):
                    taps = (channel * multiplier + k) * r * s
                    pack(weight, k * r * s, pointer(w, taps), s, 1, s, pointer(chunks, 0), n_chunks, m)
            p = stripe * part
            count = min(stripe, rows - p)
            top, bottom = copy_plane(
                source, lds, (count - 1) * vstride + extent, run, pointer(x, (image * c + channel) * height * width),
                height, width, up - p * vstride, left, stride, pointer(phases, 0), n_phases,
            )  # fmt: skip
            last = part == stripes - 1
            for k in range(multiplier):
                out = ((image * c + channel) * multiplier + k) * rows * q + p * q
                correlate(
                    pointer(y, out), q, q, source, lds, 1, 0, top, bottom,
                    pointer(blocks, 3 * n_blocks * last), last_blocks if last else n_blocks, e, lcm,
                    pointer(chunks, 0), n_chunks, pointer(columns, 0), s, pointer(scratch, worker * per_worker + k * r * s), vl,
                )  # fmt: skip
                if finishing:
                    finish(y, out, count * q, bias, channel * multiplier + k, activation)


class Forward(Execution):
    """Geometry and tables of the forward pass."""

    def __init__(self, problem: ConvProblem, limit: int) -> None:
        v, h = plane_axes(problem)
        vl = machine.lanes(problem.dtype)
        padded = PaddedRows(h, vl)
        multiplier = problem.k // problem.c
        weights = -(-multiplier * v.kernel * h.kernel // vl) * vl
        stripe = stripe_rows(v, padded.pitch * problem.itemsize, limit)
        stripes = -(-v.output // stripe)
        # the last vector of outputs may read past the last row: + 2 * vl
        per_worker = weights + ((stripe - 1) * v.stride + v.extent) * padded.pitch + 2 * vl
        e, m, lcm = lattice(v.kernel, v.stride, v.dilation)
        walk = (v.kernel, v.stride, v.dilation)
        some, rest = blocks(stripe, *walk), blocks(v.output - (stripes - 1) * stripe, *walk)
        counts = [
            problem.n, problem.c, multiplier, stripes, stripe, vl, per_worker, weights,
            padded.pitch, padded.run, len(padded.phases), e, m, lcm,
            v.size, v.output, v.kernel, v.stride, v.extent, v.lo,
            h.size, h.output, h.kernel, h.stride, h.lo, len(some), len(rest),
        ]  # fmt: skip
        self.geometry = np.array(counts, np.int64)
        self.tables = [
            np.array(t, np.int64).ravel()
            for t in (padded.phases, padded.columns, chunks(*walk, most_taps()), some + rest)
        ]
        self.dtype, self.flops, self.per_worker = problem.dtype, problem.flops, per_worker
        self.workspace = per_worker * problem.itemsize * machine.machine().cores

    def run(self, first: Array, second: Array, out: Array, bias: Array, activation: Any) -> None:
        scratch = take(self.per_worker, self.flops, self.dtype)
        finishing = bias.size > 0 or activation != activations.NONE
        threads.launch(
            forward, self.flops, flat(first), flat(second), flat(out), bias, activation, finishing,
            scratch, self.geometry, *self.tables,
        )  # fmt: skip
