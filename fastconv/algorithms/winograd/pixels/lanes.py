"""The transforms of tiles whose lanes are channels, or filters: ``left @ x @ right^T`` for vectors of independent x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.algorithms.straight import Vectors
from fastconv.algorithms.winograd.transforms import LANES, ROWS, Matrix, apply, matrices
from fastconv.gemm.tile import I64, data, element, load, prefetch, shuffled, store

Place = Callable[[int, int], Any]  # (row, column) of a tile -> elements from where it begins


@intrinsic
def transform_pixels(typing, v, v0, step, x, x0, row, column, count, variant):
    """Set ``v[v0 + position*step + i] = (B d B^T)[position]``, ``d[r, s] = x[x0 + r*row + s*column + i]``.

    i runs over ``count`` channels, rounded up to whole vectors, here and below.
    """
    mh, rh, mw, rw = (t.count for t in variant.types)
    return _from_image(v, x, variant, matrices(mh, rh)[2], matrices(mw, rw)[2])


@intrinsic
def transform_gradients(typing, v, v0, step, x, x0, row, column, count, variant):
    """Do the same with G of F(r, m), which takes m x m pixels of grad_output for kernels."""
    mh, rh, mw, rw = (t.count for t in variant.types)
    return _from_image(v, x, variant, matrices(rh, mh)[1], matrices(rw, mw)[1])


def _from_image(result: Any, source: Any, variant: Any, left: Matrix, right: Matrix) -> Any:
    def codegen(context, builder, signature, arguments):
        v, v0, step, x, x0, row, column, count, _ = arguments
        to, source = (data(context, builder, signature.args[i], *a) for i, a in ((0, (v, v0)), (3, (x, x0))))
        _emit(
            builder, signature.args[0], left, right, count, to, _table(builder, step, len(right)),
            source, _image(builder, row, column),
        )  # fmt: skip
        return context.get_dummy_value()

    i = types.int64
    return types.void(result, i, i, source, i, i, i, i, variant), codegen


@intrinsic
def transform_filters(typing, u, u0, u_step, t, t0, t_step, count, variant):
    """Set ``u[u0 + position*u_step + i] = (G g G^T)[position]``, ``g[tap] = t[t0 + tap*t_step + i]``."""
    mh, rh, mw, rw = (t.count for t in variant.types)
    return _from_table(u, t, variant, matrices(mh, rh)[1], matrices(mw, rw)[1], ahead=True)


@intrinsic
def transform_pair(typing, u, u0, u_step, t, t0, rows, variant):
    """Set ``u[u0 + position*u_step + i*rows + m] = (G g G^T)[position]``, ``g[tap] = t[t0 + tap*LANES + i*ROWS + m]``.

    For filters m of two channels i; ROWS of each are stored, the second channel's behind the first's.
    """
    mh, rh, mw, rw = (t.count for t in variant.types)
    left, right = matrices(mh, rh)[1], matrices(mw, rw)[1]

    def codegen(context, builder, signature, arguments):
        u, u0, u_step, t, t0, rows, _ = arguments
        to, source = (data(context, builder, signature.args[i], *a) for i, a in ((0, (u, u0)), (3, (t, t0))))
        _emit(
            builder, signature.args[0], left, right, I64(LANES), to, _table(builder, u_step, len(right)),
            source, _table(builder, I64(LANES), len(right[0])), ahead=True, rows=rows,
        )  # fmt: skip
        return context.get_dummy_value()

    i = types.int64
    return types.void(u, i, i, t, i, i, variant), codegen


@intrinsic
def transform_sums(typing, t, t0, t_step, s, s0, s_step, count, variant):
    """Set ``t[t0 + tap*t_step + i] = (A p A^T)[tap]`` of F(r, m), ``p[position] = s[s0 + position*s_step + i]``."""
    mh, rh, mw, rw = (t.count for t in variant.types)
    return _from_table(t, s, variant, matrices(rh, mh)[0], matrices(rw, mw)[0])


def _from_table(
    result: Any, source: Any, variant: Any, left: Matrix, right: Matrix, ahead: bool = False
) -> Any:
    def codegen(context, builder, signature, arguments):
        u, u0, u_step, t, t0, t_step, count, _ = arguments
        to, source = (data(context, builder, signature.args[i], *a) for i, a in ((0, (u, u0)), (3, (t, t0))))
        _emit(
            builder, signature.args[0], left, right, count, to, _table(builder, u_step, len(right)),
            source, _table(builder, t_step, len(right[0])), ahead=ahead,
        )  # fmt: skip
        return context.get_dummy_value()

    i = types.int64
    return types.void(result, i, i, source, i, i, i, variant), codegen


@intrinsic
def transform_results(typing, y, y0, row, column, m, m0, step, start, s0, count, variant):
    """Set ``y[y0 + r*row + s*column + i] = start[s0 + i] + (A p A^T)[r, s]``, ``p[position] = m[m0 + position*step + i]``."""
    mh, rh, mw, rw = (t.count for t in variant.types)
    left, right = matrices(mh, rh)[0], matrices(mw, rw)[0]

    def codegen(context, builder, signature, arguments):
        y, y0, row, column, m, m0, step, start, s0, count, _ = arguments
        places = ((0, (y, y0)), (4, (m, m0)), (7, (start, s0)))
        to, source, first = (data(context, builder, signature.args[i], *a) for i, a in places)
        _emit(
            builder, signature.args[0], left, right, count, to, _image(builder, row, column),
            source, _table(builder, step, len(right[0])), first,
        )  # fmt: skip
        return context.get_dummy_value()

    i = types.int64
    return types.void(y, i, i, i, m, i, i, start, i, i, variant), codegen


def _table(builder: Any, step: Any, wide: int) -> Place:
    """Place the positions of a tile ``step`` apart, row after row."""
    return lambda r, s: builder.mul(step, I64(r * wide + s))


def _image(builder: Any, row: Any, column: Any) -> Place:
    """Place the pixels of a tile where an image has them."""
    return lambda r, s: builder.add(builder.mul(row, I64(r)), builder.mul(column, I64(s)))


def _emit(
    builder: Any, array: Any, left: Matrix, right: Matrix, count: Any, to: Any, result_at: Place,
    source: Any, source_at: Place, start: Any = None, ahead: bool = False, rows: Any = None,
) -> None:  # fmt: skip
    """Emit the loop over vectors of channels.

    Results that another core has read, or that come from afar, are asked for a vector ``ahead``: stores wait for their
    lines one after the other.  Of ROWS filters of each channel, ``rows`` are kept.
    """
    itemsize = array.dtype.bitwidth // 8
    vector = ir.VectorType(element(array), machine.tile(itemsize).vl)
    high, wide = len(left[0]), len(right[0])
    sources = [[source_at(r, s) for r in range(high)] for s in range(wide)]
    results = [[result_at(r, s) for s in range(len(right))] for r in range(len(left))]
    with cgutils.for_range_slice(builder, I64(0), count, I64(vector.count), I64) as (i, _):
        at = builder.gep(source, [i])
        if rows is None:
            place = builder.gep(to, [i])
        else:
            channel = builder.mul(builder.udiv(i, I64(ROWS)), rows)
            place = builder.gep(to, [builder.add(channel, builder.urem(i, I64(ROWS)))])
        columns = [
            apply(
                Vectors(builder, vector),
                left,
                [load(builder, builder.gep(at, [o]), 0, vector, itemsize) for o in offsets],
            )
            for offsets in sources
        ]
        added = load(builder, builder.gep(start, [i]), 0, vector, itemsize) if start else None
        for r, offsets in enumerate(results):
            values = apply(Vectors(builder, vector), right, [c[r] for c in columns])
            if added:
                values = [builder.fadd(value, added) for value in values]
            targets = [builder.gep(place, [offset]) for offset in offsets]
            if ahead:
                for target in targets:
                    prefetch(builder, builder.gep(target, [I64(vector.count)]), write=True)
            if rows is None or vector.count <= ROWS:
                for value, target in zip(values, targets, strict=True):
                    store(builder, value, target, 0, itemsize)
            else:
                _store_channels(builder, values, targets, rows, itemsize)


def _store_channels(builder: Any, values: list[Any], targets: list[Any], rows: Any, itemsize: int) -> None:
    """Store vectors of two channels' filters, each behind the other's ``rows``."""
    halves = [list(range(first, first + ROWS)) for first in (0, ROWS)]
    with builder.if_else(builder.icmp_signed("==", rows, I64(ROWS)), likely=True) as (whole, apart):
        with whole:
            for value, target in zip(values, targets, strict=True):
                store(builder, value, target, 0, itemsize)
        with apart:
            for value, target in zip(values, targets, strict=True):
                for half, place in zip(halves, (target, builder.gep(target, [rows])), strict=True):
                    store(builder, shuffled(builder, value, value, half), place, 0, itemsize)
