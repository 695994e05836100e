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
from fastconv.gemm.move import I1, lanes_between, masked_gather, masked_load, masked_store
from fastconv.gemm.tile import I64, data, element, load, shuffled, store

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


def _pixels(
    builder: Any, at: Any, first: Any, bounds: Any, vector: ir.VectorType, itemsize: int, stride: int | None,
    phases: int, apart: Any,
) -> list[Any]:  # fmt: skip
    """Load a vector of each phase, of pixels between bounds if those are given; strides other than 1 and 2 are ``apart``."""
    vl, parts = vector.count, []
    if stride is None:
        mask = ir.Constant(ir.VectorType(I1, vl), [1] * vl)
        if bounds is not None:
            mask = lanes_between(builder, first, *bounds, list(range(vl)))
        return [masked_gather(builder, at, apart, mask, vector, itemsize)]
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
    if stride == 1:
        return parts
    return [shuffled(builder, *parts, [2 * e + phase for e in range(vl)]) for phase in range(phases)]


def _copy(stride: int | None, phases: int) -> Any:
    """Make the intrinsic that copies a list of segments by stride 1 or 2, of one or both phases, or by any stride."""

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
                        builder.icmp_signed("<=" if stride in (phases, None) else "<", past, hi),
                    )
                    at = builder.gep(row, [builder.mul(v, I64(stride) if stride else apart)])
                    with builder.if_else(inside) as (whole, edge):
                        for branch, bounds in ((whole, None), (edge, (lo, hi))):
                            with branch:
                                values = _pixels(
                                    builder, at, first, bounds, vector, itemsize, stride, phases, apart
                                )
                                for phase, value in enumerate(values):
                                    result = builder.gep(out, [builder.mul(apart, I64(phase))])
                                    store(builder, value, builder.gep(result, [v]), 0, itemsize)
            return context.get_dummy_value()

        i = types.int64
        return types.void(dst, i, src, i, segments, i, i), codegen

    return copy


_copy_unit = _copy(1, 1)
_copy_second = _copy(2, 1)
_copy_split = _copy(2, 2)
_copy_any = _copy(None, 1)


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


def _each_pixel(operation: str) -> Any:
    """Make the intrinsic that copies a list of pixels, or adds them to what is there, or subtracts them."""

    def pixels(typing, dst, d, src, s, pairs, first, last):
        def codegen(context, builder, signature, arguments):
            dst_type, _, src_type, _, list_type, *_ = signature.args
            dst, d, src, s, pairs, first, last = arguments
            to = data(context, builder, dst_type, dst, d)
            source = data(context, builder, src_type, src, s)
            with cgutils.for_range_slice(builder, first, last, I64(1), I64) as (i, _):
                pair = data(context, builder, list_type, pairs, builder.shl(i, I64(1)))
                out = builder.gep(to, [builder.load(pair)])
                value = builder.load(builder.gep(source, [builder.load(builder.gep(pair, [I64(1)]))]))
                if operation:
                    value = getattr(builder, operation)(builder.load(out), value)
                builder.store(value, out)
            return context.get_dummy_value()

        i = types.int64
        return types.void(dst, i, src, i, pairs, i, i), codegen

    return intrinsic(pixels)


# ``dst[d + pairs[2*i]]`` becomes, or receives, or loses, ``src[s + pairs[2*i + 1]]`` for first <= i < last
copy_pixels, add_pixels, subtract_pixels = map(_each_pixel, ("", "fadd", "fsub"))


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
        _copy_any(dst, d, src, s, segments, n, stride)


def _copy_all(stride: int | None, phases: int) -> Any:
    """Make the intrinsic that copies a list of segments of many channels, as `_copy` does those of one."""

    @intrinsic
    def copy(typing, dst, d, dst_step, src, s, src_step, channels, segments, n, apart):
        def codegen(context, builder, signature, arguments):
            dst_type, _, _, src_type, _, _, _, list_type, *_ = signature.args
            itemsize = src_type.dtype.bitwidth // 8
            vl, nr = machine.tile(itemsize).vl, machine.tile(itemsize).nr
            vector = ir.VectorType(element(src_type), vl)
            dst, d, dst_step, src, s, src_step, channels, segments, n, apart = arguments
            to = data(context, builder, dst_type, dst, d)
            source = data(context, builder, src_type, src, s)
            entries = data(context, builder, list_type, segments, I64(0))

            def copy_vectors(out, row, v, bounds, vectors):
                """Copy vectors of every channel from position v on; of the pixels between bounds, if there are any."""
                mask, first = None, builder.mul(v, I64(phases))
                if bounds:
                    mask = lanes_between(builder, v, I64(0), bounds[2], list(range(vl)))
                with cgutils.for_range(builder, channels, intp=I64) as loop:
                    at = builder.gep(row, [builder.mul(loop.index, src_step)])
                    place = builder.gep(out, [builder.mul(loop.index, dst_step)])
                    for i in range(vectors):
                        far = I64(i * vl * stride) if stride else builder.mul(apart, I64(i * vl))
                        values = _pixels(
                            builder, builder.gep(at, [far]), first, bounds and bounds[:2], vector, itemsize, stride,
                            phases, apart,
                        )  # fmt: skip
                        for phase, value in enumerate(values):
                            result = builder.gep(place, [builder.mul(apart, I64(phase))])
                            if bounds:
                                masked_store(builder, value, result, mask, itemsize)
                            else:
                                store(builder, value, result, i * vl, itemsize)

            with cgutils.for_range(builder, n, intp=I64) as loop:
                entry = builder.gep(entries, [builder.mul(loop.index, I64(SEGMENT))])
                begin, pixel, count, lo, hi = (
                    builder.load(builder.gep(entry, [I64(i)])) for i in range(SEGMENT)
                )
                row, out = builder.gep(source, [pixel]), builder.gep(to, [begin])

                def inside(v, vectors):
                    """Tell whether so many vectors from position v on are whole, and pixels all that is read."""
                    past = builder.add(v, I64(vectors * vl))
                    read = builder.icmp_signed(
                        "<=" if stride in (phases, None) else "<", builder.mul(past, I64(phases)), hi
                    )
                    read = builder.and_(read, builder.icmp_signed(">=", builder.mul(v, I64(phases)), lo))
                    return builder.and_(read, builder.icmp_signed("<=", past, count))

                wide = builder.and_(inside(I64(0), nr), builder.icmp_signed("==", count, I64(nr * vl)))
                with builder.if_else(wide) as (whole, pieces):
                    with whole:
                        copy_vectors(out, row, I64(0), None, nr)
                    with pieces, cgutils.for_range_slice(builder, I64(0), count, I64(vl), I64) as (v, _):
                        place = builder.gep(out, [v])
                        at = builder.gep(row, [builder.mul(v, I64(stride) if stride else apart)])
                        with builder.if_else(inside(v, 1)) as (all_lanes, edge):
                            with all_lanes:
                                copy_vectors(place, at, v, None, 1)
                            with edge:
                                copy_vectors(place, at, v, (lo, hi, count), 1)
            return context.get_dummy_value()

        i = types.int64
        return types.void(dst, i, i, src, i, i, i, segments, i, i), codegen

    return copy


_copy_all_unit = _copy_all(1, 1)
_copy_all_second = _copy_all(2, 1)
_copy_all_split = _copy_all(2, 2)
_copy_all_any = _copy_all(None, 1)


@jit.inner
def copy_channels(dst, d, dst_step, src, s, src_step, channels, segments, n, stride, apart=0):
    """Copy ``n`` segments of channels that are ``src_step`` apart to places ``dst_step`` apart, nothing beyond.

    They are split in phases if those are ``apart``.  Channel by channel only within a segment: what it is, and its
    masks, are looked at once for all of them.
    """
    if stride == 1:
        _copy_all_unit(dst, d, dst_step, src, s, src_step, channels, segments, n, 0)
    elif stride == 2 and apart:
        _copy_all_split(dst, d, dst_step, src, s, src_step, channels, segments, n, apart)
    elif stride == 2:
        _copy_all_second(dst, d, dst_step, src, s, src_step, channels, segments, n, 0)
    else:
        _copy_all_any(dst, d, dst_step, src, s, src_step, channels, segments, n, stride)
