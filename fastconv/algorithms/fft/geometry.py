"""The tiles of a problem (`cut`) as kernels take them: numbers, and maps of where their rows and columns lie."""

from __future__ import annotations

import itertools

import numpy as np

from fastconv import borders, machine
from fastconv.algorithms.fft.cpu import Geometry
from fastconv.algorithms.fft.cut import Cut, Margin
from fastconv.algorithms.fft.lanes import table_size
from fastconv.algorithms.fft.tiling import whole
from fastconv.problem import Axis, ConvProblem, Direction
from fastconv.typing import Array

NOTHING = (Margin(), Margin())


def numbers(
    problem: ConvProblem, direction: Direction, cut: Cut, margins: tuple[Margin, Margin] = NOTHING
) -> Geometry:
    """Put a problem and its cut into numbers; the input gradient is a correlation with turned kernels."""
    turn, mode = direction is Direction.INPUT_GRAD, problem.padding_mode
    (h, p, _, skip_h), (w, q, lo_w, skip_w) = (
        _ends(margin.with_image(a), turn, length, mode)
        for a, length, margin in zip(problem.last_axes(2), cut.size, margins, strict=True)
    )
    (above, below, _), (left, right, _) = margins
    r, s = (1, *problem.kernel)[-2:]
    unit, (ah, aw), (mh, mw), (th, tw) = machine.tile(problem.itemsize), cut.size, cut.step, cut.count
    c, k, taps = cut.c, cut.k, r * s
    return Geometry(
        n=problem.n, groups=cut.groups, c=c, k=k, h=h, w=w, p=p - above - below, q=q - left - right, first_h=0, last_h=0, lo_w=lo_w, ah=ah, aw=aw,
        mh=mh, mw=mw, th=th, tw=tw, skip_h=skip_h, skip_w=skip_w, above=above, left=left,
        sign=1 if turn else -1, r=r, s=s, w_group=k * c * taps, w_k=taps if turn else c * taps,
        w_c=k * taps if turn else taps, frequencies=cut.bins, lanes=cut.lanes, vectors=cut.vectors, panel=unit.mr, mr=unit.mr,
        nr=unit.nr, tile_scratch=cut.scratch, table=0, of_result=0, of_kernel=0, border=0, fold_h=0, fold_w=0,
    )  # fmt: skip


def geometry(
    problem: ConvProblem, direction: Direction, cut: Cut, margins: tuple[Margin, Margin] = NOTHING
) -> tuple[Geometry, Array]:
    """Return the numbers and maps of tiles whose lanes are tiles, or channels, of images channel by channel.

    Tiles of an input gradient may hold ``margins`` of the image, which they fold.
    """
    g, mode, (v, last) = numbers(problem, direction, cut, margins), problem.padding_mode, problem.last_axes(2)
    rows_held, columns_held = (tuple((pixel, at) for at, pixel in margin.edges) for margin in margins)
    lo_h = _ends(margins[0].with_image(v), direction is Direction.INPUT_GRAD, g.ah, mode)[2]
    edges_h, edges_w = (borders.edges(a, mode, direction) for a in (v, last))
    source = borders.sources(np.arange((g.th - 1) * g.mh + g.ah) - lo_h, g.h, edges_h)
    there = np.flatnonzero(source >= 0)
    first, end = (int(there[0]), int(there[-1]) + 1) if there.size else (0, 0)
    lists = [
        [_border(edges_w, j * g.mw - g.lo_w, g.aw) for j in range(g.tw)],
        [_border(rows_held, i * g.mh - g.above, g.mh) for i in range(g.th)],
        [_border(columns_held, j * g.mw - g.left, g.mw) for j in range(g.tw)],
    ]
    g = g._replace(first_h=first, last_h=end)
    return with_maps(g, np.where(source < 0, -1, source * g.w), rows(g.p, g.q, g.th * g.mh, g.above), lists)


def rows(count: int, pitch: int, length: int, before: int = 0) -> Array:
    """Return where the rows of a plane lie, and -1 beyond, and for so many ``before``."""
    at = np.arange(-before, max(count, length - before))
    return np.where((at >= 0) & (at < count), at * pitch, -1)


def with_maps(
    g: Geometry, source: Array, result: Array, lists: list[list[tuple[list[int], list[int]]]]
) -> tuple[Geometry, Array]:
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


def _border(edges: borders.Edges, first: int, width: int) -> tuple[list[int], list[int]]:
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


Samples = tuple[
    Array, Array
]  # where each sample of each tile comes from along an axis, and where it goes, or -1


def _cut_out(axis: Axis, direction: Direction, length: int, step: int, count: int, mode: str) -> Samples:
    """Return the samples of tiles that overlap, each with ``step`` results of its own."""
    size, results, lo, skip = _ends(axis, direction is Direction.INPUT_GRAD, length, mode)
    sample = np.arange(length)
    at = step * np.arange(count)[:, None] + sample
    source = borders.sources(at - lo, size, borders.edges(axis, mode, direction))
    kept = (sample >= skip) & (sample < skip + step) & (at - skip < results)
    return source, np.where(kept, at - skip, -1)


def _added_up(axis: Axis, length: int, step: int, count: int, mode: str) -> Samples:
    """Return the samples of tiles of ``step`` pixels of grad_output, whose results overlap."""
    padded = borders.padded(axis, mode)
    sample = np.arange(length)
    at = step * np.arange(count)[:, None] + sample
    source = np.where((sample < step) & (at < axis.output), at, -1)
    return source, np.where(at < len(padded), padded[at.clip(max=len(padded) - 1)], -1)


def of_pixels(
    problem: ConvProblem, direction: Direction, cut: Cut, added: bool = False
) -> tuple[Geometry, Array]:
    """Return the numbers and maps of tiles of images pixel by pixel, whose results may be added up."""
    g, mode = numbers(problem, direction, cut), problem.padding_mode
    tiles = zip(problem.last_axes(2), cut.size, cut.step, cut.count, strict=True)
    (rows_in, rows_out), (columns_in, columns_out) = (
        _added_up(axis, *tile, mode) if added else _cut_out(axis, direction, *tile, mode)
        for axis, *tile in tiles
    )
    parts = [
        np.where(rows_in < 0, -1, rows_in * g.w), np.where(rows_out < 0, -1, rows_out * g.q),
        rows(g.r, g.s, g.r), columns_in, columns_out,
    ]  # fmt: skip
    ends = np.cumsum([part.size for part in parts]).tolist()
    g = g._replace(
        near=1, added=int(added), together=g.th * g.tw if added else 1, skip_h=0, skip_w=0,
        panel=g.panel if direction is Direction.WEIGHT_GRAD else g.k, table=table_size(g.lanes, g.aw),
        of_result=ends[0], of_kernel=ends[1], columns_in=ends[2], columns_out=ends[3],
    )  # fmt: skip
    return g, np.concatenate([part.ravel() for part in parts])
