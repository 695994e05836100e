"""Windows that lie in rows (`rows`), by blocks of maps (`blocks`): pixels are read where they are, once.

Sixteen maps side by side (`cpu`) serve every window, but turning them takes longer than small windows then do.
"""

from __future__ import annotations

import functools
from math import prod
from typing import Any, NamedTuple

import numpy as np

from fastconv import machine, threads, workspace
from fastconv.gemm.move import SLACK
from fastconv.pooling import plan
from fastconv.pooling.blocks import MAX, MEAN, NORM, blocks
from fastconv.pooling.lines import SHAPES, vector_length
from fastconv.pooling.windows import Axes, Axis
from fastconv.typing import Array

WORK = 8.0  # what a pixel costs, in the operations that threads count
SCRATCH = 2**13  # bytes of rows that maps of a task have together
NOWHERE = np.empty(0, np.int64)


class RowPlan(NamedTuple):
    """All that a kernel is handed beside the arrays."""

    geometry: Array
    tables: Array
    columns: Array
    scratch: int  # elements of a worker


def serves(axes: Axes, dtype: np.dtype[Any], backward: bool) -> bool:
    """Whether a row has windows of a shape that has code, and enough of them for a vector.

    Gradients also ask that windows do not share pixels down their rows alone.
    """
    *others, axis = axes
    apart = all(isinstance(a, Axis) and a.stride >= a.dilation * (a.kernel - 1) + 1 for a in others)
    return (
        isinstance(axis, Axis)
        and (axis.kernel, axis.stride) in SHAPES
        and axis.dilation == 1
        and 4 * axis.output >= machine.tile(dtype.itemsize).vl
        and (not backward or apart or axis.kernel > axis.stride)
    )


@functools.lru_cache(512)
def _plan(
    axes: Axes, backward: bool, count_pad: bool, divisor: int, itemsize: int, scale: float = 1.0
) -> RowPlan:
    """Add to a plan what rows need; ``scale`` divides what windows count along a row."""
    p, axis = plan.plan(axes, backward, count_pad, itemsize, 1), axes[-1]
    assert isinstance(axis, Axis)
    length = vector_length(axis.output, itemsize)
    vectors = max(-(-axis.output // length), -(-(axis.size + axis.pad) // (axis.stride * length)))
    reach = (axis.kernel - 1) // axis.stride  # zeros between two rows, where `back` looks for windows before
    pitch = length * max(-(-(axis.output + reach) // length), vectors)
    spans = [a.spans(count_pad) for a in axes]
    counted = np.ones(axis.output) if divisor else spans[-1].counted
    factors = [divisor] if divisor else [span.counted for span in spans[:-1]]
    powers = scale == 1 and all(np.all(np.log2(np.maximum(f, 1)) % 1 == 0) for f in [*factors, counted])
    columns = np.ones(pitch, f"f{itemsize}")
    columns[: axis.output] = 1 / counted if powers else counted / scale
    geometry = dict(zip(p.geometry.dtype.names, p.geometry[0], strict=True))
    apart = axis.kernel == axis.stride
    whole = not axis.pad and axis.output * axis.kernel <= axis.size
    short = length < machine.tile(itemsize).vl  # longer rows fill vectors as they are, and need no scratch
    tiles = apart and short and whole and all(np.ptp(s.taps) == np.ptp(s.counted) == 0 for s in spans)
    held = p.found // plan.LANES * axis.kernel if tiles else p.lines * pitch  # of a map
    alike = p.tasks == 1 and p.lines * axis.size == p.pixels  # lines of maps follow each other
    group = max(1, SCRATCH // (held * itemsize)) if alike else 1  # maps of a task
    area = SLACK + group * held + axis.kernel * SLACK
    areas = 3 if backward else tiles if apart else 2  # for gradients, maxima and their taps
    geometry |= {
        "kernel": axis.kernel, "stride": axis.stride, "pad": axis.pad, "pitch": pitch, "masks": p.tables.size,
        "divisor": divisor, "powers": powers, "area": area, "scratch": areas * area, "map": p.pixels, "group": group,
        "apart": apart, "tiles": tiles, "counted": divisor or prod(int(s.counted[0]) for s in spans),
    }  # fmt: skip
    fields = [(name, np.int64) for name in geometry]
    numbers = np.array([tuple(geometry.values())], fields)
    return RowPlan(numbers, np.concatenate([p.tables, _masks(axis, vectors, length)]), columns, areas * area)


def _masks(axis: Axis, vectors: int, length: int) -> Array:
    """Return for each vector of windows whether all pixels exist that it sees, and which exist of those that it loads."""
    begin = np.arange(vectors)[:, None] * length * axis.stride - axis.pad
    groups = -(-axis.kernel // axis.stride)  # of ``stride`` vectors, a stride apart
    lanes = np.arange(groups * axis.stride * length)
    group, lane = divmod(lanes, axis.stride * length)
    pixel = begin + group * axis.stride + lane
    exist = ((pixel >= 0) & (pixel < axis.size)).reshape(vectors, -1, length)
    last = np.minimum(np.arange(1, vectors + 1) * length, axis.output) - 1
    whole = (begin[:, 0] >= 0) & (last * axis.stride - axis.pad + axis.kernel <= axis.size)
    return np.hstack([whole[:, None], (exist << np.arange(length)).sum(2)]).reshape(-1)


def maxima(axes: Axes, x: Array, y: Array, indices: Array) -> None:
    """Write maxima, and their places if ``indices`` is as long as y."""
    _results(MAX, _plan(axes, False, True, 0, x.itemsize), x, y, indices)


def means(axes: Axes, x: Array, y: Array, count_pad: bool, divisor: int) -> None:
    """Write means."""
    _results(MEAN, _plan(axes, False, count_pad, divisor, x.itemsize), x, y, NOWHERE)


def norms(axes: Axes, x: Array, y: Array, taps: int) -> None:
    """Write square roots of sums of squares, of which a window that lacks some of ``taps`` counts as many."""
    _results(NORM, _plan(axes, False, True, 0, x.itemsize, float(taps)), x, y, NOWHERE)


def gradient_of_means(axes: Axes, gy: Array, gx: Array, count_pad: bool, divisor: int) -> None:
    """Write the gradient by x."""
    _gradient(MEAN, axes, (count_pad, divisor), gx, gy, gx)


def gradient_of_maxima(axes: Axes, x: Array, gy: Array, gx: Array) -> None:
    """Write the gradient by x; maxima are found again."""
    _gradient(MAX, axes, (True, 0), x, gy, gx)


@functools.lru_cache(512)
def _leaves(axes: Axes) -> bool:
    """Return whether windows that are apart leave pixels out."""
    return not all(
        isinstance(a, Axis) and a.kernel == a.stride and a.output * a.stride >= a.size + a.pad for a in axes
    )


def _results(kind: int, p: RowPlan, x: Array, y: Array, indices: Array) -> None:
    _launch(kind, p, x, y, indices.reshape(-1), None, None, work=WORK * (x.size + y.size))


def _gradient(kind: int, axes: Axes, counting: tuple[bool, int], x: Array, gy: Array, gx: Array) -> None:
    slides = axes[-1].kernel > axes[-1].stride
    if not slides and _leaves(axes):
        gx.fill(0)
    p, to = _plan(axes, slides, *counting, gx.itemsize), gx.reshape(-1)
    work = WORK * (x.size + gx.size + gy.size)
    _launch(kind, p, x, gy, None, to if slides else None, None if slides else to, work=work)


def _launch(kind: int, p: RowPlan, x: Array, y: Array, *written: Array | None, work: float) -> None:
    scratch = workspace.take(threads.workers(work) * p.scratch, x.dtype.char)
    threads.launch(
        blocks, work, kind, x.reshape(-1), y.reshape(-1), *written, p.columns, scratch, p.geometry, p.tables
    )
