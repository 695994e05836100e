"""Loops and conditions over values in registers, as they are emitted: what LLVM's phi nodes are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastconv.gemm.tile import I64


def loop(
    builder: Any, first: Any, end: Any, start: list[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Emit ``for i in range(first, end): values = body(i, values)``, from ``start`` on; return the values."""
    before = builder.block
    head, inside, done = (builder.append_basic_block(f"loop_{name}") for name in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    i, values = builder.phi(I64), [builder.phi(value.type) for value in start]
    builder.cbranch(builder.icmp_signed("<", i, end), inside, done)
    builder.position_at_end(inside)
    new = body(i, values)
    after = builder.add(i, I64(1))
    for phi, begin, value in zip([i, *values], [first, *start], [after, *new], strict=True):
        phi.add_incoming(begin, before)
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    return values


def changed(builder: Any, condition: Any, values: list[Any], emit: Callable[[], list[Any]]) -> list[Any]:
    """Emit what the values become where the condition holds."""
    before = builder.block
    with builder.if_then(condition):
        others = emit()
        inside = builder.block
    results = [builder.phi(value.type) for value in values]
    for phi, value, other in zip(results, values, others, strict=True):
        phi.add_incoming(value, before)
        phi.add_incoming(other, inside)
    return results
