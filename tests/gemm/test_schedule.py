"""Tasks and runs of units: each is taken once, by any number of workers on any number of threads, and stages wait."""

import numba
import numpy as np
import pytest

from fastconv import jit
from fastconv.gemm.schedule import counters, finish_stage, next_run, next_task


@numba.njit(parallel=True, **jit.OPTIONS)
def in_two_stages(workers, counts, first, second):
    for worker in numba.prange(workers):
        task, done = next_task(counts, worker, first.size), 0
        while task < first.size:
            first[task] += task + 1
            task, done = next_task(counts, worker, first.size), done + 1
        finish_stage(counts, done, first.size)
        task = next_task(counts, worker, second.size, 1)
        while task < second.size:
            second[task] += first.sum()
            task = next_task(counts, worker, second.size, 1)


@numba.njit(parallel=True, **jit.OPTIONS)
def in_runs(workers, counts, taken):
    for worker in numba.prange(workers):
        begin, end = next_run(counts, worker, taken.size)
        while begin < taken.size:
            taken[begin:end] += 1
            begin, end = next_run(counts, worker, taken.size)


@pytest.mark.parametrize("workers", [1, 2, 7])  # more than there are threads, too
def test_every_task_once(workers):
    for first, second in [(0, 3), (1, 1), (5, 0), (40, 23)]:
        a, b = np.zeros(first, np.int64), np.zeros(second, np.int64)
        in_two_stages(workers, counters(workers), a, b)
        np.testing.assert_array_equal(a, np.arange(first) + 1)
        np.testing.assert_array_equal(b, first * (first + 1) // 2)
    for units in (0, 1, 9, 1000):
        taken = np.zeros(units, np.int64)
        in_runs(workers, counters(workers), taken)
        np.testing.assert_array_equal(taken, 1)
