"""The micro-kernel of the weight gradient: a block of taps as accumulators, pixels as the reduction.

    sums[t, s] += over rows j and columns q of  gy[j, q] * x[stride*j + t, column[s] + stride*q]     t < T, s < S

Every lane sums its own pixels.  Vectors of columns come one after the other, and each walks down the rows with a
window of T rows of x in registers, of which each row of gy brings ``stride`` new ones: T*S FMAs on stride*S + 1
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
from fastconv.algorithms.direct.depthwise.flow import changed, loop
from fastconv.algorithms.direct.depthwise.lanes import lanes_of, load_lanes, mask_of
from fastconv.algorithms.direct.depthwise.pointer import out_of_line, scalar_type
from fastconv.algorithms.direct.depthwise.taps import ENTRY, TAP
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
    masks = [lanes_of(builder, mask, p.stride * vector.count) for mask in masks]
    q = builder.load(p.entry)
    corner = builder.gep(p.x, [builder.mul(q, I64(p.stride))])
    taps = builder.gep(p.columns, [builder.load(builder.gep(p.entry, [I64(2)]))])
    columns = [builder.gep(corner, [builder.load(builder.gep(taps, [I64(TAP * s)]))]) for s in range(wide)]
    gy_column = builder.gep(p.gy, [q])
    zero = ir.Constant(vector, [0.0] * vector.count)

    def row(at: Any) -> list[Any]:
        """Load a row of x, if there is one, under all columns of taps."""
        offset = builder.load(at)

        def pixels() -> list[Any]:
            places = [builder.gep(column, [offset]) for column in columns]
            for part in range(p.stride):
                prefetch(builder, builder.gep(places[0], [builder.add(p.ahead_x, I64(part * vector.count))]))
            return [
                load_lanes(builder, at, mask, vector, p.stride, p.itemsize)
                for at, mask in zip(places, masks, strict=True)
            ]

        return changed(builder, builder.icmp_signed(">=", offset, I64(0)), [zero] * wide, pixels)

    kept = max(0, tall - p.stride)
    window = [value for t in range(kept) for value in row(builder.gep(p.rows, [I64(t)]))]

    def down(j: Any, held: list[Any]) -> list[Any]:
        gy_row = builder.gep(gy_column, [builder.mul(j, p.ldg)])
        prefetch(builder, builder.gep(gy_row, [p.ahead_gy]))
        right = load_lanes(builder, gy_row, gy_lanes, vector, 1, p.itemsize)
        first = builder.mul(j, I64(p.stride))
        pixels = held[len(sums) :]
        for t in range(kept, tall):
            pixels = pixels + row(builder.gep(p.rows, [builder.add(first, I64(t))]))
        new = [fma(builder, right, x, total) for x, total in zip(pixels, held, strict=False)]
        return new + (pixels[p.stride * wide :] if kept else [])

    return loop(builder, I64(0), p.height, sums + window, down)[: len(sums)]


def _emit(builder: Any, p: Any, shape: tuple[int, int], vector: ir.VectorType, vl: int) -> None:
    """Emit one (T, S): sums from memory, the loop over blocks of columns, sums to memory."""
    places = [builder.gep(p.sums, [I64(i * vl)]) for i in range(shape[0] * shape[1])]
    start = [load(builder, place, 0, vector, p.itemsize) for place in places]

    def walk(block: Any, sums: list[Any]) -> list[Any]:
        p.entry = builder.gep(p.block, [builder.mul(block, I64(ENTRY + shape[1]))])
        return _walk(builder, p, shape, vector, sums)

    sums = loop(builder, I64(0), p.blocks, start, walk)
    for place, value in zip(places, sums, strict=True):
        store(builder, value, place, 0, p.itemsize)


@intrinsic
def outer(typing, sums, gy, x, step, rows, blocks, columns, strided):
    """Take one step of the tables; ``strided`` as `taps` has it."""
    stride = 1 + (strided != types.none)

    def codegen(context, builder, signature, arguments):
        scalar, itemsize = scalar_type(signature.args[0])

        def emit(builder, sums, gy, x, step, rows, blocks, columns):
            field = {key: builder.load(builder.gep(step, [I64(i)])) for i, key in enumerate(OUTER)}
            p = SimpleNamespace(**field, x=x, stride=stride, itemsize=itemsize)
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
                each = {t * (wide + 1) + s: (t, s) for t in range(1, tall + 1) for s in range(1, wide + 1)}
                for case in cases(builder, which, each, "case"):
                    _emit(builder, p, case, ir.VectorType(scalar, count), vl)
                builder.branch(done)
            builder.position_at_end(done)

        out_of_line(builder, f"fastconv_depthwise_outer{stride}_{itemsize}", arguments[:7], emit)
        return context.get_dummy_value()

    return types.void(sums, gy, x, step, rows, blocks, columns, strided), codegen


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
            lanes = mask_of(builder, builder.load(builder.gep(pair, [I64(1)])), vector.count)
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
