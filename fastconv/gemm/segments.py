"""Copying the same pieces of every channel: a list of segments, made once for a block of results.

The pieces of a source channel that a block of matrix B or of a stripe consists of are the same for every
channel.  Deciding what they are (where a row begins, which of its pixels lie in the padding) costs more than
copying a dozen pixels, so that is done once, and each channel runs through the finished list:

    dst[d + to + j] = src[s + from + j*stride]  for lo <= j < hi,  0 for the other j < count

or, split by phase of a stride of 2, ``dst[d + to + i*apart + j] = src[s + from + 2*j + i]`` for i = 0, 1 and
lo <= 2*j + i < hi.

Whole vectors are written and the next segment overwrites what was too much, so segments come in the order
of ``to``, and a destination needs ``SLACK`` elements after its end; nothing outside a source row is read.

Where the border repeats the image, the pixels left and right of a row come from elsewhere in it.  They are few, so
they are listed one by one, ``dst[d + to] = src[s + from]``, and copied when all segments are.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.gemm.move import I1, I32, lanes_between, masked_load
from fastconv.gemm.tile import I64, data, element, load, store

SEGMENT = 5  # numbers of a segment: to, from, count, lo, hi


@jit.inner
def add_segment(segments, n, to, source, count, lo, hi):
    """Append a segment to a list of ``n``; return their new number."""
    segments[SEGMENT * n] = to
    segments[SEGMENT * n + 1] = source
    segments[SEGMENT * n + 2] = count
    segments[SEGMENT * n + 3] = lo
    segments[SEGMENT * n + 4] = hi
    return n + 1


def _copy(stride: int, phases: int) -> Any:
    """Make the intrinsic that copies a list of segments by stride 1 or 2, of one or both phases."""

    def pixels(
        builder: Any, at: Any, first: Any, bounds: Any, vector: ir.VectorType, itemsize: int
    ) -> list[Any]:
        """Load ``stride`` vectors side by side, masked where bounds are given."""
        vl, parts = vector.count, []
        for part in range(stride):
            where = builder.gep(at, [I64(part * vl)])
            if bounds is None:
                parts.append(load(builder, where, 0, vector, itemsize))
                continue
            lanes = [(part * vl + e) * phases // stride for e in range(vl)]  # as bounds count
            mask = lanes_between(builder, first, *bounds, lanes)
            if stride > phases:  # the last pixel of a source row may be followed by nothing
                even = ir.Constant(ir.VectorType(I1, vl), [int(e % 2 == 0) for e in range(vl)])
                mask = builder.and_(mask, even)
            parts.append(masked_load(builder, where, mask, vector, itemsize))
        return parts

    @intrinsic
    def copy(typing, dst, d, src, s, segments, n, apart):
        def codegen(context, builder, signature, arguments):
            dst_type, _, src_type, _, list_type, *_ = signature.args
            itemsize = src_type.dtype.bitwidth // 8
            vl = machine.tile(itemsize).vl
            vector = ir.VectorType(element(src_type), vl)
            dst, d, src, s, segments, n, apart = arguments
            to = data(context, builder, dst_type, dst, d)
            source = data(context, builder, src_type, src, s)
            entries = data(context, builder, list_type, segments, I64(0))
            with cgutils.for_range(builder, n, intp=I64) as loop:
                entry = builder.gep(entries, [builder.mul(loop.index, I64(SEGMENT))])
                begin, pixel, count, lo, hi = (
                    builder.load(builder.gep(entry, [I64(i)])) for i in range(SEGMENT)
                )
                row, out = builder.gep(source, [pixel]), builder.gep(to, [begin])
                with cgutils.for_range_slice(builder, I64(0), count, I64(vl), I64) as (v, _):
                    first = builder.mul(v, I64(phases))
                    past = builder.add(first, I64(vl * phases))
                    inside = builder.and_(
                        builder.icmp_signed(">=", first, lo),
                        builder.icmp_signed("<=" if stride == phases else "<", past, hi),
                    )
                    at = builder.gep(row, [builder.mul(v, I64(stride))])
                    with builder.if_else(inside) as (whole, edge):
                        for branch, bounds in ((whole, None), (edge, (lo, hi))):
                            with branch:
                                parts = pixels(builder, at, first, bounds, vector, itemsize)
                                for phase in range(phases):
                                    value = parts[0]
                                    if stride == 2:
                                        picks = [2 * e + phase for e in range(vl)]
                                        picks = ir.Constant(ir.VectorType(I32, vl), picks)
                                        value = builder.shuffle_vector(*parts, picks)
                                    result = builder.gep(out, [builder.mul(apart, I64(phase))])
                                    store(builder, value, builder.gep(result, [v]), 0, itemsize)
            return context.get_dummy_value()

        i = types.int64
        return types.void(dst, i, src, i, segments, i, i), codegen

    return copy


_copy_unit = _copy(1, 1)
_copy_second = _copy(2, 1)
_copy_split = _copy(2, 2)


@jit.inner
def add_edges(pixels, n, to, source, first, count, tables, at, view):
    """Append those of positions first .. first + count of a row that read the border; return their new number.

    ``tables[at:]`` begins with where the pairs (position, pixel of the row) of each view begin and end.
    """
    for e in range(at + tables[at + view], at + tables[at + view + 1], 2):
        j = tables[e] - first
        if 0 <= j < count:
            pixels[2 * n] = to + j
            pixels[2 * n + 1] = source + tables[e + 1]
            n += 1
    return n


@jit.inner
def copy_pixels(dst, d, src, s, pixels, first, last):
    """Copy pixels first .. last of a list from the channel that begins at ``src[s]``."""
    for i in range(2 * first, 2 * last, 2):
        dst[d + pixels[i]] = src[s + pixels[i + 1]]


@jit.inner
def copy_segments(dst, d, src, s, segments, n, stride, apart=0):
    """Copy ``n`` segments of the channel that begins at ``src[s]``; split in phases if they are ``apart``."""
    if stride == 1:
        _copy_unit(dst, d, src, s, segments, n, 0)
    elif stride == 2 and apart:
        _copy_split(dst, d, src, s, segments, n, apart)
    elif stride == 2:
        _copy_second(dst, d, src, s, segments, n, 0)
    else:
        for i in range(0, SEGMENT * n, SEGMENT):
            to, source, lo, hi = d + segments[i], s + segments[i + 1], segments[i + 3], segments[i + 4]
            for j in range(segments[i + 2]):
                dst[to + j] = src[source + j * stride] if lo <= j < hi else 0
