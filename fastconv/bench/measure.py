"""Timing side by side: every contestant runs once in each round, so that noise meets all alike."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any

SAMPLE = 200e-6  # seconds; shorter calls are repeated within a sample
SETTLE = 12e-3  # seconds for which an OpenMP team spins after its last loop, and takes our cores


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one call over all rounds."""

    best: float
    median: float
    rounds: int
    upper: float = 0.0  # three quarters of the rounds took no longer

    @property
    def spread(self) -> float:
        """Return by how much the upper quartile exceeds the best, as a fraction of it."""
        return max(self.upper, self.median) / self.best - 1.0


def race(
    contestants: Mapping[str, Callable[[], Any]],
    budget: float = 0.6,
    settle: Mapping[str, float] | None = None,
    rounds: int = 5,
) -> dict[str, Sample]:
    """Time all contestants in turn for ``budget`` seconds, and ``rounds`` rounds at least.

    ``settle`` gives the seconds for which the threads of a contestant go on spinning after a call.
    """
    settle = settle or {}
    calls = {name: _warm(call) for name, call in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order, before, shuffled = list(contestants), "", random.Random(0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + budget
        done = 0
        while done < rounds or time.perf_counter() < end:
            for name in order:
                call, count = contestants[name], calls[name]
                if before != name:
                    time.sleep(settle.get(before, SETTLE))
                    call()
                start = time.perf_counter()
                for _ in range(count):
                    call()
                seconds[name].append((time.perf_counter() - start) / count)
                before = name
            shuffled.shuffle(order)  # nobody always follows the same one
            done += 1
    finally:
        if collecting:
            gc.enable()
    return {name: sample(s) for name, s in seconds.items()}


def sample(seconds: list[float]) -> Sample:
    """Sum up the rounds of a contestant."""
    return Sample(min(seconds), median(seconds), len(seconds), sorted(seconds)[3 * len(seconds) // 4])


def _warm(call: Callable[[], Any]) -> int:
    """Call twice and more, and return how many calls make a sample."""
    call()
    best, spent = float("inf"), 0.0
    while True:
        start = time.perf_counter()
        call()
        taken = time.perf_counter() - start
        best, spent = min(best, taken), spent + taken
        if spent > SAMPLE:
            return max(1, ceil(SAMPLE / best))
