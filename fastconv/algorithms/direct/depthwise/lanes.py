"""Vectors of which some lanes lie in memory: loads and stores under a mask of bits, lane 0 the lowest.

AVX-512 and AVX2 have them as instructions; elsewhere a whole vector is loaded or stored as such, and
any other lane by lane in a function of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from fastconv import machine
from fastconv.gemm.move import I1, I32, masked_load, masked_store
from fastconv.gemm.tile import load, store


def lanes_of(builder: Any, bits: Any, count: int) -> Any:
    """Return the lowest ``count`` bits of a number."""
    return builder.trunc(bits, ir.IntType(count))


def _all(builder: Any, lanes: Any) -> Any:
    return builder.icmp_unsigned("==", lanes, ir.Constant(lanes.type, -1))


def _mask(builder: Any, lanes: Any) -> Any:
    return builder.bitcast(lanes, ir.VectorType(I1, lanes.type.width))


def _called(builder: Any, name: str, result: Any, emit: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function whose body ``emit(builder, *arguments)`` writes, once in a module."""
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(result, [a.type for a in arguments])
        function = ir.Function(builder.module, kind, name)
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        body = ir.IRBuilder(function.append_basic_block("entry"))
        value = emit(body, *function.args)
        body.ret_void() if value is None else body.ret(value)
    return builder.call(function, arguments)


def load_lanes(builder: Any, at: Any, lanes: Any, vector: ir.VectorType, stride: int, itemsize: int) -> Any:
    """Load every ``stride``-th of the pixels ``at`` points at, zeros for those whose lane is off."""
    wide = ir.VectorType(vector.element, stride * vector.count)

    def masked(builder: Any, at: Any, lanes: Any) -> Any:
        return masked_load(builder, at, _mask(builder, lanes), wide, itemsize)

    if machine.simd().bits > 128:
        pixels = masked(builder, at, lanes)
    else:
        with builder.if_else(_all(builder, lanes)) as (whole, some):
            with whole:
                in_one, first = load(builder, at, 0, wide, itemsize), builder.block
            with some:
                name = f"fastconv_load_lanes_{wide.count}_{itemsize}"
                by_lane, other = _called(builder, name, wide, masked, at, lanes), builder.block
        pixels = builder.phi(wide)
        pixels.add_incoming(in_one, first)
        pixels.add_incoming(by_lane, other)
    if stride == 1:
        return pixels
    picks = ir.Constant(ir.VectorType(I32, vector.count), [stride * e for e in range(vector.count)])
    return builder.shuffle_vector(pixels, ir.Constant(wide, ir.Undefined), picks)


@dataclass(frozen=True, slots=True)
class Border:
    """Lanes that repeat pixels of the image: picked by ``index`` out of the vector at ``start`` of the row."""

    some: Any
    lanes: Any
    start: Any
    window: Any
    index: Any


BORDER = 3  # numbers before the index: lanes, start, lanes of the vector there


def border_of(builder: Any, entry: Any, vector: ir.VectorType, itemsize: int) -> Border:
    """Read a border from its table, see `Columns.border`."""
    lanes, start, window = (builder.load(builder.gep(entry, [ir.IntType(64)(i)])) for i in range(BORDER))
    numbers = ir.VectorType(ir.IntType(8 * itemsize), vector.count)
    index = builder.bitcast(builder.gep(entry, [ir.IntType(64)(BORDER)]), numbers.as_pointer())
    return Border(
        builder.icmp_unsigned("!=", lanes, ir.IntType(64)(0)), lanes_of(builder, lanes, vector.count), start,
        lanes_of(builder, window, vector.count), builder.load(index, align=8),
    )  # fmt: skip


def bordered(builder: Any, pixels: Any, row: Any, border: Border, itemsize: int) -> Any:
    """Fill in the lanes of the border, by a permutation that AVX-512 has."""
    vector = pixels.type
    before = builder.block
    with builder.if_then(border.some):
        near = load_lanes(builder, builder.gep(row, [border.start]), border.window, vector, 1, itemsize)
        kind = ir.FunctionType(vector, [vector, border.index.type])
        name = f"llvm.x86.avx512.permvar.{'sf' if itemsize == 4 else 'df'}.512"
        picked = builder.call(
            cgutils.get_or_insert_function(builder.module, kind, name), [near, border.index]
        )
        filled = builder.select(_mask(builder, border.lanes), picked, pixels)
        inside = builder.block
    result = builder.phi(vector)
    result.add_incoming(pixels, before)
    result.add_incoming(filled, inside)
    return result


def store_lanes(builder: Any, values: list[Any], outs: list[Any], lanes: Any, itemsize: int) -> None:
    """Store vectors, the same lanes of each."""

    def masked(builder: Any, value: Any, out: Any, lanes: Any) -> None:
        masked_store(builder, value, out, _mask(builder, lanes), itemsize)

    with builder.if_else(_all(builder, lanes)) as (whole, some):
        with whole:
            for value, out in zip(values, outs, strict=True):
                store(builder, value, out, 0, itemsize)
        with some:
            name = f"fastconv_store_lanes_{lanes.type.width}_{itemsize}"
            for value, out in zip(values, outs, strict=True):
                if machine.simd().bits > 128:
                    masked(builder, value, out, lanes)
                else:
                    _called(builder, name, ir.VoidType(), masked, value, out, lanes)
