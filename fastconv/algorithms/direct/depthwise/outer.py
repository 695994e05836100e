"""The micro-kernel of the weight gradient: a block of taps as accumulators, pixels as the reduction.

    sums[t, s] += over rows i and columns q of  gy[i - t, q] * x[i, column[s] + q]      t < T, s < S

Every lane sums its own pixels.  A vector of x is multiplied by T vectors of gy and a vector of gy by S of x:
T*S FMAs on T + S loads (25 on 10).  Columns beyond the last are masked out on both sides, so that no
pixel is multiplied that the definition does not multiply, were it infinite.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.algorithms.direct.depthwise.pointer import out_of_line, scalar_type
from fastconv.gemm.move import lanes_between, masked_load
from fastconv.gemm.tile import I64, fma, load, store


def most() -> tuple[int, int]:
    """Return the largest T and S: T*S sums, T vectors of gy and one of x fit the registers."""
    return (5, 5) if machine.simd().registers >= 32 else (3, 4)


def _emit(builder: Any, p: Any, shape: tuple[int, int], vector: ir.VectorType, itemsize: int) -> None:
    """Emit one (T, S): sums from memory, loops over rows and vectors, sums to memory."""
    taps, columns = shape
    vl = vector.count
    places = [(t, s) for t in range(taps) for s in range(columns)]
    sums = {place: cgutils.alloca_once(builder, vector) for place in places}
    for t, s in places:
        builder.store(load(builder, p.sums, (t * columns + s) * vl, vector, itemsize), sums[t, s])
    offsets = [builder.load(builder.gep(p.columns, [I64(s)])) for s in range(columns)]

    def step(gy: list[Any], x: list[Any], v: Any, mask: Any) -> None:
        def fetch(row: Any) -> Any:
            at = builder.gep(row, [v])
            return load(builder, at, 0, vector, itemsize)

        def fetch_edge(row: Any) -> Any:
            return masked_load(builder, builder.gep(row, [v]), mask, vector, itemsize)

        right = [fetch(row) if mask is None else fetch_edge(row) for row in gy]
        for s, row in enumerate(x):
            pixels = fetch(row)
            if mask is not None:
                pixels = builder.select(mask, pixels, ir.Constant(vector, [0.0] * vl))
            for t in range(taps):
                builder.store(fma(builder, right[t], pixels, builder.load(sums[t, s])), sums[t, s])

    with cgutils.for_range(builder, p.rows, intp=I64) as loop:
        gy_row = builder.gep(p.gy, [builder.mul(loop.index, p.ldg)])
        x_row = builder.gep(p.x, [builder.mul(loop.index, p.ldx)])
        gy = [builder.gep(gy_row, [builder.mul(p.ldg, I64(-t))]) for t in range(taps)]
        x = [builder.gep(x_row, [offset]) for offset in offsets]
        with cgutils.for_range_slice(builder, I64(0), p.whole, I64(vl), I64) as (v, _):
            step(gy, x, v, None)
        with builder.if_then(builder.icmp_signed("<", p.whole, p.width)):
            step(gy, x, p.whole, p.mask)
    for t, s in places:
        store(builder, builder.load(sums[t, s]), p.sums, (t * columns + s) * vl, itemsize)


@intrinsic
def outer(typing, sums, gy, ldg, x, ldx, columns, rows, width, taps, count):
    """Add ``rows`` rows of ``width`` pixels to the sums of ``taps`` x ``count`` taps.

    ``gy`` points at the row of tap 0; tap t reads t rows before.
    """

    def codegen(context, builder, signature, arguments):
        scalar, itemsize = scalar_type(signature.args[0])

        def emit(builder, *operands):
            vector = ir.VectorType(scalar, machine.tile(itemsize).vl)
            p = SimpleNamespace()
            p.sums, p.gy, p.ldg, p.x, p.ldx, p.columns, p.rows, p.width, taps, count = operands
            p.whole = builder.and_(p.width, I64(-vector.count))
            p.mask = lanes_between(builder, p.whole, I64(0), p.width, list(range(vector.count)))
            done = builder.append_basic_block("outer_done")
            tall, wide = most()
            switch = builder.switch(builder.add(builder.mul(taps, I64(wide + 1)), count), done)
            for t in range(1, tall + 1):
                for s in range(1, wide + 1):
                    block = builder.append_basic_block(f"outer_{t}x{s}")
                    switch.add_case(I64(t * (wide + 1) + s), block)
                    builder.position_at_end(block)
                    _emit(builder, p, (t, s), vector, itemsize)
                    builder.branch(done)
            builder.position_at_end(done)

        out_of_line(builder, f"fastconv_depthwise_outer_{itemsize}", arguments, emit)
        return context.get_dummy_value()

    n = types.int64
    return types.void(sums, gy, n, x, n, columns, n, n, n, n), codegen


@intrinsic
def total(typing, sums):
    """Return the sum of a vector's lanes, by halves."""

    def codegen(context, builder, signature, arguments):
        scalar, itemsize = scalar_type(signature.args[0])
        value = load(builder, arguments[0], 0, ir.VectorType(scalar, machine.tile(itemsize).vl), itemsize)
        while value.type.count > 1:
            half = value.type.count // 2
            numbers = ir.VectorType(ir.IntType(32), half)
            low, high = (ir.Constant(numbers, list(range(i, i + half))) for i in (0, half))
            value = builder.fadd(*(builder.shuffle_vector(value, value, part) for part in (low, high)))
        return builder.extract_element(value, ir.IntType(32)(0))

    return sums.dtype(sums), codegen
