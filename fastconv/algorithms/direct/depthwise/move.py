"""Moving rows: into a copy with their borders, and a result out of scratch."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.algorithms.direct.depthwise.pointer import after, scalar_type
from fastconv.gemm.move import lanes_between, masked_load, masked_store
from fastconv.gemm.tile import I64, load, store


@jit.inner
def clear(dst, d, count):
    """Set ``dst[d : d + count]`` to zero."""
    for j in range(count):
        dst[d + j] = 0


def _moving(add: bool) -> Any:
    @intrinsic
    def row(typing: Any, dst: Any, src: Any, count: Any) -> Any:
        """Set ``dst[j] = src[j]``, or add it, by whole vectors and a last one under a mask.

        A compiler's loop takes the last pixels one by one, up to 31 of a row of 56.
        """

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            to, source, length = arguments
            scalar, itemsize = scalar_type(dst)
            vl = machine.tile(itemsize).vl
            vector = ir.VectorType(scalar, vl)

            def sum_of(value: Any, old: Any) -> Any:
                return builder.fadd(old, value) if add else value

            with cgutils.for_range_slice(builder, I64(0), length, I64(vl), I64) as (v, _):
                out, at = builder.gep(to, [v]), builder.gep(source, [v])
                whole = builder.icmp_signed("<=", builder.add(v, I64(vl)), length)
                with builder.if_else(whole) as (all_lanes, tail):
                    with all_lanes:
                        value = load(builder, at, 0, vector, itemsize)
                        old = load(builder, out, 0, vector, itemsize) if add else None
                        store(builder, sum_of(value, old), out, 0, itemsize)
                    with tail:
                        mask = lanes_between(builder, v, I64(0), length, list(range(vl)))
                        value = masked_load(builder, at, mask, vector, itemsize)
                        old = masked_load(builder, out, mask, vector, itemsize) if add else None
                        masked_store(builder, sum_of(value, old), out, mask, itemsize)
            return context.get_dummy_value()

        return types.void(dst, src, types.int64), codegen

    return row


set_row, add_row = _moving(add=False), _moving(add=True)


@jit.inner
def copy_row(dst, src, pieces, runs, singles):
    """Copy ``runs`` runs of pixels (to, from, count), then single ones (to, from); from -1 is a zero."""
    for i in range(0, 3 * runs, 3):
        set_row(after(dst, pieces[i]), after(src, pieces[i + 1]), pieces[i + 2])
    for i in range(3 * runs, 3 * runs + 2 * singles, 2):
        dst[pieces[i]] = src[pieces[i + 1]] if pieces[i + 1] >= 0 else 0


@jit.inner
def interleave(dst, src, lds, rows, count):
    """Set ``dst[rows*j + i] = src[i*lds + j]`` for indices of dst below ``count``."""
    for i in range(min(rows, count)):
        for j in range((count - i + rows - 1) // rows):
            dst[rows * j + i] = src[i * lds + j]


@jit.inner
def fold(dst, src, count, more):
    """Set ``dst[j] = src[j]``, or add ``more``."""
    if more:
        add_row(dst, src, count)
    else:
        set_row(dst, src, count)
