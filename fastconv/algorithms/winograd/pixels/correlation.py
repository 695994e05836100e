"""Forward and input gradient with channels as lanes, ready to run: blocks, and the order of the launches."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from fastconv import borders, machine, threads, workspace
from fastconv.activations import NONE
from fastconv.algorithms.base import Execution, flat, pixels
from fastconv.algorithms.direct.pixels.frame import NOWHERE, Bordered, Box, FramedPixels, bordered
from fastconv.algorithms.winograd import Tiles
from fastconv.algorithms.winograd.folding import Fold, fold, moves
from fastconv.algorithms.winograd.pixels.cpu import UNPACKED, Geometry, convolve, transform_weights
from fastconv.gemm.blocking import odd_lines
from fastconv.gemm.gathered import widest
from fastconv.gemm.move import SLACK
from fastconv.gemm.record import record
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array


def correlation(problem: ConvProblem, direction: Direction, tiles: Tiles, limit: int) -> Execution:
    """Return the correlation with the largest blocks of tiles within the limit, or with one tile in each."""
    cache = machine.machine().l2
    execution = Correlation(problem, direction, tiles, cache)
    while execution.workspace > limit and execution.most > 1:
        cache //= 2
        execution = Correlation(problem, direction, tiles, cache)
    if borders.framed(problem, direction) and not fold(problem, direction, tiles):
        return FramedPixels(execution, problem)
    return execution


class Correlation(Bordered):
    """Forward, or the input gradient as the correlation of grad_output with turned filters."""

    def __init__(self, problem: ConvProblem, direction: Direction, tiles: Tiles, cache: int) -> None:
        folded = fold(problem, direction, tiles)
        problem, box = bordered(replace(problem, padding_mode="zeros") if folded else problem, direction)
        g = geometry(problem, direction, tiles, cache, box, folded)
        self.dtype, self.flops, self.most = problem.dtype, problem.flops, g.most
        self.variant = tuple((0,) * length for axis in tiles for length in axis)
        self.geometry, self.scratch = record(g), g.scratch
        self.border = np.concatenate(
            (border_table(problem, direction, g), fold_table(folded, tiles, g.added_at))
        )
        self.groups, self.k, self.lanes, self.zeros = g.groups, g.k, g.vectors * g.vl, g.m_row
        self.positions = np.arange(g.high * g.wide, dtype=np.int64) * g.v_step
        self.u_size = g.groups * g.panels * g.high * g.wide * g.u_step
        self.start = self.zeros + self.groups * self.lanes
        cores = machine.machine().cores
        self.workspace = (
            self.u_size + self.start + cores * g.scratch
        ) * problem.itemsize + 16 * cores * g.most

    def prepare(self, weight: Array) -> Array:
        u = workspace.aligned(self.u_size, self.dtype)
        scratch = workspace.take(threads.count() * self.scratch, self.dtype)
        threads.share_out(
            self.typed[transform_weights],
            4.0 * self.u_size,
            flat(weight),
            u,
            scratch,
            self.geometry,
            *self.variant,
        )
        return u

    def run_around(
        self, first: Array, second: Array, out: Array, around: Array, bias: Array, activation: Any, residual: Array
    ) -> None:  # fmt: skip
        scratch = workspace.take(self.u_size + self.start + threads.count() * self.scratch, self.dtype)
        u, scratch = scratch[: self.u_size], scratch[self.u_size :]
        self._convolve(first, second, u, out, around, scratch, bias, activation, residual, False)

    def run_prepared(
        self, first: Array, prepared: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = workspace.take(self.start + threads.count() * self.scratch, self.dtype)
        self._convolve(
            first, prepared, prepared, out, NOWHERE[self.dtype], scratch, bias, activation, residual, True
        )

    def _convolve(
        self, x: Array, w: Array, u: Array, y: Array, around: Array, scratch: Array, bias: Array, activation: Any,
        residual: Array, given: bool,
    ) -> None:  # fmt: skip
        start, scratch = scratch[: self.start], scratch[self.start :]
        start.fill(0)
        if bias.size:
            start[self.zeros :].reshape(self.groups, self.lanes)[:, : self.k] = bias.reshape(
                self.groups, self.k
            )
        lists = np.empty(2 * threads.workers(self.flops) * self.most, np.int64)
        plain = residual.size == 0 and isinstance(activation, int) and activation == NONE
        threads.share_out(
            self.typed[convolve], self.flops, pixels(x), flat(w), u, pixels(y), around, scratch, lists, self.positions,
            start, self.border, plain, activation, pixels(residual) if residual.size else residual, given, self.geometry,
            *self.variant,
        )  # fmt: skip


def geometry(
    problem: ConvProblem, direction: Direction, tiles: Tiles, cache: int, box: Box, fold: Fold
) -> Geometry:
    """Describe the correlation; V of a block takes half of ``cache`` bytes, as M of a panel takes a tenth."""
    unit, cores = machine.tile(problem.itemsize), machine.machine().cores
    (mh, rh), (mw, rw) = tiles
    axes = [(a.size, a.lo, a.output) for a in problem.axes]
    (h, lo_h, p), (w, lo_w, q) = ((1, 0, 1), *axes)[-2:]
    c, k, taps = problem.c // problem.groups, problem.k // problem.groups, rh * rw
    strides = (c * taps, taps)
    if turned := direction is Direction.INPUT_GRAD:
        h, w, p, q, lo_h, lo_w = p, q, h, w, rh - 1 - lo_h, rw - 1 - lo_w
        c, k, strides = k, c, strides[::-1]
    high, wide = mh + rh - 1, mw + rw - 1
    tiles_h, tiles_w = -(-p // mh), -(-q // mw)
    total, positions = problem.n * tiles_h * tiles_w, high * wide

    top, bottom = fold.rows.first * mh, fold.rows.last * mh
    left_end, right_end = fold.columns.first * mw, fold.columns.last * mw
    columns_at = (tiles_h - 1) * mh + high
    added_at = columns_at + (tiles_w - 1) * mw + wide
    v_row = odd_lines(c, unit.vl)
    largest = max(1, cache // 2 // (positions * v_row * problem.itemsize))
    blocks = max(-(-total // largest), min(total, 4 * cores), 1)
    most = -(-total // blocks)
    vectors = -(-k // unit.vl)
    panels = max(1, -(-vectors // widest()))
    width = -(-vectors // panels) * unit.vl
    v_step, m_step = odd_lines(most * v_row, unit.vl), odd_lines(most * width, unit.vl)
    u_step, t_step = odd_lines(c * width, unit.vl), UNPACKED * width + SLACK
    m_start = positions * v_step
    patch = m_start + positions * m_step
    t_start = patch + max(positions * v_row, mh * mw * width)
    scratch = -(-(t_start + taps * t_step) // 16) * 16
    return Geometry(
        groups=problem.groups, c=c, k=k, h=h, w=w, p=p, q=q, **box._asdict(), top=top, bottom=bottom, left_end=left_end,
        right_end=right_end, columns_at=columns_at, added_at=added_at, subtracted_at=added_at + KINDS + 1, lo_h=lo_h,
        lo_w=lo_w, mh=mh, mw=mw, high=high, wide=wide, tiles_h=tiles_h, tiles_w=tiles_w, tiles=total, taps=taps,
        w_group=prod(problem.weight_shape) // problem.groups, w_row=strides[0], w_channel=strides[1], flipped=turned,
        blocks=blocks, most=most, vectors=vectors, panels=panels, v_row=v_row, v_step=v_step, m_row=width,
        m_step=m_step, u_step=u_step, t_step=t_step, m_start=m_start, patch=patch, t_start=t_start, scratch=scratch,
        vl=unit.vl, registers=machine.simd().registers,
    )  # fmt: skip


def border_table(problem: ConvProblem, direction: Direction, g: Geometry) -> Array:
    """Return where in the source each row, and each column, under the tiles is, or -1 for zeros."""
    beside, across = (borders.edges(a, problem.padding_mode, direction) for a in problem.last_axes(2))
    rows = borders.sources(np.arange(g.columns_at) - g.lo_h, g.h, beside)
    columns = borders.sources(np.arange((g.tiles_w - 1) * g.mw + g.wide) - g.lo_w, g.w, across)
    return np.concatenate((rows, columns))


KINDS = 9  # of tiles (`folding.moves`)


def fold_table(fold: Fold, tiles: Tiles, at: int) -> Array:
    """Return where the moves of each kind of tile begin, of pixels and of results, and these, for a table of its own at ``at``."""
    pixels, results = moves(fold, tiles)
    begins = at + 2 * (KINDS + 1) + np.cumsum([0, *map(len, pixels + results)])
    table = [*begins[: KINDS + 1], *begins[KINDS:], *chain(*pixels, *results)]
    return np.array(table, np.int64)
