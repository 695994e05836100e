"""Moving rows between maps and their padded, polyphase copies."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.algorithms.direct.depthwise.pointer import prefetch, scalar_type
from fastconv.gemm.move import I1, I32, lanes_between, masked_load
from fastconv.gemm.tile import I64, load, store


@jit.inner
def clear(dst, d, count):
    """Set ``dst[d : d + count]`` to zero."""
    for j in range(count):
        dst[d + j] = 0


@jit.inner
def copy_row(dst, src, pixels, count):
    """Set ``dst[j] = src[pixels[j]]``, zero where there is no pixel."""
    for j in range(count):
        dst[j] = src[pixels[j]] if pixels[j] >= 0 else 0


def _take(builder, at, stride, masks, vector, itemsize):
    """Load a vector of every ``stride``-th pixel, 1 or 2, those under the masks if there are any."""
    parts = []
    for part in range(stride):
        if masks:
            where = builder.gep(at, [I64(part * vector.count)])
            parts.append(masked_load(builder, where, masks[part], vector, itemsize))
        else:
            parts.append(load(builder, at, part * vector.count, vector, itemsize))
    if stride == 1:
        return parts[0]
    picks = ir.Constant(ir.VectorType(I32, vector.count), [stride * e for e in range(vector.count)])
    return builder.shuffle_vector(*parts, picks)


def _copy(stride: int):
    """Make the intrinsic that copies rows of every ``stride``-th pixel, 1 or 2."""

    @intrinsic
    def copy(typing, dst, ldd, src, lds, rows, columns, lo, hi):
        """Set ``columns`` pixels, whole vectors, of ``rows`` rows: from source columns lo..hi-1, else zero."""

        def codegen(context, builder, signature, arguments):
            scalar, itemsize = scalar_type(signature.args[0])
            vl = machine.tile(itemsize).vl
            vector = ir.VectorType(scalar, vl)
            dst, ldd, src, lds, rows, columns, lo, hi = arguments

            def edge(v):  # a column of vectors, so that one mask serves all its rows
                first = builder.mul(v, I64(stride))
                masks = []
                for part in range(stride):
                    inside = lanes_between(
                        builder, builder.add(first, I64(part * vl)), lo, hi, list(range(vl))
                    )
                    taken = ir.Constant(ir.VectorType(I1, vl), [int(e % stride == 0) for e in range(vl)])
                    masks.append(builder.and_(inside, taken))
                with cgutils.for_range(builder, rows, intp=I64) as row:
                    at = builder.gep(src, [builder.add(builder.mul(row.index, lds), first)])
                    value = _take(builder, at, stride, masks, vector, itemsize)
                    to = builder.gep(dst, [builder.add(builder.mul(row.index, ldd), v)])
                    store(builder, value, to, 0, itemsize)

            # vectors [left, right) lie inside the source, copied row by row; the others are edges
            left = cgutils.alloca_once_value(builder, columns)
            right = cgutils.alloca_once_value(builder, I64(0))
            with cgutils.for_range_slice(builder, I64(0), columns, I64(vl), I64) as (v, _):
                first = builder.mul(v, I64(stride))
                inside = builder.and_(
                    builder.icmp_signed(">=", first, lo),
                    builder.icmp_signed("<=", builder.add(first, I64(stride * vl)), hi),
                )
                with builder.if_else(inside) as (whole, outside):
                    with whole:
                        seen = builder.load(left)
                        smaller = builder.icmp_signed("<", v, seen)
                        builder.store(builder.select(smaller, v, seen), left)
                        builder.store(builder.add(v, I64(vl)), right)
                    with outside:
                        edge(v)
            start, stop = builder.load(left), builder.load(right)
            with cgutils.for_range(builder, rows, intp=I64) as row:
                at = builder.gep(src, [builder.mul(row.index, lds)])
                to = builder.gep(dst, [builder.mul(row.index, ldd)])
                with cgutils.for_range_slice(builder, start, stop, I64(vl), I64) as (v, _):
                    where = builder.gep(at, [builder.mul(v, I64(stride))])
                    ahead = builder.add(builder.mul(rows, lds), I64(0))
                    prefetch(builder, builder.gep(where, [ahead]), write=False)
                    value = _take(builder, where, stride, None, vector, itemsize)
                    store(builder, value, builder.gep(to, [v]), 0, itemsize)
            return context.get_dummy_value()

        n = types.int64
        return types.void(dst, n, src, n, n, n, n, n), codegen

    return copy


_copy_each = _copy(1)
_copy_second = _copy(2)


@jit.inner
def copy_rows(dst, ldd, src, lds, rows, columns, lo, hi, stride):
    """Set ``dst[j]`` to ``src[stride*j]`` where ``lo <= stride*j < hi``, elsewhere to zero.

    For j < columns, a multiple of the vector, of ``rows`` rows.
    """
    if stride == 1:
        _copy_each(dst, ldd, src, lds, rows, columns, lo, hi)
    elif stride == 2:
        _copy_second(dst, ldd, src, lds, rows, columns, lo, hi)
    else:
        for row in range(rows):
            for j in range(columns):
                dst[row * ldd + j] = src[row * lds + stride * j] if lo <= stride * j < hi else 0


@jit.inner
def interleave(dst, src, lds, rows, count):
    """Set ``dst[rows*j + i] = src[i*lds + j]`` for indices of dst below ``count``."""
    for i in range(min(rows, count)):
        for j in range((count - i + rows - 1) // rows):
            dst[rows * j + i] = src[i * lds + j]
