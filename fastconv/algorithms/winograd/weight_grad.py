"""The weight gradient as F(r, m): grad_output takes the part of the kernel.

    gw = A [ sum over tiles of (G gy G^T) * (B x B^T) ] A^T        gy: m x m pixels, x: alpha x alpha pixels

At each position the sum is a matrix product over tiles:

    S[position][k][c] += W[position][tile][k] * V[position][tile][c]

A task owns a chunk of k and c whose S at all positions stays in L2.  It goes through areas of tiles: their
pixels are turned so that channels are neighbours (`gemm/turn.py`), or copied if they are, transformed a vector of
channels at a time into V and W, which stay in L2 too, and multiplied.  Several chunks turn and transform the same pixels again:
at 64 x 64 channels that is a sixth of the products, and less than to read V and W from where chunks could share
them.  Where there are few chunks, tiles are cut into splits, a number that depends on the problem and the
caches alone; their gradients are added in one fixed order.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import borders, jit, machine, threads, workspace
from fastconv.algorithms.base import Execution, flat, pixels
from fastconv.algorithms.winograd.areas import cut, splits
from fastconv.algorithms.winograd.pixels.lanes import transform_gradients, transform_pixels, transform_sums
from fastconv.algorithms.winograd.transforms import Tiles
from fastconv.gemm.gathered import tile_over_pixels
from fastconv.gemm.move import SLACK
from fastconv.gemm.record import record
from fastconv.gemm.schedule import next_task, part
from fastconv.gemm.splits import add_splits
from fastconv.gemm.transposition import transpose
from fastconv.gemm.turn import copy_area, turn_area
from fastconv.problem import ConvProblem
from fastconv.typing import Array


class Geometry(NamedTuple):
    """A weight gradient, its tiles and its blocks, as numbers."""

    n: int
    groups: int
    c: int  # of a group
    k: int
    h: int
    w: int
    p: int
    q: int
    lo_w: int
    mh: int  # pixels of grad_output in a tile
    mw: int
    alpha_h: int  # pixels of x in a tile
    alpha_w: int
    tiles_h: int
    tiles_w: int
    positions: int  # alpha_h * alpha_w
    taps: int
    image_blocks: int  # areas are images x rows x columns of tiles
    row_blocks: int
    column_blocks: int
    splits: int
    planar: bool  #  whether images are held channel by channel
    turned: bool  #  whether rows of S are c and columns k
    unit_c: int  #   channels that are not parted: a panel of rows or a vector of columns
    unit_k: int
    chunks_c: int
    chunks_k: int
    width_c: int  #  row length of V: a chunk in whole vectors
    width_k: int  #  of W
    v_step: int  #   between positions
    w_step: int
    s_step: int
    w_start: int  #  where W, S and turned pixels begin in a worker's scratch; V is first
    s_start: int
    area_start: int
    scratch: int
    pixels: int  #   of x in an area of an image
    edges_at: int  # in the table of the border, behind [row of the padded x] -> row of x, or -1
    edges: int  #     pairs (column outside, the column that it repeats)
    gradient_at: int  # [row of grad_output] -> the same, or -1 past its end
    mr: int
    nr: int
    vl: int


@jit.kernel
def accumulate(workers, counters, x, gy, partial, scratch, geos, row, border, mh, rh, mw, rw):
    """Compute every split's partial gw; tasks are splits x groups x chunks of k x chunks of c."""
    for worker in numba.prange(workers):
        _work(worker, counters, x, gy, partial, scratch, row, border, geos[0], (mh, rh, mw, rw))


@jit.inner
def _work(worker, counters, x, gy, partial, scratch, row, border, geo, variant):
    v0 = worker * geo.scratch
    w0, s0, area = v0 + geo.w_start, v0 + geo.s_start, v0 + geo.area_start
    areas = geo.image_blocks * geo.row_blocks * geo.column_blocks
    tasks = geo.splits * geo.groups * geo.chunks_k * geo.chunks_c
    task = next_task(counters, worker, tasks)
    while task < tasks:
        rest = task // geo.chunks_c
        c0, c = _chunk(geo.c, geo.unit_c, geo.chunks_c, task % geo.chunks_c)
        k0, k = _chunk(geo.k, geo.unit_k, geo.chunks_k, rest % geo.chunks_k)
        split, group = rest // geo.chunks_k // geo.groups, rest // geo.chunks_k % geo.groups
        begin = part(areas, geo.splits, split)
        for i in range(begin, part(areas, geo.splits, split + 1)):
            block = i // geo.column_blocks
            n0, images = _chunk(geo.n, 1, geo.image_blocks, block // geo.row_blocks)
            i0, rows = _chunk(geo.tiles_h, 1, geo.row_blocks, block % geo.row_blocks)
            j0, columns = _chunk(geo.tiles_w, 1, geo.column_blocks, i % geo.column_blocks)
            for image in range(images):
                tile = image * rows * columns
                _transform(
                    scratch, v0 + tile * geo.width_c, geo.v_step, geo.width_c, x, n0 + image, group * geo.c + c0, c,
                    geo.groups * geo.c, geo.h, geo.w, border, i0 * geo.mh, j0 * geo.mw - geo.lo_w, rows,
                    columns, geo.alpha_h, geo.alpha_w, area, geo, False, variant,
                )  # fmt: skip
                _transform(
                    scratch, w0 + tile * geo.width_k, geo.w_step, geo.width_k, gy, n0 + image, group * geo.k + k0, k,
                    geo.groups * geo.k, geo.p, geo.q, border, geo.gradient_at + i0 * geo.mh, j0 * geo.mw, rows,
                    columns, geo.mh, geo.mw, area, geo, True, variant,
                )  # fmt: skip
            _multiply(scratch, s0, w0, v0, c, k, images * rows * columns, i > begin, row, geo)
        to = (((split * geo.groups + group) * geo.k + k0) * geo.c + c0) * geo.taps
        _transform_back(partial, to, scratch, s0, area, c, k, geo, variant)
        task = next_task(counters, worker, tasks)


@jit.inner
def _chunk(total, unit, chunks, i):
    """Return where chunk i begins, and its length; all but the last are multiples of a unit."""
    units = -(-total // unit)
    begin = part(units, chunks, i) * unit
    return begin, min(part(units, chunks, i + 1) * unit, total) - begin


@jit.inner
def _transform(to, to0, step, width, x, image, first, channels, of, h, w, border, row, column, rows, columns, high,
               wide, area, geo, gradient, variant):  # fmt: skip
    """Turn the pixels of rows x columns tiles of one image and transform them, ``width`` apart."""
    high, wide = (rows - 1) * geo.mh + high, (columns - 1) * geo.mw + wide
    pitch, edges = wide * width, 0 if gradient else geo.edges
    if geo.planar:
        plane = (image * of + first) * h * w
        turn_area(
            to, area, pitch, width, x, plane, channels, h, w, border, row, high, geo.edges_at, edges, column, wide,
        )  # fmt: skip
    else:
        begin = image * h * w * of + first
        copy_area(
            to, area, pitch, width, x, begin, channels, of, w, border, row, high, geo.edges_at, edges, column, wide,
        )  # fmt: skip
    for i in range(rows):
        for j in range(columns):
            at, place = area + i * geo.mh * pitch + j * geo.mw * width, to0 + (i * columns + j) * width
            if gradient:
                transform_gradients(to, place, step, to, at, pitch, width, channels, variant)
            else:
                transform_pixels(to, place, step, to, at, pitch, width, channels, variant)


@jit.inner
def _multiply(scratch, s0, w0, v0, c, k, tiles, more, row, geo):
    """S (+)= W V at all positions, or V W."""
    a0, a_step, lda, high = (
        (v0, geo.v_step, geo.width_c, c) if geo.turned else (w0, geo.w_step, geo.width_k, k)
    )
    b0, b_step, ldb, wide = (
        (w0, geo.w_step, geo.width_k, k) if geo.turned else (v0, geo.v_step, geo.width_c, c)
    )
    panels, vectors = -(-high // geo.mr), -(-wide // geo.vl)
    blocks = -(-vectors // geo.nr)
    for position in range(geo.positions):
        for panel in range(panels):
            m = part(high, panels, panel)
            mr = part(high, panels, panel + 1) - m
            for block in range(blocks):
                v = part(vectors, blocks, block)
                tile_over_pixels(
                    scratch, s0 + position * geo.s_step + m * ldb + v * geo.vl, ldb,
                    scratch, a0 + position * a_step + m, 1, lda,
                    scratch, b0 + position * b_step + v * geo.vl, ldb,
                    row, 1, tiles, mr, part(vectors, blocks, block + 1) - v, more, None,
                )  # fmt: skip


@jit.inner
def _transform_back(gw, to, s, s0, t0, c, k, geo, variant):
    """Write gw of a chunk; the taps of a row of S stand one below the other at ``s[t0]`` before."""
    high, wide, width = (c, k, geo.width_k) if geo.turned else (k, c, geo.width_c)
    down, across = (geo.taps, geo.c * geo.taps) if geo.turned else (geo.c * geo.taps, geo.taps)
    for row in range(high):
        transform_sums(s, t0, width, s, s0 + row * width, geo.s_step, wide, variant)
        transpose(gw, to + row * down, across, s, t0, width, geo.taps, wide)


def geometry(problem: ConvProblem, tiles: Tiles, cache: int) -> Geometry:
    """Describe blocks for ``cache`` bytes to the kernels."""
    unit, b = machine.tile(problem.itemsize), cut(problem, tiles, cache)
    h, w = (1, *(a.size for a in problem.axes))[-2:]
    p, q = (1, *problem.output)[-2:]
    (mh, rh), (mw, rw) = tiles

    capacity = -(-problem.n // b.image_blocks) * b.rows * b.columns  # tiles of an area
    v_step, w_step = (capacity * width + unit.vl for width in (b.width_c, b.width_k))
    s_step = b.height * b.width + unit.vl
    s_start = b.positions * (v_step + w_step)
    edges_at, edges = b.tiles_h * mh + rh - 1, len(borders.edges(problem.axes[-1], problem.padding_mode))
    area_start = s_start + b.positions * s_step
    scratch = area_start + max(b.pixels, rh * rw) * max(b.width_c, b.width_k) + SLACK
    return Geometry(
        n=problem.n, groups=problem.groups, c=b.c, k=b.k, h=h, w=w, p=p, q=q, lo_w=problem.axes[-1].lo, mh=mh, mw=mw,
        alpha_h=b.alpha_h, alpha_w=b.alpha_w, tiles_h=b.tiles_h, tiles_w=b.tiles_w, positions=b.positions, taps=rh * rw,
        image_blocks=b.image_blocks, row_blocks=b.row_blocks, column_blocks=b.column_blocks,
        splits=splits(b.areas, problem.groups * b.chunks_c * b.chunks_k), planar=problem.layout != "nhwc",
        turned=b.turned, unit_c=unit.mr if b.turned else unit.vl, unit_k=unit.vl if b.turned else unit.mr,
        chunks_c=b.chunks_c, chunks_k=b.chunks_k, width_c=b.width_c, width_k=b.width_k,
        v_step=v_step, w_step=w_step, s_step=s_step, w_start=b.positions * v_step,
        s_start=s_start, area_start=area_start, scratch=-(-scratch // 16) * 16, pixels=b.pixels, mr=unit.mr,
        nr=unit.nr, vl=unit.vl, edges_at=edges_at, edges=edges, gradient_at=edges_at + 2 * edges,
    )  # fmt: skip


class WeightGrad(Execution):
    """The weight gradient; blocks for ``cache`` bytes."""

    def __init__(self, problem: ConvProblem, tiles: Tiles, cache: int) -> None:
        self.problem = problem
        self.variant = tuple((0,) * length for axis in tiles for length in axis)
        self.geometry = g = geometry(problem, tiles, cache)
        weights = problem.groups * g.k * g.c * g.taps
        self.partial = 0 if g.splits == 1 else -(-g.splits * weights // 16) * 16
        self.workspace = (self.partial + machine.machine().cores * g.scratch) * problem.itemsize

    @functools.cached_property
    def described(self) -> tuple[Array, Array, Array]:
        """Geometry, where rows of tiles begin (to the kernel's products an area is one row), and the border."""
        g = self.geometry
        gradient = borders.sources(np.arange(g.tiles_h * g.mh), g.p, ())
        table = np.concatenate((border_table(self.problem, g.edges_at), gradient))
        return record(g), np.zeros(2, np.int64), table

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        geo, flops = self.geometry, self.problem.flops
        view = flat if geo.planar else pixels
        scratch = workspace.take(self.partial + threads.workers(flops) * geo.scratch, self.problem.dtype)
        partial = scratch[: self.partial] if self.partial else flat(out)
        threads.share_out(
            self.typed[accumulate], flops, view(first), view(second), partial,
            scratch[self.partial :], *self.described, *self.variant,
        )  # fmt: skip
        if self.partial:
            threads.launch(self.typed[add_splits], float(self.partial), partial, flat(out), geo.splits)


def border_table(problem: ConvProblem, rows: int) -> Array:
    """Return the table that tiles read x by: ``rows`` rows of it from the padding's first on, the pairs of its edges."""
    above, beside = problem.last_axes(2)
    pairs = borders.edges(beside, problem.padding_mode)
    edges = borders.edges(above, problem.padding_mode)
    found = borders.sources(np.arange(rows) - above.lo, above.size, edges)
    return np.array([*found, *(n for pair in pairs for n in pair)], np.int64)


@functools.lru_cache(maxsize=256)
def weight_grad(problem: ConvProblem, tiles: Tiles, cache: int) -> WeightGrad:
    """Return the weight gradient by blocks for ``cache`` bytes, made once."""
    return WeightGrad(problem, tiles, cache)
