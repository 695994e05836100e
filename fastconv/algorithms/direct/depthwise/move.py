"""Moving rows: into a copy with their borders, and a result out of scratch."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.algorithms.direct.depthwise.flow import changed
from fastconv.algorithms.direct.depthwise.lanes import lanes_of, load_lanes, mask_of
from fastconv.algorithms.direct.depthwise.pointer import out_of_line, pointer, scalar_type
from fastconv.gemm.move import add_row, write_row
from fastconv.gemm.tile import I64, cases, prefetch, shuffled, store

# A piece of a copy: ``stride`` vectors of pixels side by side, each lane from one of two places in a row; where its
# first phase goes, and how far after it the next.
PIECE = ("first", "lanes", "second", "others", "to", "phase")
WIDEST = 2  # stride of pieces; at larger ones pixels are copied one by one


@jit.inner
def clear(dst, d, count):
    """Set ``dst[d : d + count]`` to zero."""
    for j in range(count):
        dst[d + j] = 0


@jit.inner
def copy_rows(dst, src, rows, count, pieces, n_pieces, stride, singles, n_singles, ahead):
    """Copy rows (from, to): their pieces, then single pixels (from, to)."""
    copy_pieces(dst, src, rows, count, pieces, n_pieces, stride, ahead)
    for i in range(count * (n_singles > 0)):
        row, line = pointer(src, rows[2 * i]), pointer(dst, rows[2 * i + 1])
        for j in range(0, 2 * n_singles, 2):
            line[singles[j + 1]] = row[singles[j]]


@intrinsic
def copy_pieces(typing, dst, src, rows, count, pieces, n_pieces, stride, ahead):
    """Copy the pieces of rows (from, to), each down all rows; pixels a stride apart are put side by side.

    Whole vectors are stored, and what lies ``ahead`` of the rows is fetched.
    """

    def codegen(context, builder, signature, arguments):
        scalar, itemsize = scalar_type(signature.args[0])
        vl = machine.tile(itemsize).vl

        def emit(builder, dst, src, rows, count, pieces, n_pieces, stride, ahead):
            for phases in cases(builder, stride, {s: s for s in range(1, WIDEST + 1)}, "stride"):
                wide = ir.VectorType(scalar, phases * vl)
                with cgutils.for_range(builder, n_pieces, intp=I64) as piece:
                    at = builder.gep(pieces, [builder.mul(piece.index, I64(len(PIECE)))])
                    p = SimpleNamespace(
                        **{key: builder.load(builder.gep(at, [I64(i)])) for i, key in enumerate(PIECE)}
                    )
                    lanes = lanes_of(builder, p.lanes, wide.count)
                    some = builder.icmp_unsigned("!=", p.others, I64(0))
                    with cgutils.for_range(builder, count, intp=I64) as loop:
                        row = builder.gep(rows, [builder.shl(loop.index, I64(1))])
                        line = builder.gep(src, [builder.load(row)])
                        out = builder.gep(dst, [builder.load(builder.gep(row, [I64(1)]))])
                        out = builder.gep(out, [p.to])
                        place = builder.gep(line, [p.first])
                        for part in range(phases):
                            prefetch(builder, builder.gep(place, [builder.add(ahead, I64(part * vl))]))
                        pixels = load_lanes(builder, place, lanes, wide, 1, itemsize)
                        second = partial(_second, builder, line, p, pixels, itemsize)
                        (pixels,) = changed(builder, some, [pixels], second)
                        for f in range(phases):
                            value = shuffled(builder, pixels, pixels, [f + phases * e for e in range(vl)])
                            store(
                                builder, value, builder.gep(out, [builder.mul(p.phase, I64(f))]), 0, itemsize
                            )

        out_of_line(builder, f"fastconv_depthwise_copy_{itemsize}", arguments, emit)
        return context.get_dummy_value()

    i = types.int64
    return types.void(dst, src, rows, i, pieces, i, i, i), codegen


def _second(builder, line, p, pixels, itemsize):
    """Load what lies in the second place into its lanes."""
    count = pixels.type.count
    at, lanes = builder.gep(line, [p.second]), lanes_of(builder, p.others, count)
    more = load_lanes(builder, at, lanes, pixels.type, 1, itemsize)
    return [builder.select(mask_of(builder, p.others, count), more, pixels)]


@jit.inner
def interleave(dst, src, lds, rows, count):
    """Set ``dst[rows*j + i] = src[i*lds + j]`` for indices of dst below ``count``."""
    for i in range(min(rows, count)):
        for j in range((count - i + rows - 1) // rows):
            dst[rows * j + i] = src[i * lds + j]


@jit.inner
def fold(dst, src, count, more):
    """Set ``dst[j] = src[j]``, or add ``more``."""
    if more:
        add_row(dst, 0, src, 0, count)
    else:
        write_row(dst, 0, src, 0, count)
