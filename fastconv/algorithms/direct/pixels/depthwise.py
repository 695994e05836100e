"""Depthwise convolution of images held pixel by pixel: forward and input gradient, lanes over channels.

    result[pixel, c] = sum over taps of  source[pixel + tap, c] * w[tap, c]

A task owns an area of positions and a block of channels whose rows fit the cache; up to MR pixels by two
vectors of channels are summed in registers over all taps, each product from one load of a pixel.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fastconv import jit, machine, threads
from fastconv.activations import finish
from fastconv.algorithms.base import Array
from fastconv.algorithms.correlation import axis_pass
from fastconv.algorithms.direct.pixels.correlation import ONE_ROW, leaves, phase_tables
from fastconv.algorithms.direct.pixels.cpu import Geometry, copy_rows, list_pixels
from fastconv.algorithms.direct.pixels.packed import PackedPass
from fastconv.gemm.gathered import tile_channelwise
from fastconv.gemm.record import record
from fastconv.gemm.schedule import next_task, part
from fastconv.problem import ConvProblem, Direction

PIXELS = 256  # positions of an area
TASKS = 8  # wanted, so that workers end together
WIDTH = 2  # vectors of a tile


@jit.kernel
def correlate(
    workers, counter, x, w, out, scratch, lists, geos, tables, start, vl, plain, activation, residual
):
    """Compute a pass; tasks are images x areas x blocks of channels."""
    for worker in numba.prange(workers):
        _work(
            worker, counter, x, w, out, scratch, lists, geos[0], tables, start, vl, plain, activation, residual
        )  # fmt: skip


@jit.inner
def _work(worker, counter, x, w, out, scratch, lists, geo, tables, start, vl, plain, activation, residual):
    base = worker * geo.scratch
    sources = lists[2 * worker * geo.pixels : (2 * worker + 1) * geo.pixels]
    targets = lists[(2 * worker + 1) * geo.pixels : (2 * worker + 2) * geo.pixels]
    source = scratch if geo.copied else x
    areas = geo.row_blocks * geo.q_blocks
    vectors = -(-geo.channels // vl)
    task = next_task(counter)
    while task < geo.n * areas * geo.m_blocks:
        rest, c_block = task // geo.m_blocks, task % geo.m_blocks
        image, area = rest // areas, rest % areas
        v0, v1 = part(vectors, geo.m_blocks, c_block), part(vectors, geo.m_blocks, c_block + 1)
        row_block, q_block = area // geo.q_blocks, area % geo.q_blocks
        p0, p1 = part(geo.p, geo.row_blocks, row_block), part(geo.p, geo.row_blocks, row_block + 1)
        q0 = q_block * geo.block_q
        q1 = min(q0 + geo.block_q, geo.q)
        if geo.copied:
            count = min(v1 * vl, geo.channels) - v0 * vl
            copy_rows(scratch, base, x, image, v0 * vl, count, p0, p1, q0, q1, geo)
            at = base - v0 * vl
        else:
            row = image * geo.source_h + p0 * geo.stride_h + geo.first_h
            at = (row * geo.source_w + q0 * geo.stride_w + geo.first_w) * geo.pixel
        for phase in range(geo.steps_h * geo.steps_w):
            count = list_pixels(sources, targets, at, image, 0, phase, p0, p1, q0, q1, geo)
            _multiply(
                out, targets, source, sources, count, w, v0, v1, geo, tables, start, phase, vl, plain,
                activation, residual,
            )  # fmt: skip
        task = next_task(counter)


@jit.inner
def _multiply(
    out,
    targets,
    source,
    sources,
    count,
    w,
    v0,
    v1,
    geo,
    tables,
    start,
    phase,
    vl,
    plain,
    activation,
    residual,
):
    """Compute the listed pixels of a phase: pixels outside, so that their rows stay in cache."""
    taps, steps, before = tables[5 * phase], tables[5 * phase + 1], tables[5 * phase + 4]
    wide = start.size
    tiles, blocks = -(-count // geo.mr), -(-(v1 - v0) // WIDTH)
    weights = w[before * wide :]
    for i in range(tiles):
        first = part(count, tiles, i)
        mr = part(count, tiles, i + 1) - first
        for block in range(blocks):
            v = v0 + part(v1 - v0, blocks, block)
            nr = v0 + part(v1 - v0, blocks, block + 1) - v
            columns = min(nr * vl, geo.channels - v * vl)
            tile_channelwise(
                out, targets, first, v * vl, columns, source, sources, weights, tables, steps, taps, wide,
                start, mr, nr,
            )  # fmt: skip
        if not plain:
            columns = min(v1 * vl, geo.channels) - v0 * vl
            for row in range(first, first + mr):
                at = targets[row] + v0 * vl
                finish(out, at, columns, start[:0], np.int64(0), activation, residual, at)


class Depthwise(PackedPass):
    """Forward or input gradient of as many channels as groups; blocks for ``cache`` bytes."""

    def __init__(self, problem: ConvProblem, direction: Direction, cache: int) -> None:
        tile, m = machine.tile(problem.itemsize), machine.machine()
        rows, last = (ONE_ROW, *(axis_pass(a, direction) for a in problem.axes))[-2:]
        n, c = problem.n, problem.c
        vectors = -(-c // tile.vl)
        phases = rows.step * last.step
        third = cache // 3 // problem.itemsize
        area = max(1, min(PIXELS, n * rows.outputs * last.outputs // TASKS, third // (phases * tile.vl)))
        q_blocks = -(-last.outputs // area)
        block_q = -(-last.outputs // q_blocks)
        row_blocks = -(-rows.outputs // max(1, area // block_q))
        block_rows = -(-rows.outputs // row_blocks)
        span_h, span_w = (max(a.offsets, default=0) - min(a.offsets, default=0) + 1 for a in (rows, last))
        source = ((block_rows - 1) * rows.stride + span_h) * ((block_q - 1) * last.stride + span_w)
        size = (source + block_rows * block_q * phases) * vectors * tile.vl
        c_blocks = min(vectors, max(-(-size // third), -(-TASKS // (n * row_blocks * q_blocks))))
        copied = leaves(rows) or leaves(last) or c % tile.vl > 0
        pixel = -(-vectors // c_blocks) * tile.vl if copied else c
        pitch = ((block_q - 1) * last.stride + span_w) * pixel if copied else last.source * pixel
        self.tables, taps = phase_tables(rows, last, problem.kernel[-1], pitch, pixel, False)
        self.order = np.concatenate(
            [self.tables[at : at + taps] for _, _, taps, at, _ in self.tables[: 5 * phases].reshape(-1, 5)]
        )
        self.scratch = -(-source * pixel // 16) * 16 if copied else 0
        self.groups, self.m, self.lanes, self.vl = 1, c, vectors * tile.vl, tile.vl
        self.packed = self.lanes * taps
        self.pixels, self.dtype, self.flops = block_rows * block_q, problem.dtype, problem.flops
        self.geometry = record(
            Geometry(
                n=n, groups=1, channels=c, m=c, p=rows.outputs, q=last.outputs,
                source_h=rows.source, source_w=last.source, stride_h=rows.stride, stride_w=last.stride,
                first_h=min(rows.offsets, default=0), first_w=min(last.offsets, default=0),
                span_h=span_h, span_w=span_w, steps_h=rows.step, steps_w=last.step,
                result_h=rows.result, result_w=last.result, row_blocks=row_blocks, block_q=block_q,
                q_blocks=q_blocks, m_blocks=c_blocks, copied=copied, pitch=pitch, pixel=pixel,
                scratch=self.scratch, pixels=self.pixels, mr=tile.mr,
            )
        )  # fmt: skip
        self.workspace = (self.packed + self.lanes + m.cores * self.scratch) * problem.itemsize
        self.workspace += 16 * m.cores * self.pixels

    def pack(self, weight: Array, packed: Array) -> None:
        rows = packed.reshape(-1, self.lanes)
        rows[:, : self.m] = weight.reshape(self.m, -1).T[self.order]
        rows[:, self.m :] = 0

    def correlate(
        self, x: Array, packed: Array, out: Array, scratch: Array, lists: Array, start: Array, plain: bool,
        activation: Any, residual: Array,
    ) -> None:  # fmt: skip
        threads.launch(
            correlate, self.flops, np.zeros(1, np.int64), x, packed, out, scratch, lists, self.geometry,
            self.tables, start, self.vl, plain, activation, residual,
        )  # fmt: skip
