"""Weight gradient: a task is one output channel, its taps summed over images, stripes and pixels in order.

    gw[k, r, s] = sum over n, p, q of  gy[n, k, p, q] * x[n, c, p*stride + r*dilation - lo, ...]

The lattices of rows and taps, and what is copied first, are those of the forward pass (see `rows`, `image`): a stripe is a
block of rows, a chunk a few rows of taps.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Any

import numba
import numpy as np

from fastconv import jit, machine, threads
from fastconv.algorithms.base import Execution, equalised, flat
from fastconv.algorithms.direct.depthwise.columns import Columns, Read
from fastconv.algorithms.direct.depthwise.image import Image, as_read, copy_tables
from fastconv.algorithms.direct.depthwise.move import PIECE, clear, copy_rows
from fastconv.algorithms.direct.depthwise.outer import OUTER, most, outer, total
from fastconv.algorithms.direct.depthwise.pointer import pointer
from fastconv.algorithms.direct.depthwise.rows import Block, Chunk, Rows, row_blocks
from fastconv.algorithms.direct.depthwise.schedule import Band, Schedule
from fastconv.algorithms.direct.depthwise.shape import apart, plane_axes, stripe, take
from fastconv.gemm.schedule import next_task
from fastconv.problem import ConvProblem
from fastconv.typing import Array

FIELDS, GROUP, PIECES = len(OUTER), 6, len(PIECE)
ALL = -1  # lanes


@jit.kernel
def weight_grad(
    workers, counters, x, gy, gw, scratch, geometry, steps, rows, blocks, columns, strided, groups, copied, pieces, singles,
    first, parts,
):  # fmt: skip
    """Write gw; the tables are those of `WeightGrad`."""
    n, k, multiplier, image, map_size, taps, stride, per_worker = geometry[:8]
    vl, in_place, n_sums = geometry[8:11]
    n_groups = groups.size // GROUP
    for worker in numba.prange(workers):
        sums = pointer(scratch, worker * per_worker)
        place = pointer(sums, n_sums * vl)
        r, b, c = pointer(rows, 0), pointer(blocks, 0), pointer(columns, 0)
        some, single = pointer(pieces, 0), pointer(singles, 0)
        channel = next_task(counters, worker, k)
        while channel < k:
            clear(sums, 0, n_sums * vl)
            for i in range(n):
                plane_of_x = pointer(x, (i * k + channel) // multiplier * image)
                plane_of_gy = pointer(gy, (i * k + channel) * map_size)
                source = plane_of_x if in_place else place
                for group in range(n_groups):
                    g = pointer(groups, GROUP * group)
                    if not in_place:
                        copy_rows(
                            place, plane_of_x, pointer(copied, 2 * (g[2] + g[4])), g[3] - g[4], some,
                            pieces.size // PIECES, stride, single, singles.size // 2, g[5],
                        )  # fmt: skip
                    for j in range(g[0], g[1]):
                        outer(sums, plane_of_gy, source, pointer(steps, FIELDS * j), r, b, c, strided)
            for i in range(taps):
                gw[channel * taps + i] = total(sums, pointer(parts, 0), first[i], first[i + 1])
            channel = next_task(counters, worker, k)


class WeightGrad(Execution):
    """Geometry and tables of the weight gradient."""

    def __init__(self, problem: ConvProblem) -> None:
        v, h = plane_axes(problem)
        vl = machine.tile(problem.itemsize).vl
        image = Image(problem)
        tall, wide = most()
        schedule = Schedule(vl, image.stride, image.pitch, h.kernel)
        bands = list(_bands(schedule, image.columns, wide))
        walk = Rows(v.output, v.kernel, 0, v.stride, v.dilation)
        sums = Sums(h.kernel)
        steps: list[int] = []
        groups: list[int] = []
        rows = stripe(problem.itemsize, v, h, image.copies is not None)
        for block in sorted(
            row_blocks(walk, image.rows, image.stride, lambda *_: rows, tall), key=lambda b: b.row
        ):
            first = len(steps) // FIELDS
            ahead = _ahead(problem, block)
            block, *copies = as_read(image.copies, block)
            for chunk in block.chunks:
                for band, reads in bands:
                    at = sums.place(chunk, band, reads)
                    if max(chunk.reads) < 0:
                        continue
                    for run, place in schedule.runs(block, chunk, band, 2**62):
                        fields = {
                            "gy": block.row * h.output, "ldg": vl if run.along else block.spacing * h.output,
                            "height": run.height, "tall": chunk.tall, "wide": len(reads), "rows": place, "block": run.block,
                            "blocks": run.blocks, "sums": at * vl,
                            "ahead_x": 0 if image.copies else ahead[0], "ahead_gy": ahead[1],
                        }  # fmt: skip
                        steps += [fields[name] for name in OUTER]
            groups += [first, len(steps) // FIELDS, *copies, ahead[0]]
        copied = image.copies.elements if image.copies else 0
        self.per_worker = apart(sums.count * vl + copied, problem.itemsize)
        counts = [
            problem.n, problem.k, problem.k // problem.c, v.size * h.size, v.output * h.output,
            v.kernel * h.kernel, h.stride, self.per_worker,
            vl, int(not image.copies), sums.count,
        ]  # fmt: skip
        self.geometry = np.array(counts, np.int64)
        tables = (groups, *copy_tables(image.copies), *sums.tables(v.kernel * h.kernel, vl))
        self.tables = [
            np.array(steps, np.int64),
            *schedule.tables()[1:],
            None if image.stride == 1 else image.stride,
            *(np.array(t, np.int64) for t in tables),
        ]
        self.dtype, self.flops = problem.dtype, problem.flops
        self.workspace = self.per_worker * problem.itemsize * machine.machine().cores

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = take(self.per_worker, self.flops, self.dtype)
        threads.share_out(
            self.typed[weight_grad], self.flops, flat(first), flat(second), flat(out), scratch, self.geometry,
            *self.tables,
        )  # fmt: skip


def _bands(schedule: Schedule, columns: Columns, wide: int) -> Iterator[tuple[Band, Sequence[Read]]]:
    """Add columns, by ``wide`` of their reads at a time: vectors of which lanes have weights of their own are apart."""
    taps = sum(not tap.more for tap in columns.taps[0])
    groups = columns.groups(schedule.vl, overlap=False)
    moved = [group for group in groups if sum(len(read.weights) for read in group.reads[0]) > taps]
    plain = [group for group in groups if group not in moved]
    for together in [plain] * bool(plain) + [[group] for group in moved]:
        reads = together[0].reads[0]
        if together is plain:  # all lanes are parts of one weight, those outside zeros
            reads = [read._replace(weights=((read.weights[0][0], ALL),)) for read in reads]
        for start, count in equalised(len(reads), wide):
            some = slice(start, start + count)
            yield schedule.band(columns, together, some), reads[some]


class Sums:
    """Where the sums of each chunk's taps are, and of which weights their lanes are parts."""

    def __init__(self, kernel: int) -> None:
        self.kernel, self.count = kernel, 0
        self.parts: list[tuple[int, int, int]] = []  # (weight, sum, lanes)
        self.first: dict[tuple[int, ...], int] = {}

    def tables(self, weights: int, vl: int) -> tuple[list[int], list[int]]:
        """Return where the parts of each weight begin, and all of them."""
        order = sorted(self.parts)
        first = [bisect.bisect_left(order, (weight,)) for weight in range(weights + 1)]
        return first, [n for _, place, lanes in order for n in (place * vl, lanes)]

    def place(self, chunk: Chunk, band: Band, reads: Sequence[Read]) -> int:
        """Return the first of the sums of rows of taps by what columns read."""
        key = chunk.tap, chunk.tall, band.first
        if key not in self.first:
            self.first[key] = self.count
            for t in range(chunk.tall):
                row = (chunk.tap + chunk.step * t) * self.kernel
                for read in reads:
                    self.parts += [(row + s, self.count, lanes) for s, lanes in read.weights]
                    self.count += 1
        return self.first[key]


def _ahead(problem: ConvProblem, block: Block) -> tuple[int, int]:
    """Return how far after a block's rows of x and of gy the next ones are that will be read."""
    v, h = plane_axes(problem)
    rows = block.height * block.spacing
    if problem.n > 1 and block.row + rows >= v.output:  # the same map of the next image
        x = problem.c * v.size * h.size - block.row * v.stride * h.size
        return x, problem.k * v.output * h.output - block.row * h.output
    return rows * v.stride * h.size, rows * h.output
