"""Planes of channels side by side: parted from pixels of so many channels each, and woven to such.

    plane i, element j  =  pixel j, channel i

A few planes go through registers: as many vectors are read, each result's lanes picked from all of them, and written.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.gemm.move import lanes_between, masked_load, masked_store
from fastconv.gemm.tile import I64, cases, data, element, load, shuffled, store
from fastconv.gemm.transposition import transpose

MOST = 4  # planes that pass through registers side by side


def _side_by_side(weave: bool) -> Any:
    """Make the intrinsic that weaves 2 to MOST planes, or parts them."""

    @intrinsic
    def move(typing, dst, d, src, s, apart, count, planes):
        def codegen(context, builder, signature, arguments):
            dst_type, _, src_type, *_ = signature.args
            itemsize = src_type.dtype.bitwidth // 8
            vl = machine.tile(itemsize).vl
            vector = ir.VectorType(element(src_type), vl)
            dst, d, src, s, apart, count, planes = arguments
            to, source = data(context, builder, dst_type, dst, d), data(context, builder, src_type, src, s)
            for n in cases(builder, planes, {n: n for n in range(2, MOST + 1)}, "planes"):
                places = [range(i * vl, (i + 1) * vl) for i in range(n)]  # of a result's lanes, woven
                picks = [
                    [(e % n, e // n) if weave else divmod((e - i * vl) * n + i, vl) for e in own]
                    for i, own in enumerate(places)
                ]
                with cgutils.for_range_slice(builder, I64(0), count, I64(vl), I64) as (v, _):
                    planar = [builder.add(builder.mul(apart, I64(i)), v) for i in range(n)]
                    woven = [builder.add(builder.mul(v, I64(n)), I64(i * vl)) for i in range(n)]
                    one = lanes_between(builder, v, I64(0), count, list(range(vl)))
                    every = builder.mul(count, I64(n))
                    masks = [lanes_between(builder, at, I64(0), every, list(range(vl))) for at in woven]
                    (read, seen), (write, kept) = (planar, [one] * n), (woven, masks)
                    if not weave:
                        (read, seen), (write, kept) = (write, kept), (read, seen)
                    whole = builder.icmp_signed("<=", builder.add(v, I64(vl)), count)
                    with builder.if_else(whole) as branches:
                        for branch, masked in zip(branches, (False, True), strict=True):
                            with branch:
                                given = [
                                    masked_load(builder, builder.gep(source, [at]), mask, vector, itemsize) if masked
                                    else load(builder, builder.gep(source, [at]), 0, vector, itemsize)
                                    for at, mask in zip(read, seen, strict=True)
                                ]  # fmt: skip
                                for at, mask, lanes in zip(write, kept, picks, strict=True):
                                    value, place = _picked(builder, given, lanes), builder.gep(to, [at])
                                    if masked:
                                        masked_store(builder, value, place, mask, itemsize)
                                    else:
                                        store(builder, value, place, 0, itemsize)
            return context.get_dummy_value()

        i = types.int64
        return types.void(dst, i, src, i, i, i, i), codegen

    return move


def _picked(builder: Any, vectors: list[Any], lanes: list[tuple[int, int]]) -> Any:
    """Return a vector of lanes (vector, lane) of several."""
    count = len(lanes)
    value = shuffled(builder, vectors[0], vectors[1], [min(v, 1) * count + lane for v, lane in lanes])
    for number, vector in enumerate(vectors[2:], 2):
        picks = [count + lane if v == number else e for e, (v, lane) in enumerate(lanes)]
        value = shuffled(builder, value, vector, picks)
    return value


_weave_lanes = _side_by_side(weave=True)
_part_lanes = _side_by_side(weave=False)


@jit.inner
def weave_lanes(dst, d, src, s, apart, count, planes):
    """Set ``dst[d + j*planes + i] = src[s + i*apart + j]`` for i < planes, j < count: two planes at least."""
    if planes <= MOST:
        _weave_lanes(dst, d, src, s, apart, count, planes)
    else:
        transpose(dst, d, planes, src, s, apart, planes, count)


@jit.inner
def part_lanes(dst, d, apart, src, s, count, planes):
    """Set ``dst[d + i*apart + j] = src[s + j*planes + i]`` for i < planes, j < count: two planes at least."""
    if planes <= MOST:
        _part_lanes(dst, d, src, s, apart, count, planes)
    else:
        transpose(dst, d, apart, src, s, planes, count, planes)
