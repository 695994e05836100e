"""The tile over pixels: ``C[pixel, k] = start[k] + sum over taps and t of  a[source + tap + t] * B[tap, t, k]``.

Where the channels of a pixel are neighbours in memory nothing has to be lowered for the micro-kernel of
`tile.py`: each of its ``mr`` scalars is read where the pixel stands, and its results are rows of the image.

    ======== =====================================================================================
    A        element (tap, t) of row m at ``a[a0 + sources[at + m] + taps[tap0 + tap] + t]``
    B        step after step, rows ``nr`` vectors long, from ``b0``
    C        row m at ``c[targets[at + m] + column]``; ``columns`` elements and no other are written
    start    ``nr`` whole vectors that the sums begin with, from ``start[s0]``: the bias, or zeros; C itself where they have ``begun``
    ======== =====================================================================================

All steps are summed in registers, and in the same order if a sum goes on in C: where the rows of B of fewer steps stay in
cache, a caller may take all its tiles through these first.

Short sums are many tiles, and each begins and ends outside its loop, so tiles are as large as registers allow whatever
their width (`pixel_rows`): 64 channels are 6 x 4 vectors, and their pixels are read once.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.gemm.move import lanes_between, masked_load, masked_store
from fastconv.gemm.tile import I64, cases, data, element, emit_family, fma, load, prefetch, splat, store

ARGUMENTS = (
    "c", "targets", "column", "columns", "a", "a0", "sources", "at", "taps", "tap0", "count", "length", "b", "b0",
    "start", "s0",
)  # fmt: skip


WIDEST = 4  # vectors of a tile
TALLEST = 12  # pixels: their addresses are held in registers, too


@jit.inner
def pixel_rows(registers, nr):
    """Return the pixels of a tile of ``nr`` vectors: the registers hold their sums, the vectors and a scalar."""
    return min(TALLEST, (registers - 1 - nr) // nr)


def widest() -> int:
    """Return the most vectors of a tile: one that still has 4 pixels."""
    registers = machine.simd().registers
    return max(nr for nr in range(1, WIDEST + 1) if pixel_rows.py_func(registers, nr) >= 4)


def _sum(
    builder: Any, name: str, bases: Any, offset: Any, count: Any, length: Any, a_step: Any, b: Any,
    b_offset: Any, b_step: Any, start: Any, ahead: Any = None,
) -> list[list[Any]]:  # fmt: skip
    """Emit the loops over taps and over t of each, from ``start`` [mr][nr]; return the sums.

    A tap's rows begin ``offset(tap)`` after the bases, and those of B ``b_offset(tap)`` after b or, without
    that, behind the last tap's.  At step t a cache line is asked for, ``ahead(t)`` after the tap's first row.
    """
    nr, vector = len(start[0]), start[0][0].type
    itemsize = 4 if isinstance(vector.element, ir.FloatType) else 8
    mr = len(bases)
    before = builder.block
    outer, inner, latch, after = (builder.append_basic_block(f"{name}_{part}") for part in "otle")
    some = builder.and_(builder.icmp_signed(">", count, I64(0)), builder.icmp_signed(">", length, I64(0)))
    builder.cbranch(some, outer, after)

    def phis() -> list[list[Any]]:
        return [[builder.phi(vector) for _ in range(nr)] for _ in range(mr)]

    builder.position_at_end(outer)
    tap, row = builder.phi(I64), builder.phi(b.type)
    held = phis()
    pointers = [builder.gep(base, [offset(tap)]) for base in bases]
    first_row = builder.gep(b, [b_offset(tap)]) if b_offset else row
    builder.branch(inner)

    builder.position_at_end(inner)
    t, at = builder.phi(I64), builder.phi(b.type)
    sums = phis()
    if ahead:
        prefetch(builder, builder.gep(pointers[0], [ahead(t)]))
    columns = [load(builder, at, j * vector.count, vector, itemsize) for j in range(nr)]
    new = []
    for m in range(mr):
        scalar = splat(builder, builder.load(builder.gep(pointers[m], [builder.mul(t, a_step)])), vector)
        new.append([fma(builder, scalar, columns[j], sums[m][j]) for j in range(nr)])
    following, below = builder.add(t, I64(1)), builder.gep(at, [b_step])
    builder.cbranch(builder.icmp_signed("<", following, length), inner, latch)

    builder.position_at_end(latch)
    next_tap = builder.add(tap, I64(1))
    builder.cbranch(builder.icmp_signed("<", next_tap, count), outer, after)

    builder.position_at_end(after)
    results = phis()
    for phi, first, later in ((tap, I64(0), next_tap), (row, b, below)):
        phi.add_incoming(first, before)
        phi.add_incoming(later, latch)
    for phi, first, later in ((t, I64(0), following), (at, first_row, below)):
        phi.add_incoming(first, outer)
        phi.add_incoming(later, inner)
    for m in range(mr):
        for j in range(nr):
            held[m][j].add_incoming(start[m][j], before)
            held[m][j].add_incoming(new[m][j], latch)
            sums[m][j].add_incoming(held[m][j], outer)
            sums[m][j].add_incoming(new[m][j], inner)
            results[m][j].add_incoming(start[m][j], before)
            results[m][j].add_incoming(new[m][j], latch)
    return results


def _begin(
    builder: Any, begun: Any, start: Any, rows: Any, columns: Any, nr: int, vector: Any, itemsize: int
) -> list[list[Any]]:
    """Emit the loads of what sums begin with: ``start``, or what stands in the rows where they have ``begun``."""
    vl = vector.count
    with builder.if_else(begun) as (again, fresh):
        with again:
            last = I64((nr - 1) * vl)
            mask = lanes_between(builder, last, I64(0), columns, list(range(vl)))
            old = [
                [load(builder, row, j * vl, vector, itemsize) for j in range(nr - 1)]
                + [masked_load(builder, builder.gep(row, [last]), mask, vector, itemsize)]
                for row in rows
            ]
            after_again = builder.block
        with fresh:
            new = [load(builder, start, j * vl, vector, itemsize) for j in range(nr)]
            after_fresh = builder.block
    begin = [[builder.phi(vector) for _ in range(nr)] for _ in rows]
    for values, held in zip(begin, old, strict=True):
        for phi, before, first in zip(values, held, new, strict=True):
            phi.add_incoming(before, after_again)
            phi.add_incoming(first, after_fresh)
    return begin


def _store(builder: Any, results: Any, rows: Any, columns: Any, vector: Any, itemsize: int) -> None:
    """Emit the stores of all whole vectors, and of the last one under a mask where it is not whole."""
    nr, vl = len(results[0]), vector.count
    whole = builder.icmp_signed(">=", columns, I64(nr * vl))
    with builder.if_else(whole) as (all_lanes, tail):
        for branch, full in ((all_lanes, nr), (tail, nr - 1)):
            with branch:
                for row, values in zip(rows, results, strict=True):
                    for j in range(full):
                        store(builder, values[j], row, j * vl, itemsize)
                    if full < nr:
                        mask = lanes_between(builder, I64(full * vl), I64(0), columns, list(range(vl)))
                        masked_store(
                            builder, values[full], builder.gep(row, [I64(full * vl)]), mask, itemsize
                        )


@intrinsic
def tile_gathered(typing: Any, c: Any, targets: Any, column: Any, columns: Any, a: Any, a0: Any, sources: Any,
                  at: Any, taps: Any, tap0: Any, count: Any, length: Any, b: Any, b0: Any, start: Any,
                  s0: Any, mr: Any, nr: Any, apart: Any, begun: Any) -> Any:  # fmt: skip
    """Compute ``mr`` pixels by ``columns`` channels, which ``nr`` vectors hold.

    Its results are asked for before it multiplies, and meanwhile the next pixels, ``apart`` from each other: 5 to
    10 % of a 1x1 layer of 64 to 320 channels.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = dict(zip(ARGUMENTS, signature.args[:-4], strict=True))
        (c, targets, column, columns, a, a0, sources, at, taps, tap0, count, length, b, b0, start, s0,
         mr, nr, apart, begun) = arguments  # fmt: skip
        itemsize = kinds["c"].dtype.bitwidth // 8
        shape = machine.tile(itemsize)
        vector = ir.VectorType(element(kinds["c"]), shape.vl)

        def pointer(name: str, value: Any, index: Any) -> Any:
            return data(context, builder, kinds[name], value, index)

        image, result = pointer("a", a, a0), pointer("c", c, column)
        from_table, to_table = pointer("sources", sources, at), pointer("targets", targets, at)
        offsets, panel, first = pointer("taps", taps, tap0), pointer("b", b, b0), pointer("start", start, s0)
        registers = machine.simd().registers
        each = {
            m * (WIDEST + 1) + j: (m, j)
            for j in range(1, widest() + 1)
            for m in range(1, pixel_rows.py_func(registers, j) + 1)
        }
        which = builder.add(builder.mul(mr, I64(WIDEST + 1)), nr)
        for m, j in cases(builder, which, each, "gathered"):
            bases = [builder.gep(image, [builder.load(builder.gep(from_table, [I64(i)]))]) for i in range(m)]
            rows = [builder.gep(result, [builder.load(builder.gep(to_table, [I64(i)]))]) for i in range(m)]
            for row in rows:
                for v in range(j):
                    prefetch(builder, builder.gep(row, [I64(v * shape.vl)]))
            begin = _begin(builder, begun, first, rows, columns, j, vector, itemsize)
            sums = _sum(
                builder, f"gathered_{m}x{j}", bases,
                lambda tap: builder.load(builder.gep(offsets, [tap])), count, length, I64(1),
                panel, None, I64(j * shape.vl), begin,
                lambda t, m=m: builder.mul(builder.add(apart, t), I64(m)),
            )  # fmt: skip
            _store(builder, sums, rows, columns, vector, itemsize)
        return context.get_dummy_value()

    i = types.int64
    kinds = (c, targets, i, i, a, i, sources, i, taps, i, i, i, b, i, start, i, i, i, i, types.boolean)
    return types.void(*kinds), codegen


@intrinsic
def tile_over_pixels(typing: Any, c: Any, c0: Any, ldc: Any, a: Any, a0: Any, apart: Any, lda: Any, b: Any,
                     b0: Any, ldb: Any, rows: Any, count: Any, length: Any, mr: Any, nr: Any,
                     accumulate: Any, ahead: Any) -> Any:  # fmt: skip
    """``C[mr, nr] (+)= sum over rows and t of  a[a0 + m*apart + rows[2*row] + t*lda] * b[b0 + rows[2*row + 1] + t*ldb]``.

    Both operands are read where they stand: t counts the pixels of a row; channels of b are neighbours, and
    those of a ``apart``.  C comes from L2 while the sums are made: without asking for it 3 to 10 % slower.  Where
    a comes from memory, ``ahead`` is how far from a0 the rows are that will be wanted next, else None.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        c_type, _, _, a_type, _, _, _, b_type, _, _, rows_type, *_ = signature.args
        c, c0, ldc, a, a0, apart, lda, b, b0, ldb, rows, count, length, mr, nr, accumulate, ahead = arguments
        itemsize = c_type.dtype.bitwidth // 8
        shape = machine.tile(itemsize)
        vector = ir.VectorType(element(c_type), shape.vl)
        zero = ir.Constant(vector, [0.0] * shape.vl)
        result = data(context, builder, c_type, c, c0)
        scalars, panel = data(context, builder, a_type, a, a0), data(context, builder, b_type, b, b0)
        table = data(context, builder, rows_type, rows, I64(0))

        def offset(of: int) -> Any:
            return lambda row: builder.load(
                builder.gep(table, [builder.add(builder.shl(row, I64(1)), I64(of))])
            )

        def following(t: Any) -> Any:
            """Eight rows are asked for in turns, at every eighth pixel."""
            row = builder.and_(t, I64(7))
            along = builder.mul(builder.sub(t, row), lda)
            return builder.add(ahead, builder.add(builder.mul(row, apart), along))

        def emit(m: int, j: int) -> None:
            for i in range(m):
                row = builder.gep(result, [builder.mul(ldc, I64(i))])
                for v in range(j):
                    prefetch(builder, builder.gep(row, [I64(v * shape.vl)]))
            bases = [builder.gep(scalars, [builder.mul(apart, I64(i))]) for i in range(m)]
            sums = _sum(
                builder, f"pixels_{m}x{j}", bases, offset(0), count, length, lda, panel, offset(1), ldb,
                [[zero] * j] * m, None if isinstance(signature.args[-1], types.NoneType) else following,
            )  # fmt: skip
            with builder.if_else(accumulate) as (add, overwrite):
                for branch, adding in ((add, True), (overwrite, False)):
                    with branch:
                        for i in range(m):
                            row = builder.gep(result, [builder.mul(ldc, I64(i))])
                            for v in range(j):
                                value, at = sums[i][v], v * shape.vl
                                if adding:
                                    value = builder.fadd(load(builder, row, at, vector, itemsize), value)
                                store(builder, value, row, at, itemsize)

        emit_family(builder, mr, nr, shape, emit)
        return context.get_dummy_value()

    i = types.int64
    return types.void(c, i, i, a, i, i, i, b, i, i, rows, i, i, i, i, types.boolean, ahead), codegen


TAPS = 9  # that share a load of a pixel's vector in `sum_by_taps`: more than latency * FMA units


@intrinsic
def sum_by_taps(typing: Any, c: Any, c0: Any, ldc: Any, x: Any, x0: Any, x_row: Any, x_column: Any, g: Any,
                g0: Any, g_row: Any, g_column: Any, lanes: Any, rows: Any, columns: Any, offsets: Any,
                first: Any, taps: Any, accumulate: Any) -> Any:  # fmt: skip
    """``C[tap, k] (+)= sum over pixels (i, j) of  x[pixel + offsets[first + tap] + k] * g[pixel + k]``: depthwise.

    A pixel of x is at ``x0 + i*x_row + j*x_column``, of g alike; k runs over a vector, of which ``lanes`` are
    read from g. Row tap of C is at ``c0 + tap*ldc``; taps <= TAPS.  Of each pixel of g the vector that is next is asked for:
    pixels are too far apart for the CPU to foresee it.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        c_type, x_type, g_type, table_type = (signature.args[i] for i in (0, 3, 7, 14))
        (c, c0, ldc, x, x0, x_row, x_column, g, g0, g_row, g_column, lanes, rows, columns, offsets, first,
         taps, accumulate) = arguments  # fmt: skip
        itemsize = c_type.dtype.bitwidth // 8
        vector = ir.VectorType(element(c_type), machine.tile(itemsize).vl)
        result, image = data(context, builder, c_type, c, c0), data(context, builder, x_type, x, x0)
        gradient, table = (
            data(context, builder, g_type, g, g0), data(context, builder, table_type, offsets, first)
        )  # fmt: skip
        mask = lanes_between(builder, I64(0), I64(0), lanes, list(range(vector.count)))
        held = [cgutils.alloca_once(builder, vector) for _ in range(TAPS)]
        for count in cases(builder, taps, {n: n for n in range(1, TAPS + 1)}, "taps"):
            sums, zero = held[:count], ir.Constant(vector, [0.0] * vector.count)
            places = [builder.gep(result, [builder.mul(ldc, I64(i))]) for i in range(count)]
            views = [builder.gep(image, [builder.load(builder.gep(table, [I64(i)]))]) for i in range(count)]
            for total in sums:
                builder.store(zero, total)
            with cgutils.for_range(builder, rows) as row, cgutils.for_range(builder, columns) as column:
                at = builder.add(builder.mul(row.index, g_row), builder.mul(column.index, g_column))
                place = builder.gep(gradient, [at])
                prefetch(builder, builder.gep(place, [I64(2 * vector.count - 1)]))
                factor = masked_load(builder, place, mask, vector, itemsize)
                at = builder.add(builder.mul(row.index, x_row), builder.mul(column.index, x_column))
                for view, total in zip(views, sums, strict=True):
                    pixel = load(builder, builder.gep(view, [at]), 0, vector, itemsize)
                    builder.store(fma(builder, pixel, factor, builder.load(total)), total)
            with builder.if_then(accumulate):
                for place, total in zip(places, sums, strict=True):
                    old = load(builder, place, 0, vector, itemsize)
                    builder.store(builder.fadd(old, builder.load(total)), total)
            for place, total in zip(places, sums, strict=True):
                store(builder, builder.load(total), place, 0, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(c, i, i, x, i, i, i, g, i, i, i, i, i, i, offsets, i, i, types.boolean), codegen
