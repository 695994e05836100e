"""The weight gradient of groups of few channels of images held pixel by pixel: lanes over groups.

    gw[m, c, tap, g] = sum over pixels of  gy[pixel, g, m] * x[pixel + tap, g, c]

A task owns a block of groups and a part of the pixels, area by area. Up to TAPS sums of a vector of groups
stay in registers through an area, and share each load of gy.  Depthwise a group is one channel; where it has several, of x or of gy,
the c-th ones of all groups are a plane of their own in a task's scratch.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import jit, machine, threads, workspace
from fastconv.algorithms.base import Execution, flat, pixels
from fastconv.algorithms.direct.pixels.correlation import ONE_ROW, leaves, with_borders
from fastconv.algorithms.direct.pixels.cpu import copy_rows, first_row
from fastconv.algorithms.passes import axis_pass
from fastconv.gemm.gathered import TAPS, sum_by_taps
from fastconv.gemm.interlace import part_lanes
from fastconv.gemm.move import SLACK
from fastconv.gemm.record import record
from fastconv.gemm.schedule import next_task, part, span
from fastconv.gemm.splits import add_splits
from fastconv.gemm.transposition import transpose
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array

PIXELS = 256  # of an area
TASKS = 8  # wanted at least; they never depend on the machine, for the result's bits' sake


class Geometry(NamedTuple):
    """A weight gradient and its blocks, as numbers."""

    groups: int  #    channels of x in a group; `copy_rows` takes them for groups,
    channels: int  #  and the groups for channels
    m: int  #         channels of gy in a group
    taps: int
    sheets: int
    p: int
    q: int
    source_d: int
    source_h: int
    source_w: int
    stride_d: int
    stride_h: int
    stride_w: int
    first_d: int  #   pixel of the first tap at position 0
    first_h: int
    first_w: int
    span_h: int  #    pixels from the first tap to the last
    span_w: int
    row_blocks: int
    block_q: int
    q_blocks: int
    areas: int  #     of all images
    splits: int
    vectors: int  #   of channels
    c_blocks: int
    copied: bool
    deep: int  #      sheets that are copied for a sheet of gy
    sheet: int  #     elements from sheet to sheet of the copy, or of the image
    pitch: int
    pixel: int
    ld: int  #        channels of the largest block
    x_planes: int  #  where planes of x, those of gy, and the sums begin in a worker's scratch
    x_plane: int  #   elements of a plane
    planes: int
    plane: int
    sums: int
    scratch: int
    vl: int
    sheets_at: int  # behind the offsets of taps: what `copy_rows` reads
    rows_at: int
    edges_at: int
    edges: int


@jit.kernel
def accumulate(workers, counters, x, gy, partial, scratch, geos, offsets):
    """Compute every split's partial gw; tasks are splits x blocks of channels."""
    for worker in numba.prange(workers):
        _work(worker, counters, x, gy, partial, scratch, geos[0], offsets)


@jit.inner
def _work(worker, counters, x, gy, partial, scratch, geo, offsets):
    base = worker * geo.scratch
    source = scratch if geo.copied else x
    per_sheet = geo.row_blocks * geo.q_blocks
    tasks = geo.splits * geo.c_blocks
    task = next_task(counters, worker, tasks)
    while task < tasks:
        split, c_block = task // geo.c_blocks, task % geo.c_blocks
        first = part(geo.vectors, geo.c_blocks, c_block) * geo.vl
        count = min(part(geo.vectors, geo.c_blocks, c_block + 1) * geo.vl, geo.channels) - first
        begin = part(geo.areas, geo.splits, split)
        for i in range(begin, part(geo.areas, geo.splits, split + 1)):
            image, row_block, q_block = i // per_sheet, i % per_sheet // geo.q_blocks, i % geo.q_blocks
            image, sheet = image // geo.sheets, image % geo.sheets
            p0, p1 = span(geo.p, geo.row_blocks, row_block)
            q0 = q_block * geo.block_q
            q1 = min(q0 + geo.block_q, geo.q)
            if geo.copied:
                for depth in range(geo.deep):
                    copy_rows(
                        scratch, base + depth * geo.sheet, x, first_row(image, depth, sheet, geo, offsets),
                        geo.rows_at + p0 * geo.stride_h, (p1 - p0 - 1) * geo.stride_h + geo.span_h, first,
                        count * geo.groups, q0, q1, geo, offsets,
                    )  # fmt: skip
                x0 = base
                if geo.groups > 1:
                    x0 += geo.x_planes
                    part_lanes(scratch, x0, geo.x_plane, scratch, base, geo.x_plane, geo.groups)
            else:
                row = image * geo.source_d + sheet * geo.stride_d + geo.first_d
                row = row * geo.source_h + p0 * geo.stride_h + geo.first_h
                x0 = (row * geo.source_w + q0 * geo.stride_w + geo.first_w) * geo.channels + first
            g0 = (((image * geo.sheets + sheet) * geo.p + p0) * geo.q + q0) * geo.channels + first
            gradient, row = gy, geo.q * geo.channels
            if geo.m > 1:  # all channels
                gradient, row = scratch, (q1 - q0) * geo.channels
                for p in range(p1 - p0):
                    at = (g0 + p * geo.q * geo.channels) * geo.m
                    part_lanes(scratch, base + geo.planes + p * row, geo.plane, gy, at, row, geo.m)
                g0 = base + geo.planes
            for pair in range(geo.m * geo.groups):
                m, c = pair // geo.groups, pair % geo.groups
                _add_area(
                    scratch, base + geo.sums + pair * geo.taps * geo.ld, source, x0 + c * geo.x_plane, gradient,
                    g0 + m * geo.plane, row, p1 - p0, q1 - q0, count, i > begin, geo, offsets,
                )  # fmt: skip
        weights = geo.m * geo.groups * geo.taps
        to = (split * geo.channels + first) * weights
        transpose(partial, to, weights, scratch, base + geo.sums, geo.ld, weights, count)
        task = next_task(counters, worker, tasks)


@jit.inner
def _add_area(sums, s0, x, x0, gy, g0, g_row, rows, columns, count, more, geo, offsets):
    """Add the products of an area, vector by vector of channels."""
    groups = -(-geo.taps // TAPS)
    for v in range(0, count, geo.vl):
        for group in range(groups):
            tap = part(geo.taps, groups, group)
            sum_by_taps(
                sums, s0 + tap * geo.ld + v, geo.ld, x, x0 + v, geo.stride_h * geo.pitch // geo.groups,
                geo.stride_w * geo.pixel // geo.groups, gy, g0 + v, g_row, geo.channels, count - v, rows,
                columns, offsets, tap, part(geo.taps, groups, group + 1) - tap, more,
            )  # fmt: skip


class ByGroupsWeightGrad(Execution):
    """The weight gradient of groups of few channels; blocks for ``cache`` bytes."""

    def __init__(self, problem: ConvProblem, cache: int) -> None:
        vl, cores = machine.tile(problem.itemsize).vl, machine.machine().cores
        axes = (axis_pass(a, Direction.FORWARD, problem.padding_mode) for a in problem.axes)
        sheets, rows, last = (ONE_ROW, ONE_ROW, *axes)[-3:]
        g, taps = problem.groups, prod(problem.kernel)
        c, m = problem.c // g, problem.k // g
        vectors, single = -(-g // vl), c == m == 1
        third = cache // 3 // problem.itemsize
        deep, wide = len(sheets.offsets), vl if single else vectors * vl
        held = deep * last.stride * rows.stride * (1 if c == 1 else 2 * c) + m - 1
        area = max(1, min(PIXELS, third // (held * wide)))
        q_blocks = -(-last.outputs // area)
        block_q = -(-last.outputs // q_blocks)
        row_blocks = -(-rows.outputs // max(1, area // block_q))
        block_rows = -(-rows.outputs // row_blocks)
        areas = problem.n * sheets.outputs * row_blocks * q_blocks
        splits = min(areas, TASKS)
        span_h, span_w = (a.offsets[-1] - a.offsets[0] + 1 for a in (rows, last))
        high = (block_rows - 1) * rows.stride + span_h
        stripe = deep * high * ((block_q - 1) * last.stride + span_w)
        c_blocks = min(vectors, max(-(-stripe * vectors * vl // third), -(-TASKS // splits))) if single else 1
        ld = -(-vectors // c_blocks) * vl
        apart = vl if c == 1 and ld % (8 * vl) == 0 else 0  # such pixels would share few sets of L1
        copied = leaves(sheets) or leaves(rows) or leaves(last) or g % vl > 0 or c > 1
        pixel = c * ld + apart if copied else g
        pitch = ((block_q - 1) * last.stride + span_w) * pixel if copied else last.source * pixel
        sheet = (high if copied else rows.source) * pitch
        x_planes = -(-(stripe * pixel if copied else 0) // 16) * 16
        x_plane = stripe * ld if c > 1 else 0
        planes = -(-(x_planes + c * x_plane + SLACK) // 16) * 16
        plane = block_rows * block_q * g if m > 1 else 0
        sums = -(-(planes + m * plane + SLACK) // 16) * 16
        self.scratch = -(-(sums + m * c * taps * ld + SLACK) // 16) * 16
        offsets = np.array(
            [
                (i if copied else d - sheets.offsets[0]) * sheet // c
                + (h - rows.offsets[0]) * pitch // c
                + (w - last.offsets[0]) * pixel // c
                for i, (_, d) in enumerate(sheets.taps[0])
                for _, h in rows.taps[0]
                for _, w in last.taps[0]
            ],
            np.int64,
        )
        self.offsets, at = with_borders(offsets, sheets, rows, last)
        self.splits, self.flops, self.dtype = splits, problem.flops, problem.dtype
        self.geometry = record(
            Geometry(
                groups=c, channels=g, m=m, taps=taps, sheets=sheets.outputs, p=rows.outputs, q=last.outputs,
                source_d=sheets.source, source_h=rows.source, source_w=last.source, stride_d=sheets.stride,
                stride_h=rows.stride, stride_w=last.stride, first_d=sheets.offsets[0], first_h=rows.offsets[0],
                first_w=last.offsets[0], span_h=span_h, span_w=span_w, row_blocks=row_blocks, block_q=block_q,
                q_blocks=q_blocks, areas=areas, splits=splits, vectors=vectors, c_blocks=c_blocks,
                copied=copied, deep=deep, sheet=sheet, pitch=pitch, pixel=pixel, ld=ld, x_planes=x_planes, x_plane=x_plane, planes=planes, plane=plane, sums=sums, scratch=self.scratch, vl=vl, **at,
            )
        )  # fmt: skip
        self.partial = 0 if splits == 1 else -(-splits * problem.k * c * taps // 16) * 16
        self.workspace = (self.partial + cores * self.scratch) * problem.itemsize

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        workers = threads.workers(self.flops)
        scratch = workspace.take(self.partial + workers * self.scratch, self.dtype)
        partial = scratch[: self.partial] if self.partial else flat(out)
        threads.share_out(
            self.typed[accumulate], self.flops, pixels(first), pixels(second), partial,
            scratch[self.partial :], self.geometry, self.offsets,
        )  # fmt: skip
        if self.partial:
            threads.launch(self.typed[add_splits], float(self.partial), partial, flat(out), self.splits)
