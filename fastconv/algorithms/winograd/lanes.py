"""Two of the three transforms as vector code: a lane is a tile, and successive lanes are neighbours in a row.

* `transform_input`   alpha x alpha pixels of every tile -> one vector for each of the alpha**2 positions;
* `transform_output`  such vectors -> m x m pixels of every tile.

Pixels of neighbouring tiles are m apart, so a row is loaded as whole vectors, masked where it leaves the
image (zeros cost nothing; pixels that a border repeats are put in one by one), and split into its m phases
by shuffles; the r - 1 pixels that a tile shares with the next one are the next lane's.  Both passes of a transform meet in a small table on the stack.

Of a strided convolution (`phases.py`) the even and the odd pixels of a row are two rows, told apart as they are
loaded, or woven together as they are stored.

F(m, r) of both axes is known when code is generated: it travels in the *type* of ``variant``, a tuple of tuples
whose lengths are (m, r) of the rows, (m, r) of the columns, and how columns are split (`SPLITS`) and woven.  One
kernel thus serves all variants, and its cache entry is keyed by them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.algorithms.straight import Vectors
from fastconv.algorithms.winograd.transforms import Matrix, apply, matrices
from fastconv.gemm.move import lanes_between, masked_load, masked_store
from fastconv.gemm.tile import I64, cases, data, element, load, shuffled, splat, store

# (stride, phases of it that are read) by a variant's fifth length
SPLITS = {1: (1, 1), 2: (2, 2), 3: (2, 1)}


def widths(vl: int) -> list[int]:
    """Return the lanes a transform can work on: half vectors cost half on maps of few tiles a row."""
    return [vl, vl // 2] if vl >= 4 else [vl]


def _mr(variant: Any) -> list[int]:
    return [t.count for t in variant.types[:4]]


def _split(builder: Any, parts: list[Any]) -> list[Any]:
    """Return phase j = elements j, j + m, j + 2m, ... of the m parts of one long vector."""
    m, lanes = len(parts), parts[0].type.count
    if m == 1:
        return parts
    if m % 2 == 0:  # halve: all even elements, all odd elements
        even, odd = (
            [
                shuffled(builder, parts[i], parts[i + 1], list(range(first, 2 * lanes, 2)))
                for i in range(0, m, 2)
            ]
            for first in (0, 1)
        )
        pairs = zip(_split(builder, even), _split(builder, odd), strict=True)
        return [phase for pair in pairs for phase in pair]
    return [_collect(builder, parts, [divmod(e * m + j, lanes) for e in range(lanes)]) for j in range(m)]


def _merge(builder: Any, phases: list[Any]) -> list[Any]:
    """Invert `_split`."""
    m, lanes = len(phases), phases[0].type.count
    if m == 1:
        return phases
    if m % 2 == 0:
        zips = ([i // 2 + (i % 2) * lanes + half for i in range(lanes)] for half in (0, lanes // 2))
        zips = list(zips)
        even, odd = _merge(builder, phases[::2]), _merge(builder, phases[1::2])
        return [shuffled(builder, e, o, z) for e, o in zip(even, odd, strict=True) for z in zips]
    return [
        _collect(builder, phases, [divmod(part * lanes + e, m)[::-1] for e in range(lanes)])
        for part in range(m)
    ]


def _collect(builder: Any, sources: list[Any], wanted: list[tuple[int, int]]) -> Any:
    """Return a vector whose lane i is element ``wanted[i][1]`` of source ``wanted[i][0]``."""
    lanes = sources[0].type.count
    result = None
    for number, source in enumerate(sources):
        if not any(s == number for s, _ in wanted):
            continue
        if result is None:
            picks = [e if s == number else 0 for s, e in wanted]
            result = shuffled(builder, source, source, picks)
        else:
            picks = [lanes + e if s == number else i for i, (s, e) in enumerate(wanted)]
            result = shuffled(builder, result, source, picks)
    return result


def _phases(builder: Any, parts: list[Any], m: int, alpha: int) -> list[Any]:
    """Return pixel j of every tile, j < alpha; tiles begin m apart in ``parts``."""
    lanes = parts[0].type.count
    phases = _split(builder, parts[:m])
    for j in range(m, alpha):  # pixel j - m of the next tile; the last tile has no next one here
        part, e = divmod(lanes * m + j - m, lanes)
        phases.append(shuffled(builder, phases[j - m], parts[part], [*range(1, lanes), lanes + e]))
    return phases


def _table(builder: Any, vector: ir.VectorType, count: int) -> Any:
    """Return a function that gives the address of an entry of a table on the stack."""
    table = cgutils.alloca_once(builder, ir.ArrayType(vector, count))
    return lambda i: builder.gep(table, [I64(0), i], inbounds=True)


def _for_each_width(context: Any, builder: Any, array: Any, shrink: Any, emit: Any) -> None:
    """Emit a switch over the vector widths; ``emit(vector, itemsize)`` makes each case."""
    itemsize = array.dtype.bitwidth // 8
    for lanes in cases(builder, shrink, dict(enumerate(widths(machine.tile(itemsize).vl))), "width"):
        emit(ir.VectorType(element(array), lanes), itemsize)


@intrinsic
def transform_input(
    typing, v, v0, step, apart, whole, count, x, x0, border, row, stride, edges_at, edges, column, columns,
    shrink, variant,
):  # fmt: skip
    """Set ``v[v0 + position*step + tile] = (B d B^T)[position]`` for the tiles of one group of lanes.

    The plane, whose rows have ``columns`` pixels, is at ``x[x0]``; the first tile's first pixel is in column
    ``column`` of it, which may lie outside, and in row ``border[row]``, or -1; the next in row ``border[row + stride]``.
    What comes of the odd columns is stored ``apart`` from the even ones'.  All lanes are stored where ``whole``,
    else the first ``count``.
    """
    mh, rh, mw, rw = _mr(variant)
    across, phases = SPLITS[variant.types[4].count]
    left, right = matrices(mh, rh)[2], matrices(mw, rw)[2]

    def codegen(context, builder, signature, arguments):
        v, v0, step, apart, whole, count, x, x0, border, row, stride, edges_at, edges, *rest = arguments
        column, columns, shrink, _ = rest
        to = data(context, builder, signature.args[0], v, v0)
        plane = data(context, builder, signature.args[6], x, x0)
        rows = data(context, builder, signature.args[8], border, row)
        pairs = data(context, builder, signature.args[8], border, edges_at)

        def emit(vector, itemsize):
            tables = [_table(builder, vector, len(left[0]) * len(right)) for _ in range(phases)]
            _emit_rows(
                builder, vector, itemsize, tables, across, right, mw, len(left[0]), plane, rows, stride, pairs,
                edges, column, columns,
            )  # fmt: skip
            for phase, entry in enumerate(tables):
                place = builder.gep(to, [builder.mul(apart, I64(phase))])
                _emit_columns(builder, vector, itemsize, entry, left, len(right), place, step, whole, count)

        _for_each_width(context, builder, signature.args[0], shrink, emit)
        return context.get_dummy_value()

    i = types.int64
    return types.void(v, i, i, i, types.boolean, i, x, i, border, i, i, i, i, i, i, i, variant), codegen


def _emit_rows(
    builder: Any, vector: Any, itemsize: int, tables: list[Any], across: int, matrix: Matrix, m: int, high: int,
    plane: Any, rows: Any, stride: Any, pairs: Any, edges: Any, column: Any, columns: Any,
) -> None:  # fmt: skip
    """Emit the loop over the ``high`` pixel rows of the tiles: load, split, transform along the row.

    Of every ``across`` pixels as many as there are tables begin a row of their own.
    """
    lanes, wide = vector.count, len(matrix[0])
    parts = -(-(lanes * m + wide - m) // lanes) * across
    masks = [
        lanes_between(builder, builder.add(column, I64(p * lanes)), I64(0), columns, list(range(lanes)))
        for p in range(parts)
    ]
    row = [cgutils.alloca_once(builder, vector) for _ in range(parts)]
    interior = builder.and_(
        builder.icmp_signed(">=", column, I64(0)),
        builder.icmp_signed("<=", builder.add(column, I64(parts * lanes)), columns),
    )
    with cgutils.for_range(builder, I64(high)) as loop:
        h = builder.load(builder.gep(rows, [builder.mul(loop.index, stride)]))
        inside = builder.icmp_signed(">=", h, I64(0))
        first = builder.gep(plane, [builder.mul(h, columns)])
        line = builder.gep(first, [column])

        def whole_parts():
            return [load(builder, line, p * lanes, vector, itemsize) for p in range(parts)]

        def masked_parts():
            for p, held in enumerate(row):
                at = builder.gep(line, [I64(p * lanes)])
                builder.store(masked_load(builder, at, masks[p], vector, itemsize), held)
            _put_edges(builder, row, first, pairs, edges, column)
            return [builder.load(held) for held in row]

        def inside_parts():
            return _choose(builder, interior, whole_parts, masked_parts)

        def outside_parts():
            return [ir.Constant(vector, [0.0] * lanes)] * parts

        pixels = _choose(builder, inside, inside_parts, outside_parts)
        for phase, entry in enumerate(tables):
            own = pixels
            if across == 2:
                picks = list(range(phase, 2 * lanes, 2))
                own = [shuffled(builder, pixels[p], pixels[p + 1], picks) for p in range(0, parts, 2)]
            outputs = apply(Vectors(builder, vector), matrix, _phases(builder, own, m, wide))
            for j, value in enumerate(outputs):
                at = builder.add(builder.mul(loop.index, I64(len(matrix))), I64(j))
                builder.store(value, entry(at))


def _put_edges(builder: Any, row: list[Any], first: Any, pairs: Any, edges: Any, column: Any) -> None:
    """Emit the loop that puts pixels of the border to their places in a row of vectors on the stack."""
    vector = row[0].type.pointee
    with cgutils.for_range(builder, edges) as loop:
        pair = builder.gep(pairs, [builder.shl(loop.index, I64(1))])
        lane = builder.sub(builder.load(pair), column)
        source = builder.load(builder.gep(pair, [I64(1)]))
        value = splat(builder, builder.load(builder.gep(first, [source])), vector)
        for p, held in enumerate(row):
            begin = builder.sub(lane, I64(p * vector.count))
            here = lanes_between(
                builder, I64(0), begin, builder.add(begin, I64(1)), list(range(vector.count))
            )
            builder.store(builder.select(here, value, builder.load(held)), held)


def _emit_columns(
    builder: Any, vector: Any, itemsize: int, entry: Any, matrix: Matrix, wide: int,
    to: Any, step: Any, whole: Any, count: Any,
) -> None:  # fmt: skip
    """Emit the loop over the table's ``wide`` columns: transform along the column, store the positions."""
    mask = lanes_between(builder, I64(0), I64(0), count, list(range(vector.count)))
    with cgutils.for_range(builder, I64(wide)) as loop:
        inputs = [builder.load(entry(builder.add(loop.index, I64(i * wide)))) for i in range(len(matrix[0]))]
        at = builder.gep(to, [builder.mul(loop.index, step)])
        outputs = [
            (value, builder.gep(at, [builder.mul(step, I64(i * wide))]))
            for i, value in enumerate(apply(Vectors(builder, vector), matrix, inputs))
        ]
        with builder.if_else(whole) as (all_lanes, some):
            with all_lanes:
                for value, place in outputs:
                    store(builder, value, place, 0, itemsize)
            with some:
                for value, place in outputs:
                    masked_store(builder, value, place, mask, itemsize)


def _choose(builder: Any, condition: Any, first: Any, second: Any) -> list[Any]:
    """Emit both makers of vectors in branches of their own; return what the taken one made."""
    made = []
    with builder.if_else(condition) as branches:
        for branch, make in zip(branches, (first, second), strict=True):
            with branch:
                values = make()
                made.append((values, builder.block))
    phis = []
    for a, b in zip(made[0][0], made[1][0], strict=True):
        phi = builder.phi(a.type)
        phi.add_incoming(a, made[0][1])
        phi.add_incoming(b, made[1][1])
        phis.append(phi)
    return phis


@intrinsic
def transform_output(typing, y, y0, pitch, rows, columns, v, v0, step, apart, shrink, variant):
    """Set ``y[y0 + i*pitch + j] = (A v A^T)[i, j]`` for i < rows, j < columns: tiles side by side.

    Where columns are woven, those of the tiles at v0 and of the tiles ``apart`` from them take turns.
    """
    mh, rh, mw, rw = _mr(variant)
    woven = variant.types[5].count
    high, wide = mh + rh - 1, mw + rw - 1
    a_high, a_wide = matrices(mh, rh)[0], matrices(mw, rw)[0]

    def codegen(context, builder, signature, arguments):
        y, y0, pitch, rows, columns, v, v0, step, apart, shrink, _ = arguments
        to = data(context, builder, signature.args[0], y, y0)
        source = data(context, builder, signature.args[5], v, v0)

        def emit(vector, itemsize):
            lanes = vector.count
            tables = [_table(builder, vector, mh * wide) for _ in range(woven)]
            for phase, entry in enumerate(tables):
                own = builder.gep(source, [builder.mul(apart, I64(phase))])
                with cgutils.for_range(builder, I64(wide)) as loop:
                    at = builder.gep(own, [builder.mul(loop.index, step)])
                    inputs = [
                        load(
                            builder, builder.gep(at, [builder.mul(step, I64(i * wide))]), 0, vector, itemsize
                        )
                        for i in range(high)
                    ]
                    for i, value in enumerate(apply(Vectors(builder, vector), a_high, inputs)):
                        builder.store(value, entry(builder.add(loop.index, I64(i * wide))))
            full = builder.icmp_signed(">=", columns, I64(lanes * mw * woven))
            masks = [
                lanes_between(builder, I64(p * lanes), I64(0), columns, list(range(lanes)))
                for p in range(mw * woven)
            ]
            with cgutils.for_range(builder, rows) as loop:
                base = builder.mul(loop.index, I64(wide))
                phases = []
                for entry in tables:
                    inputs = [builder.load(entry(builder.add(base, I64(j)))) for j in range(wide)]
                    phases.append(apply(Vectors(builder, vector), a_wide, inputs))
                parts = _merge(builder, [value for pixel in zip(*phases, strict=True) for value in pixel])
                line = builder.gep(to, [builder.mul(loop.index, pitch)])
                with builder.if_else(full) as (all_lanes, some):
                    with all_lanes:
                        for p, value in enumerate(parts):
                            store(builder, value, line, p * lanes, itemsize)
                    with some:
                        for p, value in enumerate(parts):
                            place = builder.gep(line, [I64(p * lanes)])
                            masked_store(builder, value, place, masks[p], itemsize)

        _for_each_width(context, builder, signature.args[0], shrink, emit)
        return context.get_dummy_value()

    i = types.int64
    return types.void(y, i, i, i, i, v, i, i, i, i, variant), codegen
