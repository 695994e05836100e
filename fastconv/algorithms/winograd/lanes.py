"""Two of the three transforms as vector code: a lane is a tile, and lanes are the tiles of a strip (`strips.py`).

* `transform_input`   alpha x alpha pixels of every tile -> one vector for each of the alpha**2 positions;
* `transform_output`  such vectors -> m x m pixels of every tile.

Pixels of neighbouring tiles are m apart: vectors of pixels are transformed along columns as they lie in memory
(`pieces.py`), then split into their m phases by `shuffles.py`; the r - 1 pixels that a tile shares with the next one are the
next lane's.  Both passes of a transform meet in a small table on the stack.

Of a strided convolution (`phases.py`) the even and the odd pixels of a row are two rows, told apart as they are
loaded, or woven together as they are stored.

F(m, r) of both axes is known when code is generated: it travels in the *type* of ``variant``, a tuple of tuples
whose lengths are (m, r) of the rows, (m, r) of the columns, how rows and columns of the source are split (`SPLITS`), how
columns of the result are woven, and one more than the step of `folding`.  One kernel thus serves all variants, and its cache
entry is keyed by them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.algorithms.straight import Vectors
from fastconv.algorithms.winograd.pieces import (
    Reader,
    each_row,
    mask_of,
    put_together,
    stack_table,
    take_apart,
)
from fastconv.algorithms.winograd.shuffles import merge, of_tiles
from fastconv.algorithms.winograd.transforms import Matrix, apply, matrices
from fastconv.gemm.tile import I64, data, element, load, shuffled, store

# (stride, of each of its phases that are read how many taps it lacks at the end) by a variant's fifth and sixth length less one
SPLITS = ((1, (0,)), (2, (0,)), (2, (0, 0)), (2, (0, 1)))


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


class _Source:
    """What a variant says of the tiles that `transform_input` reads."""

    def __init__(self, variant: Any) -> None:
        mh, rh, mw, rw, *splits, fold = (t.count for t in variant.types)
        (self.down, lines_lack), (self.across, columns_lack) = (SPLITS[split - 1] for split in splits)
        self.fold = fold - 1
        self.left = [_without_last(matrices(mh, rh)[2], lack) for lack in lines_lack]  # B of each phase
        self.right = [_without_last(matrices(mw, rw)[2], lack) for lack in columns_lack]
        self.starts = list(
            accumulate(map(len, self.left), initial=0)
        )  # where lines of a phase begin among all
        self.high, self.wide = self.starts[-1], mw + rw - 1
        self.dense = (
            mw * self.across
        )  # vectors of a line that are whole; behind them what the next tile has of it:
        self.shared = [
            (i, phase) for i in range(rw - 1) for phase, lack in enumerate(columns_lack) if i < rw - 1 - lack
        ]
        self.vectors = self.dense + len(self.shared)

    @property
    def lines(self) -> list[int]:
        """Which lines each phase reads, of those that rows of tiles have a table of."""
        return [self.down * i + phase for phase, b in enumerate(self.left) for i in range(len(b))]


def _without_last(matrix: Matrix, lack: int) -> Matrix:
    """Return B of a phase that lacks so many taps at the end: without infinity, and the pixel that it alone sees."""
    size = len(matrix) - lack
    return tuple(row[:size] for row in matrix[:size])


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
    s = _Source(variant)

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
        places, numbers = (stack_table(builder, kind, vector.count * s.high) for kind in (plane.type, I64))
        nothing = builder.bitcast(nothing, plane.type)
        reader = Reader(builder, held)
        with each_row(builder, plane, image, first, tiles_h, rows, reader.next()) as (r, own, i, there):
            at = builder.gep(lines, [builder.mul(i, tile_lines)])
            for h, line in enumerate(s.lines):
                begin = builder.load(builder.gep(at, [I64(line)]))
                inside = builder.and_(there, builder.icmp_signed(">=", begin, I64(0)))
                place = builder.select(inside, builder.gep(own, [begin]), nothing)
                builder.store(place, places(builder.add(builder.mul(r, I64(s.high)), I64(h))))
            if s.fold:
                builder.store(i, numbers(builder.mul(r, I64(s.high))))
        ends, *sides = reader.masks(vector.count, 3 if s.fold else 1)

        def divide(row, mask, lines):
            _divide_ends(builder, lines, s.fold, builder.load(numbers(row)), (top, bottom), mask)

        def read(count):
            return put_together(
                builder, reader, count, places, s.high, vector, itemsize, divide if s.fold else None
            )

        entry = stack_table(builder, vector, s.high * s.vectors)
        _transform_columns(builder, s, vector, reader, read, entry)
        for phase in range(len(s.right)):
            _transform_rows(builder, s, phase, vector, entry, ends, sides, to, step, apart, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(v, i, i, i, x, i, i, table, i, i, i, i, i, i, i, i, variant), codegen


def _transform_columns(builder: Any, s: _Source, vector: Any, reader: Reader, read: Any, entry: Any) -> None:
    """Emit the loop over vectors of a line that transforms all lines along their columns, or knows them to be zeros."""
    with (
        cgutils.for_range(builder, I64(s.vectors)) as loop,
        builder.if_else(builder.icmp_signed(">", count := reader.next(), I64(0))) as (some, none),
    ):

        def put(i: int, value: Any) -> None:
            builder.store(value, entry(builder.add(loop.index, I64(i * s.vectors))))

        with some:
            pixels = read(count)
            for start, b in zip(s.starts, s.left, strict=False):
                values = apply(Vectors(builder, vector), b, pixels[start : start + len(b)])
                for i, value in enumerate(values, start):
                    put(i, value)
        with none:
            for i in range(s.high):
                put(i, ir.Constant(vector, [0.0] * vector.count))


def _transform_rows(
    builder: Any, s: _Source, phase: int, vector: Any, entry: Any, ends: Any, sides: list[Any], to: Any, step: Any,
    apart: Any, itemsize: int,
) -> None:  # fmt: skip
    """Emit the loop over lines that makes vectors of tiles of a phase's columns, transforms and stores them."""
    with cgutils.for_range(builder, I64(s.high)) as loop:
        base = builder.mul(loop.index, I64(s.vectors))
        own = [builder.load(entry(builder.add(base, I64(i)))) for i in range(s.vectors)]
        begin = own[: s.dense]
        if s.across == 2:
            picks = list(range(phase, 2 * vector.count, 2))
            begin = [shuffled(builder, *begin[i : i + 2], picks) for i in range(0, s.dense, 2)]
        beside = [v for v, (_, of) in zip(own[s.dense :], s.shared, strict=True) if of == phase]
        inputs = of_tiles(builder, begin, beside, ends)
        if s.fold:
            inputs = _divided(builder, inputs, s.fold, *sides)
        outputs = apply(Vectors(builder, vector), s.right[phase], inputs)
        odd = builder.icmp_signed(">=", loop.index, I64(s.starts[1]))
        line = builder.select(odd, builder.sub(loop.index, I64(s.starts[1])), loop.index)
        place = builder.add(
            builder.mul(apart, builder.select(odd, I64(len(s.right) + phase), I64(phase))),
            builder.mul(step, builder.mul(line, I64(s.wide))),
        )
        at = builder.gep(to, [place])
        for j, value in enumerate(outputs):
            store(builder, value, builder.gep(at, [builder.mul(step, I64(j))]), 0, itemsize)


@intrinsic
def transform_output(
    typing, y, y0, image, pitch, lines, v, v0, step, apart, table, rows, tiles_h, first, pieces, top, bottom, variant,
):  # fmt: skip
    """Set the results (A v A^T) of a strip of tiles, whose rows are as `transform_input` has them.

    Of each image there are ``lines`` lines, ``pitch`` apart; ``table[pieces]`` tells which lanes belong where.
    Where columns are woven, those of the tiles at v0 and of the tiles ``apart`` from them take turns.
    Tiles at the ends of rows and columns are multiplied (`folding`).
    """
    mh, rh, mw, rw = (t.count for t in variant.types[:4])
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
        places, counts = (stack_table(builder, kind, vector.count) for kind in (plane.type, I64))
        head = Reader(builder, pieces)
        bits = ir.IntType(vector.count)
        at_ends = [cgutils.alloca_once_value(builder, bits(0)) for _ in range(2)]
        with each_row(builder, plane, image, first, tiles_h, rows, head.next()) as (r, own, i, there):
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
                mask_of(builder, lanes)
                for lanes in (above, *(builder.select(j, last, bits(0)) for j in inside))
            )
            left, *right = head.masks(vector.count, 1 + max(0, mw - fold))
        behind = builder.load(head.place)
        tables = [stack_table(builder, vector, mh * wide) for _ in range(woven)]
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
            reader = Reader(builder, behind)
            for value in merge(builder, [value for pixel in zip(*phases, strict=True) for value in pixel]):
                take_apart(builder, reader, value, places, counts, loop.index, line, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(y, i, i, i, i, v, i, i, i, table, i, i, i, i, i, i, variant), codegen
