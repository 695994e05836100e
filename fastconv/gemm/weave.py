"""Writing rows of results whose phases were computed apart: woven pixel by pixel, to the places they belong to."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.activations import finish, is_plain
from fastconv.gemm.move import lanes, lanes_between, masked_store, store_past, to_boundary
from fastconv.gemm.tile import I64, data, element, load, shuffled, store
from fastconv.gemm.transposition import transpose


def _weave(phases: int) -> Any:
    """Make the intrinsic for 1 or 2 phases: vectors outside, rows inside, so that a mask serves all rows.

    Vectors begin at ``first``, which may lie before the row, and are whole lines if they are to go past the caches.
    """

    @intrinsic
    def write(typing, dst, d, ldd, src, s, lds, apart, rows, count, first, past_caches):
        def codegen(context, builder, signature, arguments):
            dst_type, _, _, src_type, *_ = signature.args
            itemsize = src_type.dtype.bitwidth // 8
            vl = machine.tile(itemsize).vl
            vector = ir.VectorType(element(src_type), vl)
            dst, d, ldd, src, s, lds, apart, rows, count, first, past_caches = arguments
            to = data(context, builder, dst_type, dst, d)
            source = data(context, builder, src_type, src, s)

            def write_rows(v, masks, write):
                """Write vectors of all rows from pixel v on."""
                at, out = builder.gep(source, [builder.sdiv(v, I64(phases))]), builder.gep(to, [v])
                with cgutils.for_range(builder, rows, intp=I64) as loop:
                    row = builder.gep(at, [builder.mul(loop.index, lds)])
                    place = builder.gep(out, [builder.mul(loop.index, ldd)])
                    values = [load(builder, row, 0, vector, itemsize)]
                    if phases == 2:
                        values.append(load(builder, builder.gep(row, [apart]), 0, vector, itemsize))
                        picks = [e // 2 + vl * (e % 2) for e in range(2 * vl)]
                        values = [shuffled(builder, *values, half) for half in (picks[:vl], picks[vl:])]
                    for i, value in enumerate(values):
                        write(builder, value, builder.gep(place, [I64(i * vl)]), *masks[i : i + 1], itemsize)

            def near(builder, value, place, itemsize):
                store(builder, value, place, 0, itemsize)

            with cgutils.for_range_slice(builder, first, count, I64(phases * vl), I64) as (v, _):
                inside = builder.icmp_signed("<=", builder.add(v, I64(phases * vl)), count)
                inside = builder.and_(inside, builder.icmp_signed(">=", v, I64(0)))
                with builder.if_else(inside) as (whole, edge):
                    with whole, builder.if_else(past_caches) as (memory, cache):
                        with memory:
                            write_rows(v, [], store_past)
                        with cache:
                            write_rows(v, [], near)
                    with edge:
                        numbers = [list(range(i * vl, i * vl + vl)) for i in range(phases)]
                        masks = [lanes_between(builder, v, I64(0), count, some) for some in numbers]
                        write_rows(v, masks, masked_store)
            return context.get_dummy_value()

        i = types.int64
        return types.void(dst, i, i, src, i, i, i, i, i, i, types.boolean), codegen

    return write


_one = _weave(1)
_two = _weave(2)


@jit.inner
def weave_rows(dst, d, ldd, src, s, lds, apart, phases, rows, count, past_caches):
    """Set ``dst[d + m*ldd + j] = src[s + m*lds + j % phases * apart + j // phases]`` for m < rows, j < count.

    Nothing else of dst changes.  Whole vectors of the source are read.  It goes ``past_caches``, if that is asked for, where
    rows are alike: in lines of dst, so that what is before ``src[s]`` may be read, too.
    """
    first = 0
    if past_caches:
        first = to_boundary(dst, d)
        past_caches = phases <= 2 and first % phases == 0 and ldd % lanes(dst) == 0
        first = first - phases * lanes(dst) if past_caches and first > 0 else 0
    if phases == 1:
        _one(dst, d, ldd, src, s, lds, apart, rows, count, first, past_caches)
    elif phases == 2:
        _two(dst, d, ldd, src, s, lds, apart, rows, count, first, past_caches)
    else:
        for m in range(rows):
            for phase in range(min(phases, count)):
                for j in range((count - 1 - phase) // phases + 1):
                    dst[d + m * ldd + phase + j * phases] = src[s + m * lds + phase * apart + j]


@jit.inner
def weave_pixels(dst, d, pixel, src, s, lds, apart, phases, channels, count):
    """Set ``dst[d + j*pixel + m] = src[s + m*lds + j % phases * apart + j // phases]`` for m < channels, j < count."""
    for phase in range(min(phases, count)):
        wide = (count - phase + phases - 1) // phases
        transpose(dst, d + phase * pixel, phases * pixel, src, s + phase * apart, lds, channels, wide)


@jit.inner
def write_results(out, to, geo, step, c, at, channels, wide, there, activation, residual):
    """Weave ``step`` phases of rows of C, to their places unless they are ``there``, and finish them.

    What the tile did not do: a residual, whose elements stand in the same order, and activations.
    """
    plain, lds = is_plain(activation, residual), geo.phases * geo.ldc
    runs, length, apart = channels, wide, geo.result_channel
    if geo.result_pixel > 1:
        runs, length, apart = wide if channels > 0 else 0, channels, geo.result_pixel
        weave_pixels(out, to, apart, c, at, lds, geo.ldc, step, channels, wide)
    elif not there:
        past = plain and geo.past_caches > 0
        weave_rows(out, to, apart, c, at, lds, geo.ldc, step, channels, wide, past)
    if not plain:
        for _ in range(runs):
            finish(out, to, length, residual[:0], 0, activation, residual, to)
            to += apart
