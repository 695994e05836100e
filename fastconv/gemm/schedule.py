"""Handing out tasks to workers, and cutting lengths into equal parts.

Tasks are taken from a shared counter, so a worker whose core is busy with something else delays the
call by one task and not by half of the work.  Who computes a task changes no bit of it.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastconv import jit
from fastconv.gemm.tile import data


@intrinsic
def next_task(typing, counter):
    """Return the number in ``counter[0]`` and count it up, atomically."""

    def codegen(context, builder, signature, arguments):
        pointer = data(context, builder, signature.args[0], arguments[0], ir.IntType(64)(0))
        return builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "monotonic")

    return types.int64(counter), codegen


@jit.inner
def part(total, parts, i):
    """Return where part ``i`` begins when ``total`` is cut into parts that differ by at most one."""
    return total * i // parts


@jit.inner
def span(total, parts, i):
    """Return where part ``i`` begins and ends."""
    return part(total, parts, i), part(total, parts, i + 1)
