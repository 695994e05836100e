"""Forward and input gradient, ready to run: the blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from fastconv import borders, machine, threads, workspace
from fastconv.activations import NONE
from fastconv.algorithms.base import Execution, flat
from fastconv.algorithms.winograd import filters_first
from fastconv.algorithms.winograd.cpu import Geometry, convolve, transform_weights
from fastconv.algorithms.winograd.folding import fold, masks
from fastconv.algorithms.winograd.lanes import SPLITS
from fastconv.algorithms.winograd.phases import TileAxis, counts, tile_axes
from fastconv.algorithms.winograd.strips import Row, Strips, results, row_of_tiles, sources
from fastconv.algorithms.winograd.transforms import LANES, ROWS, Tiles
from fastconv.gemm.blocking import odd_lines
from fastconv.gemm.record import record
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array

KC = 160  # rows of V in a chunk: NR vectors of them take 30 KB of L1


def correlation(problem: ConvProblem, direction: Direction, tiles: Tiles, limit: int) -> Correlation:
    """Return the first way that stays within the limit, or the one that takes the least."""
    smallest = None
    for way in _ways(problem, direction, tiles):
        execution = Correlation(problem, direction, tiles, *way)
        if execution.workspace <= limit:
            return execution
        if smallest is None or execution.workspace < smallest.workspace:
            smallest = execution
    return smallest


def _ways(problem: ConvProblem, direction: Direction, tiles: Tiles) -> Iterator[tuple[bool, int, int]]:
    """Yield (by tiles, vectors of tiles in a block, bytes of U in a chunk) from the fastest to the smallest."""
    unit, l2 = machine.tile(problem.itemsize), machine.machine().l2
    source, results, _, _, (p, q) = counts(problem, direction)
    (mh, rh), (mw, rw) = tiles
    count = problem.n * -(-p // mh) * -(-q // mw)
    positions = (mh + rh - 1) * (mw + rw - 1)
    # A block of NR vectors lets U stream at 4 / (2 * 48) bytes a flop: 5 GB/s beside 120 GFLOP/s; of phases U is several times the weights.
    most = unit.nr if problem.plain else 2 * unit.nr
    preferred = filters_first(count, source, results, positions, most, problem.itemsize)
    for by_tiles in (preferred, not preferred):
        yield by_tiles, most if by_tiles else 2 * unit.nr, l2 // 2
    for by_tiles in (preferred, not preferred):
        yield by_tiles, 1, 0


CHUNKS = 8  # of filters for each core, that no core waits long for another, where V is near that streams by for each; else 2


class Correlation(Execution):
    """Forward, or the input gradient as the correlation of grad_output with turned filters."""

    def __init__(
        self, problem: ConvProblem, direction: Direction, tiles: Tiles, by_tiles: bool, most: int, chunk: int
    ) -> None:
        self.dtype, self.flops = problem.dtype, problem.flops
        axes = tile_axes(problem, direction)
        self.border, strips = border_table(problem, direction, tiles)
        self.geometry = g = geometry(problem, direction, tiles, by_tiles, most, chunk, strips)
        lengths = (
            *tiles[0],
            *tiles[1],
            *(SPLITS.index((a.stride, a.lacking)) + 1 for a in axes),
            axes[1].steps,
            fold(problem, direction, tiles).step + 1,
        )
        self.variant = tuple((0,) * length for length in lengths)
        self.described = record(g)
        self.places = np.concatenate([places(problem, direction), reached(problem, direction, tiles)])
        self.u_size = problem.groups * g.panels * g.steps_h * g.steps_w * g.positions * g.u_step
        self.v_size = 0 if by_tiles else problem.groups * g.blocks * g.positions * g.v_step
        self.shared = self.u_size if by_tiles else self.v_size
        self.workspace = (self.shared + machine.machine().cores * g.scratch) * problem.itemsize

    def prepare(self, weight: Array) -> Array:
        u = workspace.aligned(self.u_size, self.dtype)
        scratch = workspace.take(threads.count() * self.geometry.scratch, self.dtype)
        threads.share_out(
            self.typed[transform_weights], 4.0 * self.u_size, flat(weight), u, self.places, scratch, self.described, *self.variant[:4]
        )  # fmt: skip
        return u

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = workspace.take(self.shared + threads.count() * self.geometry.scratch, self.dtype)
        shared, scratch = scratch[: self.shared], scratch[self.shared :]
        self._convolve(first, second, shared, shared, out, scratch, bias, activation, residual, False)

    def run_prepared(
        self, first: Array, prepared: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = workspace.take(self.v_size + threads.count() * self.geometry.scratch, self.dtype)
        v, scratch = scratch[: self.v_size], scratch[self.v_size :]
        self._convolve(first, prepared, prepared, v, out, scratch, bias, activation, residual, True)

    def _convolve(
        self, x: Array, w: Array, u: Array, v: Array, y: Array, scratch: Array, bias: Array, activation: Any,
        residual: Array, given: bool,
    ) -> None:  # fmt: skip
        x, w, y = flat(x), flat(w), flat(y)
        plain = bias.size == residual.size == 0 and isinstance(activation, int) and activation == NONE
        threads.share_out(
            self.typed[convolve], self.flops, x, w, u, v, y, self.places, scratch,
            self.border, bias, activation, flat(residual), plain, given, self.described, *self.variant,
        )  # fmt: skip


def geometry(
    problem: ConvProblem, direction: Direction, tiles: Tiles, by_tiles: bool, most: int, chunk: int,
    strips: tuple[int, int, int, int],
) -> Geometry:  # fmt: skip
    """Describe the correlation, with blocks of at most ``most`` vectors and chunks of ``chunk`` bytes of U."""
    unit, cores = machine.tile(problem.itemsize), machine.machine().cores
    (mh, rh), (mw, rw) = tiles
    period, zeros_at, sources_at, results_at = strips
    rows_of, columns_of = tile_axes(problem, direction)
    (h, p), (w, q) = ((a.size, a.output) for a in problem.last_axes(2))
    c, k, taps = problem.c // problem.groups, problem.k // problem.groups, prod(problem.kernel)
    strides = (c * taps, taps)
    if direction is Direction.INPUT_GRAD:
        h, w, p, q = p, q, h, w
        c, k, strides = k, c, strides[::-1]
    sources, steps = rows_of.sources * columns_of.sources, rows_of.steps * columns_of.steps
    tiles_h, tiles_w = grid(rows_of, columns_of, tiles, unit.vl)
    positions = (mh + rh - 1) * (mw + rw - 1)

    vectors = max(1, -(-problem.n * tiles_h * tiles_w // unit.vl))
    blocks = -(-vectors // most)
    if by_tiles:
        blocks = min(vectors, -(-blocks // cores) * cores)  # that workers end together
    ld = -(-vectors // blocks) * unit.vl
    mr = min(unit.mr, ROWS)  # as many filters are unpacked side by side
    panels = -(-k // mr)
    rows = -(-k // panels)
    u_phase = c * rows + LANES
    u_step = odd_lines(sources * u_phase, unit.vl)
    chunk_panels = max(1, chunk // (steps * positions * u_step * problem.itemsize))
    v_step = sources * c * ld + unit.vl
    if by_tiles and chunk:
        chunks = 1
    else:
        near = blocks * positions * v_step * problem.itemsize < 2 * machine.machine().l2 // 3
        least = 1 if by_tiles else min(panels, (CHUNKS if near else 2) * cores)
        chunks = max(-(-panels // chunk_panels), least)
    chunk_panels = -(-panels // chunks)
    m_phase = chunk_panels * rows * ld
    m_step = steps * m_phase + unit.vl
    m_start = positions * v_step if by_tiles else 0
    u_start = m_start + positions * m_step + unit.vl
    t_start = u_start + (0 if by_tiles else chunk_panels * steps * positions * u_step)
    scratch = -(-(t_start + (sources * steps * rh * rw + 1) * LANES) // 16) * 16
    top, bottom, _ = fold(problem, direction, tiles).rows
    both = [i and j for i in rows_of.filled for j in columns_of.filled]
    filled = sum(1 << phase for phase, taps_reach_it in enumerate(both) if taps_reach_it)
    return Geometry(
        groups=problem.groups, c=c, k=k, h=h, w=w, p=p, q=q, stride_h=rows_of.stride, sources_h=rows_of.sources,
        sources_w=columns_of.sources, steps_h=rows_of.steps, steps_w=columns_of.steps, filled=filled,
        reached_at=places(problem, direction).size, c_chunks=1 if problem.plain else -(-c // KC), mh=mh, mw=mw,
        tiles_h=tiles_h, tiles_w=tiles_w, top=top, bottom=bottom, rows=problem.n * tiles_h, strips=vectors,
        period=period, positions=positions, taps=taps, tile_taps=rh * rw, w_group=c * k * taps, w_row=strides[0],
        w_channel=strides[1], by_tiles=by_tiles, blocks=blocks, ld=ld, panels=panels, chunks=chunks,
        channel_parts=-(-c // 8), v_step=v_step, m_step=m_step, m_phase=m_phase, u_step=u_step, u_phase=u_phase,
        m_start=m_start, u_start=u_start, t_start=t_start, scratch=scratch, zeros_at=zeros_at, sources_at=sources_at,
        results_at=results_at, vl=unit.vl, mr=mr, nr=unit.nr,
    )  # fmt: skip


def grid(down: TileAxis, along: TileAxis, tiles: Tiles, vl: int) -> tuple[int, int]:
    """Return how many tiles there are down and along an image."""
    (mh, _), (mw, _) = tiles
    return -(-down.outputs // mh), row_of_tiles(-(-along.outputs // mw), vl)


def places(problem: ConvProblem, direction: Direction) -> Array:
    """Return where the taps of a kernel belong among those of all phases; what reaches no result, and padding, is put behind."""
    rows, columns = tile_axes(problem, direction)
    high, wide = (1, *problem.kernel)[-2:]
    tile = rows.taps * columns.taps
    table = np.full(-(-high * wide // ROWS) * ROWS, rows.phases * columns.phases * tile)
    for tap, (r, s) in enumerate(np.ndindex(high, wide)):
        if r in rows.places and s in columns.places:
            (i, a), (j, b) = rows.places[r], columns.places[s]
            table[tap] = (i * columns.phases + j) * tile + a * columns.taps + b
    return table


def reached(problem: ConvProblem, direction: Direction, tiles: Tiles) -> Array:
    """Return [position] -> which phases' transformed taps are not zero there, a bit each."""
    axes = tile_axes(problem, direction)
    both = np.kron(*(axis.reached(m + r - 1) for axis, (m, r) in zip(axes, tiles, strict=True)))
    return (1 << np.arange(len(both))) @ both


def border_table(
    problem: ConvProblem, direction: Direction, tiles: Tiles
) -> tuple[Array, tuple[int, int, int, int]]:
    """Return what kernels read the source and write the result by; how strips lie, and where its parts begin (`Geometry`)."""
    down, along = tile_axes(problem, direction)
    (mh, rh), (mw, rw) = tiles
    vl, forward = machine.tile(problem.itemsize).vl, direction is Direction.FORWARD
    height, width = (a.size if forward else a.output for a in problem.last_axes(2))
    edges = [borders.edges(a, problem.padding_mode, direction) for a in problem.last_axes(2)]
    tiles_h, tiles_w = grid(down, along, tiles, vl)
    strips = Strips.of(tiles_w, vl)

    lines = np.arange((tiles_h * mh + rh - 1) * down.stride) + down.first
    lines = borders.sources(lines, height, edges[0])
    columns = np.arange((tiles_w * mw + rw - 1) * along.stride) + along.first
    columns = borders.sources(columns, width, edges[1])
    row = Row(mw, rw, along.stride, along.lacking)
    size = along.steps * mw, problem.axes[-1].output if forward else problem.axes[-1].size
    high = down.sources * (mh + rh - 1) - sum(down.lacking)
    at_ends = masks(strips, fold(problem, direction, tiles), mw)
    described = [*sources(strips, row, high, columns, at_ends[0]), *results(strips, *size, at_ends[1])]

    zeros_at = len(lines)
    at = zeros_at + -(-width * problem.itemsize // 8)
    begins = np.cumsum([0, *map(len, described)])[:-1] + at + len(described)
    zeros = [0] * (at - zeros_at)
    table = np.array([*np.where(lines < 0, -1, lines * width), *zeros, *begins, *chain(*described)], np.int64)
    period = len(strips.rows)
    return table, (period, zeros_at, at, at + period)
