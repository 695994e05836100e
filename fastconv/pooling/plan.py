"""How a call of pooling is cut into tasks, as the tables that kernels read.

A task takes `LANES` planes side by side through one block: some slices of depth by some rows by all columns.  Forward, a block
is one of results, and its tables name the pixels its windows cover.  Backward, it is one of pixels: every
window that touches it is gone through, so that all that a pixel receives meets within one task, and the tables
name the windows and the pixels that these cover.
"""

from __future__ import annotations

import functools
from math import prod
from typing import NamedTuple

import numpy as np

from fastconv.gemm.record import joined, record
from fastconv.pooling.windows import Axes, Spans
from fastconv.typing import Array

LANES = 16  # planes a task takes side by side: a vector of 512 bits in float32, more of them elsewhere
BLOCK = 2**18  # bytes of pixels and results of a task: a half of the second-level cache of small cores


class Geometry(NamedTuple):
    """Pixels, results and steps of (depth, height, width), blocks, scratch, and where tables begin."""

    size_d: int
    size_h: int
    size_w: int
    out_d: int
    out_h: int
    out_w: int
    step_d: int
    step_h: int
    step_w: int
    blocks_d: int
    blocks_h: int
    pixels: int  # elements of a worker's scratch for the pixels of a block, for its results, and all
    results: int
    scratch: int
    begin_d: int  # places of the tables
    begin_h: int
    begin_w: int
    taps_d: int
    taps_h: int
    taps_w: int
    counted_d: int
    counted_h: int
    counted_w: int
    block_d: int
    block_h: int


class Block(NamedTuple):
    """A range of one axis: results (or pixels, backward) that are written, windows gone through, pixels read."""

    begin: int
    end: int
    first: int
    last: int
    low: int
    high: int


class PoolPlan(NamedTuple):
    """All that a kernel is handed beside the arrays."""

    geometry: Array
    tables: Array
    pixels: int  #  of a plane
    results: int
    tasks: int  # of a group of planes
    scratch: int  # elements of one worker: pixels, their gradients if backward, results
    found: int  # elements of one worker for places
    lines: int  # of pixels in the largest block


@functools.lru_cache(512)
def plan(axes: Axes, backward: bool, count_pad: bool, itemsize: int, lanes: int = LANES) -> PoolPlan:
    """Cut a call into blocks of ``lanes`` planes that fit the cache."""
    limit = BLOCK if lanes == LANES else BLOCK // 8
    spans = [axis.spans(count_pad) for axis in axes]
    depth, height, width = axes
    row = lanes * itemsize * (width.size + width.output)
    total = (depth.size, height.size) if backward else (depth.output, height.output)
    rows = total[1]
    while rows > 1 and _bytes(spans, axes, (1, rows), backward, row) > limit:
        rows = -(-rows // 2)
    slices = total[0]
    while slices > 1 and _bytes(spans, axes, (slices, rows), backward, row) > limit:
        slices = -(-slices // 2)
    blocks = [
        _blocks(span, axis.dilation, end, length, backward)
        for span, axis, end, length in zip(spans, axes, total, (slices, rows), strict=False)
    ]
    lines = prod(max(b.high - b.low for b in along) for along in blocks)
    pixels = lines * width.size
    results = prod(max(b.last - b.first for b in along) for along in blocks) * width.output
    names = [f"{kind}_{letter}" for letter in "dhw" for kind in Spans._fields]
    tables, starts = joined(
        **dict(zip(names, (table for span in spans for table in span), strict=True)),
        block_d=blocks[0], block_h=blocks[1],
    )  # fmt: skip
    sizes = [getattr(axis, field) for field in ("size", "output", "dilation") for axis in axes]
    scratch = (pixels * (1 + backward) + results) * LANES
    numbers = [*sizes, len(blocks[0]), len(blocks[1]), pixels * LANES, results * LANES, scratch]
    geometry = Geometry(**dict(zip(Geometry._fields, numbers, strict=False)), **starts)
    return PoolPlan(
        record(geometry), tables, prod(a.size for a in axes), prod(a.output for a in axes),
        prod(map(len, blocks)), geometry.scratch, geometry.results, lines,
    )  # fmt: skip


def _bytes(spans: list[Spans], axes: Axes, lengths: tuple[int, int], backward: bool, row: int) -> int:
    """Return about the bytes of the largest block of these lengths: rows of pixels times ``row``."""
    extents = []
    for span, axis, length in zip(spans, axes, lengths, strict=False):
        end = axis.size if backward else axis.output
        extents.append(max(b.high - b.low for b in _blocks(span, axis.dilation, end, length, backward)))
    return extents[0] * extents[1] * row


def _blocks(span: Spans, step: int, end: int, length: int, backward: bool) -> list[Block]:
    """Cut an axis into blocks of ``length`` results, or pixels if ``backward``."""
    begin, after = span.begin, span.begin + (span.taps - 1) * step + 1
    some = span.taps > 0  # a dilated window may step over all pixels
    blocks = []
    for lo in range(0, end, length):
        hi = min(lo + length, end)
        if backward:
            touching = np.flatnonzero(some & (begin < hi) & (after > lo))
            first, last = (int(touching[0]), int(touching[-1]) + 1) if touching.size else (0, 0)
        else:
            first, last = lo, hi
        covered = np.flatnonzero(some[first:last]) + first
        low = int(begin[covered].min()) if covered.size else lo
        high = int(after[covered].max()) if covered.size else lo
        if backward:
            low, high = min(low, lo), max(high, hi)
        blocks.append(Block(lo, hi, first, last, low, high))
    return blocks
