"""Kernels put side by side, lanes of rows of the weights, for the transforms of filters in `pixels.lanes`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv.algorithms.winograd.transforms import LANES, ROWS
from fastconv.gemm.move import lanes_between, masked_load
from fastconv.gemm.tile import I64, data, element, shuffled, store
from fastconv.gemm.transposition import transposed


@intrinsic
def unpack_filters(typing, t, t0, step, w, w0, row_stride, rows, variant):
    """Set ``t[t0 + tap*step + m] = w[w0 + m*row_stride + tap]`` for m < rows <= LANES: all lanes are stored."""
    _, rh, _, rw = (t.count for t in variant.types[:4])

    def codegen(context, builder, signature, arguments):
        t, t0, step, w, w0, row_stride, rows, _ = arguments
        to = data(context, builder, signature.args[0], t, t0)
        source = data(context, builder, signature.args[3], w, w0)
        starts = _starts(builder, source, row_stride, rows, LANES)
        for first in range(0, rh * rw, ROWS):
            here = min(ROWS, rh * rw - first)
            columns = _columns(builder, signature.args[0], starts, I64(first), I64(here))
            for tap, value in enumerate(columns[:here]):
                at = builder.gep(to, [builder.mul(step, I64(first + tap))])
                store(builder, value, at, 0, signature.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    i = types.int64
    return types.void(t, i, i, w, i, i, i, variant), codegen


@intrinsic
def unpack_pair(typing, t, t0, places, taps, w, w0, row_stride, rows, channel_stride):
    """Set ``t[t0 + places[tap]*LANES + i*ROWS + m] = w[w0 + i*channel_stride + m*row_stride + tap]`` for two channels i.

    m < rows <= ROWS: all lanes are stored, of whole eights of taps.
    """

    def codegen(context, builder, signature, arguments):
        t, t0, places, taps, w, w0, row_stride, rows, channel_stride = arguments
        to = data(context, builder, signature.args[0], t, t0)
        table = data(context, builder, signature.args[2], places, I64(0))
        source = data(context, builder, signature.args[4], w, w0)
        channels = source, builder.gep(source, [channel_stride])
        starts = [at for channel in channels for at in _starts(builder, channel, row_stride, rows, ROWS)]
        with cgutils.for_range_slice(builder, I64(0), taps, I64(ROWS), I64) as (first, _):
            columns = _columns(builder, signature.args[0], starts, first, builder.sub(taps, first))
            for tap, value in enumerate(columns):
                place = builder.load(builder.gep(table, [builder.add(first, I64(tap))]))
                at = builder.gep(to, [builder.mul(place, I64(LANES))])
                store(builder, value, at, 0, signature.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    i = types.int64
    return types.void(t, i, places, i, w, i, i, i, i), codegen


def _starts(builder: Any, source: Any, row_stride: Any, rows: Any, most: int) -> list[Any]:
    """Return where ``most`` rows begin; those beyond their number are the last."""
    last = builder.sub(rows, I64(1))
    numbers = [builder.select(builder.icmp_signed("<", I64(m), rows), I64(m), last) for m in range(most)]
    return [builder.gep(source, [builder.mul(m, row_stride)]) for m in numbers]


def _columns(builder: Any, array: Any, starts: list[Any], first: Any, count: Any) -> list[Any]:
    """Return taps first .. first + 8 of LANES rows, each as a vector; of taps beyond their number anything.

    A row's taps are loaded as (masked) vectors of eight, and two blocks of eight rows transposed at a time.
    """
    eight = ir.VectorType(element(array), ROWS)
    mask = lanes_between(builder, I64(0), I64(0), count, list(range(ROWS)))
    rows = [
        masked_load(builder, builder.gep(at, [first]), mask, eight, array.dtype.bitwidth // 8)
        for at in starts
    ]
    pairs = zip(rows[:ROWS], rows[ROWS:], strict=True)
    return transposed(builder, [shuffled(builder, *pair, list(range(LANES))) for pair in pairs])
