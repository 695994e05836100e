"""The micro-kernel of the weight gradient: a block of taps as accumulators, pixels as the reduction.

    sums[t, s] += over rows j and columns q of  gy[j, q] * x[step*j + t, column[s] + stride*q]     t < T, s < S

Every lane sums its own pixels.  Vectors of columns come one after the other, and each walks down the rows with a
window of T rows of x in registers, of which each row of gy brings ``step`` new ones: T*S FMAs on step*S + 1
loads (9 on 4 at 3 x 3).  T*S sums, as many vectors of x and one of gy fit the registers.

Images are read where they lie, as in `taps`: rows outside are -1 in a table, columns outside masked lanes, and so
are columns of gy beyond its last, on both sides: no pixel is multiplied that the definition does not multiply,
were it infinite.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.algorithms.direct.depthwise.lanes import lanes_of, load_lanes
from fastconv.algorithms.direct.depthwise.pointer import out_of_line, scalar_type
from fastconv.algorithms.direct.depthwise.taps import ENTRY, TAP
from fastconv.gemm.move import I1
from fastconv.gemm.tile import I64, cases, fma, load, prefetch, store

# A step: taps T x S over ``height`` rows and a list of blocks of columns; ``ahead`` is where the next rows lie.
OUTER = (
    "gy", "ldg", "height", "tall", "wide", "rows", "block", "blocks", "sums", "ahead_x", "ahead_gy",
)  # fmt: skip


def most() -> tuple[int, int]:
    """Return the largest T and S."""
    return (3, 5) if machine.simd().registers >= 32 else (2, 3)


def _walk(builder: Any, p: Any, shape: tuple[int, int], vector: ir.VectorType, sums: list[Any]) -> list[Any]:
    """Emit the walk of one vector of columns down the rows; return the sums."""
    tall, wide = shape
    gy_lanes = lanes_of(builder, builder.load(builder.gep(p.entry, [I64(1)])), vector.count)
    masks = [builder.load(builder.gep(p.entry, [I64(ENTRY + s)])) for s in range(wide)]
    masks = [lanes_of(builder, mask, p.step * vector.count) for mask in masks]
    q = builder.load(p.entry)
    corner = builder.gep(p.x, [builder.mul(q, I64(p.step))])
    taps = builder.gep(p.columns, [builder.load(builder.gep(p.entry, [I64(2)]))])
    columns = [builder.gep(corner, [builder.load(builder.gep(taps, [I64(TAP * s)]))]) for s in range(wide)]
    gy_column = builder.gep(p.gy, [q])
    zero = ir.Constant(vector, [0.0] * vector.count)

    def row(at: Any) -> list[Any]:
        """Load a row of x, if there is one, under all columns of taps."""
        offset = builder.load(at)
        before = builder.block
        inside, after = builder.append_basic_block("row"), builder.append_basic_block("next")
        builder.cbranch(builder.icmp_signed(">=", offset, I64(0)), inside, after)
        builder.position_at_end(inside)
        places = [builder.gep(column, [offset]) for column in columns]
        for part in range(p.step):
            prefetch(builder, builder.gep(places[0], [builder.add(p.ahead_x, I64(part * vector.count))]))
        loaded = [
            load_lanes(builder, at, mask, vector, p.step, p.itemsize)
            for at, mask in zip(places, masks, strict=True)
        ]
        inside = builder.block
        builder.branch(after)
        builder.position_at_end(after)
        found = [builder.phi(vector) for _ in loaded]
        for phi, value in zip(found, loaded, strict=True):
            phi.add_incoming(zero, before)
            phi.add_incoming(value, inside)
        return found

    kept = max(0, tall - p.step)
    window = [value for t in range(kept) for value in row(builder.gep(p.rows, [I64(t)]))]
    before = builder.block
    head, body, done = (builder.append_basic_block(f"rows_{name}") for name in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    j = builder.phi(I64)
    held = [builder.phi(vector) for _ in sums + window]
    builder.cbranch(builder.icmp_signed("<", j, p.height), body, done)

    builder.position_at_end(body)
    gy_row = builder.gep(gy_column, [builder.mul(j, p.ldg)])
    prefetch(builder, builder.gep(gy_row, [p.ahead_gy]))
    right = load_lanes(builder, gy_row, gy_lanes, vector, 1, p.itemsize)
    first = builder.mul(j, I64(p.step))
    pixels = held[len(sums) :]
    for t in range(kept, tall):
        pixels = pixels + row(builder.gep(p.rows, [builder.add(first, I64(t))]))
    new = [fma(builder, right, x, total) for x, total in zip(pixels, held, strict=False)]
    new += pixels[p.step * wide :] if kept else []
    j.add_incoming(I64(0), before)
    j.add_incoming(builder.add(j, I64(1)), builder.block)
    for phi, begin, value in zip(held, sums + window, new, strict=True):
        phi.add_incoming(begin, before)
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    return held[: len(sums)]


def _emit(builder: Any, p: Any, shape: tuple[int, int], vector: ir.VectorType, vl: int) -> None:
    """Emit one (T, S): sums from memory, the loop over blocks of columns, sums to memory."""
    places = [builder.gep(p.sums, [I64(i * vl)]) for i in range(shape[0] * shape[1])]
    start = [load(builder, place, 0, vector, p.itemsize) for place in places]
    before = builder.block
    head, body, done = (builder.append_basic_block(f"blocks_{name}") for name in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    block = builder.phi(I64)
    sums = [builder.phi(vector) for _ in start]
    builder.cbranch(builder.icmp_signed("<", block, p.blocks), body, done)
    builder.position_at_end(body)
    p.entry = builder.gep(p.block, [builder.mul(block, I64(ENTRY + shape[1]))])
    new = _walk(builder, p, shape, vector, sums)
    block.add_incoming(I64(0), before)
    block.add_incoming(builder.add(block, I64(1)), builder.block)
    for phi, begin, value in zip(sums, start, new, strict=True):
        phi.add_incoming(begin, before)
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    for place, value in zip(places, sums, strict=True):
        store(builder, value, place, 0, p.itemsize)


def _family(name: str, stride: int) -> Any:
    """Make the intrinsic for one stride, 1 or 2, of rows and columns."""

    @intrinsic
    def outer(typing, sums, gy, x, step, rows, blocks, columns):
        """Take one step of the tables."""

        def codegen(context, builder, signature, arguments):
            scalar, itemsize = scalar_type(signature.args[0])

            def emit(builder, sums, gy, x, step, rows, blocks, columns):
                field = {key: builder.load(builder.gep(step, [I64(i)])) for i, key in enumerate(OUTER)}
                p = SimpleNamespace(**field, x=x, step=stride, itemsize=itemsize)
                p.sums, p.gy = builder.gep(sums, [p.sums]), builder.gep(gy, [p.gy])
                p.rows, p.block = builder.gep(rows, [p.rows]), builder.gep(blocks, [p.block])
                p.columns = columns
                (tall, wide), vl = most(), machine.tile(itemsize).vl
                done = builder.append_basic_block("done")
                # lanes of a narrow map, 7 x 7, fit half a vector
                lanes = builder.load(builder.gep(p.block, [I64(1)]))
                narrow = builder.icmp_unsigned("<", lanes, I64(1 << (vl // 2)))
                which = builder.add(builder.mul(p.tall, I64(wide + 1)), p.wide)
                whole, half = builder.append_basic_block("whole"), builder.append_basic_block("half")
                builder.cbranch(narrow, half, whole)
                for entry, count in ((whole, vl), (half, vl // 2)):
                    builder.position_at_end(entry)
                    each = {
                        t * (wide + 1) + s: (t, s) for t in range(1, tall + 1) for s in range(1, wide + 1)
                    }
                    for case in cases(builder, which, each, "case"):
                        _emit(builder, p, case, ir.VectorType(scalar, count), vl)
                    builder.branch(done)
                builder.position_at_end(done)

            out_of_line(builder, f"fastconv_depthwise_outer_{name}_{itemsize}", arguments, emit)
            return context.get_dummy_value()

        return types.void(sums, gy, x, step, rows, blocks, columns), codegen

    return outer


outer_each = _family("each", 1)
outer_second = _family("second", 2)


@intrinsic
def total(typing, sums, parts, begin, end):
    """Return the sum of the lanes of some vectors; ``parts`` are pairs of (where a vector begins, lanes)."""

    def codegen(context, builder, signature, arguments):
        scalar, itemsize = scalar_type(signature.args[0])
        sums, parts, begin, end = arguments
        vector = ir.VectorType(scalar, machine.tile(itemsize).vl)
        zero = ir.Constant(vector, [0.0] * vector.count)
        held = cgutils.alloca_once_value(builder, zero)
        with cgutils.for_range_slice(builder, begin, end, I64(1), I64) as (i, _):
            pair = builder.gep(parts, [builder.shl(i, I64(1))])
            value = load(builder, builder.gep(sums, [builder.load(pair)]), 0, vector, itemsize)
            lanes = lanes_of(builder, builder.load(builder.gep(pair, [I64(1)])), vector.count)
            lanes = builder.bitcast(lanes, ir.VectorType(I1, vector.count))
            some = builder.select(lanes, value, zero)
            builder.store(builder.fadd(builder.load(held), some), held)
        value = builder.load(held)
        while value.type.count > 1:
            half = value.type.count // 2
            numbers = ir.VectorType(ir.IntType(32), half)
            low, high = (ir.Constant(numbers, list(range(i, i + half))) for i in (0, half))
            value = builder.fadd(*(builder.shuffle_vector(value, value, part) for part in (low, high)))
        return builder.extract_element(value, ir.IntType(32)(0))

    return sums.dtype(sums, parts, begin, end), codegen
