"""The weight gradient as a product reduced over pixels, im2col's way.

    gw[k, t] = sum over j = (n, p, q) of  gy[k, j] * B[t, j],     t = (c, r, s), B the lowered input

Both operands lie with j fastest.  Scalars of gy are broadcast from where they stand, eight rows at a time; of
B vectors over t are wanted, so its blocks are lowered and turned to ``[j][t]`` in cache.  Of a 1x1 convolution
B is x itself, and grad_output may be the one that is turned instead: then C is gw turned.

Of images held pixel by pixel, channels of a pixel are neighbours: they are copied to blocks of B, ``t = (r, s, c)``, and nothing is turned
but gw, as it is written.

A task owns a block of gw.  Where gw has too few blocks to share out, the pixels are cut into ``splits`` as well,
a number that depends on the problem and the caches alone; their partial sums are added in one fixed order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import jit, machine, threads, workspace
from fastconv.algorithms.base import Execution, flat
from fastconv.algorithms.base import pixels as pixels_of
from fastconv.algorithms.im2col import LoweredPass, lists_of
from fastconv.algorithms.im2col.cost import PIXELS, cut, turns_gradient
from fastconv.algorithms.im2col.cpu import lower, plan_rows
from fastconv.algorithms.passes import pass_of
from fastconv.gemm.blocking import odd_lines
from fastconv.gemm.gathered import tile_over_pixels
from fastconv.gemm.move import SLACK, write_row
from fastconv.gemm.record import record
from fastconv.gemm.schedule import next_task, part, span
from fastconv.gemm.splits import add_splits
from fastconv.gemm.transposition import transpose
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array


class Blocks(NamedTuple):
    """How gw and the pixels are cut."""

    t_blocks: int
    m_blocks: int
    splits: int
    image_blocks: int
    parts: int  #    of an image
    images: int  #   of a chunk, at most
    ld: int  #       row length of B and C
    identity: bool  # whether B is an operand itself
    turned: bool  #  whether that is grad_output, and rows of C are channels of x
    by_pixel: bool  # whether images are held so, and t = (view, c)
    column_at: int  # then in the tables: [inner, q] -> column of the source, or -1
    lowered: int  #  where parts of a worker's scratch begin
    c_start: int
    scratch: int


@jit.kernel
def accumulate(workers, counters, a, b, partial, scratch, lists, geos, tables, cuts):
    """Compute every split's partial gw; tasks are splits x groups x blocks of gw."""
    for worker in numba.prange(workers):
        _work(worker, counters, a, b, partial, scratch, lists, geos[0], tables, cuts[0])


@jit.inner
def _work(worker, counters, a, b, partial, scratch, lists, geo, tables, blocks):
    rows = lists[worker * geo.segments : worker * geo.segments + 2 * blocks.images]
    segments = lists[worker * geo.segments + 2 * blocks.images : (worker + 1) * geo.segments]
    b0 = worker * blocks.scratch
    c0 = b0 + blocks.c_start
    length, pixels = geo.channels * geo.outer * geo.inner, geo.rows * geo.q
    panels = -(-geo.m // geo.mr)
    vectors = -(-length // geo.vl)
    tasks = blocks.splits * geo.groups * blocks.t_blocks * blocks.m_blocks
    chunks = blocks.image_blocks * blocks.parts
    images = geo.columns // pixels
    task = next_task(counters, worker, tasks)
    while task < tasks:
        rest, m_block = task // blocks.m_blocks, task % blocks.m_blocks
        rest, t_block = rest // blocks.t_blocks, rest % blocks.t_blocks
        split, group = rest // geo.groups, rest % geo.groups
        v0, v1 = span(vectors, blocks.t_blocks, t_block)
        t0, t1 = v0 * geo.vl, min(v1 * geo.vl, length)
        p0, p1 = span(panels, blocks.m_blocks, m_block)
        first = part(geo.m, panels, p0)
        begin = part(chunks, blocks.splits, split)
        for chunk in range(begin, part(chunks, blocks.splits, split + 1)):
            block, piece = chunk // blocks.parts, chunk % blocks.parts
            image = part(images, blocks.image_blocks, block)
            count = part(images, blocks.image_blocks, block + 1) - image
            pixel = part(pixels, blocks.parts, piece)
            run = part(pixels, blocks.parts, piece + 1) - pixel
            if blocks.by_pixel:
                apart, along = 1, geo.groups * geo.m
                _copied_block(
                    scratch, b0, b, geo, tables, blocks, group, image * pixels + pixel, count * run, t0, t1
                )
            else:
                apart, along = pixels, 1
                _turned_block(
                    scratch, b0, b, geo, tables, blocks, group, image, count, pixel, run, t0, t1, segments
                )
            for i in range(count):
                plane = (image + i) * geo.groups * geo.m * pixels
                rows[2 * i] = plane + group * geo.m * apart + pixel * along
                rows[2 * i + 1] = i * run * blocks.ld
            _multiply(
                scratch, c0, a, b0, blocks.ld, rows, count, run, p0, p1, panels, v1 - v0, chunk > begin, apart, along, geo
            )  # fmt: skip
        high = part(geo.m, panels, p1) - first
        to = (split * geo.groups + group) * geo.m * length
        if blocks.turned:
            for t in range(t0, t1, 8):  # row by row of gw, which may be a multiple of 4 KB apart
                at = to + t * geo.m + first
                transpose(partial, at, geo.m, scratch, c0 + t - t0, blocks.ld, high, min(8, t1 - t))
        elif blocks.by_pixel:
            for m in range(high):
                _write_taps(partial, to + (first + m) * length, scratch, c0 + m * blocks.ld, t0, t1, geo)
        else:
            for m in range(high):
                write_row(partial, to + (first + m) * length + t0, scratch, c0 + m * blocks.ld, t1 - t0)
        task = next_task(counters, worker, tasks)


@jit.inner
def _turned_block(scratch, b0, b, geo, tables, blocks, group, image, count, pixel, run, t0, t1, segments):
    """Write columns t0..t1 of B^T for ``run`` pixels of ``count`` images."""
    pixels = geo.rows * geo.q
    if blocks.identity:
        for i in range(count):
            source = (((image + i) * geo.groups + group) * geo.channels + t0) * pixels + pixel
            transpose(scratch, b0 + i * run * blocks.ld, blocks.ld, b, source, pixels, t1 - t0, run)
    else:
        lowered, j = b0 + blocks.lowered, image * pixels + pixel
        plan_rows(segments, geo, tables, j, count * run, False)
        lower(scratch, lowered, b, geo, group, j, t0, t1, segments)
        transpose(scratch, b0, blocks.ld, scratch, lowered, geo.ld, t1 - t0, count * run)


@jit.inner
def _copied_block(scratch, b0, b, geo, tables, blocks, group, j0, columns, t0, t1):
    """Write columns t0..t1 of B^T for the pixels from j0 on, whose channels are neighbours: view by view."""
    channels, ld, t = geo.channels, blocks.ld, t0
    while t < t1:
        view, c = t // channels, t % channels
        count = min(channels - c, t1 - t)
        rows_at, columns_at = (
            geo.source_row_at + view // geo.inner * geo.rows, blocks.column_at + view % geo.inner * geo.q
        )  # fmt: skip
        line, row, q = j0 // (geo.rows * geo.q) * geo.source_rows, j0 // geo.q % geo.rows, j0 % geo.q
        for to in range(b0 + t - t0, b0 + t - t0 + columns * ld, ld):
            h, w = tables[rows_at + row], tables[columns_at + q]
            if h >= 0 and w >= 0:
                at = (((line + h) * geo.source_width + w) * geo.groups + group) * channels + c
                write_row(scratch, to, b, at, count)
            else:
                scratch[to : to + count] = 0
            q += 1
            if q == geo.q:
                q, row = 0, row + 1
            if row == geo.rows:
                row, line = 0, line + geo.source_rows
        t += count


@jit.inner
def _write_taps(gw, to, c, c0, t0, t1, geo):
    """Write a row of C, t = (view, channel), to a row of gw, t = (channel, view)."""
    channels, views, t = geo.channels, geo.outer * geo.inner, t0
    while t < t1:
        view, channel = t // channels, t % channels
        count, whole = min(channels - channel, t1 - t), 1
        if count == channels:
            whole = (t1 - t) // channels
        transpose(gw, to + channel * views + view, views, c, c0 + t - t0, channels, whole, count)
        t += whole * count


@jit.inner
def _multiply(c, c0, a, b0, ld, rows, count, run, p0, p1, panels, vectors, more, apart, along, geo):
    """C (+)= panels p0..p1 of A, whose rows are ``apart``, times B^T: NR vectors of B stay in L1 for all of them.

    While a panel is multiplied the next one is asked for, after the last the first of the pixels that follow.
    """
    groups = -(-vectors // geo.nr)
    first = part(geo.m, panels, p0)
    for g in range(groups):
        v = part(vectors, groups, g)
        at, nr = v * geo.vl, part(vectors, groups, g + 1) - v
        for p in range(p0, p1):
            m, following = span(geo.m, panels, p)
            ahead = (following - m) * apart
            if p == p1 - 1:
                ahead = (first - m) * apart + (run * along if g == groups - 1 else 0)
            tile_over_pixels(
                c, c0 + (m - first) * ld + at, ld, a, m * apart, apart, along, c, b0 + at, ld, rows, count, run,
                following - m, nr, more, ahead,
            )  # fmt: skip


class WeightGrad(Execution):
    """The weight gradient by turned blocks."""

    def __init__(self, problem: ConvProblem, cache: int) -> None:
        p = pass_of(problem, Direction.FORWARD)
        geometry, self.tables = LoweredPass(p, problem.itemsize, cache).values()
        unit = machine.tile(problem.itemsize)
        self.problem = problem
        self.flops = p.flops
        identity = len(p.axes) == 1 and p.axes[0].is_identity
        self.turned = turned = identity and not p.last and turns_gradient(p.channels, p.m, p.columns)
        high, length = (p.channels, p.m) if turned else (p.m, p.reduction)
        vectors, panels = -(-length // unit.vl), -(-high // unit.mr)
        t_blocks, m_blocks, splits = cut(high, length, p.columns, p.groups, identity, cache, problem.itemsize)

        n, pixels = p.n, p.columns // p.n
        parts = -(-pixels // PIXELS)
        image_blocks = -(-n // max(1, PIXELS // pixels))
        splits = min(splits, image_blocks * parts)
        images = -(-n // image_blocks)
        kc = images * -(-pixels // parts)
        kc_ld = odd_lines(-(-kc // unit.vl) * unit.vl, unit.vl)
        ld = odd_lines(-(-vectors // t_blocks) * unit.vl, unit.vl)
        block = kc * ld + SLACK
        c_start = block if identity or p.last else block + kc_ld * ld + SLACK
        scratch = -(-(c_start + -(-panels // m_blocks) * unit.mr * ld + SLACK) // 16) * 16
        border, listed = lists_of(p, kc)
        self.segments = listed + 2 * images
        if turned:
            geometry = geometry._replace(m=p.channels, channels=p.m)
        self.geometry = record(geometry._replace(ld=kc_ld, segments=self.segments, pixels=border))
        self.scratch, self.splits = scratch, splits
        last, self.images = p.axes[-1], pixels_of if p.last else flat
        columns = last.sources(np.array(last.offsets)[:, None] + last.stride * np.arange(last.outputs))
        column_at, self.tables = self.tables.size, np.concatenate([self.tables, columns.reshape(-1)])
        self.blocks = record(
            Blocks(
                t_blocks, m_blocks, splits, image_blocks, parts, images, ld, identity, turned, p.last, column_at, block,
                c_start, scratch,
            )
        )  # fmt: skip
        self.partial = 0 if splits == 1 else -(-splits * p.groups * p.m * p.reduction // 16) * 16
        self.workspace = (self.partial + machine.machine().cores * scratch) * problem.itemsize

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        workers = threads.workers(self.flops)
        scratch = workspace.take(self.partial + workers * self.scratch, self.problem.dtype)
        partial = scratch[: self.partial] if self.partial else flat(out)
        a, b = (first, second) if self.turned else (second, first)
        threads.share_out(
            self.typed[accumulate], self.flops, self.images(a), self.images(b), partial,
            scratch[self.partial :], np.empty(workers * self.segments, np.int64),
            self.geometry, self.tables, self.blocks,
        )  # fmt: skip
        if self.partial:
            threads.launch(self.typed[add_splits], float(self.partial), partial, flat(out), self.splits)
