"""Two of the three transforms as vector code: a lane is a tile, and lanes are the tiles of a strip (`strips.py`).

* `transform_input`   alpha x alpha pixels of every tile -> one vector for each of the alpha**2 positions;
* `transform_output`  such vectors -> m x m pixels of every tile.

Pixels of neighbouring tiles are m apart: vectors of pixels are transformed along columns as they lie in memory,
then split into their m phases by shuffles; the r - 1 pixels that a tile shares with the next one are the next lane's.
Both passes of a transform meet in a small table on the stack.

Of a strided convolution (`phases.py`) the even and the odd pixels of a row are two rows, told apart as they are
loaded, or woven together as they are stored.

F(m, r) of both axes is known when code is generated: it travels in the *type* of ``variant``, a tuple of tuples
whose lengths are (m, r) of the rows, (m, r) of the columns, how rows and columns of the source are split (`SPLITS`), how
columns of the result are woven, and one more than the step of `folding`.  One kernel thus serves all variants, and its cache
entry is keyed by them.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.algorithms.straight import Vectors
from fastconv.algorithms.winograd.transforms import Matrix, apply, matrices
from fastconv.gemm.move import I1, masked_load, masked_store
from fastconv.gemm.tile import I64, data, element, load, shuffled, store

# (stride, of each of its phases that are read how many taps it lacks at the end) by a variant's fifth and sixth length less one
SPLITS = ((1, (0,)), (2, (0,)), (2, (0, 0)), (2, (0, 1)))


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


def _of_tiles(builder: Any, parts: list[Any], beside: list[Any], ends: Any) -> list[Any]:
    """Return the pixels of every tile, a vector of each: m of its own, which make up a line, and the next tile's first.

    A tile at the ``ends`` of a row has none next to it: its last pixels are ``beside``.
    """
    m, lanes = len(parts), parts[0].type.count
    pixels = _split(builder, parts)
    for value in beside:
        following = pixels[len(pixels) - m]
        following = shuffled(builder, following, following, [*range(1, lanes), 0])
        pixels.append(builder.select(ends, value, following))
    return pixels


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


def _table(builder: Any, kind: Any, count: int) -> Any:
    """Return a function that gives the address of an entry of a table on the stack."""
    table = cgutils.alloca_once(builder, ir.ArrayType(kind, count))
    return lambda i: builder.gep(table, [I64(0), i], inbounds=True)


class _Reader:
    """Reads numbers of a table one after the other, in the order in which the code runs."""

    def __init__(self, builder: Any, table: Any) -> None:
        self.builder, self.place = builder, cgutils.alloca_once_value(builder, table)

    def next(self) -> Any:
        place = self.builder.load(self.place)
        self.builder.store(self.builder.gep(place, [I64(1)]), self.place)
        return self.builder.load(place)

    def mask(self, lanes: int) -> Any:
        """Return the next number's bits as a mask, and whether all are set."""
        bits = self.builder.trunc(self.next(), ir.IntType(lanes))
        whole = self.builder.icmp_unsigned("==", bits, bits.type(2**lanes - 1))
        return _mask(self.builder, bits), whole

    def masks(self, lanes: int, count: int) -> list[Any]:
        """Return the next numbers' bits."""
        return [self.mask(lanes)[0] for _ in range(count)]


def _mask(builder: Any, bits: Any) -> Any:
    """Return bits as a mask of lanes."""
    return builder.bitcast(bits, ir.VectorType(I1, bits.type.width))


def _divided(builder: Any, values: list[Any], step: int, first: Any, last: Any) -> list[Any]:
    """Return the pixels of tiles divided as `folding` tells: from the beginning in the lanes ``first``, from the end in ``last``."""
    for mask, direction in ((first, 1), (last, -1)):
        values = values[::direction]
        for i in range(step, len(values)):
            values[i] = builder.select(mask, builder.fadd(values[i], values[i - step]), values[i])
        values = values[::direction]
    return values


def _divide_ends(
    builder: Any, lines: list[Any], step: int, number: Any, ends: tuple[Any, Any], mask: Any
) -> None:
    """Divide ``lines``, in the lanes under the mask, if their row of tiles is the first or the last with pixels of a border."""
    of_ends = [builder.icmp_signed("==", number, end) for end in ends]
    with builder.if_then(builder.or_(*of_ends), likely=False):
        masks = [builder.select(end, mask, mask.type([0] * mask.type.count)) for end in of_ends]
        values = _divided(builder, [builder.load(line) for line in lines], step, *masks)
        for value, line in zip(values, lines, strict=True):
            builder.store(value, line)


def _multiplied(builder: Any, values: list[Any], step: int, first: Any, last: list[Any]) -> list[Any]:
    """Return the results of tiles times the divisor; of those at the end each has its mask of lanes."""
    folded = list(values)
    for j in range(step, len(values)):
        folded[j] = builder.select(first, builder.fsub(folded[j], values[j - step]), folded[j])
    for j, mask in enumerate(last):
        folded[j] = builder.select(mask, builder.fsub(folded[j], values[j + step]), folded[j])
    return folded


@intrinsic
def transform_input(
    typing, v, v0, step, apart, x, x0, image, table, tile_lines, rows, tiles_h, first, zeros, pieces, top, bottom, variant,
):  # fmt: skip
    """Set ``v[v0 + phase*apart + position*step + tile] = (B d B^T)[position]`` for the tiles of a strip.

    Its first row of tiles is the ``first`` of ``tiles_h`` of the image whose plane is at ``x[x0]``; the next image's is
    ``image`` after it.  ``rows`` rows are left.  Line i of row j begins in the plane at ``table[j*tile_lines + i]``, or
    is one of zeros, as there are at ``table[zeros]``; vectors of pixels are put together as ``table[pieces]`` tells.
    Phases are even and odd lines, and of each even and odd columns.  At infinity, where a phase that lacks the last tap is
    multiplied by zeros, nothing is stored, nor is the pixel read that matters there alone.
    Rows ``top`` and ``bottom`` of an image, and the tiles of a row under masks, are divided (`folding`).
    """
    mh, rh, mw, rw = _mr(variant)
    fold = variant.types[6].count - 1
    (down, lines_lack), (across, columns_lack) = (SPLITS[t.count - 1] for t in variant.types[4:6])
    left = [_without_last(matrices(mh, rh)[2], lack) for lack in lines_lack]
    right = [_without_last(matrices(mw, rw)[2], lack) for lack in columns_lack]
    starts = list(accumulate(map(len, left), initial=0))
    high, wide, dense = starts[-1], mw + rw - 1, mw * across
    shared = [
        (i, phase) for i in range(rw - 1) for phase, lack in enumerate(columns_lack) if i < rw - 1 - lack
    ]
    vectors = dense + len(shared)

    def codegen(context, builder, signature, arguments):
        v, v0, step, apart, x, x0, image, table, *rest = arguments
        tile_lines, rows, tiles_h, first, zeros, pieces, top, bottom, _ = rest
        itemsize = signature.args[0].dtype.bitwidth // 8
        vector = ir.VectorType(element(signature.args[0]), machine.tile(itemsize).vl)
        to = data(context, builder, signature.args[0], v, v0)
        plane = data(context, builder, signature.args[4], x, x0)
        lines, nothing, held = (
            data(context, builder, signature.args[7], table, i) for i in (I64(0), zeros, pieces)
        )
        places, numbers = (_table(builder, kind, vector.count * high) for kind in (plane.type, I64))
        nothing = builder.bitcast(nothing, plane.type)
        reader = _Reader(builder, held)
        with _each_row(builder, plane, image, first, tiles_h, rows, reader.next()) as (r, own, i, there):
            at = builder.gep(lines, [builder.mul(i, tile_lines)])
            tile_lines_read = [down * i + phase for phase, b in enumerate(left) for i in range(len(b))]
            for h, line in enumerate(tile_lines_read):
                begin = builder.load(builder.gep(at, [I64(line)]))
                inside = builder.and_(there, builder.icmp_signed(">=", begin, I64(0)))
                place = builder.select(inside, builder.gep(own, [begin]), nothing)
                builder.store(place, places(builder.add(builder.mul(r, I64(high)), I64(h))))
            if fold:
                builder.store(i, numbers(builder.mul(r, I64(high))))
        ends, *sides = reader.masks(vector.count, 3 if fold else 1)

        def divide(row, mask, lines):
            _divide_ends(builder, lines, fold, builder.load(numbers(row)), (top, bottom), mask)

        entry = _table(builder, vector, high * vectors)
        with (
            cgutils.for_range(builder, I64(vectors)) as loop,
            builder.if_else(builder.icmp_signed(">", count := reader.next(), I64(0))) as (some, none),
        ):
            with some:
                pixels = _put_together(
                    builder, reader, count, places, high, vector, itemsize, divide if fold else None
                )
                for start, b in zip(starts, left, strict=False):
                    values = apply(Vectors(builder, vector), b, pixels[start : start + len(b)])
                    for i, value in enumerate(values, start):
                        builder.store(value, entry(builder.add(loop.index, I64(i * vectors))))
            with none:
                for i in range(high):
                    zero = ir.Constant(vector, [0.0] * vector.count)
                    builder.store(zero, entry(builder.add(loop.index, I64(i * vectors))))
        for phase, b in enumerate(right):
            with cgutils.for_range(builder, I64(high)) as loop:
                base = builder.mul(loop.index, I64(vectors))
                own = [builder.load(entry(builder.add(base, I64(i)))) for i in range(vectors)]
                begin = own[:dense]
                if across == 2:
                    picks = list(range(phase, 2 * vector.count, 2))
                    begin = [shuffled(builder, *begin[i : i + 2], picks) for i in range(0, dense, 2)]
                beside = [v for v, (_, of) in zip(own[dense:], shared, strict=True) if of == phase]
                inputs = _of_tiles(builder, begin, beside, ends)
                if fold:
                    inputs = _divided(builder, inputs, fold, *sides)
                outputs = apply(Vectors(builder, vector), b, inputs)
                odd = builder.icmp_signed(">=", loop.index, I64(starts[1]))
                line = builder.select(odd, builder.sub(loop.index, I64(starts[1])), loop.index)
                place = builder.add(
                    builder.mul(apart, builder.select(odd, I64(len(right) + phase), I64(phase))),
                    builder.mul(step, builder.mul(line, I64(wide))),
                )
                at = builder.gep(to, [place])
                for j, value in enumerate(outputs):
                    store(builder, value, builder.gep(at, [builder.mul(step, I64(j))]), 0, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(v, i, i, i, x, i, i, table, i, i, i, i, i, i, i, i, variant), codegen


def _without_last(matrix: Matrix, lack: int) -> Matrix:
    """Return B of a phase that lacks so many taps at the end: without infinity, and the pixel that it alone sees."""
    size = len(matrix) - lack
    return tuple(row[:size] for row in matrix[:size])


@contextmanager
def _each_row(builder: Any, plane: Any, image: Any, first: Any, tiles_h: Any, rows: Any, touched: Any) -> Any:
    """Loop over the rows of tiles of a strip: give each one's number, its image's plane, its place there, if it is there."""
    own, place = cgutils.alloca_once_value(builder, plane), cgutils.alloca_once_value(builder, first)
    with cgutils.for_range(builder, touched) as loop:
        i = builder.load(place)
        yield loop.index, builder.load(own), i, builder.icmp_signed("<", loop.index, rows)
        after = builder.add(i, I64(1))
        last = builder.icmp_signed("==", after, tiles_h)
        builder.store(builder.select(last, I64(0), after), place)
        builder.store(builder.gep(builder.load(own), [builder.select(last, image, I64(0))]), own)


def _put_together(
    builder: Any, reader: _Reader, count: Any, places: Any, high: int, vector: Any, itemsize: int, divide: Any
) -> list[Any]:  # fmt: skip
    """Emit the loop over the pieces of a vector; return it for each of the ``high`` lines of a tile.

    ``divide``, if any, is called with what a piece has filled.
    """
    held = [
        cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * vector.count)) for _ in range(high)
    ]
    with cgutils.for_range(builder, count):
        row, offset = reader.next(), reader.next()
        mask, whole = reader.mask(vector.count)
        addresses = [
            builder.gep(builder.load(places(builder.add(row, I64(h)))), [offset]) for h in range(high)
        ]
        with builder.if_else(whole) as (all_lanes, some):
            with all_lanes:
                for address, line in zip(addresses, held, strict=True):
                    builder.store(load(builder, address, 0, vector, itemsize), line)
            with some:
                for address, line in zip(addresses, held, strict=True):
                    others = builder.load(line)
                    builder.store(masked_load(builder, address, mask, vector, itemsize, others), line)
        if divide:
            divide(row, mask, held)
    return [builder.load(line) for line in held]


@intrinsic
def transform_output(
    typing, y, y0, image, pitch, lines, v, v0, step, apart, table, rows, tiles_h, first, pieces, top, bottom, variant,
):  # fmt: skip
    """Set the results (A v A^T) of a strip of tiles, whose rows are as `transform_input` has them.

    Of each image there are ``lines`` lines, ``pitch`` apart; ``table[pieces]`` tells which lanes belong where.
    Where columns are woven, those of the tiles at v0 and of the tiles ``apart`` from them take turns.
    Tiles at the ends of rows and columns are multiplied (`folding`).
    """
    mh, rh, mw, rw = _mr(variant)
    woven, fold = variant.types[6].count, variant.types[7].count - 1
    high, wide = mh + rh - 1, mw + rw - 1
    a_high, a_wide = matrices(mh, rh)[0], matrices(mw, rw)[0]

    def codegen(context, builder, signature, arguments):
        y, y0, image, pitch, lines, v, v0, step, apart, table, *rest = arguments
        rows, tiles_h, first, pieces, top, bottom, _ = rest
        itemsize = signature.args[0].dtype.bitwidth // 8
        vector = ir.VectorType(element(signature.args[0]), machine.tile(itemsize).vl)
        plane = data(context, builder, signature.args[0], y, y0)
        source = data(context, builder, signature.args[5], v, v0)
        pieces = data(context, builder, signature.args[9], table, pieces)
        places, counts = (_table(builder, kind, vector.count) for kind in (plane.type, I64))
        head = _Reader(builder, pieces)
        bits = ir.IntType(vector.count)
        at_ends = [cgutils.alloca_once_value(builder, bits(0)) for _ in range(2)]
        with _each_row(builder, plane, image, first, tiles_h, rows, head.next()) as (r, own, i, there):
            line = builder.mul(i, I64(mh))
            builder.store(builder.gep(own, [builder.mul(line, pitch)]), places(r))
            builder.store(builder.select(there, builder.sub(lines, line), I64(0)), counts(r))
            if fold:
                of_row = builder.trunc(head.next(), bits)
                for row, found in zip((top, bottom), at_ends, strict=True):
                    here = builder.select(builder.icmp_signed("==", i, row), of_row, bits(0))
                    builder.store(builder.or_(builder.load(found), here), found)
        if fold:
            above, last = (builder.load(found) for found in at_ends)
            of_last = builder.sub(lines, builder.mul(bottom, I64(mh)))
            inside = [builder.icmp_signed("<", I64(j), of_last) for j in range(fold, mh)]
            above, *below = (
                _mask(builder, lanes)
                for lanes in (above, *(builder.select(j, last, bits(0)) for j in inside))
            )
            left, *right = head.masks(vector.count, 1 + max(0, mw - fold))
        behind = builder.load(head.place)
        tables = [_table(builder, vector, mh * wide) for _ in range(woven)]
        for phase, entry in enumerate(tables):
            own = builder.gep(source, [builder.mul(apart, I64(phase))])
            with cgutils.for_range(builder, I64(wide)) as loop:
                at = builder.gep(own, [builder.mul(loop.index, step)])
                inputs = [
                    load(builder, builder.gep(at, [builder.mul(step, I64(i * wide))]), 0, vector, itemsize)
                    for i in range(high)
                ]
                values = apply(Vectors(builder, vector), a_high, inputs)
                if fold:
                    values = _multiplied(builder, values, fold, above, below)
                for i, value in enumerate(values):
                    builder.store(value, entry(builder.add(loop.index, I64(i * wide))))
        with cgutils.for_range(builder, I64(mh)) as loop:
            base = builder.mul(loop.index, I64(wide))
            phases = []
            for entry in tables:
                inputs = [builder.load(entry(builder.add(base, I64(j)))) for j in range(wide)]
                phases.append(apply(Vectors(builder, vector), a_wide, inputs))
            if fold:
                phases = [_multiplied(builder, values, fold, left, right) for values in phases]
            line = builder.mul(loop.index, pitch)
            reader = _Reader(builder, behind)
            for value in _merge(builder, [value for pixel in zip(*phases, strict=True) for value in pixel]):
                _take_apart(builder, reader, value, places, counts, loop.index, line, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(y, i, i, i, i, v, i, i, i, table, i, i, i, i, i, i, variant), codegen


def _take_apart(
    builder: Any, reader: _Reader, value: Any, places: Any, counts: Any, number: Any, line: Any, itemsize: int
) -> None:  # fmt: skip
    """Emit the loop over the pieces of a vector that stores them to where they belong."""
    with cgutils.for_range(builder, reader.next()):
        row, offset = reader.next(), reader.next()
        mask, whole = reader.mask(value.type.count)
        with builder.if_then(builder.icmp_signed("<", number, builder.load(counts(row)))):
            place = builder.gep(builder.load(places(row)), [builder.add(line, offset)])
            with builder.if_else(whole) as (all_lanes, some):
                with all_lanes:
                    store(builder, value, place, 0, itemsize)
                with some:
                    masked_store(builder, value, place, mask, itemsize)
