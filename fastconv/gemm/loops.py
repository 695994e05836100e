"""Loops of few turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastconv.gemm.tile import I64


def rolled(builder: Any, count: Any, body: Callable[[Any], None]) -> None:
    """Call ``body`` in a loop over i < count of few turns, which LLVM may not unroll as if they were many."""
    before, head, after = builder.block, builder.append_basic_block("turn"), builder.append_basic_block("on")
    builder.cbranch(builder.icmp_signed(">", count, I64(0)), head, after)
    builder.position_at_end(head)
    i = builder.phi(I64)
    i.add_incoming(I64(0), before)
    body(i)
    following = builder.add(i, I64(1))
    i.add_incoming(following, builder.block)
    turn = builder.cbranch(builder.icmp_signed("<", following, count), head, after)
    loop = builder.module.add_metadata([builder.module.add_metadata(["llvm.loop.unroll.disable"])])
    if loop not in loop.operands:
        loop.operands = (loop, *loop.operands)  # it names itself, to tell loops apart
    turn.set_metadata("llvm.loop", loop)
    builder.position_at_end(after)
