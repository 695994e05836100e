"""Forward: results computed from the image where it lies, or from copies of its rows."""

from __future__ import annotations

from functools import partial

from fastconv import machine
from fastconv.algorithms.direct.depthwise.image import Image, as_read
from fastconv.algorithms.direct.depthwise.maps import Maps, Result
from fastconv.algorithms.direct.depthwise.rows import Rows, row_blocks
from fastconv.algorithms.direct.depthwise.schedule import Schedule
from fastconv.algorithms.direct.depthwise.shape import parts, plane_axes
from fastconv.algorithms.direct.depthwise.taps import most_taps, tallest
from fastconv.problem import ConvProblem


class Forward(Maps):
    """Geometry and tables of the forward pass."""

    def __init__(self, problem: ConvProblem) -> None:
        v, h = plane_axes(problem)
        image = Image(problem)
        schedule = Schedule(machine.tile(problem.itemsize).vl, image.stride, image.pitch, h.kernel)
        walk = Rows(v.output, v.kernel, 0, v.stride, v.dilation)
        tall = partial(tallest, stride=h.stride)
        found = sorted(
            row_blocks(walk, image.rows, image.stride, tall, most_taps(image.stride)), key=lambda b: b.row
        )
        once = all(len(block.met) == 1 for block in found)
        band = schedule.band(image.columns, image.columns.groups(schedule.vl, overlap=once))
        groups: list[int] = []
        for block in found:
            first = schedule.length
            block, *copies = as_read(image.copies, block)
            schedule.add(block, band, block.row * h.output, block.spacing * h.output)
            groups += [first, schedule.length, block.row, block.spacing, block.height, *copies]
        planes = problem.n * problem.k
        counts = [
            planes, parts(planes, len(found)), problem.k, v.kernel * h.kernel, problem.k // problem.c, v.size * h.size,
            h.size, h.stride, v.output * h.output, h.output,
        ]  # fmt: skip
        result = Result(inside=len(found))
        super().__init__(problem, schedule, groups, image.copies, counts, result, (image.stride, 1))
