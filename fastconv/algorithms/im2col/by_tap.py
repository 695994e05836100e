"""Tap by tap: a 1x1 layer for each tap, between the pixels of the source that it meets and their results.

    y[k, j] += sum over c of  w[k, c, tap] * x[c, j*stride + offset]     for positions j that read inside x

Lowered together, taps are multiplied at all positions of a slice, also where they meet nothing but padding: of 3x3 taps
at dilation 12 on 33 x 33 pixels 43 % of the products, of the input gradient at dilation 4 on 11 x 11 without padding
three quarters.  Here each tap's own positions are lowered side by side, over all rows and images of a block, multiplied by its
weights, and added to the sums of the block, which stay in cache until all taps are done.

The price is that sums leave the registers with each tap, and are added in pieces of rows.  Weights are packed
``[tap][group][panel][channel][mr]``, so that a tap reads its own alone.
"""

from __future__ import annotations

from itertools import product
from math import inf, prod
from typing import NamedTuple

import numba
import numpy as np

from fastconv import jit, machine
from fastconv.algorithms.correlation import BlockedPass
from fastconv.algorithms.im2col.cost import TAP_KC
from fastconv.algorithms.im2col.cpu import store
from fastconv.algorithms.passes import Pass, result_rows, source_rows
from fastconv.gemm.blocking import streams
from fastconv.gemm.move import SLACK, add_rows
from fastconv.gemm.record import joined, record
from fastconv.gemm.schedule import next_task, part, span
from fastconv.gemm.segments import SEGMENT, add_segment, copy_channels
from fastconv.gemm.tile import tile
from fastconv.gemm.transposition import BLOCK
from fastconv.roofline import multiply
from fastconv.typing import Array


class Geometry(NamedTuple):
    """A pass and its blocks, as numbers."""

    groups: int
    channels: int  # of the source, in a group
    m: int  #         result channels in a group
    taps: int  #      of all phases
    rows: int  #      rows of an image and phase: positions over all axes but the last
    q: int  #         positions in a row
    lines: int  #     n * rows
    source_rows: int
    source_width: int
    stride: int  #    of the last axis
    outer_steps: int  # phases over all axes but the last
    step: int  #      phases of the last axis
    phases: int
    result_width: int
    result_size: int  # pixels of a result channel
    result_channel: int  # elements from channel to channel, and from pixel to pixel
    result_pixel: int
    line_blocks: int
    row_blocks: int
    chunks: int  #    of source channels
    width: int  #     row length of B, and of the product of a panel, in scratch
    ldc: int  #       and of the sums, for one phase
    product: int  #   where in a worker's scratch that product begins,
    sums: int  #      and the sums
    scratch: int  #   elements of a worker
    segments: int  #  numbers in its list
    tap_at: int  #    where tables begin: [tap] -> phase, index in the kernel, outer and inner offset
    source_row_at: int  # [outer offset, row] -> row of the source, or -1
    result_row_at: int  # [outer phase, row] -> row of the result, or -1
    offset_at: int  # [inner] -> source offset
    lo_at: int  #     [inner] -> first position that reads inside the source
    hi_at: int  #     [inner] -> one past the last
    past_caches: bool  # whether the result is written past the caches
    vl: int
    mr: int
    nr: int


@jit.kernel
def correlate(
    workers, counters, x, packed, views, out, scratch, lists, geos, tables, bias, activation, residual
):
    """Compute a pass; tasks are blocks of lines x blocks of channels x groups."""
    for worker in numba.prange(workers):
        _work(worker, counters, x, packed, out, scratch, lists, geos[0], tables, bias, activation, residual)


@jit.inner
def _work(worker, counters, x, packed, out, scratch, lists, geo, tables, bias, activation, residual):
    segments = lists[worker * geo.segments : (worker + 1) * geo.segments]
    b0 = worker * geo.scratch
    c0, apart = b0 + geo.sums, geo.phases * geo.ldc
    panels = -(-geo.m // geo.mr)
    tasks = geo.groups * geo.line_blocks * geo.row_blocks
    task = next_task(counters, worker, tasks)
    while task < tasks:
        # tasks that follow each other share their weights
        rows, block = task // geo.line_blocks, task % geo.line_blocks
        group, p0, p1 = rows // geo.row_blocks, *span(panels, geo.row_blocks, rows % geo.row_blocks)
        m0, m1 = part(geo.m, panels, p0), part(geo.m, panels, p1)
        first, last = span(geo.lines, geo.line_blocks, block)
        for m in range(m0, m1):
            start = bias[group * geo.m + m] if bias.size > 0 else bias.dtype.type(0)
            scratch[c0 + (m - m0) * apart : c0 + (m - m0 + 1) * apart] = start
        for tap in range(geo.taps):
            add_tap(
                scratch, b0, c0, x, packed, segments, geo, tables, group, tap, first, last, p0, p1, panels
            )
        store(
            scratch, c0, out, geo, tables, group, first * geo.q, (last - first) * geo.q, m0, m1, False,
            activation, residual,
        )  # fmt: skip
        task = next_task(counters, worker, tasks)


@jit.inner
def add_tap(scratch, b0, c0, x, packed, segments, geo, tables, group, tap, first, last, p0, p1, panels):
    """Add to the sums of lines first..last what a tap contributes."""
    at = geo.tap_at + 4 * tap
    phase, index, outer, inner = tables[at], tables[at + 1], tables[at + 2], tables[at + 3]
    lo, hi = tables[geo.lo_at + inner], tables[geo.hi_at + inner]
    source_rows = tables[geo.source_row_at + outer * geo.rows :]
    met = 0
    for line in range(first, last):
        met += source_rows[line % geo.rows] >= 0
    columns, apart, size = met * (hi - lo), geo.phases * geo.ldc, geo.source_rows * geo.source_width
    top, source, product = part(geo.m, panels, p0), group * geo.channels * size, b0 + geo.product
    vectors = -(-columns // geo.vl)
    slices = -(-vectors // geo.nr)
    line, q = first, lo  # of the first column of a slice
    for i in range(slices):
        nr = part(vectors, slices, i + 1) - part(vectors, slices, i)
        count = min(nr * geo.vl, columns - part(vectors, slices, i) * geo.vl)
        n, line, q = plan_columns(
            segments, geo, source_rows, tables[geo.offset_at + inner], lo, hi, first, line, q, count
        )
        for chunk in range(geo.chunks):
            ch0, ch1 = span(geo.channels, geo.chunks, chunk)
            copy_channels(
                scratch, b0, geo.width, x, source + ch0 * size, size, ch1 - ch0, segments, n, geo.stride
            )
            m1 = top
            for p in range(p0, p1):
                m0, m1 = m1, part(geo.m, panels, p + 1)
                a0 = ((index * geo.groups + group) * geo.m + m0) * geo.channels + ch0 * (m1 - m0)
                c = c0 + (m0 - top) * apart + phase * geo.ldc
                tile(
                    scratch, product, geo.width, packed, a0, scratch, b0, geo.width, ch1 - ch0, m1 - m0, nr, False
                )  # fmt: skip
                for s in range(n):
                    at, to = segments[SEGMENT * s], segments[SEGMENT * geo.width + s]
                    wide = segments[SEGMENT * s + 4]  # without lanes past the last column
                    add_rows(scratch, c, apart, scratch, product + at - to, geo.width, m1 - m0, to, to + wide)


@jit.inner
def plan_columns(segments, geo, source_rows, offset, lo, hi, first, line, q, columns):
    """List the segments of a channel that a slice is made of, and behind where in the sums they belong.

    It begins at position q of a line.  Return their number, and where the next slice begins.
    """
    image_step = geo.groups * geo.channels * geo.source_rows * geo.source_width
    n, done = 0, 0
    while done < columns:
        row = source_rows[line % geo.rows]
        if row >= 0:
            count = min(hi - q, columns - done)
            source = line // geo.rows * image_step + row * geo.source_width + q * geo.stride + offset
            segments[SEGMENT * geo.width + n] = (line - first) * geo.q + q
            # lanes past the last column become zeros: what was left there may be denormal, and slow
            rest = -columns % geo.vl if done + count == columns else 0
            n = add_segment(segments, n, done, source, count + rest, 0, count)
            done += count
            q += count
        if row < 0 or q == hi:
            line, q = line + 1, lo
    return n, line, q


LOWER, ADD = 5, 5  # cycles to lower a vector of B, and to add one to the sums
TASKS = 8  # for each core, where lines and panels give as many


class TapPass(BlockedPass):
    """A pass over any number of axes, zeros around them, ready to run."""

    kernel = correlate

    def __init__(self, p: Pass, itemsize: int, cache: int) -> None:
        super().__init__(p, itemsize)
        unit = machine.tile(itemsize)
        mr = min(unit.mr, BLOCK)  # packed by blocks that none overlaps
        apart = 0 if prod(p.kernel) == 1 else p.groups * p.m * p.channels
        self.view = record(p.weights(itemsize)._replace(mr=mr, apart=apart))
        outer, last = p.axes[:-1], p.axes[-1]
        rows = prod(a.outputs for a in outer)
        row_blocks, self.column_blocks = self._divide(p, itemsize, cache, mr)
        chunks = -(-p.channels // TAP_KC)
        width = unit.nr * unit.vl
        ldc = -(-(-(-p.n * rows // self.column_blocks) * last.outputs) // unit.vl) * unit.vl
        panels = -(-p.m // mr)
        high = -(-panels // row_blocks) * mr
        sizes = {
            "b": -(-p.channels // chunks) * width + SLACK,
            "product": mr * width + SLACK,
            "sums": high * p.phases * ldc + SLACK,
        }  # fmt: skip
        starts = np.cumsum([0] + [-(-size // 16) * 16 for size in sizes.values()]).tolist()
        self.scratch, self.segments = starts[-1], (SEGMENT + 1) * width
        views = {view: i for i, view in enumerate(product(*(a.offsets for a in p.axes)))}

        def described() -> tuple[Array, Array]:
            lo, hi = last.meeting()
            inner = len(lo)
            taps = [
                (phase, index, view // inner, view % inner)
                for phase, taps in enumerate(p.taps(views))
                for index, view in taps
            ]
            tables, at = joined(
                tap=taps, source_row=source_rows(outer), result_row=result_rows(outer), offset=last.offsets,
                lo=lo, hi=hi,
            )  # fmt: skip
            size = prod(a.result for a in p.axes)
            geometry = Geometry(
                groups=p.groups, channels=p.channels, m=p.m, taps=len(taps), rows=rows, q=last.outputs,
                lines=p.n * rows, source_rows=prod(a.source for a in outer), source_width=last.source,
                stride=last.stride, outer_steps=p.phases // last.step, step=last.step, phases=p.phases,
                result_width=last.result, result_size=size, result_channel=size, result_pixel=1,
                line_blocks=self.column_blocks, row_blocks=row_blocks, chunks=chunks, width=width, ldc=ldc, past_caches=p.phases > 1 and streams(p.results, itemsize),
                product=starts[1], sums=starts[2], scratch=self.scratch, segments=self.segments,
                tap_at=at["tap"], source_row_at=at["source_row"], result_row_at=at["result_row"],
                offset_at=at["offset"], lo_at=at["lo"], hi_at=at["hi"], vl=unit.vl, mr=mr, nr=unit.nr,
            )  # fmt: skip
            return record(geometry), tables

        self.describe = described

    @property
    def pack_ahead(self) -> bool:
        """Always: only packed weights stand tap by tap."""
        return True

    def _divide(self, p: Pass, itemsize: int, cache: int, mr: int) -> tuple[int, int]:
        """Return into how many blocks of panels and of lines the work is cut: what takes the fewest cycles.

        The weights of a tap, which each slice of B reads again, may fill a quarter of L2, the sums half of it.
        """
        unit, cores = machine.tile(itemsize), machine.machine().cores
        half, panels = cache // 2 // itemsize, -(-p.m // mr)
        lines, length = p.n * prod(a.outputs for a in p.axes[:-1]), p.axes[-1].outputs
        columns = length * prod(a.met for a in p.axes) / unit.vl  # vectors of a line that a tap meets
        row_blocks, best = min(panels, -(-2 * p.m * p.channels // half)), (inf, 1, 1)
        while row_blocks <= panels:
            high = -(-panels // row_blocks) * mr
            most = max(1, half // (high * p.phases * length))
            for each in (TASKS, TASKS // 2, TASKS // 4):
                wanted = -(-each * cores // (p.groups * row_blocks))
                line_blocks = min(lines, max(-(-lines // most), wanted))
                vectors = lines / line_blocks * columns + 0.5
                cycles = multiply(min(p.m, high), vectors, p.channels, itemsize)
                cycles += vectors * (p.channels * LOWER + high * ADD * -(-p.channels // TAP_KC))
                # the work shared out, and a task that one core is late: they are unequal
                tasks = p.groups * row_blocks * line_blocks
                best = min(best, (cycles * (tasks / cores + 1), row_blocks, line_blocks))
            row_blocks *= 2
        return best[1:]
