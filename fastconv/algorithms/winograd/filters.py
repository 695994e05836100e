"""Kernels put side by side, eight lanes of eight rows of the weights, for `pixels.lanes.transform_filters`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv.algorithms.winograd.transforms import ROWS
from fastconv.gemm.move import lanes_between, masked_load, transposed
from fastconv.gemm.tile import I64, data, element, store


@intrinsic
def unpack_filters(typing, t, t0, step, w, w0, row_stride, rows, variant):
    """Set ``t[t0 + tap*step + m] = w[w0 + m*row_stride + tap]`` for m < rows <= 8: eight lanes are stored."""
    _, rh, _, rw = (t.count for t in variant.types[:4])

    def codegen(context, builder, signature, arguments):
        t, t0, step, w, w0, row_stride, rows, _ = arguments
        to = data(context, builder, signature.args[0], t, t0)
        source = data(context, builder, signature.args[3], w, w0)
        itemsize = signature.args[0].dtype.bitwidth // 8
        vector = ir.VectorType(element(signature.args[0]), ROWS)
        for first in range(0, rh * rw, ROWS):
            here = min(ROWS, rh * rw - first)
            columns = _columns(builder, source, row_stride, rows, I64(first), I64(here), vector, itemsize)
            for tap, value in enumerate(columns[:here]):
                store(builder, value, builder.gep(to, [builder.mul(step, I64(first + tap))]), 0, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(t, i, i, w, i, i, i, variant), codegen


@intrinsic
def unpack_taps(typing, t, t0, step, places, taps, w, w0, row_stride, rows):
    """Set ``t[t0 + places[tap]*step + m] = w[w0 + m*row_stride + tap]``, as above; of whole eights of taps."""

    def codegen(context, builder, signature, arguments):
        t, t0, step, places, taps, w, w0, row_stride, rows = arguments
        to = data(context, builder, signature.args[0], t, t0)
        table = data(context, builder, signature.args[3], places, I64(0))
        source = data(context, builder, signature.args[5], w, w0)
        itemsize = signature.args[0].dtype.bitwidth // 8
        vector = ir.VectorType(element(signature.args[0]), ROWS)
        with cgutils.for_range_slice(builder, I64(0), taps, I64(ROWS), I64) as (first, _):
            left = builder.sub(taps, first)
            columns = _columns(builder, source, row_stride, rows, first, left, vector, itemsize)
            for tap, value in enumerate(columns):
                place = builder.load(builder.gep(table, [builder.add(first, I64(tap))]))
                store(builder, value, builder.gep(to, [builder.mul(step, place)]), 0, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(t, i, i, places, i, w, i, i, i), codegen


def _columns(
    builder: Any, source: Any, row_stride: Any, rows: Any, first: Any, count: Any, vector: Any, itemsize: int
) -> list[Any]:  # fmt: skip
    """Return taps first .. first + 8 of eight rows, each as a vector; of rows and taps beyond their number anything.

    A row's taps are loaded as (masked) vectors of eight, and transposed by three butterflies of shuffles.
    """
    mask = lanes_between(builder, I64(0), I64(0), count, list(range(ROWS)))
    last = builder.sub(rows, I64(1))
    block = []
    for m in range(ROWS):
        clamped = builder.select(builder.icmp_signed("<", I64(m), rows), I64(m), last)
        at = builder.gep(source, [builder.add(builder.mul(clamped, row_stride), first)])
        block.append(masked_load(builder, at, mask, vector, itemsize))
    return transposed(builder, block)
