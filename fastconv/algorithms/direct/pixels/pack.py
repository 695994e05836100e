"""Weights with result channels along the lanes: ``[group][block of k][phase][tap][channel][k in block]``.

A block is at most four vectors of result channels, the last filled up with zeros; phases are those of
`passes`.  A weight stands at ``group*group_stride + k*row_stride + channel*channel_stride + tap``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastconv import jit
from fastconv.gemm.move import write_row
from fastconv.gemm.schedule import next_task, part
from fastconv.gemm.tile import I64, data, element, load, store
from fastconv.gemm.transposition import BLOCK, transposed

CHUNK = 64  # channels of a task
COLUMNS = 256  # of the array that are turned together
HEAD = 6  # numbers of a phase in the table


class Packing(NamedTuple):
    """How the blocks are read out of the weight array."""

    groups: int
    m: int  # result channels in a group
    channels: int
    kernel: int  # taps of the kernel, in the array
    vectors: int  # of result channels, in a group
    blocks: int
    reduction: int  # taps of all phases, and one for what is in none of them, * channels
    group_stride: int
    row_stride: int
    channel_stride: int
    columns_at: int  # in the table: (number of the tap, channel) of the taps of some channels
    together: int  #   so many, if they are neighbours
    vl: int


@jit.kernel
def pack(workers, counters, w, packed, packings, tables):
    """Pack all weights; tasks are blocks by chunks of channels."""
    for worker in numba.prange(workers):
        geo = packings[0]
        chunks = -(-geo.channels // CHUNK)
        tasks = geo.groups * geo.blocks * chunks
        task = next_task(counters, worker, tasks)
        while task < tasks:
            rest, chunk = task // chunks, task % chunks
            c0, c1 = chunk * CHUNK, min((chunk + 1) * CHUNK, geo.channels)
            _pack_block(packed, w, geo, tables, rest // geo.blocks, rest % geo.blocks, c0, c1)
            task = next_task(counters, worker, tasks)


@jit.inner
def block_start(geo, group, block):
    """Return where a block begins among the packed weights."""
    return (group * geo.vectors + part(geo.vectors, geo.blocks, block)) * geo.vl * geo.reduction


@jit.inner
def _pack_block(packed, w, geo, tables, group, block, c0, c1):
    first = part(geo.vectors, geo.blocks, block)
    width = (part(geo.vectors, geo.blocks, block + 1) - first) * geo.vl
    first *= geo.vl
    rows = min(width, geo.m - first)
    to = block_start(geo, group, block)
    source = group * geo.group_stride + first * geo.row_stride
    if geo.kernel == geo.row_stride == 1:
        for c in range(c0, c1):
            write_row(packed, to + c * width, w, source + c * geo.channel_stride, rows)
    else:
        together = geo.together if geo.channel_stride == geo.kernel else 1
        for c in range(c0, c1, together):
            count = min(together, c1 - c) * geo.kernel
            _turn(
                packed, to + c * width, geo.channels * width, width, tables, geo.columns_at, w,
                source + c * geo.channel_stride, geo.row_stride, rows, count,
            )  # fmt: skip
    for i in range(geo.reduction // geo.channels):
        for c in range(c0, c1):
            for k in range(rows, width):
                packed[to + (i * geo.channels + c) * width + k] = 0


@jit.inner
def _turn(dst, d, step, width, table, t0, w, at, row_stride, rows, count):
    """Set ``dst[d + place*step + channel*width + k] = w[at + k*row_stride + j]``, (place, channel) of j < count in the table."""
    if rows < BLOCK or count < BLOCK:
        for j in range(count):
            to = d + table[t0 + 2 * j] * step + table[t0 + 2 * j + 1] * width
            for k in range(rows):
                dst[to + k] = w[at + k * row_stride + j]
        return
    for column in range(0, count, BLOCK):  # rows within: what is written comes line by line
        j = min(column, count - BLOCK)
        for row in range(0, rows, BLOCK):
            k = min(row, rows - BLOCK)
            _turn_block(dst, d + k, step, width, table, t0 + 2 * j, w, at + k * row_stride + j, row_stride)


@intrinsic
def _turn_block(typing: Any, dst: Any, d: Any, step: Any, width: Any, table: Any, t0: Any, src: Any, s: Any, lds: Any) -> Any:  # fmt: skip
    """Turn eight rows and columns."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        dst, d, step, width, table, t0, src, s, lds = arguments
        itemsize = signature.args[0].dtype.bitwidth // 8
        vector = ir.VectorType(element(signature.args[0]), BLOCK)
        to = data(context, builder, signature.args[0], dst, d)
        places = data(context, builder, signature.args[4], table, t0)
        source = data(context, builder, signature.args[6], src, s)
        lines = [
            load(builder, builder.gep(source, [builder.mul(lds, I64(i))]), 0, vector, itemsize)
            for i in range(BLOCK)
        ]
        for j, value in enumerate(transposed(builder, lines)):
            place, channel = (builder.load(builder.gep(places, [I64(2 * j + i)])) for i in range(2))
            at = builder.add(builder.mul(place, step), builder.mul(channel, width))
            store(builder, value, builder.gep(to, [at]), 0, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(dst, i, i, i, table, i, src, i, i), codegen
