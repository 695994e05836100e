"""Input gradient: a sub-problem of stride 1 for each residue of the stride, with the taps turned round.

    gx[h] = sum over r with (h + lo - r*dilation) divisible by stride of  w[r] * gy[(h + lo - r*dilation) / stride]

For pixels with (h + lo) mod stride = phase, these are the taps r = first + m*t, t < T, where
m = stride / g, g = gcd(stride, dilation), and each t reads gy another e = dilation / g rows back.  Turned
round, u = T - 1 - t, they are a convolution of stride 1 and dilation e over gy.  Each phase fills its own
pixels; columns of several phases are interleaved on their way out.

Where borders repeat the image, a pixel also gets the gradient of the padded ones that repeat it.  Along a row these
are further weights of its column (see `schedule`), or where they would be many, whole padded rows are computed in
scratch and folded.  Rows of the padding are blocks that are added to the rows they repeat, when these are written.

Where gy is a circle, too (`borders.circle`), it is read on the other side where it ends: rows by the table, columns from
copies of rows, or as further pixels of single columns, if they are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import numba
import numpy as np

from fastconv import activations, borders, jit, machine, threads
from fastconv.activations import finish
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.direct.depthwise.move import PIECE, copy_rows, fold, interleave
from fastconv.algorithms.direct.depthwise.pointer import pointer
from fastconv.algorithms.direct.depthwise.schedule import Block, Columns, Rows, Schedule, Tap, row_blocks
from fastconv.algorithms.direct.depthwise.shape import (
    MOST_FAR,
    MOST_REPEATED,
    Copies,
    apart,
    copy_tables,
    parts,
    pitch,
    plane_axes,
    repeated,
    repeats,
    take,
)
from fastconv.algorithms.direct.depthwise.taps import STEP, each, most_rows, most_taps, pairs
from fastconv.gemm.schedule import next_run
from fastconv.problem import Axis, ConvProblem

FIELDS, GROUP, PIECES = len(STEP), 8, len(PIECE)


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
    starts = range(min(axis.stride, axis.size))
    return [_phase(axis, start, (axis.size - start - 1) // axis.stride + 1) for start in starts]


def _phase(axis: Axis, start: int, count: int) -> Phase:
    """Return the pixels ``start + stride*i``; of the padding, too."""
    taps = [r for r in range(axis.kernel) if (start + axis.lo - r * axis.dilation) % axis.stride == 0]
    last = taps[-1] if taps else 0
    return Phase(start, count, last, len(taps), (start + axis.lo - last * axis.dilation) // axis.stride)


@jit.kernel
def input_grad(
    workers, counters, gy, w, gx, bias, activation, residual, finishing, scratch, geometry,
    steps, rows, blocks, columns, bordered, groups, frame, copied, pieces, singles,
):  # fmt: skip
    """Write gx; the tables are those of `InputGrad`."""
    planes, n_parts, channels, sources, weights, map_size, width, twice, per_worker = geometry[:9]
    ldb, between, stride, padded, left, inside, turned, ldg = geometry[9:17]
    n_groups = groups.size // GROUP
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
                plane_of_gy, weight = pointer(gy, plane * sources), pointer(w, channel * weights)
                result = pointer(gx, plane * map_size)
                out = turn if turned else result
                source = place if copied.size else plane_of_gy
                first = n_groups * part // n_parts
                for group in range(first, n_groups * (part + 1) // n_parts):
                    g = pointer(groups, GROUP * group)
                    if copied.size:
                        held = g[7] if first == 0 else 0
                        copy_rows(
                            place, plane_of_gy, pointer(copied, 2 * (g[5] + held)), g[6] - held, some,
                            pieces.size // PIECES, 1, single, singles.size // 2, (g[6] - held) * ldg,
                        )  # fmt: skip
                    for i in range(g[0], g[1]):
                        if twice:
                            pairs(out, source, weight, pointer(steps, FIELDS * i), r, b, c, bordered)
                        else:
                            each(out, source, weight, pointer(steps, FIELDS * i), r, b, c, bordered)
                    for i in range(g[4] if turned else 0):
                        row, line = pointer(result, (g[2] + g[3] * i) * width), pointer(turn, i * ldb)
                        plain = frame.size == 0 and group < inside
                        if stride > 1 and not twice:
                            whole = row if plain else pointer(turn, turned - padded)
                            interleave(whole, line, between, stride, padded)
                            line = whole
                        if not plain:
                            fold(row, pointer(line, left), width, group >= inside)
                            for j in range(0, frame.size, 2):
                                row[frame[j + 1]] += line[frame[j]]
                    if finishing and inside == n_groups:
                        together = g[4] if g[3] == 1 else 1
                        for i in range(0, g[4], together):
                            at = plane * map_size + (g[2] + g[3] * i) * width
                            finish(gx, at, together * width, bias, channel, activation, residual, at)
                if finishing and inside < n_groups:
                    at = plane * map_size
                    finish(gx, at, map_size, bias, channel, activation, residual, at)
                part += 1
                if part == n_parts:
                    part = 0
                    plane += 1
                    channel = channel + 1 if channel + 1 < channels else 0
            begin, end = next_run(counters, worker, tasks)


class InputGrad(Execution):
    """Geometry and tables of the input gradient."""

    def __init__(self, problem: ConvProblem) -> None:
        vl, mode = machine.lanes(problem.dtype), problem.padding_mode
        v, h = plane_axes(problem)
        circle = borders.circle(h, mode) and problem.k == problem.c
        wide = not circle and len(repeated(h, mode)) > MOST_REPEATED * h.kernel
        across = h._replace(size=h.lo + h.size + h.hi, lo=0, hi=0) if wide else h
        multiplier = problem.k // problem.c
        self.dtype, self.flops, self.typed = problem.dtype, problem.flops, threads.Typed(input_grad)
        edges = () if wide or circle else borders.edges(h, mode)
        columns = [_columns(problem, v, across, f, edges) for f in phases(across)]
        copies = None
        if circle:
            columns, copies = _turned(columns, v, h, problem.itemsize)
        schedule = Schedule(vl, 1, copies.pitch if copies else h.output, h.kernel)
        twice = h.stride == 2 and max(f.taps for f in phases(v)) <= most_taps(phases=2)
        image = sorted((b for f in phases(v) for b in _blocks(v, mode, f, 1 + twice)), key=lambda b: b.row)
        around = [] if borders.circle(v, mode) else list(_rows_around(v, mode, 1 + twice))
        woven = h.stride > 1 and not twice
        if twice:
            both = tuple(phase.taps[0] for phase in columns)
            columns = [Columns(across.size, 1, both + ((),) * (2 - len(both)))]
        once = all(len(block.met) == 1 for block in image + around)
        writing, adding = ([schedule.band(c, c.groups(vl, some)) for c in columns] for some in (once, False))
        ldb = pitch(columns[0].width, vl) if woven or wide else 0
        between = most_rows(1) * ldb
        groups: list[int] = []
        for blocks, bands in ((image, writing), (around, writing if ldb else adding)):
            for block in blocks:
                first = schedule.length
                block, *reads = copies.read(block) if copies else (block, 0, 0, 0)
                for i, band in enumerate(bands):
                    place = (i * between, ldb) if ldb else (block.row * h.size, block.spacing * h.size)
                    schedule.add(block, band, *place, more=blocks is around and not ldb)
                groups += [first, schedule.length, block.row, block.spacing, block.height, *reads]
        planes = problem.n * problem.c
        # one more: lines of the next rows are fetched to be written
        held = apart((len(columns) + 1) * between, problem.itemsize)
        line = across.size if woven and (wide or around) else 0  # its phases interleaved, before it is added
        turned = held + apart(line, problem.itemsize)
        self.per_worker = turned + apart(copies.elements if copies else 0, problem.itemsize)
        counts = [
            planes, 1 if around else parts(planes, len(image)), problem.c, multiplier * v.output * h.output,
            multiplier * v.kernel * h.kernel, v.size * h.size, h.size, int(twice), self.per_worker, ldb, between,
            h.stride, across.size, h.lo if wide else 0, len(image), turned, h.output,
        ]  # fmt: skip
        self.geometry = np.array(counts, np.int64)
        frame = [n for at, to in borders.edges(h, mode) for n in (at + h.lo, to)] if wide else []
        self.tables = [
            *schedule.tables(),
            repeats(problem),
            *(np.array(t, np.int64) for t in (groups, frame, *copy_tables(copies))),
        ]
        self.workspace = self.per_worker * problem.itemsize * machine.machine().cores

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = take(self.per_worker, self.flops, self.dtype)
        threads.share_out(
            self.typed, self.flops,
            flat(first), flat(second), flat(out), bias, activation, flat(residual),
            bias.size + residual.size > 0 or activation != activations.NONE, scratch, self.geometry, *self.tables,
        )  # fmt: skip


def _blocks(axis: Axis, mode: str, phase: Phase, n_phases: int) -> Iterator[Block]:
    """Return the blocks of rows of a phase."""
    g = gcd(axis.stride, axis.dilation)
    times = 1 + axis.dilation * axis.kernel // axis.output if borders.circle(axis, mode) else 0
    walk = Rows(
        phase.count, phase.taps, phase.source + times * axis.output, dilation=axis.dilation // g,
        start=phase.start, spacing=axis.stride, tap=phase.tap, turn=-(axis.stride // g),
    )  # fmt: skip
    source = [*range(axis.output)] * (2 * times + 1)
    return row_blocks(walk, source, 1, most_rows(n_phases), most_taps(phases=n_phases))


def _rows_around(axis: Axis, mode: str, n_phases: int) -> Iterator[Block]:
    """Return the blocks of rows of the padding that some tap reaches: side by side, as the rows they repeat are, or of one row.

    Rows of all phases are a block, as if rows of gy were a stride apart.
    """
    apart = range(axis.stride * (axis.output - 1) + 1)
    source = [-1 if i % axis.stride else i // axis.stride for i in apart]
    rows, first = borders.edges(axis, mode), 0
    while first < len(rows):
        at, to = rows[first]
        spacing = rows[min(first + 1, len(rows) - 1)][1] - to
        count = 1
        while first + count < len(rows) and rows[first + count] == (at + count, to + spacing * count):
            count += 1
        last = min(axis.kernel - 1, (at + count - 1 + axis.lo) // axis.dilation)  # tap that reaches gy
        origin = at + axis.lo - axis.dilation * last
        taps = min(last, (len(source) - 1 - origin) // axis.dilation) + 1
        walk = Rows(
            count, max(0, taps), origin, dilation=axis.dilation, start=to, spacing=spacing, tap=last, turn=-1
        )
        for block in row_blocks(walk, source, 1, most_rows(n_phases), most_taps(phases=n_phases)):
            if max(read for chunk in block.chunks for read in chunk.reads) >= 0:
                yield block
        first += count


def _columns(
    problem: ConvProblem, v: Axis, h: Axis, phase: Phase, edges: tuple[tuple[int, int], ...]
) -> Columns:
    """Return the columns of a phase, and what ``edges`` add to them; the channels of gy follow each other."""
    g = gcd(h.stride, h.dilation)
    taps: list[tuple[int, int, int | None]] = [
        (phase.source + h.dilation // g * u, phase.tap - h.stride // g * u, None) for u in range(phase.taps)
    ]
    for at, to in edges:
        i, away = divmod(to - phase.start, h.stride)
        padded = _phase(h, at, 1)
        for u in range(0 if away else padded.taps):
            read = padded.source + h.dilation // g * u
            if 0 <= read < h.output:
                taps.append((read - i, padded.tap - h.stride // g * u, i))
    channels = range(problem.k // problem.c)
    all_taps = tuple(
        Tap(
            offset, k * v.kernel * h.kernel + weight,
            range(-offset, h.output - offset) if only is None else range(only, only + 1),
            k * v.output * h.output, only is not None,
        ) for k in channels for offset, weight, only in taps
    )  # fmt: skip
    return Columns(phase.count, 1, (all_taps,))


def _turned(columns: list[Columns], v: Axis, h: Axis, itemsize: int) -> tuple[list[Columns], Copies | None]:
    """Return the columns of a circular axis by what they read in place, or in copies of rows of gy."""
    size, taps = h.output, [phase.taps[0] for phase in columns]
    reach = [tap.offset for phase in taps for tap in phase]
    left, right = -min([0, *reach]), max([0, *reach])
    far = [
        tuple(
            replace(
                tap, offset=tap.offset + turn, columns=range(max(0, -tap.offset - turn), min(size, size - tap.offset - turn)),
                more=True,
            ) for tap in phase for turn in (-size, size) if -size < tap.offset + turn < size
        ) for phase in taps
    ]  # fmt: skip
    if sum(map(len, far)) <= MOST_FAR and max(left, right) <= size:
        taps, copies = [near + more for near, more in zip(taps, far, strict=True)], None
    else:
        pixels = [i % size for i in range(-left, size + right)]
        copies = Copies(pixels, 1, v._replace(size=v.output), h._replace(size=size), itemsize)
        taps = [
            tuple(replace(tap, offset=tap.offset + left, columns=range(size)) for tap in phase)
            for phase in taps
        ]
    return [replace(phase, taps=(some,)) for phase, some in zip(columns, taps, strict=True)], copies
