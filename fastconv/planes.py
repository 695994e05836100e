"""Whole planes: the sum of each, and a number spread over each.

Gradients by a bias are sums of planes, and pooling over a whole map is one of either.  A plane is summed in `LANES`
partial sums side by side, then those by halves, so that the order, and with it every bit, is the same on any
number of threads.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, threads
from fastconv.arrays import Array, common, contiguous, empty
from fastconv.gemm.move import I32, lanes_between, masked_load
from fastconv.gemm.schedule import part
from fastconv.gemm.tile import I64, data, element, load

LANES = 16


def sums(planes: Array) -> Array:
    """Return the sum of each row of a (planes, pixels) array."""
    result = np.empty(len(planes), planes.dtype)
    rows = contiguous(planes, planes.dtype).reshape(-1)
    threads.launch(_sum, 4.0 * planes.size, rows, planes.shape[1], result)
    return result


def spread(values: Array, pixels: int) -> Array:
    """Return a (planes, pixels) array with each value all over its plane."""
    planes = empty((values.size, pixels), common(values))
    threads.launch(_spread, 4.0 * planes.size, contiguous(values, planes.dtype), planes)
    return planes


@jit.kernel
def _sum(workers, planes, pixels, result):
    for worker in numba.prange(workers):
        for i in range(part(result.size, workers, worker), part(result.size, workers, worker + 1)):
            result[i] = _total(planes, i * pixels, pixels)


@intrinsic
def _total(typing, planes, begin, count):
    """Return the sum of ``planes[begin : begin + count]``."""

    def codegen(context, builder, signature, arguments):
        planes, begin, count = arguments
        vector, itemsize = (
            ir.VectorType(element(signature.args[0]), LANES),
            signature.args[0].dtype.bitwidth // 8,
        )
        row = data(context, builder, signature.args[0], planes, begin)
        whole = builder.and_(count, I64(-LANES))
        sums = cgutils.alloca_once(builder, vector)
        rest = lanes_between(builder, whole, I64(0), count, list(range(LANES)))
        builder.store(masked_load(builder, builder.gep(row, [whole]), rest, vector, itemsize), sums)
        with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES), I64) as (q, _):
            pixels = load(builder, builder.gep(row, [q]), 0, vector, itemsize)
            builder.store(builder.fadd(builder.load(sums), pixels), sums)
        value = builder.load(sums)
        while value.type.count > 1:
            half = value.type.count // 2
            numbers = ir.VectorType(I32, half)
            low, high = (ir.Constant(numbers, list(range(i, i + half))) for i in (0, half))
            value = builder.fadd(*(builder.shuffle_vector(value, value, part) for part in (low, high)))
        return builder.extract_element(value, I32(0))

    return planes.dtype(planes, types.int64, types.int64), codegen


@jit.kernel
def _spread(workers, values, planes):
    for worker in numba.prange(workers):
        for i in range(part(len(planes), workers, worker), part(len(planes), workers, worker + 1)):
            row, value = planes[i], values[i]
            for q in range(row.size):
                row[q] = value
