"""Forward and input gradient: a task is a part of one map of the result, some blocks of rows, from the source where it lies.

The rows that a block reads are copied first where wide borders repeat the image, the source is a circle, or it is sorted by
column modulo the stride (polyphase), where each tap is an offset again.  Results go by way of scratch where columns of
several phases are interleaved, or whole padded rows are folded onto the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import activations, jit, machine, threads
from fastconv.activations import finish
from fastconv.algorithms.base import Execution, flat
from fastconv.algorithms.direct.depthwise.image import Copies, copy_tables
from fastconv.algorithms.direct.depthwise.move import PIECE, copy_rows, fold, interleave
from fastconv.algorithms.direct.depthwise.pointer import pointer
from fastconv.algorithms.direct.depthwise.schedule import Schedule
from fastconv.algorithms.direct.depthwise.shape import apart, repeats, take
from fastconv.algorithms.direct.depthwise.taps import STEP, taps
from fastconv.gemm.schedule import next_run
from fastconv.problem import ConvProblem
from fastconv.typing import Array

FIELDS, PIECES = len(STEP), len(PIECE)

# Of a group of steps, which complete a block of rows: its steps, its rows, and the rows of the source to copy: the first,
# how many, and how many of them were copied before.
GROUP = ("first", "end", "row", "spacing", "height", "copied", "copies", "before")
WIDE = len(GROUP)


@jit.kernel
def fill(
    workers, counters, source, w, out, bias, activation, residual, finishing, scratch, geometry,
    steps, rows, blocks, columns, strided, paired, bordered, groups, frame, copied, pieces, singles,
):  # fmt: skip
    """Write the result; the tables are those of `Maps`."""
    planes, n_parts, channels, weights, multiplier, image, width, stride = geometry[:8]
    map_size, q, per_worker = geometry[8:11]
    turned, ldb, between, woven, padded, left, inside = geometry[11:18]
    n_groups = groups.size // WIDE
    for worker in numba.prange(workers):
        turn = pointer(scratch, worker * per_worker)
        place = pointer(turn, turned)
        r, b, c = pointer(rows, 0), pointer(blocks, 0), pointer(columns, 0)
        some, single = pointer(pieces, 0), pointer(singles, 0)
        tasks = planes * n_parts
        begin, end = next_run(counters, worker, tasks)
        while begin < tasks:
            plane, part = begin // n_parts, begin % n_parts
            channel = plane % channels
            for _ in range(begin, end):
                own = pointer(source, (plane if multiplier == 1 else plane // multiplier) * image)
                result, weight = pointer(out, plane * map_size), pointer(w, channel * weights)
                read = place if copied.size else own
                written = turn if turned else result
                first = n_groups * part // n_parts
                for group in range(first, n_groups * (part + 1) // n_parts):
                    g = pointer(groups, WIDE * group)
                    if copied.size:
                        held = g[7] if first == 0 else 0
                        copy_rows(
                            place, own, pointer(copied, 2 * (g[5] + held)), g[6] - held, some,
                            pieces.size // PIECES, stride, single, singles.size // 2, (g[6] - held) * width,
                        )  # fmt: skip
                    for i in range(g[0], g[1]):
                        step = pointer(steps, FIELDS * i)
                        taps(written, read, weight, step, r, b, c, strided, paired, bordered)
                    for i in range(g[4] if turned else 0):
                        row, line = pointer(result, (g[2] + g[3] * i) * q), pointer(turn, i * ldb)
                        plain = frame.size == 0 and group < inside
                        if woven > 1:
                            whole = row if plain else pointer(turn, turned - padded)
                            interleave(whole, line, between, woven, padded)
                            line = whole
                        if not plain:
                            fold(row, pointer(line, left), q, group >= inside)
                            for j in range(0, frame.size, 2):
                                row[frame[j + 1]] += line[frame[j]]
                    if finishing and inside == n_groups:
                        together = g[4] if g[3] == 1 else 1
                        for i in range(0, g[4], together):
                            at = plane * map_size + (g[2] + g[3] * i) * q
                            finish(out, at, together * q, bias, channel, activation, residual, at)
                if finishing and inside < n_groups:
                    at = plane * map_size
                    finish(out, at, map_size, bias, channel, activation, residual, at)
                part += 1
                if part == n_parts:
                    part = 0
                    plane += 1
                    channel = channel + 1 if channel + 1 < channels else 0
            begin, end = next_run(counters, worker, tasks)


class Result(NamedTuple):
    """How results lie, in scratch where they go through it."""

    turned: int = 0  # elements of scratch, before copies; 0 where results are stored at once
    ldb: int = 0  # of rows in scratch, and of phases
    between: int = 0
    woven: int = 1  # phases that are interleaved
    padded: int = 0  # columns of a padded row, and where the image begins in it
    left: int = 0
    inside: int = 0  # groups of rows inside the image, before those that are added


class Maps(Execution):
    """What one direction prepares: steps, in groups, and how maps and scratch lie."""

    def __init__(
        self, problem: ConvProblem, schedule: Schedule, groups: list[int], copies: Copies | None,
        counts: Sequence[int], result: Result, family: tuple[int, int], frame: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Take the first of the kernel's numbers, up to the scratch, as ``counts``; ``frame`` are pairs of columns, from and to."""
        self.per_worker = result.turned + apart(copies.elements if copies else 0, problem.itemsize)
        self.geometry = np.array([*counts, self.per_worker, *result], np.int64)
        self.tables = [
            *schedule.tables(),
            *(None if n == 1 else n for n in family),
            repeats(problem),
            *(np.array(t, np.int64) for t in (groups, frame, *copy_tables(copies))),
        ]
        self.dtype, self.flops = problem.dtype, problem.flops
        self.workspace = self.per_worker * problem.itemsize * machine.machine().cores

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = take(self.per_worker, self.flops, self.dtype)
        finishing = bias.size + residual.size > 0 or activation != activations.NONE
        threads.share_out(
            self.typed[fill], self.flops,
            flat(first), flat(second), flat(out), bias, activation, flat(residual), finishing,
            scratch, self.geometry, *self.tables,
        )  # fmt: skip
