"""Input gradient: a sub-problem of stride 1 for each residue of the stride, with the taps turned round.

    gx[h] = sum over r with (h + lo - r*dilation) divisible by stride of  w[r] * gy[(h + lo - r*dilation) / stride]

For pixels with (h + lo) mod stride = phase, these are the taps r = first + m*t, t < T, where
m = stride / g, g = gcd(stride, dilation), and each t reads gy another e = dilation / g rows back.  Turned
round, u = T - 1 - t, they are a convolution of stride 1 and dilation e over gy.  Each phase fills its own
pixels; columns of several phases are computed in scratch and interleaved on their way out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numba
import numpy as np

from fastconv import activations, jit, machine, threads
from fastconv.activations import finish
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.direct.depthwise.move import clear, interleave
from fastconv.algorithms.direct.depthwise.plane import blocks, chunks, copy_plane, correlate
from fastconv.algorithms.direct.depthwise.pointer import after, pointer
from fastconv.algorithms.direct.depthwise.shape import pitch, plane_axes, stripe_rows, take
from fastconv.algorithms.direct.depthwise.taps import most_taps
from fastconv.problem import Axis, ConvProblem


@dataclass(frozen=True, slots=True)
class Phase:
    """The pixels ``start + stride*i``, i < count, of an axis of gx."""

    start: int
    count: int
    tap: int  # of gx's first: tap r = tap - m*u for u < taps
    taps: int
    source: int  # pixel i reads gy at source + i + e*u


def phases(axis: Axis) -> list[Phase]:
    """Return the phases of an axis, those without pixels left out."""
    found = []
    for start in range(min(axis.stride, axis.size)):
        taps = [r for r in range(axis.kernel) if (start + axis.lo - r * axis.dilation) % axis.stride == 0]
        count = (axis.size - start - 1) // axis.stride + 1
        last = taps[-1] if taps else 0
        source = (start + axis.lo - last * axis.dilation) // axis.stride
        found.append(Phase(start, count, last, len(taps), source))
    return found


def reach(found: list[Phase], step: int) -> tuple[int, int]:
    """Return the first source that pixel 0 of a phase reads, and how many follow that one reads."""
    read = [f for f in found if f.taps] or [Phase(0, 0, 0, 1, 0)]
    first = min(f.source for f in read)
    return first, max(f.source + step * (f.taps - 1) for f in read) - first


@jit.kernel
def input_grad(
    workers, gy, w, gx, bias, activation, residual, finishing, scratch, geometry, rows, columns, offsets, chunks, blocks
):  # fmt: skip
    """Write gx; the tables are those of `InputGrad`."""
    n, c, multiplier, stripes, stripe, vl, per_worker, lds, run, plane, m, e, mw = geometry[:13]
    height, width, r, s, p, q, up, span, left, stride, wstride, n_blocks, buffer, ldb = geometry[13:27]
    tasks = c * n * stripes
    for worker in numba.prange(workers):
        source = pointer(scratch, worker * per_worker)
        turn = after(source, multiplier * plane)
        border = True
        begin, end = tasks * worker // workers, tasks * (worker + 1) // workers
        channel, image, part = begin // (n * stripes), begin // stripes % n, begin % stripes
        for _ in range(begin, end):
            i = stripe * part
            top, bottom = 0, 0
            for k in range(multiplier):
                top, bottom = copy_plane(
                    after(source, k * plane), lds, stripe + span, run,
                    pointer(gy, ((image * c + channel) * multiplier + k) * p * q), p, q, up - i, left,
                    1, pointer(offsets, 0), 1, border,
                )  # fmt: skip
            border = stripes > 1  # else all copies have theirs in the same place
            for v in range(0, rows.size, 9):
                count = min(stripe, rows[v + 1] - i)
                first_block = pointer(blocks, 0 if count == stripe else rows[v + 7])
                some = n_blocks if count == stripe else rows[v + 8]
                out = pointer(gx, ((image * c + channel) * height + rows[v] + stride * i) * width)
                for h in range(0, columns.size, 5):
                    to = out if wstride == 1 else after(turn, columns[h] * buffer)
                    ldo = stride * width if wstride == 1 else ldb
                    if rows[v + 3] * columns[h + 3]:  # taps
                        corner = (channel * multiplier * r + rows[v + 2]) * s + columns[h + 2]
                        correlate(
                            to, ldo, columns[h + 1], after(source, rows[v + 4] * lds + columns[h + 4]), lds,
                            multiplier, plane, top - rows[v + 4], bottom - rows[v + 4],
                            first_block, some, e, e, pointer(chunks, rows[v + 5]), rows[v + 6],
                            pointer(offsets, 0), columns[h + 3], pointer(w, corner), r * s, -m * s, -mw, vl,
                        )  # fmt: skip
                    else:
                        for row in range(count):
                            clear(to, row * ldo, columns[h + 1])
                if wstride > 1:
                    for row in range(count):
                        interleave(
                            after(out, row * stride * width), after(turn, row * ldb), buffer, wstride, width
                        )
            if finishing:
                first = ((image * c + channel) * height + stride * i) * width
                pixels = min(stride * stripe, height - stride * i) * width
                finish(gx, first, pixels, bias, channel, activation, residual, first)
            part += 1
            if part == stripes:
                part = 0
                image += 1
                if image == n:
                    image = 0
                    channel += 1


class InputGrad(Execution):
    """Geometry and tables of the input gradient."""

    def __init__(self, problem: ConvProblem, limit: int) -> None:
        v, h = plane_axes(problem)
        vl = machine.lanes(problem.dtype)
        multiplier = problem.k // problem.c
        e, ew = (a.dilation // gcd(a.stride, a.dilation) for a in (v, h))
        m, mw = (a.stride // gcd(a.stride, a.dilation) for a in (v, h))
        vphases, hphases = phases(v), phases(h)
        top, span = reach(vphases, e)
        left, width = reach(hphases, ew)
        run = -(-(width + hphases[0].count) // vl) * vl
        lds = pitch(run, vl)
        ldb = pitch(hphases[0].count, vl) if h.stride > 1 else 0
        row_bytes = (multiplier * lds + len(hphases) * ldb) * problem.itemsize
        stripe = stripe_rows(Axis(vphases[0].count + span, span + 1), row_bytes, limit)
        stripes = -(-vphases[0].count // stripe)
        plane = (stripe + span) * lds
        buffer = stripe * ldb
        table = some = [n for b in blocks(stripe, 2, 1, e) for n in b]
        taps: list[int] = []
        rows = []
        for f in vphases:
            piece = (
                [n for chunk in chunks(f.taps, 1, e, most_taps(), -m * h.kernel) for n in chunk]
                if f.taps
                else []
            )
            rest = [n for b in blocks(f.count - (stripes - 1) * stripe, 2, 1, e) for n in b]
            rows += [f.start, f.count, f.tap, f.taps, f.source - top if f.taps else 0]
            rows += [len(taps), len(piece) // 3, len(table), len(rest) // 3]
            table, taps = table + rest, taps + piece
        columns = [
            n for f in hphases for n in (f.start, f.count, f.tap, f.taps, f.source - left if f.taps else 0)
        ]
        offsets = [ew * u for u in range(h.kernel)]
        per_worker = multiplier * plane + len(hphases) * buffer + 2 * vl
        per_worker = -(-per_worker // vl) * vl
        counts = [
            problem.n, problem.c, multiplier, stripes, stripe, vl, per_worker, lds, run, plane, m, e, mw,
            v.size, h.size, v.kernel, h.kernel, v.output, h.output, -top, span, -left, v.stride, h.stride,
            len(some) // 3, buffer, ldb,
        ]  # fmt: skip
        self.geometry = np.array(counts, np.int64)
        self.tables = [np.array(t, np.int64) for t in (rows, columns, offsets, taps, table)]
        self.dtype, self.flops, self.per_worker = problem.dtype, problem.flops, per_worker
        self.workspace = per_worker * problem.itemsize * machine.machine().cores

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = take(self.per_worker, self.flops, self.dtype)
        threads.launch(
            input_grad, self.flops, flat(first), flat(second), flat(out), bias, activation, flat(residual),
            bias.size + residual.size > 0 or activation != activations.NONE, scratch, self.geometry, *self.tables,
        )  # fmt: skip
