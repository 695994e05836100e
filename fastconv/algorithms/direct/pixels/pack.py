"""Weights with result channels along the lanes: ``[group][phase][block of k][tap][channel][k in block]``.

A block is at most four vectors of result channels, the last filled up with zeros; phases are those of
`correlation`.  A weight stands at ``group*group_stride + k*row_stride + channel*channel_stride + tap``.
"""

from __future__ import annotations

from typing import NamedTuple

import numba

from fastconv import jit
from fastconv.gemm.move import transpose, write_row
from fastconv.gemm.schedule import next_task, part

CHUNK = 64  # channels of a task
HEAD = 7  # numbers of a phase in the table


class Packing(NamedTuple):
    """How the blocks are read out of the weight array."""

    groups: int
    m: int  # result channels in a group
    channels: int
    kernel: int  # taps of the kernel, in the array
    vectors: int  # of result channels, in a group
    blocks: int
    phases: int
    reduction: int  # taps of all phases * channels
    group_stride: int
    row_stride: int
    channel_stride: int
    phases_at: int  # where the table of `correlation.phase_tables` begins
    vl: int


@jit.kernel
def pack(workers, counter, w, packed, packings, tables):
    """Pack all weights; tasks are blocks by chunks of channels."""
    for _ in numba.prange(workers):
        geo = packings[0]
        chunks = -(-geo.channels // CHUNK)
        task = next_task(counter)
        while task < geo.groups * geo.phases * geo.blocks * chunks:
            rest, chunk = task // chunks, task % chunks
            rest, block = rest // geo.blocks, rest % geo.blocks
            c0, c1 = chunk * CHUNK, min((chunk + 1) * CHUNK, geo.channels)
            _pack_block(packed, w, geo, tables, rest // geo.phases, rest % geo.phases, block, c0, c1)
            task = next_task(counter)


@jit.inner
def block_start(geo, tables, group, phase, block):
    """Return where a block begins among the packed weights."""
    entry = geo.phases_at + HEAD * phase
    width = geo.vectors * geo.vl
    first = part(geo.vectors, geo.blocks, block) * geo.vl
    taps, before = tables[entry + 2], tables[entry + 4]
    return group * width * geo.reduction + (before * width + first * taps) * geo.channels


@jit.inner
def _pack_block(packed, w, geo, tables, group, phase, block, c0, c1):
    entry = geo.phases_at + HEAD * phase
    first = part(geo.vectors, geo.blocks, block)
    width = (part(geo.vectors, geo.blocks, block + 1) - first) * geo.vl
    first *= geo.vl
    rows = min(width, geo.m - first)
    to = block_start(geo, tables, group, phase, block)
    source = group * geo.group_stride + first * geo.row_stride
    for tap in range(tables[entry + 2]):
        index = tables[tables[entry + 3] + tap]
        at = to + (tap * geo.channels + c0) * width
        if geo.channel_stride == 1:
            transpose(packed, at, width, w, source + c0 + index, geo.row_stride, rows, c1 - c0)
        for c in range(c0, c1):
            begin = source + c * geo.channel_stride + index
            if geo.row_stride == 1:
                write_row(packed, at, w, begin, rows)
            elif geo.channel_stride != 1:
                for k in range(rows):
                    packed[at + k] = w[begin + k * geo.row_stride]
            for k in range(rows, width):
                packed[at + k] = 0
            at += width
