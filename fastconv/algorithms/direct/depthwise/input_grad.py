"""Input gradient: a sub-problem of stride 1 for each residue of the stride, with the taps turned round.

    gx[h] = sum over r with (h + lo - r*dilation) divisible by stride of  w[r] * gy[(h + lo - r*dilation) / stride]

For pixels with (h + lo) mod stride = phase, these are the taps r = first + m*t, t < T, where
m = stride / g, g = gcd(stride, dilation), and each t reads gy another e = dilation / g rows back.  Turned
round, u = T - 1 - t, they are a convolution of stride 1 and dilation e over gy.  Each phase fills its own
pixels; columns of several phases are interleaved on their way out.

Where borders repeat the image, a pixel also gets the gradient of the padded ones that repeat it.  Along a row these
are further weights of its column (see `columns`), or where they would be many, whole padded rows are computed in
scratch and folded.  Rows of the padding are blocks that are added to the rows they repeat, when these are written.

Where gy is a circle, too (`borders.circle`), it is read on the other side where it ends: rows by the table, columns from
copies of rows, or as further pixels of single columns, if they are few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import gcd

from fastconv import borders, machine
from fastconv.algorithms.direct.depthwise.columns import Columns, Tap
from fastconv.algorithms.direct.depthwise.image import MOST_FAR, Copies, as_read, pitch
from fastconv.algorithms.direct.depthwise.maps import Maps, Result
from fastconv.algorithms.direct.depthwise.rows import Block, Rows, row_blocks
from fastconv.algorithms.direct.depthwise.schedule import Schedule
from fastconv.algorithms.direct.depthwise.shape import (
    MOST_REPEATED,
    apart,
    parts,
    plane_axes,
    repeated,
)
from fastconv.algorithms.direct.depthwise.taps import most_taps, tallest
from fastconv.problem import Axis, ConvProblem

# The most rows of a block and taps of a chunk, as `row_blocks` takes them.
Most = tuple[Callable[[int, int], int], int]


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


class InputGrad(Maps):
    """Geometry and tables of the input gradient."""

    def __init__(self, problem: ConvProblem) -> None:
        vl, mode = machine.tile(problem.itemsize).vl, problem.padding_mode
        v, h = plane_axes(problem)
        circle = borders.circle(h, mode) and problem.k == problem.c
        wide = not circle and len(repeated(h, mode)) > MOST_REPEATED * h.kernel
        across = h._replace(size=h.lo + h.size + h.hi, lo=0, hi=0) if wide else h
        multiplier = problem.k // problem.c
        edges = () if wide or circle else borders.edges(h, mode)
        columns = [_columns(problem, v, across, f, edges) for f in phases(across)]
        copies = None
        if circle:
            columns, copies = _turned(columns, v, h, problem.itemsize)
        schedule = Schedule(vl, 1, copies.pitch if copies else h.output, h.kernel)
        twice = h.stride == 2 and max(f.taps for f in phases(v)) <= most_taps(phases=2)
        most = partial(tallest, phases=1 + twice), most_taps(phases=1 + twice)
        image = sorted((b for f in phases(v) for b in _blocks(v, mode, f, most)), key=lambda b: b.row)
        around = [] if borders.circle(v, mode) else list(_rows_around(v, mode, most))
        woven = h.stride > 1 and not twice
        if twice:
            both = tuple(phase.taps[0] for phase in columns)
            columns = [Columns(across.size, 1, both + ((),) * (2 - len(both)))]
        once = all(len(block.met) == 1 for block in image + around)
        writing, adding = ([schedule.band(c, c.groups(vl, some)) for c in columns] for some in (once, False))
        ldb = pitch(columns[0].width, vl) if woven or wide else 0
        between = max((block.height for block in image + around), default=0) * ldb
        groups: list[int] = []
        for blocks, bands in ((image, writing), (around, writing if ldb else adding)):
            for block in blocks:
                first = schedule.length
                block, *reads = as_read(copies, block)
                for i, band in enumerate(bands):
                    place = (i * between, ldb) if ldb else (block.row * h.size, block.spacing * h.size)
                    schedule.add(block, band, *place, more=blocks is around and not ldb)
                groups += [first, schedule.length, block.row, block.spacing, block.height, *reads]
        planes = problem.n * problem.c
        # one more: lines of the next rows are fetched to be written
        held = apart((len(columns) + 1) * between, problem.itemsize)
        line = across.size if woven and (wide or around) else 0  # its phases interleaved, before it is added
        counts = [
            planes, 1 if around else parts(planes, len(image)), problem.c, multiplier * v.kernel * h.kernel,
            1, multiplier * v.output * h.output, h.output, 1, v.size * h.size, h.size,
        ]  # fmt: skip
        result = Result(
            held + apart(line, problem.itemsize), ldb, between, h.stride if woven else 1, across.size,
            h.lo if wide else 0, len(image),
        )  # fmt: skip
        frame = [n for at, to in borders.edges(h, mode) for n in (at + h.lo, to)] if wide else []
        super().__init__(problem, schedule, groups, copies, counts, result, (1, 1 + twice), frame)


def _blocks(axis: Axis, mode: str, phase: Phase, most: Most) -> Iterator[Block]:
    """Return the blocks of rows of a phase."""
    g = gcd(axis.stride, axis.dilation)
    times = 1 + axis.dilation * axis.kernel // axis.output if borders.circle(axis, mode) else 0
    walk = Rows(
        phase.count, phase.taps, phase.source + times * axis.output, dilation=axis.dilation // g,
        start=phase.start, spacing=axis.stride, tap=phase.tap, turn=-(axis.stride // g),
    )  # fmt: skip
    source = [*range(axis.output)] * (2 * times + 1)
    return row_blocks(walk, source, 1, *most)


def _rows_around(axis: Axis, mode: str, most: Most) -> Iterator[Block]:
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
        for block in row_blocks(walk, source, 1, *most):
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
