"""Weight gradient: a task is one output channel, its taps summed over images, stripes and pixels in order.

    gw[k, r, s] = sum over n, p, q of  gy[n, k, p, q] * x[n, c, p*stride + r*dilation - lo, ...]

The padded copy of x and the lattices of rows and taps are those of the forward pass (see `plane`).  Blocks
of T x S taps are accumulated by `outer`; a row of x meets all T taps except near the ends of a stripe,
where it meets those whose row of gy exists.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fastconv import jit, machine, threads
from fastconv.algorithms.base import Array, Execution, equalised, flat
from fastconv.algorithms.direct.depthwise.move import clear
from fastconv.algorithms.direct.depthwise.outer import most, outer, total
from fastconv.algorithms.direct.depthwise.plane import chunks, copy_plane
from fastconv.algorithms.direct.depthwise.pointer import after, pointer
from fastconv.algorithms.direct.depthwise.schedule import lattice
from fastconv.algorithms.direct.depthwise.shape import PaddedRows, plane_axes, stripe_rows, take
from fastconv.problem import ConvProblem


@jit.inner
def accumulate(
    sums, gy, ldg, rows, width, source, lds, top, bottom, stride, e, lcm,
    row_taps, n_row_taps, column_taps, n_column_taps, columns, vl,
):  # fmt: skip
    """Add ``rows`` rows of gy and the padded rows of x that they meet to the sums of all taps."""
    for rho in range(min(e, rows)):
        count = (rows - rho + e - 1) // e
        at = 0
        for block in range(0, 3 * n_row_taps, 3):
            taps = row_taps[block + 1]
            base = rho * stride + row_taps[block + 2]  # row i of x: base + lcm*i, met by gy's row i - t
            first = max(0, (top - base + lcm - 1) // lcm)
            last = min(count + taps - 1, (bottom - base + lcm - 1) // lcm)
            for column in range(0, 2 * n_column_taps, 2):
                start, wide = column_taps[column], column_taps[column + 1]
                i = first
                while i < last:
                    low, high = max(0, i - count + 1), min(taps, i + 1)
                    run = min(count, last) - i if high - low == taps else 1
                    outer(
                        after(sums, (at + low * wide) * vl), after(gy, (rho + e * (i - low)) * ldg), e * ldg,
                        after(source, (base + lcm * i) * lds), lcm * lds, after(columns, start),
                        run, width, high - low, wide,
                    )  # fmt: skip
                    i += run
                at += taps * wide


@jit.inner
def collect(gw, sums, s, m, row_taps, n_row_taps, column_taps, n_column_taps, vl):
    """Write the total of each tap's lanes."""
    at = 0
    for block in range(0, 3 * n_row_taps, 3):
        for column in range(0, 2 * n_column_taps, 2):
            for t in range(row_taps[block + 1]):
                for u in range(column_taps[column + 1]):
                    tap = (row_taps[block] + m * t) * s + column_taps[column] + u
                    gw[tap] = total(after(sums, at))
                    at += vl


@jit.kernel
def weight_grad(workers, x, gy, gw, scratch, geometry, phases, columns, row_taps, column_taps):
    """Write gw; the tables are those of `WeightGrad`."""
    n, c, multiplier, stripes, stripe, vl, per_worker, weights, lds, run, n_phases, e, m, lcm = geometry[:14]
    height, rows, r, vstride, extent, up, width, q, s, stride, left = geometry[14:25]
    n_row_taps, n_column_taps = row_taps.size // 3, column_taps.size // 2
    k = c * multiplier
    for worker in numba.prange(workers):
        sums = pointer(scratch, worker * per_worker)
        source = after(sums, weights)
        for channel in range(k * worker // workers, k * (worker + 1) // workers):
            clear(sums, 0, r * s * vl)
            for image in range(n):
                for part in range(stripes):
                    p = stripe * part
                    count = min(stripe, rows - p)
                    plane = pointer(x, (image * c + channel // multiplier) * height * width)
                    top, bottom = copy_plane(
                        source, lds, (count - 1) * vstride + extent, run, plane,
                        height, width, up - p * vstride, left, stride, pointer(phases, 0), n_phases, False,
                    )  # fmt: skip
                    accumulate(
                        sums, pointer(gy, ((image * k + channel) * rows + p) * q), q, count, q,
                        source, lds, top, bottom, vstride, e, lcm, pointer(row_taps, 0), n_row_taps,
                        pointer(column_taps, 0), n_column_taps, pointer(columns, 0), vl,
                    )  # fmt: skip
            collect(
                pointer(gw, channel * r * s), sums, s, m, pointer(row_taps, 0), n_row_taps,
                pointer(column_taps, 0), n_column_taps, vl,
            )  # fmt: skip


class WeightGrad(Execution):
    """Geometry and tables of the weight gradient."""

    def __init__(self, problem: ConvProblem, limit: int) -> None:
        v, h = plane_axes(problem)
        vl = machine.lanes(problem.dtype)
        padded = PaddedRows(h, vl)
        weights = v.kernel * h.kernel * vl
        stripe = stripe_rows(v, padded.pitch * problem.itemsize, limit)
        # the last vector may read past the last row: + 2 * vl
        self.per_worker = weights + ((stripe - 1) * v.stride + v.extent) * padded.pitch + 2 * vl
        counts = [
            problem.n, problem.c, problem.k // problem.c, -(-v.output // stripe), stripe, vl, self.per_worker,
            weights, padded.pitch, padded.run, len(padded.phases), *lattice(v.kernel, v.stride, v.dilation),
            v.size, v.output, v.kernel, v.stride, v.extent, v.lo, h.size, h.output, h.kernel, h.stride, h.lo,
        ]  # fmt: skip
        self.geometry = np.array(counts, np.int64)
        tall, wide = most()
        tables = (
            padded.phases,
            padded.columns,
            chunks(v.kernel, v.stride, v.dilation, tall),
            equalised(h.kernel, wide),
        )
        self.tables = [np.array(t, np.int64).ravel() for t in tables]
        self.dtype, self.flops = problem.dtype, problem.flops
        self.workspace = self.per_worker * problem.itemsize * machine.machine().cores

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = take(self.per_worker, self.flops, self.dtype)
        threads.launch(
            weight_grad,
            self.flops,
            flat(first),
            flat(second),
            flat(out),
            scratch,
            self.geometry,
            *self.tables,
        )
