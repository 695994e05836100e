"""The depthwise micro-kernel: rows of outputs kept in registers, each vector of input used by many taps.

    out[j, q] (+)= sum over t < T, s  of  weight[t, s] * source[stride*j + t, column[s] + stride*q]

for J rows j and one vector of columns q, then the next vector.  For each s the stride*(J - 1) + T vectors of
source rows are loaded once, and each is multiplied into every output row that it reaches: J*T FMAs on
J + T - 1 loads and T broadcasts (40 on 17 at 8 x 5).

Images are read where they lie.  A row outside the image is an offset of -1 in ``rows`` and skipped; columns
outside are lanes that a mask leaves zero, and the masks, one for each vector of outputs and each s, are made
with the tables (see `columns`); so are each vector's taps.  Memory behind a masked lane is not touched.

Where borders repeat the image, lanes may have further weights of a tap, which are added to it once for all rows of a
step, and rows of a step may all be added to one row.  Kernels for padding with zeros are compiled without either.

A family is one of

    ======= ====== ====== =============================================================================
    family  stride phases
    ======= ====== ====== =============================================================================
    each    1      1      rows and columns side by side
    second  2      1      every second pixel, picked out of two vectors in registers
    pairs   1      2      even and odd outputs have taps of their own, interleaved when stored
    ======= ====== ====== =============================================================================

    J       1..8: eight independent sums cover the latency of the FMA units; of family each 14 as well, for T from 5 on
    T       1..7, 3 of family second and 4 of pairs: J sums, T weights and a vector of source fit
"""

from __future__ import annotations

import itertools
from functools import partial
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.algorithms.direct.depthwise.flow import changed, loop
from fastconv.algorithms.direct.depthwise.lanes import lanes_of, load_lanes, mask_of, store_lanes
from fastconv.algorithms.direct.depthwise.pointer import out_of_line, scalar_type
from fastconv.gemm.tile import I64, cases, fma, prefetch, shuffled, splat

ROWS = 8  # J at most
# J of many taps where rows are a multiple of it, as in maps of 14, 28, 56: weights are loaded for as many FMAs again, and
# half as many rows twice.  With three taps memory is what counts, and 14 take 1.02 of the time of twice 7.
TALL, MANY = 14, 5
NARROW = 7  # rows from which maps of at most half a vector, 7 x 7, have bodies of half a vector

# A step of the work on a map: J rows by T taps, for all columns of a list of blocks.
STEP = (
    "out", "ldo", "height", "tall", "rows", "weight", "row_step", "more", "block", "blocks", "entry", "pitch",
)  # fmt: skip

# Of a vector of columns: its first, the lanes to store, where its taps are in the table, how many the first phase
# has, and all; then the lanes that each loads, and at a stride, from bit 32 on, the lanes of results that have a pixel.
ENTRY = 5
TAP = 3  # numbers of a tap in the table: offset, weight, and where further weights of some lanes are listed,
SEVERAL = -(1 << 63)  # if this bit of the lanes that it loads is set


def most_taps(stride: int = 1, phases: int = 1) -> int:
    """Return the largest T of a family: what layers have, as the bodies are compiled for each J and T.

    Larger kernels take several steps.
    """
    most = 3 if stride == 2 else 4 if phases == 2 else 7
    return most if machine.simd().registers >= 32 else min(most, 4)


def most_rows(phases: int) -> int:
    """Return the largest J."""
    return ROWS if phases == 1 or machine.simd().registers >= 32 else ROWS // 2


def tallest(rows: int, taps: int, stride: int = 1, phases: int = 1) -> int:
    """Return the largest J for so many rows, of steps of at least so many taps.

    Rows of a stride, of which 14 results read more than 28, are sorted while others are summed: not by 14 (5x5 1.08 of the time).
    """
    tall = stride == phases == 1 and taps >= MANY and machine.simd().registers >= 32
    return TALL if tall and rows % TALL == 0 else most_rows(phases)


def _weights(builder: Any, p: Any, at: Any, lanes: Any, vector: ir.VectorType, tall: int) -> list[Any]:
    """Load the weights of a column of taps into some lanes; zeros into the others."""
    none = ir.Constant(vector, [0.0] * vector.count)
    rows = [builder.gep(at, [builder.mul(p.row_step, I64(t))]) for t in range(tall)]
    return [builder.select(lanes, splat(builder, builder.load(row), vector), none) for row in rows]


def _further(builder: Any, p: Any, entry: Any, weights: list[Any]) -> list[Any]:
    """Emit the weights with the further ones that some lanes have."""
    vector = weights[0].type
    table = builder.gep(p.table, [builder.load(builder.gep(entry, [I64(2)]))])

    def add(i: Any, held: list[Any]) -> list[Any]:
        pair = builder.gep(table, [builder.add(builder.shl(i, I64(1)), I64(1))])
        at = builder.gep(p.taps, [builder.load(pair)])
        lanes = mask_of(builder, builder.load(builder.gep(pair, [I64(1)])), vector.count)
        added = _weights(builder, p, at, lanes, vector, len(weights))
        return [builder.fadd(a, b) for a, b in zip(held, added, strict=True)]

    count = builder.load(table)
    builder.assume(builder.icmp_signed(">", count, I64(0)))
    return loop(builder, I64(0), count, weights, add)


def _sum(builder: Any, p: Any, first: Any, end: Any, start: list[Any], tall: int) -> list[Any]:
    """Emit the loop over columns of taps ``first <= s < end``; return the sums."""
    height, vector = len(start), start[0].type

    def column(s: Any, sums: list[Any]) -> list[Any]:
        entry = builder.gep(p.columns, [builder.mul(s, I64(TAP))])
        at = builder.gep(p.pixels, [builder.load(entry)])
        at_weight = builder.gep(p.taps, [builder.load(builder.gep(entry, [I64(1)]))])
        bits = builder.load(builder.gep(p.masks, [s]))
        lanes = lanes_of(builder, bits, p.stride * vector.count)
        # a weight is zero, too, where no pixel is: were it infinite, its product with a zero would be NaN
        met = mask_of(builder, builder.lshr(bits, I64(32)) if p.stride > 1 else bits, vector.count)
        weights = _weights(builder, p, at_weight, met, vector, tall)
        if p.bordered:
            several = builder.icmp_signed("<", bits, I64(0))
            weights = changed(builder, several, weights, partial(_further, builder, p, entry, weights))
        new = list(sums)

        def row(offset: Any, users: list[tuple[int, int]]) -> list[Any]:
            pixels = load_lanes(builder, builder.gep(at, [offset]), lanes, vector, p.stride, p.itemsize)
            return [fma(builder, weights[t], pixels, new[j]) for j, t in users]

        for i in range(p.stride * (height - 1) + tall):
            users = [(j, i - p.stride * j) for j in range(height) if 0 <= i - p.stride * j < tall]
            if not users:
                continue
            offset = builder.load(builder.gep(p.rows, [I64(i)]))
            there = builder.icmp_signed(">=", offset, I64(0))
            values = changed(builder, there, [new[j] for j, _ in users], partial(row, offset, users))
            for (j, _), value in zip(users, values, strict=True):
                new[j] = value
        return new

    return loop(builder, first, end, start, column)


def _emit(builder: Any, p: Any, shape: tuple[int, int], vector: ir.VectorType) -> None:
    """Emit the loop over blocks of columns of one (J, T)."""
    (height, tall), vl = shape, vector.count
    wide = ir.VectorType(vector.element, p.phases * vl)
    zeros = [ir.Constant(vector, [0.0] * vector.count)] * height
    with cgutils.for_range(builder, p.blocks, intp=I64) as block_loop:
        block = builder.gep(p.block, [builder.mul(block_loop.index, p.entry)])
        q, stored, table, middle, end = (builder.load(builder.gep(block, [I64(i)])) for i in range(ENTRY))
        p.masks, p.columns = builder.gep(block, [I64(ENTRY)]), builder.gep(p.table, [table])
        p.pixels = builder.gep(p.source, [builder.mul(q, I64(p.stride))])
        corner = builder.gep(p.out, [builder.mul(q, I64(p.phases))])
        outs = [builder.gep(corner, [builder.mul(p.ldo, I64(j))]) for j in range(height)]
        mask = lanes_of(builder, stored, wide.count)
        # the next block of rows is fetched while this one is computed, where it goes after the sums: all at once are
        # more lines than can be under way
        last = builder.load(builder.gep(p.rows, [I64(p.stride * (height - 1) + tall - 1)]))
        last = builder.gep(p.pixels, [last])
        below = [builder.gep(last, [builder.mul(p.pitch, I64(i + 1))]) for i in range(p.stride * height)]
        _fetch(builder, below, range(0, p.stride * vl, vl))
        if p.phases == 1:
            start = changed(builder, p.more, zeros, partial(_there, builder, p, outs, mask, zeros))
            results = _together(builder, p, _sum(builder, p, I64(0), end, start, tall))
        else:
            even = _sum(builder, p, I64(0), middle, zeros, tall)
            odd = _sum(builder, p, middle, end, zeros, tall)
            turns = [e // 2 + vl * (e % 2) for e in range(wide.count)]
            results = [shuffled(builder, a, b, turns) for a, b in zip(even, odd, strict=True)]
            results = _added(builder, p, _together(builder, p, results), outs, mask)
        below = [builder.gep(out, [builder.mul(p.ldo, I64(height))]) for out in outs]
        _fetch(builder, below, range(0, wide.count, vl), write=True)
        store_lanes(builder, results, outs, mask, p.itemsize)


def _fetch(builder: Any, rows: list[Any], columns: range, write: bool = False) -> None:
    """Ask for some rows, at some columns each."""
    for row in rows:
        for at in columns:
            prefetch(builder, builder.gep(row, [I64(at)]), write)


def _there(builder: Any, p: Any, outs: list[Any], mask: Any, zeros: list[Any]) -> list[Any]:
    """Load what is there already; once for rows that are added to one."""
    old = [load_lanes(builder, out, mask, zeros[0].type, 1, p.itemsize) for out in outs]
    if not p.bordered:
        return old
    return [old[0], *(builder.select(p.one_row, zeros[0], value) for value in old[1:])]


def _together(builder: Any, p: Any, values: list[Any]) -> list[Any]:
    """Emit the sum of all rows as the last of them, if they are stored where the last one is."""
    if not p.bordered or len(values) == 1:
        return values
    return changed(builder, p.one_row, values, lambda: list(itertools.accumulate(values, builder.fadd)))


def _added(builder: Any, p: Any, values: list[Any], outs: list[Any], mask: Any) -> list[Any]:
    """Emit the sums with what is there already, if a step adds to it."""

    def sums() -> list[Any]:
        old = [load_lanes(builder, out, mask, values[0].type, 1, p.itemsize) for out in outs]
        return [builder.fadd(a, b) for a, b in zip(old, values, strict=True)]

    return changed(builder, p.more, values, sums)


@intrinsic
def taps(typing, out, source, weight, step, rows, blocks, columns, strided, paired, bordered):
    """Take one step of the tables; kernels for None in place of the last three have no code for what these are."""
    stride, phases, repeats = (1 + (kind != types.none) for kind in (strided, paired, bordered))

    def codegen(context, builder, signature, arguments):
        scalar, itemsize = scalar_type(signature.args[0])

        def emit(builder, out, source, weight, step, rows, blocks, columns):
            field = {key: builder.load(builder.gep(step, [I64(i)])) for i, key in enumerate(STEP)}
            p = SimpleNamespace(**field, stride=stride, phases=phases, itemsize=itemsize)
            p.out, p.taps = builder.gep(out, [p.out]), builder.gep(weight, [p.weight])
            p.source, p.table = source, columns
            p.rows, p.block = builder.gep(rows, [p.rows]), builder.gep(blocks, [p.block])
            p.more = builder.icmp_signed("!=", p.more, I64(0))
            p.bordered, p.one_row = repeats > 1, builder.icmp_signed("==", p.ldo, I64(0))
            most, vl = most_taps(stride, phases), machine.tile(itemsize).vl
            done = builder.append_basic_block("done")
            # the lanes that a block stores tell how wide the map is
            stored = builder.load(builder.gep(p.block, [I64(1)]))
            some = builder.icmp_unsigned("<", builder.sub(p.height, I64(NARROW)), I64(ROWS - NARROW + 1))
            narrow = builder.and_(builder.icmp_unsigned("<", stored, I64(1 << (phases * vl // 2))), some)
            which = builder.add(builder.mul(p.height, I64(most + 1)), p.tall)
            whole, half = builder.append_basic_block("whole"), builder.append_basic_block("half")
            builder.cbranch(narrow, half, whole)
            for entry, lanes, fewest in ((whole, vl, 1), (half, vl // 2, NARROW)):
                builder.position_at_end(entry)
                each = {
                    j * (most + 1) + t: (j, t)
                    for t in range(1, most + 1)
                    for j in {
                        *range(fewest, most_rows(phases) + 1),
                        *[tallest(TALL, t, stride, phases)] * (entry is whole),
                    }
                }
                for case in cases(builder, which, each, "case"):
                    _emit(builder, p, case, ir.VectorType(scalar, lanes))
                builder.branch(done)
            builder.position_at_end(done)

        out_of_line(
            builder, f"fastconv_depthwise_taps{stride}{phases}{repeats}_{itemsize}", arguments[:7], emit
        )
        return context.get_dummy_value()

    arguments = out, source, weight, step, rows, blocks, columns, strided, paired, bordered
    return types.void(*arguments), codegen
