"""The depthwise micro-kernel: rows of outputs kept in registers, each vector of input used by many taps.

    out[j, q] (+)= sum over t < T, s < S of  weight[t*row_step + s*column_step] * source[j + t, column[s] + q]

for J rows j and one vector of q.  For each s the J + T - 1 vectors of source rows are loaded once and
each is multiplied into every output row that it reaches: J*T FMAs on J + T - 1 loads and T broadcasts
(56 on 21 at 8 x 7).

    ========= ============================================================================
    J         1..8: eight independent sums cover the latency of the FMA units
    T         1..7 (1..4 with 16 registers): J sums, T weights and a vector of source fit
    S         any, a loop at run time; ``column`` holds the offset of each column of taps
    ========= ============================================================================
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.algorithms.direct.depthwise.pointer import out_of_line, prefetch, scalar_type
from fastconv.gemm.move import lanes_between, masked_load, masked_store
from fastconv.gemm.tile import I64, fma, load, splat, store

ROWS = 8  # J at most
NARROW = 7  # rows from which maps of at most half a vector, 7 x 7, have bodies of half a vector
AHEAD = 4  # vectors: lines of output are fetched while the sums before them are computed


def most_taps() -> int:
    """Return the largest T."""
    return 7 if machine.simd().registers >= 32 else 4


def _emit(builder: Any, p: Any, shape: tuple[int, int], vector: ir.VectorType, itemsize: int) -> None:
    """Emit the sums of one (J, T): load or clear, loop over s, store."""
    rows, taps = shape
    outs = [builder.gep(p.out, [builder.mul(p.ldo, I64(j))]) for j in range(rows)]
    name = f"taps_{rows}x{taps}"
    fresh, again, loop, after = (
        builder.append_basic_block(f"{name}_{b}") for b in ("new", "old", "s", "end")
    )
    for out in outs:
        prefetch(builder, builder.gep(out, [I64(AHEAD * vector.count)]), write=True)
    builder.cbranch(p.accumulate, again, fresh)
    builder.position_at_end(again)
    old = [masked_load(builder, out, p.mask, vector, itemsize) for out in outs]
    builder.branch(loop)
    builder.position_at_end(fresh)
    zero = ir.Constant(vector, [0.0] * vector.count)
    builder.branch(loop)

    builder.position_at_end(loop)
    s = builder.phi(I64)
    sums = [builder.phi(vector) for _ in range(rows)]
    s.add_incoming(I64(0), fresh)
    s.add_incoming(I64(0), again)
    for j, phi in enumerate(sums):
        phi.add_incoming(zero, fresh)
        phi.add_incoming(old[j], again)
    at = builder.gep(p.source, [builder.load(builder.gep(p.columns, [s]))])
    weight = builder.gep(p.weight, [builder.mul(s, p.column_step)])
    rows_of_taps = [builder.gep(weight, [builder.mul(p.row_step, I64(t))]) for t in range(taps)]
    scalars = [splat(builder, builder.load(row), vector) for row in rows_of_taps]
    new: list[Any] = list(sums)
    for i in range(rows + taps - 1):
        row = load(builder, builder.gep(at, [builder.mul(p.lds, I64(i))]), 0, vector, itemsize)
        for j in range(max(0, i - taps + 1), min(rows, i + 1)):
            new[j] = fma(builder, scalars[i - j], row, new[j])
    following = builder.add(s, I64(1))
    s.add_incoming(following, loop)
    for phi, value in zip(sums, new, strict=True):
        phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, p.count), loop, after)

    builder.position_at_end(after)
    with builder.if_else(builder.icmp_signed("<", p.lanes, I64(vector.count))) as (tail, whole):
        with tail:
            for value, out in zip(new, outs, strict=True):
                masked_store(builder, value, out, p.mask, itemsize)
        with whole:
            for value, out in zip(new, outs, strict=True):
                store(builder, value, out, 0, itemsize)


@intrinsic
def taps(
    typing, out, o, ldo, source, i, lds, columns, count, weight, w, row_step, column_step,
    rows, tall, lanes, accumulate,
):  # fmt: skip
    """Sum ``tall`` x ``count`` taps into ``lanes`` columns of ``rows`` output rows, ``ldo`` apart."""

    def codegen(context, builder, signature, arguments):
        scalar, itemsize = scalar_type(signature.args[0])

        def emit(
            builder, out, o, ldo, source, i, lds, columns, count, weight, w, row_step, column_step,
            rows, tall, lanes, accumulate,
        ):  # fmt: skip
            vector = ir.VectorType(scalar, machine.tile(itemsize).vl)
            p = SimpleNamespace()
            p.out = builder.gep(out, [o])
            p.source = builder.gep(source, [i])
            p.columns, p.row_step, p.column_step = columns, row_step, column_step
            p.weight = builder.gep(weight, [w])
            p.ldo, p.lds, p.count, p.lanes, p.accumulate = ldo, lds, count, lanes, accumulate
            most, half = most_taps(), vector.count // 2
            done = builder.append_basic_block("taps_done")
            narrow = builder.and_(
                builder.icmp_signed("<=", lanes, I64(half)), builder.icmp_signed(">=", rows, I64(NARROW))
            )
            which = builder.add(builder.mul(rows, I64(most + 1)), tall)
            whole, narrowed = (builder.append_basic_block(f"taps_{name}") for name in ("whole", "narrow"))
            builder.cbranch(narrow, narrowed, whole)
            for entry, vl, fewest in ((whole, vector.count, 1), (narrowed, half, NARROW)):
                builder.position_at_end(entry)
                p.mask = lanes_between(builder, I64(0), I64(0), lanes, list(range(vl)))
                switch = builder.switch(which, done)
                for j in range(fewest, ROWS + 1):
                    for t in range(1, most + 1):
                        block = builder.append_basic_block(f"case_{j}x{t}")
                        switch.add_case(I64(j * (most + 1) + t), block)
                        builder.position_at_end(block)
                        _emit(builder, p, (j, t), ir.VectorType(scalar, vl), itemsize)
                        builder.branch(done)
            builder.position_at_end(done)

        out_of_line(builder, f"fastconv_depthwise_taps_{itemsize}", arguments, emit)
        return context.get_dummy_value()

    n = types.int64
    arguments = (out, n, n, source, n, n, columns, n, weight, n, n, n, n, n, n, types.boolean)
    return types.void(*arguments), codegen
