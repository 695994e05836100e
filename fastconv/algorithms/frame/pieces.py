"""How a frame is cut: pixels of it that the same taps reach, and which pixels of grad_output these read.

A strip is one padded pixel outside along an axis, and all there are along the others; corners belong to the first axis.
Its pixels are reached by the same taps along its axis, mostly few of them.  Several strips that the same pixels receive, as all
before the image where borders replicate it, are one: what a tap reads for each of them is added up before it is multiplied.
Other strips of few pixels, as of signals, share a piece.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np

from fastconv import borders
from fastconv.problem import Axis
from fastconv.typing import Array

COLUMNS = 512  # pixels of a piece at the most, and of a batch of pieces at the least: C stays in L2
MOST_SHIFTED = 64  # pixels that rows of B are shifted, a dilation
FEW = 8  # pixels of a strip that shares vectors with others,
SHARED = 16  # of so many pixels at the most,
JOINED = 128  # and of strips that share tiles
ADDED_UP = (
    512  # taps of all rows of strips that are one, at the most: a table of each of their pixels is made
)
NOWHERE = -(2**40)  # a padded pixel, or a position, that is none


# Of each axis some pixels beside the image, each with the pixel to which tiles have added what it receives
Added = tuple[tuple[tuple[int, int], ...], ...]


class Piece(NamedTuple):
    """Some pixels of a strip."""

    taps: Array  # numbers in the kernel
    lines: Array  # [that are added up] -> pixels of grad_output, or -1, among which the taps' rows of B lie
    begin: Array  # [tap] -> where its row begins there
    targets: Array  # [pixel] -> pixel of the result
    back: int  # how far before them those are that tiles have added to; 0 if they have not


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


def wide(count: int, vl: int) -> int:
    """Return the elements of as few whole vectors."""
    return -(-count // vl) * vl


def pieces(axes: tuple[Axis, ...], mode: str, added: Added = ()) -> Iterator[Piece]:
    """Cut the frame into pieces that some tap reaches, but for pixels that are ``added`` where they belong.

    Pixels of a strip a stride apart are reached by the same taps, and by others than those between them.
    """
    added = added or ((),) * len(axes)
    for i, axis in enumerate(axes):
        # pixels of earlier axes are where tiles have added them, if at all; those of later ones belong to all
        edges = [added[j] if j < i else borders.edges(a, mode) for j, a in enumerate(axes)]
        length = prod([-(-a.size // a.stride) for j, a in enumerate(axes) if j != i])
        along = [[] if j == i else _along(a, edges[j]) for j, a in enumerate(axes)]
        most = max(1, ADDED_UP // prod([a.kernel for a in axes]))
        for back, strips in _strips(axis, edges[i], dict(added[i]), length, most):
            back *= prod([a.size for a in axes[i + 1 :]])
            along[i] = [_outside(strips)]
            for places in itertools.product(*along):
                taps, targets, sources = np.zeros(1, int), np.zeros(1, int), np.zeros((1, 1, 1), int)
                for a, (at, pixels) in zip(axes, places, strict=True):
                    read = _read(a, at)
                    some = (read >= 0).any(axis=(0, 2))
                    taps = np.add.outer(taps * a.kernel, np.flatnonzero(some)).reshape(-1)
                    targets = np.add.outer(targets * a.size, pixels).reshape(-1)
                    sources = sources[:, :, None, :, None] * a.output + read[:, None, some, None, :]
                    sources = np.maximum(sources, NOWHERE).reshape(len(sources), len(taps), len(targets))
                # those along the strip follow each other: their rows of B are one line of pixels
                order = np.argsort(taps // prod(a.kernel for a in axes[i + 1 :]) % axis.kernel, kind="stable")
                taps, sources = taps[order], sources[:, order]
                for begin in range(0, len(targets), COLUMNS):
                    columns = slice(begin, begin + COLUMNS)
                    read = np.maximum(sources[:, :, columns], -1)
                    used = (read >= 0).any(axis=(0, 2))
                    if used.any():
                        yield Piece(taps[used], *lines(read[:, used]), targets[columns], back)


def _along(axis: Axis, edges: tuple[tuple[int, int], ...]) -> list[tuple[Array, Array]]:
    """Return the padded pixels of an axis in which strips are cut that lie along it, and those that receive: of each phase."""
    before, after = (sum(at < 0 for at, _ in edges), sum(at >= 0 for at, _ in edges))
    at = np.arange(-before, axis.size + after)
    begins = sorted((p - axis.lo + before) % axis.stride for p in borders.reached(axis))
    return [
        (at[begin :: axis.stride][None], borders.sources(at[begin :: axis.stride], axis.size, edges))
        for begin in begins
    ]


Strip = tuple[int, list[int]]  # a pixel, and those outside that repeat it


def _strips(
    axis: Axis, edges: tuple[tuple[int, int], ...], added: dict[int, int], length: int, most: int
) -> Iterator[tuple[int, list[Strip]]]:
    """Yield the strips of a piece, of ``length`` pixels each, and how far back tiles have added what they receive.

    At ``most`` so many are added up.
    """
    met, few = borders.reached(axis), length <= FEW
    received: dict[tuple[bool, int, int, int, int], list[int]] = {}
    for at, pixel in edges:
        residue, back = (at + axis.lo) % axis.stride, pixel - added.get(at, pixel)
        if residue in met and added.get(at) != pixel:
            received.setdefault((at < 0, residue, back, pixel, few * at), []).append(at)
    alike: dict[tuple[bool, int, int, int], list[Strip]] = {}  # those reached by the same taps, if not few
    for (before, residue, back, pixel, _), every in received.items():
        for begin in range(0, len(every), most):
            outside = every[begin : begin + most]
            taps = 0 if few else np.count_nonzero((_read(axis, np.array([outside]).T) >= 0).any(axis=0))
            alike.setdefault((before, residue, back, taps), []).append((pixel, outside))
    several = max(1, (SHARED if few else JOINED) // length)
    for (_, _, back, _), strips in alike.items():
        for begin in range(0, len(strips), several):
            yield back, strips[begin : begin + several]


def _outside(strips: list[Strip]) -> tuple[Array, Array]:
    """Return the padded pixels [that are added up, strip], and those that receive."""
    rows = itertools.zip_longest(*[outside for _, outside in strips], fillvalue=NOWHERE)
    return np.array(list(rows)), np.array([pixel for pixel, _ in strips])


def _read(axis: Axis, at: Array) -> Array:
    """Return [added up, tap, pixel] -> position of grad_output along an axis, or `NOWHERE`, for padded pixels [added up, pixel]."""
    reached = at[:, None] + axis.lo - axis.dilation * np.arange(axis.kernel)[:, None]
    position = reached // axis.stride
    hit = (reached % axis.stride == 0) & (position >= 0) & (position < axis.output)
    return np.where(hit, position, NOWHERE)


def lines(sources: Array) -> tuple[Array, Array]:
    """Put rows of B that are one another shifted into one line; return the lines [added up] and where rows begin.

    At stride 1 the taps along a line of pixels read the same line, each a dilation before the one before it.

    >>> lines(np.array([[[2, 3, 4], [1, 2, 3], [7, 8, 9]]]))
    (array([[7, 8, 9, 1, 2, 3, 4]]), array([4, 3, 0]))
    """
    _, rows, count = sources.shape
    after = np.full(rows, count)  # where each row begins after the next one
    left = np.arange(1, rows)
    for shift in range(1, min(count, MOST_SHIFTED)):
        near = left[(sources[:, left, shift] == sources[:, left - 1, 0]).all(axis=0)]
        same = sources[:, near, shift:] == sources[:, near - 1, : count - shift]
        near = near[same.all(axis=(0, 2))]
        after[near - 1] = shift
        left = np.setdiff1d(left, near)
    begin = np.cumsum(after[::-1])[::-1] - count
    line = np.empty((len(sources), begin[0] + count), int)
    line[:, begin[:, None] + np.arange(count)] = sources
    return line, begin
