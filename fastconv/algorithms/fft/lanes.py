"""Between images and lanes: a row of each of VL tiles, transposed in registers.

A vector of the transforms holds one pixel of VL tiles, memory holds VL pixels of one tile.  So VL rows
are loaded, one a tile, and transposed by ``log2 VL`` rounds of shuffles.
Pixels outside the image, or outside the result, are masked: they are never touched.

A *table* (int64) says where the tiles lie; `place` fills the entries of one lane:

    [0], [1]           first and last + 1 row that any lane has
    [2 + lane]         where pixel (0, 0) of the tile lies
    [2 + VL + lane]    first row that exists
    [2 + 2*VL + lane]  how many do
    [2 + (3+j)*VL + lane]   bits: which of the columns j*VL .. j*VL + VL exist
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.gemm.move import masked_load, masked_store, transposed
from fastconv.gemm.tile import I64, data, element, fma, load, splat, store


def table_size(lanes: int, columns: int) -> int:
    """Return the entries of a table for tiles of at most ``columns``."""
    return 2 + lanes * (3 + -(-columns // lanes))


@jit.inner
def clear(table):
    """Make every lane empty."""
    table[:] = 0
    table[0] = 1 << 40


@jit.inner
def place(table, lanes, lane, at, row_lo, row_hi, column_lo, column_hi):
    """Say where the tile of a lane lies and which of its pixels exist."""
    table[2 + lane] = at
    table[2 + lanes + lane] = row_lo
    table[2 + 2 * lanes + lane] = max(row_hi - row_lo, 0)
    if row_hi > row_lo:
        table[0] = min(table[0], row_lo)
        table[1] = max(table[1], row_hi)
    for chunk in range((table.size - 2) // lanes - 3):
        low = min(max(column_lo - chunk * lanes, 0), lanes)
        high = min(max(column_hi - chunk * lanes, low), lanes)
        table[2 + (3 + chunk) * lanes + lane] = (1 << high) - (1 << low)


def _lane(builder: Any, table: Any, lane: int, lanes: int, row: Any, chunk: Any) -> tuple[Any, Any]:
    """Return where the tile of a lane lies, and the mask of its columns in this row and chunk."""

    def entry(index: Any) -> Any:
        return builder.load(builder.gep(table, [index]))

    first = entry(I64(2 + lanes + lane))
    exists = builder.icmp_unsigned("<", builder.sub(row, first), entry(I64(2 + 2 * lanes + lane)))
    bits = entry(builder.add(builder.mul(chunk, I64(lanes)), I64(2 + 3 * lanes + lane)))
    bits = builder.trunc(builder.select(exists, bits, I64(0)), ir.IntType(lanes))
    return entry(I64(2 + lane)), builder.bitcast(bits, ir.VectorType(ir.IntType(1), lanes))


@intrinsic
def gather(typing: Any, dst: Any, d0: Any, src: Any, s0: Any, pitch: Any, table: Any, row: Any,
           chunk: Any) -> Any:  # fmt: skip
    """Load VL columns of a row of every tile into VL vectors; what does not exist is 0."""
    i = types.int64

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        d, d_start, s, s_start, step, t, r, j = arguments
        itemsize = src.dtype.bitwidth // 8
        vector = ir.VectorType(element(src), machine.tile(itemsize).vl)
        target = data(context, builder, dst, d, d_start)
        places = data(context, builder, table, t, I64(0))
        start = builder.add(s_start, builder.mul(step, r))
        start = builder.add(start, builder.mul(j, I64(vector.count)))
        source = data(context, builder, src, s, start)
        rows = []
        for lane in range(vector.count):
            at, mask = _lane(builder, places, lane, vector.count, r, j)
            rows.append(masked_load(builder, builder.gep(source, [at]), mask, vector, itemsize))
        for column, value in enumerate(transposed(builder, rows)):
            store(builder, value, target, column * vector.count, itemsize)
        return context.get_dummy_value()

    return types.void(dst, i, src, i, i, table, i, i), codegen


@intrinsic
def scatter(typing: Any, dst: Any, d0: Any, pitch: Any, table: Any, row: Any, chunk: Any, src: Any,
            s0: Any) -> Any:  # fmt: skip
    """Store VL vectors as VL columns of a row of every tile; what does not exist is left out."""
    i = types.int64

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        d, d_start, step, t, r, j, s, s_start = arguments
        itemsize = src.dtype.bitwidth // 8
        vector = ir.VectorType(element(src), machine.tile(itemsize).vl)
        source = data(context, builder, src, s, s_start)
        places = data(context, builder, table, t, I64(0))
        start = builder.add(d_start, builder.mul(step, r))
        start = builder.add(start, builder.mul(j, I64(vector.count)))
        target = data(context, builder, dst, d, start)
        columns = [load(builder, source, c * vector.count, vector, itemsize) for c in range(vector.count)]
        for lane, value in enumerate(transposed(builder, columns)):
            at, mask = _lane(builder, places, lane, vector.count, r, j)
            masked_store(builder, value, builder.gep(target, [at]), mask, itemsize)
        return context.get_dummy_value()

    return types.void(dst, i, i, table, i, i, src, i), codegen


@intrinsic
def store_zero(typing: Any, dst: Any, d0: Any) -> Any:
    """Store one vector of zeros; a loop would become a call of memset."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        itemsize = dst.dtype.bitwidth // 8
        vector = ir.VectorType(element(dst), machine.tile(itemsize).vl)
        zero = ir.Constant(vector, [0.0] * vector.count)
        store(builder, zero, data(context, builder, dst, *arguments), 0, itemsize)
        return context.get_dummy_value()

    return types.void(dst, types.int64), codegen


@intrinsic
def store_planes(typing: Any, dst: Any, d0: Any, gap: Any, src: Any, s0: Any, scale: Any, sign: Any,
                 count: Any) -> Any:  # fmt: skip
    """Store the first ``count`` lanes of re*scale, im*sign and their sum, ``gap`` apart."""
    i = types.int64

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        d, d_start, step, s, s_start, real, imaginary, lanes = arguments
        itemsize = src.dtype.bitwidth // 8
        vector = ir.VectorType(element(src), machine.tile(itemsize).vl)
        target = data(context, builder, dst, d, d_start)
        source = data(context, builder, src, s, s_start)
        bits = builder.sub(builder.shl(I64(1), lanes), I64(1))
        bits = builder.trunc(bits, ir.IntType(vector.count))
        mask = builder.bitcast(bits, ir.VectorType(ir.IntType(1), vector.count))
        factors = [splat(builder, f, vector) for f in (real, imaginary)]
        planes = [
            builder.fmul(load(builder, source, p * vector.count, vector, itemsize), factors[p])
            for p in range(2)
        ]
        for p, value in enumerate([*planes, builder.fadd(*planes)]):
            masked_store(builder, value, builder.gep(target, [builder.mul(step, I64(p))]), mask, itemsize)
        return context.get_dummy_value()

    return types.void(dst, i, i, src, i, src.dtype, src.dtype, i), codegen


@intrinsic
def add_product(typing: Any, total: Any, t0: Any, v: Any, v0: Any, z: Any, z0: Any) -> Any:
    """Add ``conj(z) v`` to a vector of complex numbers: real parts, then imaginary ones."""
    i = types.int64

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        itemsize = v.dtype.bitwidth // 8
        vector = ir.VectorType(element(v), machine.tile(itemsize).vl)
        pointers = [
            data(context, builder, array, arguments[2 * j], arguments[2 * j + 1])
            for j, array in enumerate((total, v, z))
        ]
        (sum_re, sum_im), (re, im), (c, d) = (
            [load(builder, p, j * vector.count, vector, itemsize) for j in range(2)] for p in pointers
        )
        sum_re = fma(builder, im, d, fma(builder, re, c, sum_re))
        sum_im = fma(builder, builder.fneg(re), d, fma(builder, im, c, sum_im))
        store(builder, sum_re, pointers[0], 0, itemsize)
        store(builder, sum_im, pointers[0], vector.count, itemsize)
        return context.get_dummy_value()

    return types.void(total, i, v, i, z, i), codegen
