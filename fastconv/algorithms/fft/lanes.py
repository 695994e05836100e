"""Between images and lanes: a row of each of VL tiles, transposed in registers, or pixels as they stand.

A vector of the transforms holds one pixel of VL tiles, memory holds VL pixels of one tile.  So VL rows
are loaded, one a tile, and transposed by ``log2 VL`` rounds of shuffles.
Pixels outside the image, or outside the result, are masked: they are never touched.

A *table* (int64) says where the tiles lie; `place` fills the entries of one lane:

    [0], [1]           first and last + 1 row that any lane has
    [2], [3], [4]      layers beside the first, moves, entries of a layer
    [HEAD + lane]      where the tile's rows begin in ``maps``, which has where each row of a plane lies, or -1
    a layer:
    [0]                bits: which vectors of columns any lane has
    [1 + lane]         where column 0 of the tile lies in row 0 of the plane
    [1 + (1+j)*VL + lane]   bits: which of the columns j*VL .. j*VL + VL exist

Where borders repeat the image, rows of the padding are rows of the map like others.  A column of the padding is moved to
its place where the tile holds the one that it repeats: (to, from, lanes), at the table's end.  Others are runs of pixels
that lie elsewhere in the row, each in a layer of its own: of circular padding, the far end.  Of a result, moves are columns
beside it that are added to those that they repeat; so are rows, in a table of nothing else.

Where channels are last, lanes are channels of one pixel, neighbours in memory, and all of the same tile.  ``maps`` say for
each row of it, and for each column, which one of the image that is, or -1; a pixel of the padding is one like all others:

    [0], [1]    first and last + 1 row that there is
    [5]         channels of a pixel, 0 where channels are first
    [6], [7]    where in ``maps`` the tile's rows and columns begin
    [8], [9]    where the first pixel's channels begin in the images, and how many there are
    [10]        whether results are added to what stands there: the pixels that borders repeat receive several
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.gemm.move import (
    add_row,
    lanes_between,
    masked_load,
    masked_store,
    write_row,
)
from fastconv.gemm.tile import I64, data, element, fma, load, splat, store
from fastconv.gemm.transposition import transposed

HEAD = 11
CHANNELS, ROWS, COLUMNS, BEGIN, LANES, ADDED = range(5, HEAD)


def table_size(lanes: int, columns: int, runs: int = 0, moves: int = 0) -> int:
    """Return the entries of a table for tiles of at most ``columns``."""
    layer = 1 + lanes * (1 + -(-columns // lanes))
    return HEAD + lanes + (1 + runs) * layer + 3 * moves


@jit.inner
def clear(table, lanes, columns):
    """Make every lane empty."""
    table[:] = 0
    table[0] = 1 << 40
    table[4] = 1 + lanes * (1 + (columns + lanes - 1) // lanes)


@jit.inner
def place(table, lanes, lane, at, begin, row_lo, row_hi, column_lo, column_hi):
    """Say where the tile of a lane lies and which of its pixels exist."""
    table[HEAD + lane] = begin
    if row_hi > row_lo:
        table[0] = min(table[0], row_lo)
        table[1] = max(table[1], row_hi)
    _place_columns(table, lanes, HEAD + lanes, lane, at, column_lo, column_hi)


@jit.inner
def _place_columns(table, lanes, layer, lane, at, lo, hi):
    """Say which columns a layer has of a lane, and where column 0 would lie."""
    table[layer + 1 + lane] = at
    for chunk in range((table[4] - 1) // lanes - 1):
        low = min(max(lo - chunk * lanes, 0), lanes)
        high = min(max(hi - chunk * lanes, low), lanes)
        table[layer + 1 + (1 + chunk) * lanes + lane] = (1 << high) - (1 << low)
        if high > low:
            table[layer] |= 1 << chunk


@jit.inner
def place_border(table, lanes, bits, maps, at):
    """Say what borders add to lanes whose tiles begin at one column: ``maps[at]`` moves, then as many runs as it says."""
    moves = maps[at]
    for i in range(at + 1, at + 1 + 2 * moves, 2):
        table[3] += 1
        end = table.size - 3 * table[3]
        table[end], table[end + 1], table[end + 2] = maps[i], maps[i + 1], bits
    at += 1 + 2 * moves
    table[2] = max(table[2], maps[at])
    for i in range(maps[at]):
        run, layer = at + 1 + 3 * i, HEAD + lanes + (1 + i) * table[4]
        for lane in range(lanes):
            if bits >> lane & 1:
                begin = table[HEAD + lanes + 1 + lane] + maps[run]
                _place_columns(table, lanes, layer, lane, begin, maps[run + 1], maps[run + 2])


@jit.inner
def place_pixels(table, maps, rows, high, columns, channels, begin, count, added):
    """Say which rows and columns a tile of ``count`` channels has: ``maps`` tell of its ``high`` rows from ``rows`` on."""
    table[0] = table[1] = 0
    for row in range(high):
        if maps[rows + row] >= 0:
            table[0] = row if table[1] == 0 else table[0]
            table[1] = row + 1
    table[CHANNELS], table[ROWS], table[COLUMNS] = channels, rows, columns
    table[BEGIN], table[LANES], table[ADDED] = begin, count, added


@jit.inner
def _load_pixels(scratch, x, maps, table, row, aw, lanes):
    """Load a row of a tile of VL channels."""
    line, columns, channels = maps[table[ROWS] + row], table[COLUMNS], table[CHANNELS]
    begin, count = table[BEGIN] + line * channels, table[LANES]
    for j in range(aw):
        column = maps[columns + j]
        if line >= 0 and column >= 0:
            load_lanes(scratch, j * lanes, x, begin + column * channels, count)
        else:
            store_zero(scratch, j * lanes)


@jit.inner
def store_pixels(y, maps, table, row, aw, scratch, lanes):
    """Store a row of a tile of VL channels, or add it."""
    line, columns, channels = maps[table[ROWS] + row], table[COLUMNS], table[CHANNELS]
    begin, count, added = table[BEGIN] + line * channels, table[LANES], table[ADDED]
    if line >= 0:
        for j in range(aw):
            column = maps[columns + j]
            if column >= 0:
                if added:
                    add_row(y, begin + column * channels, scratch, j * lanes, count)
                else:
                    write_row(y, begin + column * channels, scratch, j * lanes, count)


@jit.inner
def load_row(scratch, x, x0, maps, table, row, aw, lanes):
    """Load a row of every tile: VL lanes of its first pixel, of its second, ..."""
    if table[CHANNELS]:
        _load_pixels(scratch, x, maps, table, row, aw, lanes)
        return
    chunks, layer = (aw + lanes - 1) // lanes, HEAD + lanes
    for chunk in range(chunks):
        gather(scratch, chunk * lanes * lanes, x, x0, maps, table, layer, row, chunk)
    for _ in range(table[2]):
        layer += table[4]
        for chunk in range(chunks):
            if table[layer] >> chunk & 1:
                gather_more(scratch, chunk * lanes * lanes, x, x0, maps, table, layer, row, chunk)
    for end in each_move(table):
        move(scratch, table[end] * lanes, table[end + 1] * lanes, table[end + 2])


def _lane(
    builder: Any, maps: Any, table: Any, layer: Any, lane: int, lanes: int, row: Any, chunk: Any
) -> tuple[Any, Any]:
    """Return where a row of the tile of a lane lies, and the mask of its columns in a chunk."""

    def entry(array: Any, index: Any) -> Any:
        return builder.load(builder.gep(array, [index]))

    place = entry(maps, builder.add(entry(table, I64(HEAD + lane)), row))
    at = entry(table, builder.add(layer, I64(1 + lane)))
    first = builder.add(layer, builder.mul(chunk, I64(lanes)))
    bits = entry(table, builder.add(first, I64(1 + lanes + lane)))
    exists = builder.icmp_signed(">=", place, I64(0))
    bits = builder.trunc(builder.select(exists, bits, I64(0)), ir.IntType(lanes))
    return builder.add(at, place), builder.bitcast(bits, ir.VectorType(ir.IntType(1), lanes))


def _gather(more: bool) -> Any:
    @intrinsic
    def gather(typing: Any, dst: Any, d0: Any, src: Any, s0: Any, maps: Any, table: Any, layer: Any, row: Any,
               chunk: Any) -> Any:  # fmt: skip
        """Load VL columns of a row of every tile into VL vectors, or add them; what does not exist is 0."""
        i = types.int64

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            d, d_start, s, s_start, m, t, layer, r, j = arguments
            itemsize = src.dtype.bitwidth // 8
            vector = ir.VectorType(element(src), machine.tile(itemsize).vl)
            target = data(context, builder, dst, d, d_start)
            rows, places = (data(context, builder, a, b, I64(0)) for a, b in ((maps, m), (table, t)))
            start = builder.add(s_start, builder.mul(j, I64(vector.count)))
            source = data(context, builder, src, s, start)
            loaded = []
            for lane in range(vector.count):
                at, mask = _lane(builder, rows, places, layer, lane, vector.count, r, j)
                loaded.append(masked_load(builder, builder.gep(source, [at]), mask, vector, itemsize))
            for column, value in enumerate(transposed(builder, loaded)):
                place = column * vector.count
                if more:
                    value = builder.fadd(load(builder, target, place, vector, itemsize), value)
                store(builder, value, target, place, itemsize)
            return context.get_dummy_value()

        return types.void(dst, i, src, i, maps, table, i, i, i), codegen

    return gather


gather, gather_more = _gather(more=False), _gather(more=True)


def _moving(add: bool) -> Any:
    @intrinsic
    def move(typing: Any, dst: Any, to: Any, at: Any, lanes: Any) -> Any:
        """Set lanes of the vector ``to`` to those of the vector ``at``, or add them."""
        i = types.int64

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            d, to, at, bits = arguments
            itemsize = dst.dtype.bitwidth // 8
            vector = ir.VectorType(element(dst), machine.tile(itemsize).vl)
            place, source = (data(context, builder, dst, d, where) for where in (to, at))
            mask = builder.trunc(bits, ir.IntType(vector.count))
            mask = builder.bitcast(mask, ir.VectorType(ir.IntType(1), vector.count))
            # a whole vector is stored: a load of it that follows need not wait for it to reach the cache
            new, old = (load(builder, pointer, 0, vector, itemsize) for pointer in (source, place))
            if add:
                new = builder.fadd(old, new)
            store(builder, builder.select(mask, new, old), place, 0, itemsize)
            return context.get_dummy_value()

        return types.void(dst, i, i, i), codegen

    return move


move, move_more = _moving(add=False), _moving(add=True)


@jit.inner
def each_move(table):
    """Return what to count through for the moves of a table: where each begins."""
    return range(table.size - 3, table.size - 3 * table[3] - 1, -3)


@intrinsic
def scatter(typing: Any, dst: Any, d0: Any, maps: Any, table: Any, row: Any, chunk: Any, src: Any,
            s0: Any) -> Any:  # fmt: skip
    """Store VL vectors as VL columns of a row of every tile; what does not exist is left out."""
    i = types.int64

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        d, d_start, m, t, r, j, s, s_start = arguments
        itemsize = src.dtype.bitwidth // 8
        vector = ir.VectorType(element(src), machine.tile(itemsize).vl)
        source = data(context, builder, src, s, s_start)
        rows, places = (data(context, builder, a, b, I64(0)) for a, b in ((maps, m), (table, t)))
        layer = I64(HEAD + vector.count)
        target = data(context, builder, dst, d, builder.add(d_start, builder.mul(j, I64(vector.count))))
        columns = [load(builder, source, c * vector.count, vector, itemsize) for c in range(vector.count)]
        for lane, value in enumerate(transposed(builder, columns)):
            at, mask = _lane(builder, rows, places, layer, lane, vector.count, r, j)
            masked_store(builder, value, builder.gep(target, [at]), mask, itemsize)
        return context.get_dummy_value()

    return types.void(dst, i, maps, table, i, i, src, i), codegen


@intrinsic
def load_lanes(typing: Any, dst: Any, d0: Any, src: Any, s0: Any, count: Any) -> Any:
    """Store a vector of ``count`` neighbours, and zeros."""
    i = types.int64

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        d, d_start, s, s_start, count = arguments
        itemsize = src.dtype.bitwidth // 8
        vector = ir.VectorType(element(src), machine.tile(itemsize).vl)
        mask = lanes_between(builder, I64(0), I64(0), count, list(range(vector.count)))
        value = masked_load(builder, data(context, builder, src, s, s_start), mask, vector, itemsize)
        store(builder, value, data(context, builder, dst, d, d_start), 0, itemsize)
        return context.get_dummy_value()

    return types.void(dst, i, src, i, i), codegen


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
