"""Vectors of which some lanes lie in memory: loads and stores under a mask of bits, lane 0 the lowest.

AVX-512 and AVX2 have them as instructions; elsewhere a whole vector is loaded or stored as such, and
any other lane by lane in a function of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from fastconv import machine
from fastconv.gemm.move import I1, I32, masked_load, masked_store
from fastconv.gemm.tile import load, store


def lanes_of(builder: Any, bits: Any, count: int) -> Any:
    """Return the lowest ``count`` bits of a number."""
    return builder.trunc(bits, ir.IntType(count))


def mask_of(builder: Any, bits: Any, count: int) -> Any:
    """Return the lowest ``count`` bits of a number as a mask of lanes."""
    return _mask(builder, lanes_of(builder, bits, count))


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
