"""Handing out tasks to workers, and cutting lengths into equal parts.

Each worker has a share of the tasks, one after the other, and takes from it first: what one layer leaves in a core's
cache, tasks of the same share of the next layer's pixels find there.  Shares are taken from counters, so that who is done
helps the others: a worker whose core is slow, or busy with something else, delays the call by one task and not by half of the
work.  Who computes a task changes no bit of it.
"""

from __future__ import annotations

import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from fastconv import jit
from fastconv.gemm.tile import data

RUNS = 8  # of units for each worker: short, so that all end together
DONE = 7  # where in the first worker's line the tasks of the first stage are counted that are done
LINE = 8  # integers of a cache line, so that no two workers count in the same


def counters(workers: int) -> NDArray[np.int64]:
    """Return what `next_task` counts in."""
    return np.zeros(workers * LINE, np.int64)


@intrinsic
def _add(typing, counters, i, more):
    """Return the number in ``counters[i]`` and add to it, atomically; what was written before can be seen by `_read`."""

    def codegen(context, builder, signature, arguments):
        *place, more = arguments
        pointer = data(context, builder, signature.args[0], *place)
        return builder.atomic_rmw("add", pointer, more, "release")

    return types.int64(counters, types.int64, types.int64), codegen


@intrinsic
def _read(typing, counters, i):
    """Return the number in ``counters[i]``, looking anew each time."""

    def codegen(context, builder, signature, arguments):
        return builder.load_atomic(data(context, builder, signature.args[0], *arguments), "acquire", 8)

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
def next_task(counters, worker, tasks, stage=0):
    """Return a task that nobody has taken: of the worker's own share, else of those after it; ``tasks`` if none is left.

    A kernel whose tasks need what other tasks wrote has two stages, with `finish_stage` between.
    """
    workers = counters.size // LINE
    for i in range(worker, worker + workers):
        owner = i % workers
        begin, end = span(tasks, workers, owner)
        if begin + counters[owner * LINE + stage] < end:
            task = begin + _add(counters, owner * LINE + stage, 1)
            if task < end:
                return task
    return tasks


@jit.inner
def finish_stage(counters, done, tasks):
    """Wait until all tasks of the first stage are done; the worker did so many of them.

    Tasks are taken by workers that run, so it matters not how many threads there are for them.
    """
    _add(counters, DONE, done)
    while _read(counters, DONE) < tasks:
        pass


@jit.inner
def next_run(counters, worker, units):
    """Return where a task of several units that follow each other begins and ends; both are ``units`` or more if none is left."""
    tasks = min(units, RUNS * (counters.size // LINE))
    return span(units, tasks, next_task(counters, worker, tasks))
