"""Writing rows of results whose phases were computed apart: woven pixel by pixel, to the places they belong to."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.gemm.move import lanes_between, masked_store
from fastconv.gemm.tile import I64, data, element, load, shuffled, store


def _weave(phases: int) -> Any:
    """Make the intrinsic for 1 or 2 phases: vectors outside, rows inside, so that a mask serves all rows."""

    @intrinsic
    def write(typing, dst, d, ldd, src, s, lds, apart, rows, count):
        def codegen(context, builder, signature, arguments):
            dst_type, _, _, src_type, *_ = signature.args
            itemsize = src_type.dtype.bitwidth // 8
            vl = machine.tile(itemsize).vl
            vector = ir.VectorType(element(src_type), vl)
            dst, d, ldd, src, s, lds, apart, rows, count = arguments
            to = data(context, builder, dst_type, dst, d)
            source = data(context, builder, src_type, src, s)
            with cgutils.for_range_slice(builder, I64(0), count, I64(phases * vl), I64) as (v, _):
                at = builder.gep(source, [builder.udiv(v, I64(phases))])
                out = builder.gep(to, [v])
                past = builder.add(v, I64(phases * vl))
                with builder.if_else(builder.icmp_signed("<=", past, count)) as (whole, edge):
                    for branch, masked in ((whole, False), (edge, True)):
                        with branch:
                            masks = [
                                lanes_between(builder, v, I64(0), count, list(range(i * vl, i * vl + vl)))
                                for i in range(phases if masked else 0)
                            ]
                            with cgutils.for_range(builder, rows, intp=I64) as loop:
                                row = builder.gep(at, [builder.mul(loop.index, lds)])
                                place = builder.gep(out, [builder.mul(loop.index, ldd)])
                                values = [load(builder, row, 0, vector, itemsize)]
                                if phases == 2:
                                    values.append(
                                        load(builder, builder.gep(row, [apart]), 0, vector, itemsize)
                                    )
                                    picks = [e // 2 + vl * (e % 2) for e in range(2 * vl)]
                                    values = [
                                        shuffled(builder, *values, half) for half in (picks[:vl], picks[vl:])
                                    ]
                                for i, value in enumerate(values):
                                    if masked:
                                        part = builder.gep(place, [I64(i * vl)])
                                        masked_store(builder, value, part, masks[i], itemsize)
                                    else:
                                        store(builder, value, place, i * vl, itemsize)
            return context.get_dummy_value()

        i = types.int64
        return types.void(dst, i, i, src, i, i, i, i, i), codegen

    return write


_one = _weave(1)
_two = _weave(2)


@jit.inner
def weave_rows(dst, d, ldd, src, s, lds, apart, phases, rows, count):
    """Set ``dst[d + m*ldd + j] = src[s + m*lds + j % phases * apart + j // phases]`` for m < rows, j < count.

    Nothing else of dst changes.  Whole vectors of the source are read.
    """
    if phases == 1:
        _one(dst, d, ldd, src, s, lds, apart, rows, count)
    elif phases == 2:
        _two(dst, d, ldd, src, s, lds, apart, rows, count)
    else:
        for m in range(rows):
            for j in range(count):
                dst[d + m * ldd + j] = src[s + m * lds + j % phases * apart + j // phases]
