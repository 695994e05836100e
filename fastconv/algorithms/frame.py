"""The input gradient where borders repeat the image: what the frame around it adds to the pixels inside.

The gradient of the padded image is the usual correlation of grad_output; inside, that is the input gradient among
zeros, by any algorithm.  Each pixel of the frame then hands what it receives to the one it repeats.

The frame is cut into strips, one for each padded pixel outside along an axis (corners belong to the first axis),
and these into pieces of at most COLUMNS pixels.  All pixels of a strip are reached by the same taps along its axis,
mostly few of them, so that a piece is a product of its own; strips of few pixels, as of signals, share a piece:

    C[c, j] = sum over k, t of  w[k, c, taps[t]] * gy[k, sources[t, j]]        gx[c, targets[j]] += C[c, j]

Everything about the geometry is in these three tables; rows of B that are one another shifted lie in one line.  A task
owns channels of an image and adds all pieces to them one after the other, so the order of its sums is always the same.
Tiles may have added some of it already: to the pixel that is repeated, or to another one, from where it is moved (`Added`).

Every image reads all weights.  For more than one they are packed once, ahead: a fourth of the frame's time otherwise.
"""

from __future__ import annotations

import functools
import itertools
from abc import abstractmethod
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import borders, jit, machine, threads, workspace
from fastconv.activations import NONE, finish_all
from fastconv.algorithms.base import Execution, flat, pixels
from fastconv.algorithms.passes import combined, pass_of
from fastconv.gemm.blocking import within
from fastconv.gemm.move import SLACK, add_row, add_seconds, subtract_row
from fastconv.gemm.pack import load_panel, pack_weights, panel_at
from fastconv.gemm.record import record
from fastconv.gemm.schedule import next_task, part, span
from fastconv.gemm.segments import SEGMENT, add_pixels, copy_channels, copy_pixels, subtract_pixels
from fastconv.gemm.tile import tile_indexed
from fastconv.problem import Axis, ConvProblem, Direction
from fastconv.typing import Array

COLUMNS = 256  # pixels of a piece at the most, and of a batch of pieces at the least: C stays in L2
MOST_SHIFTED = 64  # pixels that rows of B are shifted, a dilation
SECONDS = -2  # in place of a pixel: every second one receives
SHORTEST = 4  # pixels side by side that are copied, or added, by vectors
TOGETHER = 16  # pixels of strips in one piece, at the most
ROWS = 576  # of a panel of weights: with 8 columns 18 KB of L1


class Geometry(NamedTuple):
    """The frame and its blocks, as numbers."""

    n: int
    groups: int
    channels: int  # of grad_output, in a group
    m: int  #         of the result, in a group
    source_size: int
    source_channel: int  # elements from channel to channel, and from pixel to pixel: 1 but in images held so
    source_pixel: int
    result_size: int
    result_channel: int
    m_blocks: int
    chunks: int  #  of channels
    panel: int  #   where the panel of weights and C begin in a worker's scratch
    c_start: int
    ldc: int
    scratch: int
    vl: int
    mr: int
    nr: int


class Batch(NamedTuple):
    """Some pieces whose C is held at once; where their tables begin, and how long they are."""

    size: int  # elements of a channel in B
    segments_at: int
    segments: int
    columns_at: int  # those of pixels below each other, ``pitch`` apart
    columns: int
    pitch: int
    pixels_at: int
    pixels: int
    pieces_at: int  # [piece] -> (taps, where its steps begin, first column, vectors)
    pieces: int
    rows_at: int  # (pixel of the result, column, how many side by side, pixel that they are subtracted from, or -1;
    #             -2 where every second pixel receives)
    rows: int
    targets_at: int  # single ones: (pixel of the result, column)
    targets: int
    less_at: int  #    those that they are subtracted from
    less: int


# Of each axis some pixels beside the image, each with the pixel to which tiles have added what it receives
Added = tuple[tuple[tuple[int, int], ...], ...]


class Piece(NamedTuple):
    """Some pixels of a strip."""

    taps: Array  # numbers in the kernel
    line: Array  # pixels of grad_output, or -1, among which the taps' rows of B lie
    begin: Array  # [tap] -> where its row begins there
    targets: Array  # [pixel] -> pixel of the result
    back: int  # how far before them those are that tiles have added to; 0 if they have not


@jit.kernel
def add_frame(workers, counters, gy, w, views, gx, scratch, geos, batches, tables):
    """Add the frame's gradient; tasks are images x groups x blocks of channels."""
    for worker in numba.prange(workers):
        _work(worker, counters, gy, w, views[0], gx, scratch, geos[0], batches, tables)


@jit.inner
def _work(worker, counters, gy, w, view, gx, scratch, geo, batches, tables):
    b0 = worker * geo.scratch
    c0 = b0 + geo.c_start
    panel = w if view.packed else scratch
    panels = -(-geo.m // geo.mr)
    tasks = geo.n * geo.groups * geo.m_blocks
    task = next_task(counters, worker, tasks)
    while task < tasks:
        plane, m_block = task // geo.m_blocks, task % geo.m_blocks
        image, group = plane // geo.groups, plane % geo.groups
        source = image * geo.groups * geo.channels * geo.source_size
        result = image * geo.groups * geo.m * geo.result_size
        first, last = span(panels, geo.m_blocks, m_block)
        top = part(geo.m, panels, first)
        for number in range(batches.size):
            batch = batches[number]
            for chunk in range(geo.chunks):
                ch0, ch1 = span(geo.channels, geo.chunks, chunk)
                _fill(
                    scratch,
                    b0,
                    gy,
                    source + (group * geo.channels + ch0) * geo.source_channel,
                    ch1 - ch0,
                    geo,
                    batch,
                    tables,
                )
                for p in range(first, last):
                    m0, m1 = part(geo.m, panels, p), part(geo.m, panels, p + 1)
                    a0 = b0 + geo.panel
                    if view.packed:
                        a0, _, _ = panel_at(view, 0, group, m0, m0, m1 - m0, ch0, ch1)
                    else:
                        load_panel(scratch, a0, w, view, group, p, panels, ch0, ch1)
                    at = c0 + (m0 - top) * geo.ldc
                    _multiply(scratch, at, panel, a0, b0, geo, batch, tables, ch1 - ch0, m1 - m0, chunk > 0)
            for m in range(top, part(geo.m, panels, last)):
                to, at = result + (group * geo.m + m) * geo.result_channel, c0 + (m - top) * geo.ldc
                for row in range(batch.rows_at, batch.rows_at + 4 * batch.rows, 4):
                    begin, count, less = at + tables[row + 1], tables[row + 2], tables[row + 3]
                    if less == SECONDS:
                        add_seconds(gx, to + tables[row], scratch, begin, count)
                        continue
                    add_row(gx, to + tables[row], scratch, begin, count)
                    if less >= 0:
                        subtract_row(gx, to + less, scratch, begin, count)
                add_pixels(gx, to, scratch, at, tables[batch.targets_at :], 0, batch.targets)
                subtract_pixels(gx, to, scratch, at, tables[batch.less_at :], 0, batch.less)
        task = next_task(counters, worker, tasks)


@jit.inner
def _fill(b, b0, gy, source, channels, geo, batch, tables):
    """Write the rows of B of some channels: runs of pixels along a row and along a column, then single ones."""
    step, along = geo.source_channel, geo.source_pixel
    rows, columns = tables[batch.segments_at :], tables[batch.columns_at :]
    copy_channels(b, b0, batch.size, gy, source, step, channels, rows, batch.segments, along)
    copy_channels(b, b0, batch.size, gy, source, step, channels, columns, batch.columns, batch.pitch * along)
    for c in range(channels):
        at = source + c * geo.source_channel
        copy_pixels(b, b0 + c * batch.size, gy, at, tables[batch.pixels_at :], 0, batch.pixels)


@jit.inner
def _multiply(scratch, c0, a, a0, b0, geo, batch, tables, channels, mr, more):
    """C (+)= panel * B, piece by piece."""
    for piece in range(batch.pieces_at, batch.pieces_at + 4 * batch.pieces, 4):
        length, steps, column, vectors = (
            channels * tables[piece],
            tables[piece + 1],
            tables[piece + 2],
            tables[piece + 3],
        )
        groups = -(-vectors // geo.nr)
        for g in range(groups):
            v = part(vectors, groups, g)
            tile_indexed(
                scratch, c0 + column + v * geo.vl, geo.ldc, a, a0, scratch, b0 + v * geo.vl, tables, steps,
                length, mr, part(vectors, groups, g + 1) - v, more,
            )  # fmt: skip


def pieces(axes: tuple[Axis, ...], mode: str, added: Added = ()) -> Iterator[Piece]:
    """Cut the frame into pieces that some tap reaches, but for pixels that are ``added`` where they belong.

    Pixels of a strip a stride apart are reached by the same taps, and by others than those between them.
    """
    added = added or ((),) * len(axes)
    for i, axis in enumerate(axes):
        apart = [1 if j == i else a.stride for j, a in enumerate(axes)]
        # pixels of earlier axes are where tiles have added them, if at all; those of later ones belong to all
        edges = [added[j] if j < i else borders.edges(a, mode) for j, a in enumerate(axes)]
        wide = [(sum(at < 0 for at, _ in beside), sum(at >= 0 for at, _ in beside)) for beside in edges]
        first = [  # of the pixels of each stride's along a strip
            [0] if j == i else sorted((p - a.lo + wide[j][0]) % a.stride for p in borders.reached(a))
            for j, a in enumerate(axes)
        ]
        met, already = borders.reached(axis), dict(added[i])
        alike: dict[tuple[bool, int, int], list[tuple[int, int]]] = {}  # strips: those reached by like taps
        for at, pixel in edges[i]:
            residue, other = (at + axis.lo) % axis.stride, already.get(at, pixel)
            if residue in met and already.get(at) != pixel:
                alike.setdefault((at < 0, residue, pixel - other), []).append((at, pixel))
        length = prod(-(-a.size // apart[j]) for j, a in enumerate(axes) if j != i)
        several = max(1, TOGETHER // length)
        strips = [
            (back, list(zip(*some[begin : begin + several], strict=True)))
            for (_, _, back), some in alike.items()
            for begin in range(0, len(some), several)
        ]
        for (back, strip), phases in itertools.product(strips, itertools.product(*first)):
            taps, targets, sources = np.zeros(1, int), np.zeros(1, int), np.zeros((1, 1), int)
            for j, a in enumerate(axes):
                where, lands = np.array(strip)
                if j != i:
                    where = np.arange(-wide[j][0], a.size + wide[j][1])[phases[j] :: apart[j]]
                    lands = borders.sources(where, a.size, edges[j])
                reached = where + a.lo - a.dilation * np.arange(a.kernel)[:, None]
                position = reached // a.stride
                hit = (reached % a.stride == 0) & (position >= 0) & (position < a.output)
                some = hit.any(axis=1)
                taps = (taps[:, None] * a.kernel + np.flatnonzero(some)).reshape(-1)
                targets = (targets[:, None] * a.size + lands).reshape(-1)
                sources = combined(sources, np.where(hit, position, -1)[some], a.output)
            # those along the strip follow each other: their rows of B are one line of pixels
            order = np.argsort(taps // prod(a.kernel for a in axes[i + 1 :]) % axis.kernel, kind="stable")
            taps, sources = taps[order], sources[order]
            back *= prod(a.size for a in axes[i + 1 :])
            for begin in range(0, len(targets), COLUMNS):
                columns = slice(begin, begin + COLUMNS)
                used = (sources[:, columns] >= 0).any(axis=1)
                if used.any():
                    yield Piece(taps[used], *lines(sources[used, columns]), targets[columns], back)


@functools.lru_cache(maxsize=2)
def batches(axes: tuple[Axis, ...], mode: str, added: Added, vl: int) -> list[list[Piece]]:
    """Put pieces together until C has COLUMNS columns; algorithms that are asked mostly have the same."""
    batched: list[list[Piece]] = []
    width = COLUMNS
    for piece in pieces(axes, mode, added):
        if width >= COLUMNS:
            batched.append([])
            width = 0
        batched[-1].append(piece)
        width += wide(len(piece.targets), vl)
    return batched


def lines(sources: Array) -> tuple[Array, Array]:
    """Put rows of B that are one another shifted into one line; return the lines' sources and where rows begin.

    At stride 1 the taps along a line of pixels read the same line, each a dilation before the one before it.

    >>> lines(np.array([[2, 3, 4], [1, 2, 3], [7, 8, 9]]))
    (array([7, 8, 9, 1, 2, 3, 4]), array([4, 3, 0]))
    """
    rows, count = sources.shape
    after = np.full(rows, count)  # where each row begins after the next one
    left = np.arange(1, rows)
    for shift in range(1, min(count, MOST_SHIFTED)):
        near = left[sources[left, shift] == sources[left - 1, 0]]
        near = near[(sources[near, shift:] == sources[near - 1, : count - shift]).all(axis=1)]
        after[near - 1] = shift
        left = np.setdiff1d(left, near)
    begin = np.cumsum(after[::-1])[::-1] - count
    line = np.empty(begin[0] + count, int)
    line[begin[:, None] + np.arange(count)] = sources
    return line, begin


def runs(line: Array, apart: int = 1) -> list[tuple[int, int, int]]:
    """Return (place, pixel, how many) of pixels that stand side by side, or so far apart, and of zeros (-1)."""
    zero = line < 0
    goes_on = (np.diff(line) == np.where(zero[1:], 0, apart)) & (zero[1:] == zero[:-1])
    begin = np.flatnonzero(np.r_[True, ~goes_on])
    count = np.diff(np.r_[begin, len(line)])
    return list(zip(begin.tolist(), line[begin].tolist(), count.tolist(), strict=True))


def mostly(line: Array, apart: int) -> int:
    """Return ``apart`` if pixels of a line mostly stand so far apart, else 1."""
    return apart if 2 * np.count_nonzero(np.diff(line) == apart) > len(line) else 1


class Framed(Execution):
    """The input gradient among zeros, and what a frame around it adds."""

    view = staticmethod(flat)  # of the result, as kernels take it

    @abstractmethod
    def run_all(self, first: Array, second: Array, out: Array, nothing: Array) -> None:
        """Compute the gradient, the frame's too."""

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        self.run_all(first, second, out, bias[:0])
        if bias.size:  # once, and not with every pixel around
            out += bias.reshape(-1, *[1] * (out.ndim - 2))
        if residual.size:
            out += residual
        if not isinstance(activation, int) or activation != NONE:
            threads.launch(self.typed[finish_all], float(out.size), self.view(out), activation, bias[:0])


class FramedChannels(Framed):
    """Of channels one by one, wherever their pixels are."""

    def __init__(self, inner: Execution, problem: ConvProblem, added: Added, cache: int) -> None:
        self.inner, self.dtype, itemsize = inner, problem.dtype, problem.itemsize
        if problem.layout == "nhwc":
            self.view = pixels
        tile, cores = machine.tile(itemsize), machine.machine().cores
        p = pass_of(problem, Direction.INPUT_GRAD)
        batched = batches(problem.axes, problem.padding_mode, added, tile.vl)
        kernel = prod(p.kernel)
        ahead = p.n * len(batched) > 1
        view = p.weights(itemsize)
        self.packed = -(-p.groups * p.m * p.channels * kernel // 16) * 16 if ahead else 0
        ldc = max((sum(wide(len(piece.targets), tile.vl) for piece in batch) for batch in batched), default=0)
        sizes = [sum(wide(len(piece.line), tile.vl) + tile.vl for piece in batch) for batch in batched]
        size = max(sizes, default=0)
        per_chunk = min(ROWS // kernel, cache // 3 // itemsize // max(1, size))
        chunks = -(-p.channels // max(1, per_chunk))
        per_chunk = -(-p.channels // chunks)
        panels, planes = -(-p.m // tile.mr), p.n * p.groups
        m_blocks = 1 if planes % cores == 0 or planes >= 4 * cores else cores
        m_blocks = min(panels, max(m_blocks, -(-p.m * ldc * itemsize // (cache // 2))))
        panel = -(-(per_chunk * size + SLACK) // 16) * 16
        loaded = 0 if ahead else per_chunk * kernel * tile.mr
        c_start = -(-(panel + loaded + SLACK) // 16) * 16
        self.scratch = -(-(c_start + -(-panels // m_blocks) * tile.mr * ldc + SLACK) // 16) * 16
        self.workspace = max(inner.workspace, (self.packed + cores * self.scratch) * itemsize)
        products = sum(len(piece.taps) * len(piece.targets) for batch in batched for piece in batch)
        self.flops = 2.0 * planes * p.m * p.channels * products
        source, result = prod(problem.output), prod(a.size for a in problem.axes)
        (source_channel, source_pixel), (result_channel, result_pixel) = (
            p.steps_of(p.channels, source), p.steps_of(p.m, result)
        )  # fmt: skip
        self.describe = functools.partial(
            _described,
            batched,
            sizes,
            tile.vl,
            kernel,
            per_chunk,
            problem.output[-1],
            source_pixel,
            result_pixel,
        )
        self.as_given, self.read = record(view), record(view._replace(packed=ahead))
        self.geometry = record(
            Geometry(
                p.n, p.groups, p.channels, p.m, source, source_channel, source_pixel, result, result_channel,
                m_blocks, chunks, panel, c_start, ldc, self.scratch, tile.vl, tile.mr, tile.nr,
            )
        )  # fmt: skip

    @functools.cached_property
    def described(self) -> tuple[Array, Array]:
        """Batches and their tables, made for the first call."""
        return self.describe()

    def run_all(self, first: Array, second: Array, out: Array, nothing: Array) -> None:
        self.inner.run(first, second, out, nothing, NONE, nothing)
        if not self.flops:
            return
        scratch = workspace.take(self.packed + threads.workers(self.flops) * self.scratch, self.dtype)
        weight = flat(second)
        if self.packed:
            threads.launch(self.typed[pack_weights], 4.0 * self.packed, weight, scratch, self.as_given)
            weight = scratch
        threads.share_out(
            self.typed[add_frame], self.flops, self.view(first), weight,
            self.read, self.view(out), scratch[self.packed :],
            self.geometry, *self.described,
        )  # fmt: skip


def wide(count: int, vl: int) -> int:
    """Return the elements of as few whole vectors."""
    return -(-count // vl) * vl


def framed(inner: Execution, problem: ConvProblem, limit: int, added: Added = ()) -> Execution:
    """Add the frame's gradient to that of the image, if possible within ``limit`` bytes of scratch, or within its.

    ``inner`` has ``added`` what some of these pixels receive; among zeros there are none.
    """
    limit = max(limit, inner.workspace)
    return within(limit, functools.partial(FramedChannels, inner, problem, added))


def _described(
    batched: list[list[Piece]], sizes: list[int], vl: int, kernel: int, channels: int, pitch: int,
    source_pixel: int, result_pixel: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Return the batches as the kernel takes them, and all their tables in one."""
    tables: list[int] = []
    described = [
        record(_tabled(batch, size, tables, vl, kernel, channels, pitch, source_pixel, result_pixel))
        for batch, size in zip(batched, sizes, strict=True)
    ]
    return np.concatenate(described), np.array(tables, np.int64)


def _tabled(
    batch: list[Piece], size: int, tables: list[int], vl: int, kernel: int, channels: int, pitch: int,
    source_pixel: int, result_pixel: int,
) -> Batch:  # fmt: skip
    """Append the tables of a batch; return where they are."""

    def append(values: Any) -> int:
        tables.extend(values)
        return len(tables) - len(values)

    segments: list[int] = []
    columns: list[int] = []
    single: list[int] = []
    numbers: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    less: list[int] = []
    row = column = 0
    for piece in batch:
        taps = np.stack((piece.taps, row + piece.begin), axis=1)
        steps = np.arange(channels)[:, None, None] * (kernel, size) + taps
        count = wide(len(piece.targets), vl)
        numbers += [len(taps), append(steps.reshape(-1).tolist()), column, count // vl]
        apart = mostly(piece.line, pitch)
        for place, pixel, length in runs(piece.line, apart):
            at = pixel * source_pixel
            if pixel < 0:
                segments += [row + place, 0, length, 0, 0]
            elif length >= SHORTEST:
                (columns if apart > 1 else segments).extend((row + place, at, length, 0, length))
            else:
                single += [n for i in range(length) for n in (row + place + i, at + i * apart * source_pixel)]
        apart = mostly(piece.targets, 2)
        for place, pixel, length in runs(piece.targets, apart):
            if length >= SHORTEST and result_pixel == 1 and not (apart == 2 and piece.back):
                other = pixel - piece.back if piece.back else -1
                rows += [pixel, column + place, length, SECONDS if apart == 2 else other]
                continue
            for j in range(length):
                to, at = pixel + j * apart, column + place + j
                targets += [to * result_pixel, at]
                less += [(to - piece.back) * result_pixel, at] if piece.back else []
        column += count
        row += wide(len(piece.line), vl) + vl  # the last row's whole vectors may pass the line's end
    return Batch(
        size, append(segments), len(segments) // SEGMENT, append(columns), len(columns) // SEGMENT, pitch,
        append(single), len(single) // 2,
        append(numbers), len(batch), append(rows), len(rows) // 4, append(targets), len(targets) // 2,
        append(less), len(less) // 2,
    )  # fmt: skip
