"""The tile that finishes results in registers and writes them to their place.

``out[m, :columns] = max(floor, start[m] + A[T, m] * B[T, :] (+ C[m]))``: the bias is where the sums begin,
ReLU the floor, C what earlier chunks of the reduction left.  Stores straight to the result are still on
their way to memory while the next tile multiplies; a pass over finished results would wait for them (64 ->
128 channels, 16 x 56 x 56, one thread: 7.0 -> 4.9 ms).  So no kernel may use an atomic instruction, such as
counting an array's references, from tile to tile: it waits until all stores have arrived.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.activations import RELU, code_of, is_plain
from fastconv.gemm.move import lanes_between, masked_store, store_past, to_boundary, write_lines
from fastconv.gemm.pack import loaded, panel_at
from fastconv.gemm.schedule import part, span
from fastconv.gemm.tile import (
    I64,
    by_steps,
    data,
    element,
    emit_added,
    emit_family,
    emit_sums,
    prefetch,
    rows_at,
    splat,
    store,
)

ARGUMENTS = (
    "out", "o0", "ldo", "columns", "past_caches", "c", "c0", "ldc", "accumulate", "bias", "channel", "biased", "floor",
    "a", "a0", "b", "b0", "steps", "begin", "length", "mr", "nr", "following", "n0", "apart", "lda", "scale", "source",
    "s0",
)  # fmt: skip


def _emit_stores(
    builder: Any, rows: list[Any], results: list[list[Any]], columns: Any, past_caches: Any, itemsize: int
) -> None:  # fmt: skip
    """Emit the stores of ``columns`` of each row: whole vectors past the caches or near, else the last one under a mask."""
    nr, vl = len(results[0]), results[0][0].type.count
    with builder.if_else(past_caches) as (far, near):
        with far:
            _emit_vectors(builder, rows, results, itemsize, past_caches=True)
        with near:
            whole = builder.icmp_signed("==", columns, I64(nr * vl))
            with builder.if_else(whole) as (all_lanes, edge):
                with all_lanes:
                    _emit_vectors(builder, rows, results, itemsize)
                with edge:
                    mask = lanes_between(builder, I64((nr - 1) * vl), I64(0), columns, list(range(vl)))
                    _emit_vectors(builder, rows, results, itemsize, mask)


def _emit_vectors(
    builder: Any, rows: list[Any], results: list[list[Any]], itemsize: int, mask: Any = None,
    past_caches: bool = False,
) -> None:  # fmt: skip
    """Emit the stores of all vectors; of the last of each row what is under the mask."""
    last, vl = len(results[0]) - 1, results[0][0].type.count
    for row, values in zip(rows, results, strict=False):
        for j, value in enumerate(values):
            if mask is not None and j == last:
                masked_store(builder, value, builder.gep(row, [I64(j * vl)]), mask, itemsize)
            elif past_caches:
                store_past(builder, value, builder.gep(row, [I64(j * vl)]), itemsize)
            else:
                store(builder, value, row, j * vl, itemsize)


class _Tile:
    """The parts of `tile_result`, of arguments by name."""

    def __init__(self, context: Any, builder: Any, *kinds_and_arguments: Any) -> None:
        kinds, given = (dict(zip(ARGUMENTS, some, strict=True)) for some in kinds_and_arguments)
        self.context, self.builder, self.kinds, self.given = context, builder, kinds, given
        scalar = element(kinds["out"])
        self.itemsize = kinds["out"].dtype.bitwidth // 8
        self.shape = machine.tile(self.itemsize)
        self.vector = ir.VectorType(scalar, self.shape.vl)
        pointers = self.pointer("a", "a0"), self.pointer("b", "b0"), self.pointer("steps", "begin")
        self.find = by_steps(builder, *pointers, given["lda"], given["scale"])
        self.following = None if self.lacks("following") else self.pointer("following", "n0")
        self.rows = rows_at(builder, self.pointer("out", "o0"), given["ldo"], self.shape.mr)
        self.partial = rows_at(builder, self.pointer("c", "c0"), given["ldc"], self.shape.mr)
        none = ir.Constant(ir.ArrayType(scalar, self.shape.mr), [0.0] * self.shape.mr)
        none = builder.bitcast(cgutils.global_constant(builder, "no_bias", none), scalar.as_pointer())
        self.first = builder.select(given["biased"], self.pointer("bias", "channel"), none)
        self.floor = splat(builder, given["floor"], self.vector)

    def lacks(self, name: str) -> bool:
        return isinstance(self.kinds[name], types.NoneType)

    def pointer(self, name: str, index: str) -> Any:
        return data(self.context, self.builder, self.kinds[name], self.given[name], self.given[index])

    def operands(self, t: Any, mr: int) -> tuple[Any, Any, None]:
        """Return where step t finds its scalars and its row of B, and fetch a line for somebody else."""
        builder = self.builder
        scalar_at, b, _ = self.find(t, mr)
        if self.following is None:
            wanted = builder.gep(b, [self.given["n0"]])
        else:
            wanted = builder.gep(self.following, [builder.mul(t, self.given["apart"])])
        prefetch(builder, wanted)
        return scalar_at, b, None

    def copying(self, source: Any, t: Any, mr: int) -> tuple[Any, Any, Any]:
        """Return the same with the row in the source, and where to copy it to."""
        scalar_at, b, _ = self.operands(t, mr)
        return scalar_at, self.builder.gep(source, [self.builder.mul(t, self.given["apart"])]), b

    def emit_family(self, operands: Any, least: int = 1) -> None:
        """Emit the tiles of all sizes, of ``least`` vectors in a row."""
        mr, nr = self.given["mr"], self.given["nr"]
        emit_family(self.builder, mr, nr, self.shape, lambda m, j: self.emit(m, j, operands), least=least)

    def emit(self, m: int, j: int, operands: Any) -> None:
        """Emit a tile of m rows and j vectors."""
        builder, given, floor = self.builder, self.given, self.floor
        start = [
            splat(builder, builder.load(builder.gep(self.first, [I64(k)])), self.vector) for k in range(m)
        ]
        sums = emit_sums(builder, operands, given["length"], start, (m, j), self.itemsize)
        results = [
            # the machine's maximum: of two operands the second, if one is no number
            [builder.select(builder.fcmp_ordered(">", floor, v), floor, v) for v in values]
            for values in emit_added(builder, self.partial, sums, given["accumulate"], self.itemsize)
        ]
        _emit_stores(builder, self.rows, results, given["columns"], given["past_caches"], self.itemsize)


@intrinsic
def tile_result(typing: Any, out: Any, o0: Any, ldo: Any, columns: Any, past_caches: Any, c: Any, c0: Any,
                ldc: Any, accumulate: Any, bias: Any, channel: Any, biased: Any, floor: Any, a: Any, a0: Any, b: Any,
                b0: Any, steps: Any, begin: Any, length: Any, mr: Any, nr: Any, following: Any, n0: Any, apart: Any,
                lda: Any, scale: Any, source: Any, s0: Any) -> Any:  # fmt: skip
    """Set ``out[m, :columns]`` to ``max(floor, bias[channel + m] + sums + C[m])``, by the table of steps.

    Element (t, m) of A stands at ``a[a0 + steps[2*t]*scale + m*lda]``: in a panel, or where the weights are.

    Bias and C are left out unless ``biased`` and ``accumulate``.  Past the caches only where ``columns`` are
    whole vectors and rows of out begin at vectors of memory.  A NaN stays one.  Step t fetches the cache line of
    ``following[n0 + t*apart]``, which somebody is going to read; that ``n0`` after its row of B if following is None.

    If ``s0`` is not negative, nr is NR and B is not there yet: step t takes its row from ``source[s0 + t*apart]``, and
    copies it to its place.  Where the source is None this is left out.
    """
    i, flag = types.int64, types.boolean

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        t = _Tile(context, builder, signature.args, arguments)
        if t.lacks("source"):
            t.emit_family(t.operands)
            return context.get_dummy_value()
        source = t.pointer("source", "s0")
        with builder.if_else(builder.icmp_signed(">=", t.given["s0"], I64(0))) as (absent, there):
            with absent:
                t.emit_family(lambda step, mr: t.copying(source, step, mr), least=t.shape.nr)
            with there:
                t.emit_family(t.operands)
        return context.get_dummy_value()

    number = out.dtype
    return (
        types.void(
            out, i, i, i, flag, c, i, i, flag, bias, i, flag, number, a, i, b, i, steps, i, i, i, i, following,
            *(i, i, i, i), source, i,
        ),
        codegen,
    )  # fmt: skip


@jit.inner
def multiply_panels(
    x, ahead, ahead_step, source, s0, w, view, out, scratch, panels_at, b, b0, c0, geo, phases_at, tables, group, chunk, p0, p1,
    columns, straight, place, lines, opens, closes, bias, activation, residual,
):  # fmt: skip
    """Multiply panels p0..p1 of a chunk with a slice of B, ``columns`` wide, that begins at ``b[b0]``.

    Sums of each panel row and phase are kept at ``c0``, in rows of ``geo.ldc``, until the last chunk; there
    results as well, unless a channel's are one run of the result: they are written ``straight`` to it, from
    ``place`` on for the first channel.  Tell whether all is done then, and nothing left to store or to finish.

    Tiles fetch the source of the next slice: rows ``ahead_step`` apart from ``x[ahead]`` on, or ``ahead`` of those of B
    if x is None, a line with each panel until it is there.  If ``s0`` is not negative, the first tile copies B from there, rows as far apart.

    Rows that begin anywhere in a line of memory wait at ``scratch[lines]``, if that is not negative, until lines are
    full: see `write_lines`.
    """
    panels, apart = -(-geo.m // geo.mr), geo.phases * geo.ldc
    ch0, ch1 = span(geo.channels, geo.chunks, chunk)
    first, last = chunk == 0, chunk == geo.chunks - 1
    plain = is_plain(activation, residual)
    floor = out.dtype.type(0 if last and plain and code_of(activation) == RELU else -np.inf)
    vectors = -(-columns // geo.vl)
    by_lines, pitch = lines >= 0, geo.ld + geo.vl
    width = columns if straight and not by_lines else vectors * geo.vl
    past_caches = geo.stream > 0 and straight and plain and columns == vectors * geo.vl
    past_caches = past_caches and to_boundary(out, place) == 0
    top = m1 = written = part(geo.m, panels, p0)
    for p in range(p0, p1):
        m0, m1 = m1, part(geo.m, panels, p + 1)
        a0, lda, scale = panel_at(view, panels_at, group, top, m0, m1 - m0, ch0, ch1)
        c = c0 + (m0 - top) * apart
        line = (p - p0) * geo.vl
        for phase in range(geo.phases):
            taps, begin = tables[phases_at + 2 * phase], tables[phases_at + 2 * phase + 1]
            if taps == 0 and not last:
                continue
            fresh = first or taps == 0  # without sums of earlier chunks
            to, step = c + phase * geo.ldc, apart
            if by_lines:
                to, step = lines + (m0 - top) * pitch + geo.vl, pitch
            elif straight:
                to, step = place + (m0 - top) * geo.result_size, geo.result_size
            tile_result(
                out if straight and not by_lines else scratch, to, step, width, past_caches,
                scratch, c + phase * geo.ldc, apart, not fresh, bias, group * geo.m + m0, fresh and bias.size > 0,
                floor, scratch if loaded(view) else w, a0, b, b0, tables, begin, (ch1 - ch0) * taps, m1 - m0, vectors,
                x, ahead + min(line, geo.ld - 1), ahead_step if line < geo.ld + geo.vl else 0, lda, scale, source, s0,
            )  # fmt: skip
            s0 = s0 if taps == 0 else -1  # now B is there
        if by_lines:  # the panel before: what the tile stored just now cannot be loaded yet
            for m in range(written - top, (m0 if p + 1 < p1 else m1) - top):
                at = lines + m * pitch + geo.vl
                write_lines(out, place + m * geo.result_size, scratch, at, columns, opens, closes)
            written = m0
    return not last or (straight and plain)
