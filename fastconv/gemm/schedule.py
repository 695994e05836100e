"""Handing out tasks to workers, and cutting lengths into equal parts.

Each worker has a share of the tasks, one after the other, and takes from it first: what one layer leaves in a core's
cache, tasks of the same share of the next layer's pixels find there.  Shares are taken from counters, so that who is done
helps the others: a worker whose core is slow, or busy with something else, delays the call by one task and not by half of the
work.  Who computes a task changes no bit of it.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from fastconv import jit
from fastconv.gemm.tile import data

LINE = 8  # integers of a cache line, so that no two workers count in the same


def counters(workers: int) -> NDArray[np.int64]:
    """Return what `next_task` counts in."""
    return np.zeros(workers * LINE, np.int64)


@intrinsic
def _count(typing, counters, i):
    """Return the number in ``counters[i]`` and count it up, atomically."""

    def codegen(context, builder, signature, arguments):
        pointer = data(context, builder, signature.args[0], *arguments)
        return builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "monotonic")

    return types.int64(counters, types.int64), codegen


@jit.inner
def part(total, parts, i):
    """Return where part ``i`` begins when ``total`` is cut into parts that differ by at most one."""
    return total * i // parts


@jit.inner
def span(total, parts, i):
    """Return where part ``i`` begins and ends."""
    return part(total, parts, i), part(total, parts, i + 1)


@jit.inner
def next_task(counters, worker, tasks):
    """Return a task that nobody has taken: of the worker's own share, else of those after it; ``tasks`` if none is left."""
    workers = counters.size // LINE
    for i in range(worker, worker + workers):
        owner = i % workers
        begin, end = span(tasks, workers, owner)
        if begin + counters[owner * LINE] < end:
            task = begin + _count(counters, owner * LINE)
            if task < end:
                return task
    return tasks
