"""The executions of the route of small tiles (`cut`): which kernels run on what."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

from fastconv import borders, machine, threads, workspace
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.fft import cpu, weight_grad
from fastconv.algorithms.fft.cut import Choice, Cut, Held, Pairs, gradient_parts, widened
from fastconv.algorithms.fft.lanes import table_size
from fastconv.algorithms.fft.tiling import whole
from fastconv.gemm.record import record
from fastconv.problem import Axis, ConvProblem, Direction

NOTHING = (Held(), Held())


def geometry(
    problem: ConvProblem, direction: Direction, cut: Cut, around: tuple[Held, Held] = NOTHING
) -> tuple[cpu.Geometry, Array]:
    """Put a problem and its cut into numbers and maps; the input gradient is a correlation with turned kernels.

    Tiles of that may hold pixels ``around`` the image, which they fold.
    """
    turn, mode = direction is Direction.INPUT_GRAD, problem.padding_mode
    v, last = problem.last_axes(2)
    axes = [
        _ends(widened(a, held), turn, length, mode)
        for a, length, held in zip((v, last), cut.size, around, strict=True)
    ]
    (h, p, lo_h, skip_h), (w, q, lo_w, skip_w) = axes
    (above, below, rows_held), (left, right, columns_held) = around
    r, s = (1, *problem.kernel)[-2:]
    unit, (ah, aw), (mh, mw), (th, tw) = machine.tile(problem.itemsize), cut.size, cut.step, cut.count
    c, k, taps = cut.c, cut.k, r * s
    edges_h, edges_w = (borders.edges(a, mode, direction) for a in (v, last))
    source = borders.sources(np.arange((th - 1) * mh + ah) - lo_h, h, edges_h)
    there = np.flatnonzero(source >= 0)
    first, end = (int(there[0]), int(there[-1]) + 1) if there.size else (0, 0)
    g = cpu.Geometry(
        n=problem.n, groups=cut.groups, c=c, k=k, h=h, w=w, p=p - above - below, q=q - left - right, first_h=first, last_h=end, lo_w=lo_w, ah=ah, aw=aw,
        mh=mh, mw=mw, th=th, tw=tw, skip_h=skip_h, skip_w=skip_w, above=above, left=left,
        sign=1 if turn else -1, r=r, s=s, w_group=k * c * taps, w_k=taps if turn else c * taps,
        w_c=k * taps if turn else taps, frequencies=cut.bins, lanes=cut.lanes, vectors=cut.vectors, mr=unit.mr,
        nr=unit.nr, tile_scratch=cut.scratch, table=0, of_result=0, of_kernel=0, border=0, fold_h=0, fold_w=0,
    )  # fmt: skip
    lists = [
        [_border(edges_w, j * mw - lo_w, aw) for j in range(tw)],
        [_border(rows_held, i * mh - above, mh) for i in range(th)],
        [_border(columns_held, j * mw - left, mw) for j in range(tw)],
    ]
    return with_maps(g, np.where(source < 0, -1, source * w), rows(g.p, g.q, th * mh, above), lists)


def rows(count: int, pitch: int, length: int, before: int = 0) -> Array:
    """Return where the rows of a plane lie, and -1 beyond, and for so many ``before``."""
    at = np.arange(-before, max(count, length - before))
    return np.where((at >= 0) & (at < count), at * pitch, -1)


def with_maps(
    g: cpu.Geometry, source: Array, result: Array, lists: list[list[tuple[list[int], list[int]]]]
) -> tuple[cpu.Geometry, Array]:
    """Return the geometry with its maps: rows, and lists (moves, runs).

    Those are what borders add to each column of tiles, and what each row of tiles folds and each column.
    """
    maps = [*source, *result, *rows(g.r, g.s, g.r)]
    border = len(maps)
    fold_h, fold_w = border + g.tw, border + g.tw + g.th
    empty = fold_w + g.tw
    found, starts = [0, 0], []
    for moves, runs in itertools.chain(*lists):
        starts.append(empty + len(found) if moves or runs else empty)
        if moves or runs:
            found += [len(moves) // 2, *moves, len(runs) // 3, *runs]
    maps += starts or [empty] * (empty - border)
    table = table_size(
        g.lanes,
        g.aw,
        max((len(runs) // 3 for _, runs in itertools.chain(*lists)), default=0),
        max((sum(len(moves) // 2 for moves, _ in some) for some in lists), default=0),
    )
    g = g._replace(
        table=table, of_result=len(source), of_kernel=len(source) + len(result), border=border, fold_h=fold_h, fold_w=fold_w,
    )  # fmt: skip
    return g, np.array(maps + found, np.int64)


def _border(edges: Pairs, first: int, width: int) -> tuple[list[int], list[int]]:
    """Return what borders add to a tile from column ``first`` on: moves (to, from) and runs (shift, from, to)."""
    moves: list[int] = []
    runs: list[int] = []
    for at, pixel in edges:
        to, source = at - first, pixel - first
        if not 0 <= to < width:
            continue
        if 0 <= source < width:
            moves += [to, source]
        elif runs and runs[-3] == pixel - at and runs[-1] == to:
            runs[-1] += 1
        else:
            runs += [pixel - at, to, to + 1]
    return moves, runs


def _ends(axis: Axis, turn: bool, length: int, mode: str) -> tuple[int, int, int, int]:
    """Return an axis' samples and results, the padding before the samples, and the first valid result of a tile."""
    if not turn:
        return axis.size, axis.output, axis.lo, 0
    if length >= whole(axis) and mode == "zeros":
        return axis.output, axis.size, max(-axis.lo, 0), max(axis.lo, 0)
    return axis.output, axis.size, axis.extent - 1 - axis.lo, axis.extent - 1


class _Tiles(Execution):
    """What both executions share: U and the scratch of the workers."""

    def __init__(
        self, problem: ConvProblem, direction: Direction, choice: Choice, around: tuple[Held, Held] = NOTHING
    ) -> None:
        self.dtype, self.choice = problem.dtype, choice
        self.geometry, self.maps = geometry(problem, direction, choice.cut, around)
        self.workspace = choice.bytes(problem.itemsize)
        per_channel = choice.cut.per_channel
        self.weights = threads.Typed(cpu.depthwise_weights if per_channel else cpu.dense_weights)
        self.typed = threads.Typed(cpu.depthwise if per_channel else cpu.dense)

    @functools.cached_property
    def described(self) -> Array:
        """The geometry, as kernels take it."""
        return record(self.geometry)

    def _scratch(self, before: int) -> Array:
        size = before + threads.count() * self.choice.worker
        return workspace.take(size, self.dtype)[:size]  # kernels divide it among workers


class Spectral(_Tiles):
    """Forward or input gradient by tiles, dense or per channel."""

    def prepare(self, weight: Array) -> Array:
        u = workspace.aligned(self.choice.shared, self.dtype)
        self._transform(weight, u, self._scratch(0))
        return u

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = self._scratch(self.choice.shared)
        u, rest = scratch[: self.choice.shared], scratch[self.choice.shared :]
        self._transform(second, u, rest)
        self._multiply(first, u, out, bias, activation, residual, rest)

    def run_prepared(
        self, first: Array, prepared: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        self._multiply(first, prepared, out, bias, activation, residual, self._scratch(0))

    def _transform(self, weight: Array, u: Array, scratch: Array) -> None:
        threads.share_out(
            self.weights, self.choice.flops, flat(weight), u, scratch, self.maps, self.described
        )

    def _multiply(
        self, x: Array, u: Array, out: Array, bias: Array, activation: Any, residual: Array, scratch: Array
    ) -> None:
        threads.share_out(
            self.typed, self.choice.flops, flat(x), u, flat(out), bias, activation, flat(residual), scratch,
            self.maps, self.described,
        )  # fmt: skip


class WeightGrad(_Tiles):
    """Weight gradient by tiles, dense or per channel."""

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        flops, tables = self.choice.flops, (self.maps, self.described)
        operands = flat(first), flat(second), flat(out)
        scratch = self._scratch(self.choice.shared)
        if self.choice.cut.per_channel:
            threads.share_out(weight_grad.depthwise_weight_grad, flops, *operands, scratch, *tables)
            return
        ends = np.cumsum(gradient_parts(self.choice.cut))
        a, v, m, rest = np.split(scratch, ends)
        threads.launch(weight_grad.dense_weight_grad, flops, *operands, a, v, m, rest, *tables)


def build(problem: ConvProblem, direction: Direction, choice: Choice) -> Execution:
    """Make the execution of a choice."""
    return (WeightGrad if direction is Direction.WEIGHT_GRAD else Spectral)(problem, direction, choice)
