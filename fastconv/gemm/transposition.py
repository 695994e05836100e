"""Transposition of matrices in memory, by blocks in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.gemm.move import lanes_between, masked_load, masked_store, write_row
from fastconv.gemm.tile import I64, cases, data, element, load, shuffled, store

BLOCK = 8  # transposition works on 8 x 8 elements,
TAPS = 9  # but rows of so few go through registers whole


@intrinsic
def _transpose_block(typing, dst, d, ldd, src, s, lds):
    """Write the transpose of an 8 x 8 block."""

    def codegen(context, builder, signature, arguments):
        dst_type, _, _, src_type, *_ = signature.args
        itemsize = src_type.dtype.bitwidth // 8
        vector = ir.VectorType(element(src_type), BLOCK)
        dst, d, ldd, src, s, lds = arguments
        to = data(context, builder, dst_type, dst, d)
        source = data(context, builder, src_type, src, s)
        lines = [
            load(builder, builder.gep(source, [builder.mul(lds, I64(i))]), 0, vector, itemsize)
            for i in range(BLOCK)
        ]
        for j, value in enumerate(transposed(builder, lines)):
            store(builder, value, builder.gep(to, [builder.mul(ldd, I64(j))]), 0, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(dst, i, i, src, i, i), codegen


@intrinsic
def _transpose_corner(typing, dst, d, ldd, src, s, lds, rows, columns):
    """Write the transpose of a block of 1 to 8 rows and columns."""

    def codegen(context, builder, signature, arguments):
        dst_type, _, _, src_type, *_ = signature.args
        itemsize = src_type.dtype.bitwidth // 8
        vector = ir.VectorType(element(src_type), BLOCK)
        dst, d, ldd, src, s, lds, rows, columns = arguments
        to = data(context, builder, dst_type, dst, d)
        source = data(context, builder, src_type, src, s)
        wide, high = (
            lanes_between(builder, I64(0), I64(0), count, list(range(BLOCK))) for count in (columns, rows)
        )
        last = builder.sub(rows, I64(1))
        lines = []
        for i in range(BLOCK):
            row = builder.select(builder.icmp_signed("<", I64(i), rows), I64(i), last)
            line = builder.gep(source, [builder.mul(lds, row)])
            lines.append(masked_load(builder, line, wide, vector, itemsize))
        for j, value in enumerate(transposed(builder, lines)):
            with builder.if_then(builder.icmp_signed("<", I64(j), columns)):
                masked_store(builder, value, builder.gep(to, [builder.mul(ldd, I64(j))]), high, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(dst, i, i, src, i, i, i, i), codegen


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of square blocks side by side, in vectors: butterflies of shuffles, three for 8 x 8."""
    size, lanes = len(rows), rows[0].type.count
    half = size // 2
    while half:
        new = list(rows)
        for i in range(size):
            if i & half:
                continue
            low = [j if not j & half else lanes + j - half for j in range(lanes)]
            high = [j + half if not j & half else lanes + j for j in range(lanes)]
            for target, picks in ((i, low), (i + half, high)):
                new[target] = shuffled(builder, rows[i], rows[i + half], picks)
        rows = new
        half //= 2
    return rows


@jit.inner
def transpose(dst, d, ldd, src, s, lds, rows, columns):
    """Set ``dst[d + j*ldd + i] = src[s + i*lds + j]`` for i < rows, j < columns; nothing else of dst changes.

    The last blocks overlap those before them: what that moves twice costs less than masks.
    """
    if rows == 1 and ldd == 1:
        write_row(dst, d, src, s, columns)
        return
    if rows < BLOCK or columns < BLOCK:
        _transpose_narrow(dst, d, ldd, src, s, lds, rows, columns)
        return
    for block in range(0, rows, BLOCK):
        i = min(block, rows - BLOCK)
        for j in range(0, columns - BLOCK + 1, BLOCK):
            _transpose_block(dst, d + j * ldd + i, ldd, src, s + i * lds + j, lds)
        if columns % BLOCK:
            j = columns - BLOCK
            _transpose_block(dst, d + j * ldd + i, ldd, src, s + i * lds + j, lds)


@jit.inner
def _transpose_narrow(dst, d, ldd, src, s, lds, rows, columns):
    for i in range(0, rows, BLOCK):
        high = min(BLOCK, rows - i)
        for j in range(0, columns, BLOCK):
            wide = min(BLOCK, columns - j)
            to, at = d + j * ldd + i, s + i * lds + j
            if high * wide > BLOCK:
                _transpose_corner(dst, to, ldd, src, at, lds, high, wide)
            else:
                for k in range(high):
                    for e in range(wide):
                        dst[to + e * ldd + k] = src[at + k * lds + e]


@intrinsic
def turn_taps(typing, dst, d, dst_step, apart, src, s, src_step, count, rows, taps):
    """Set ``dst[d + c*dst_step + j*apart + i] = src[s + c*src_step + i*taps + j]`` for c < count, i < rows, j < taps.

    Up to MR rows and TAPS taps; nothing else of dst changes.  All rows of a c are neighbours in memory, so they pass
    through registers as they stand: 9 rows of 2 taps are two loads, two permutations and two stores.
    """

    def codegen(context, builder, signature, arguments):
        dst_type, _, _, _, src_type, *_ = signature.args
        itemsize = src_type.dtype.bitwidth // 8
        mr = machine.tile(itemsize).mr
        wide = 1 << (mr - 1).bit_length()  # lanes of the vectors that hold as many rows
        vector, lanes = ir.VectorType(element(src_type), wide), list(range(wide))
        dst, d, dst_step, apart, src, s, src_step, count, rows, taps = arguments
        to, source = data(context, builder, dst_type, dst, d), data(context, builder, src_type, src, s)
        for t in cases(builder, taps, {t: t for t in range(1, TAPS + 1)}, "turn"):
            high = lanes_between(builder, I64(0), I64(0), rows, lanes)
            starts = [I64(v) for v in range(0, mr * t, wide)]
            masks = [lanes_between(builder, v, I64(0), builder.mul(rows, I64(t)), lanes) for v in starts]
            with cgutils.for_range(builder, count, intp=I64) as loop:
                at = builder.gep(source, [builder.mul(loop.index, src_step)])
                place = builder.gep(to, [builder.mul(loop.index, dst_step)])
                loaded = [
                    masked_load(builder, builder.gep(at, [v]), mask, vector, itemsize)
                    for v, mask in zip(starts, masks, strict=True)
                ]
                for j in range(t):
                    places = [min(i, mr - 1) * t + j for i in lanes]
                    value = shuffled(builder, loaded[0], loaded[0], [i % wide for i in places])
                    for v, part in enumerate(loaded[1:], 1):
                        picks = [wide + p % wide if p // wide == v else i for i, p in enumerate(places)]
                        value = shuffled(builder, value, part, picks)
                    masked_store(
                        builder, value, builder.gep(place, [builder.mul(apart, I64(j))]), high, itemsize
                    )
        return context.get_dummy_value()

    i = types.int64
    return types.void(dst, i, i, i, src, i, i, i, i, i), codegen
