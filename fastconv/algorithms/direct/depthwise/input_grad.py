"""Input gradient: a sub-problem of stride 1 for each residue of the stride, with the taps turned round.

    gx[h] = sum over r with (h + lo - r*dilation) divisible by stride of  w[r] * gy[(h + lo - r*dilation) / stride]

For pixels with (h + lo) mod stride = phase, these are the taps r = first + m*t, t < T, where
m = stride / g, g = gcd(stride, dilation), and each t reads gy another e = dilation / g rows back.  Turned
round, u = T - 1 - t, they are a convolution of stride 1 and dilation e over gy.  Each phase fills its own
pixels; columns of several phases are interleaved on their way out.

Where borders repeat the image, the gradient of the padded image is computed, a block of rows at a time in scratch,
and each of its pixels added to the one that it repeats: rows inside first, which write, then those of the frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd
from typing import Any

import numba
import numpy as np

from fastconv import activations, borders, jit, machine, threads
from fastconv.activations import finish
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.direct.depthwise.move import fold, interleave
from fastconv.algorithms.direct.depthwise.pointer import after, pointer
from fastconv.algorithms.direct.depthwise.schedule import Block, Columns, Rows, Schedule, Tap, row_blocks
from fastconv.algorithms.direct.depthwise.shape import apart, parts, pitch, plane_axes, take
from fastconv.algorithms.direct.depthwise.taps import STEP, each, most_rows, most_taps, pairs
from fastconv.problem import Axis, ConvProblem

FIELDS, GROUP = len(STEP), 5


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


@jit.kernel
def input_grad(
    workers, gy, w, gx, bias, activation, residual, finishing, scratch, geometry,
    steps, rows, blocks, columns, borders, groups, targets, frame,
):  # fmt: skip
    """Write gx; the tables are those of `InputGrad`."""
    planes, n_parts, channels, sources, weights, map_size, width, twice = geometry[:8]
    per_worker, ldb, between, stride, woven, padded, left, inside = geometry[8:16]
    n_groups = groups.size // GROUP
    for worker in numba.prange(workers):
        turn = pointer(scratch, worker * per_worker)
        r, b, c, e = pointer(rows, 0), pointer(blocks, 0), pointer(columns, 0), pointer(borders, 0)
        begin, end = planes * n_parts * worker // workers, planes * n_parts * (worker + 1) // workers
        plane, part = begin // n_parts, begin % n_parts
        channel = plane % channels
        for _ in range(begin, end):
            source, weight = pointer(gy, plane * sources), pointer(w, channel * weights)
            result = pointer(gx, plane * map_size)
            out = turn if per_worker else result
            for group in range(n_groups * part // n_parts, n_groups * (part + 1) // n_parts):
                g = pointer(groups, GROUP * group)
                for i in range(g[0], g[1]):
                    if twice:
                        pairs(out, source, weight, pointer(steps, FIELDS * i), r, b, c, e)
                    else:
                        each(out, source, weight, pointer(steps, FIELDS * i), r, b, c, e)
                for i in range(g[4] if per_worker else 0):
                    row, line = g[2] + g[3] * i, after(turn, i * ldb)
                    if woven:
                        line = (
                            after(turn, per_worker - padded) if targets.size else after(result, row * width)
                        )
                        interleave(line, after(turn, i * ldb), between, stride, padded)
                    if targets.size:
                        to = after(result, targets[row] * width)
                        fold(to, after(line, left), width, group >= inside)
                        for j in range(0, frame.size, 2):
                            to[frame[j + 1]] += line[frame[j]]
                if finishing and not targets.size:
                    together = g[4] if g[3] == 1 else 1
                    for i in range(0, g[4], together):
                        at = plane * map_size + (g[2] + g[3] * i) * width
                        finish(gx, at, together * width, bias, channel, activation, residual, at)
            if finishing and targets.size:
                at = plane * map_size
                finish(gx, at, map_size, bias, channel, activation, residual, at)
            part += 1
            if part == n_parts:
                part = 0
                plane += 1
                channel = channel + 1 if channel + 1 < channels else 0


class InputGrad(Execution):
    """Geometry and tables of the input gradient."""

    def __init__(self, problem: ConvProblem) -> None:
        vl = machine.lanes(problem.dtype)
        image = plane_axes(problem)
        folded = problem.padding_mode != "zeros"
        v, h = (replace(a, size=a.lo + a.size + a.hi, lo=0, hi=0) if folded else a for a in image)
        inside = range(image[0].lo, image[0].lo + image[0].size) if folded else range(v.size)
        multiplier = problem.k // problem.c
        self.dtype, self.flops = problem.dtype, problem.flops
        schedule = Schedule(vl, 1, h.output, h.kernel)
        twice = h.stride == 2 and max(f.taps for f in phases(v)) <= most_taps(phases=2)
        woven = h.stride > 1 and not twice
        found = sorted(self._blocks(v, 1 + twice, inside), key=lambda b: (b.row not in inside, b.row))
        once = all(len(block.met) == 1 for block in found)
        bands = self._columns(problem, v, h)
        if twice:
            both = tuple(columns.taps[0] for columns in bands)
            bands = [Columns(h.size, h.output, 1, both + ((),) * (2 - len(both)))]
        placed = [schedule.band(columns, overlap=once) for columns in bands]
        ldb = pitch(bands[0].width, vl) if woven or folded else 0
        between = most_rows(1) * ldb
        groups: list[int] = []
        for block in found:
            first = schedule.length
            for i, band in enumerate(placed):
                place = (i * between, ldb) if ldb else (block.row * h.size, block.spacing * h.size)
                schedule.add(block, band, *place)
            groups += [first, schedule.length, block.row, block.spacing, block.height]
        planes = problem.n * problem.c
        line = h.size if woven and folded else 0  # of the padded image, its phases interleaved
        held = (len(placed) + 1) * between  # one more: lines of the next rows are fetched to be written
        self.per_worker = apart(held, problem.itemsize) + apart(line, problem.itemsize)
        counts = [
            planes, 1 if folded else parts(planes, len(found)), problem.c, multiplier * v.output * h.output,
            multiplier * v.kernel * h.kernel, image[0].size * image[1].size, image[1].size, int(twice),
            self.per_worker, ldb, between, h.stride, int(woven), h.size, image[1].lo if folded else 0,
            sum(block.row in inside for block in found),
        ]  # fmt: skip
        self.geometry = np.array(counts, np.int64)
        targets = borders.pixels(image[0], problem.padding_mode).tolist() if folded else []
        frame = [
            n for at, to in borders.edges(image[1], problem.padding_mode) for n in (at + image[1].lo, to)
        ]
        self.tables = [*schedule.tables(), *(np.array(t, np.int64) for t in (groups, targets, frame))]
        self.workspace = self.per_worker * problem.itemsize * machine.machine().cores

    def _blocks(self, v: Axis, n_phases: int, inside: range) -> Iterator[Block]:
        """Return the blocks of rows of all phases, cut where the image begins and ends."""
        g = gcd(v.stride, v.dilation)
        for f in phases(v):
            cuts = [-(-(edge - f.start) // v.stride) for edge in (inside.start, inside.stop)]
            for begin, end in pairwise([0, *(min(max(0, cut), f.count) for cut in cuts), f.count]):
                walk = Rows(
                    end - begin, f.taps, f.source + begin, dilation=v.dilation // g,
                    start=f.start + v.stride * begin, spacing=v.stride, tap=f.tap, turn=-(v.stride // g),
                )  # fmt: skip
                yield from row_blocks(
                    walk, range(v.output), 1, most_rows(n_phases), most_taps(phases=n_phases)
                )

    def _columns(self, problem: ConvProblem, v: Axis, h: Axis) -> list[Columns]:
        """Return the columns of each phase alone; the channels of gy follow each other."""
        g = gcd(h.stride, h.dilation)
        found = []
        for f in phases(h):
            taps = tuple(
                Tap(
                    f.source + h.dilation // g * u, k * v.kernel * h.kernel + f.tap - h.stride // g * u,
                    k * v.output * h.output,
                )
                for k in range(problem.k // problem.c) for u in range(f.taps)
            )  # fmt: skip
            found.append(Columns(f.count, h.output, 1, (taps,)))
        return found

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = take(self.per_worker, self.flops, self.dtype)
        threads.launch(
            input_grad, self.flops, flat(first), flat(second), flat(out), bias, activation, flat(residual),
            bias.size + residual.size > 0 or activation != activations.NONE, scratch, self.geometry, *self.tables,
        )  # fmt: skip
