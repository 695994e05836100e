"""Forward: a task is a part of one output map, computed from the image where it lies.

The rows that a block of results reads are copied first where wide borders repeat the image, or sorted by column
modulo the stride (polyphase), where each tap is an offset again.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fastconv import activations, jit, machine, threads
from fastconv.activations import finish
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.direct.depthwise.move import PIECE, copy_rows
from fastconv.algorithms.direct.depthwise.pointer import pointer
from fastconv.algorithms.direct.depthwise.schedule import Rows, Schedule, row_blocks
from fastconv.algorithms.direct.depthwise.shape import (
    Image,
    apart,
    copy_tables,
    parts,
    plane_axes,
    repeats,
    take,
)
from fastconv.algorithms.direct.depthwise.taps import ROWS, STEP, each, most_taps, second
from fastconv.gemm.schedule import next_run
from fastconv.problem import ConvProblem

FIELDS, GROUP, PIECES = len(STEP), 8, len(PIECE)


@jit.kernel
def forward(
    workers, counters, x, w, y, bias, activation, residual, finishing, scratch, geometry,
    steps, rows, blocks, columns, bordered, groups, copied, pieces, singles,
):  # fmt: skip
    """Write y; the tables are those of `Forward`."""
    planes, n_parts, k, multiplier, image, map_size, q, taps, twice, stride, width, per_worker = geometry[:12]
    n_groups = groups.size // GROUP
    for worker in numba.prange(workers):
        place = pointer(scratch, worker * per_worker)
        r, b, c = pointer(rows, 0), pointer(blocks, 0), pointer(columns, 0)
        some, single = pointer(pieces, 0), pointer(singles, 0)
        tasks = planes * n_parts
        begin, end = next_run(counters, worker, tasks)
        while begin < tasks:
            plane, part = begin // n_parts, begin % n_parts
            channel = plane % k
            for _ in range(begin, end):
                plane_of_x = pointer(x, (plane if multiplier == 1 else plane // multiplier) * image)
                source = place if per_worker else plane_of_x
                out, weight = pointer(y, plane * map_size), pointer(w, channel * taps)
                first = n_groups * part // n_parts
                for group in range(first, n_groups * (part + 1) // n_parts):
                    g = pointer(groups, GROUP * group)
                    if per_worker:
                        held = g[7] if first == 0 else 0
                        copy_rows(
                            place, plane_of_x, pointer(copied, 2 * (g[5] + held)), g[6] - held, some,
                            pieces.size // PIECES, stride, single, singles.size // 2, (g[6] - held) * width,
                        )  # fmt: skip
                    for i in range(g[0], g[1]):
                        if twice:
                            second(out, source, weight, pointer(steps, FIELDS * i), r, b, c, bordered)
                        else:
                            each(out, source, weight, pointer(steps, FIELDS * i), r, b, c, bordered)
                    if finishing:
                        together = g[4] if g[3] == 1 else 1
                        for i in range(0, g[4], together):
                            at = plane * map_size + (g[2] + g[3] * i) * q
                            finish(y, at, together * q, bias, channel, activation, residual, at)
                part += 1
                if part == n_parts:
                    part = 0
                    plane += 1
                    channel = channel + 1 if channel + 1 < k else 0
            begin, end = next_run(counters, worker, tasks)


class Forward(Execution):
    """Geometry and tables of the forward pass."""

    def __init__(self, problem: ConvProblem) -> None:
        v, h = plane_axes(problem)
        image = Image(problem)
        schedule = Schedule(machine.lanes(problem.dtype), image.stride, image.pitch, h.kernel)
        walk = Rows(v.output, v.kernel, 0, v.stride, v.dilation)
        found = sorted(
            row_blocks(walk, image.rows, image.stride, ROWS, most_taps(image.stride)),
            key=lambda b: b.row,
        )
        once = all(len(block.met) == 1 for block in found)
        band = schedule.band(image.columns, image.columns.groups(schedule.vl, overlap=once))
        groups: list[int] = []
        for block in found:
            first = schedule.length
            block, *copies = image.read(block)
            schedule.add(block, band, block.row * h.output, block.spacing * h.output)
            groups += [first, schedule.length, block.row, block.spacing, block.height, *copies]
        planes = problem.n * problem.k
        self.per_worker = apart(image.copies.elements if image.copies else 0, problem.itemsize)
        counts = [
            planes, parts(planes, len(found)), problem.k, problem.k // problem.c, v.size * h.size,
            v.output * h.output, h.output, v.kernel * h.kernel, image.stride - 1, h.stride, h.size, self.per_worker,
        ]  # fmt: skip
        self.geometry = np.array(counts, np.int64)
        self.tables = [
            *schedule.tables(),
            repeats(problem),
            *(np.array(t, np.int64) for t in (groups, *copy_tables(image.copies))),
        ]
        self.dtype, self.flops, self.typed = problem.dtype, problem.flops, threads.Typed(forward)
        self.workspace = self.per_worker * problem.itemsize * machine.machine().cores

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = take(self.per_worker, self.flops, self.dtype)
        finishing = bias.size + residual.size > 0 or activation != activations.NONE
        threads.share_out(
            self.typed, self.flops,
            flat(first), flat(second), flat(out), bias, activation, flat(residual), finishing,
            scratch, self.geometry, *self.tables,
        )  # fmt: skip
