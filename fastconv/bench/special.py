"""What no layer shows: the cost of a small call, of a choice, of starting, and what a second thread brings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from statistics import median
from typing import Any

import numpy as np

from fastconv import plan
from fastconv.arguments import walk as read_walk
from fastconv.bench import corpus
from fastconv.bench.measure import race
from fastconv.bench.peers import Call, Operands, Ours, Peer, arguments
from fastconv.config import config, current
from fastconv.explain import algorithms
from fastconv.problem import ConvProblem, Direction
from fastconv.select import ranked

SMALL = "n1 c3 k8 i8x8 f3x3"
FIRST = "n1 c64 k64 i56x56 f3x3 p1"
LARGE = (
    "n2 c128 k128 i56x56 f3x3 p1",
    "n2 c256 k256 i28x28 f1x1",
    "n4 c64 k64 i56x56 f5x5 s2 p2",
    "n8 c256 k256 i28x28 f3x3 p1 g256",
)

# Timed in a fresh process; Numba's own start is not ours.
PROCESS = """
from time import perf_counter as now
start = now()
import numba, numpy
before = now()
import fastconv
imported = now()
from fastconv.bench.peers import Operands, Ours
p = fastconv.ConvProblem.parse({line!r})
call = Ours({algorithm!r}).make(p, fastconv.Direction.FORWARD, Operands.normal(p))
ready = now()
call()
done = now()
print('{{"import": %f, "call": %f, "all": %f}}' % (
    imported - before, done - ready, done - start - (ready - imported)))
"""


def overhead(peers: Sequence[Peer]) -> dict[str, float]:
    """Return seconds of a call on a problem so small that only the way to its kernel is measured."""
    problem = ConvProblem.parse(SMALL)
    operands = Operands.normal(problem)
    contestants = {
        peer.name: peer.make(problem, Direction.FORWARD, operands)
        for peer in (Ours(), *peers)
        if peer.applies(problem, Direction.FORWARD)
    }
    return {name: sample.best for name, sample in race(contestants, budget=2.0).items()}


def decisions(repeats: int = 5) -> dict[str, dict[str, float]]:
    """Return seconds of what precedes a call's kernels: median, 95th percentile and most over the suite ``core``.

    ``choice`` asks the algorithms; ``plan``, of which it is a part, checks the arguments and builds the winner too;
    ``look-up`` finds the plan again.  Each pass over the suite has batches of its own, since what is chosen is kept.
    """
    best: dict[str, dict[object, float]] = {"choice": {}, "plan": {}, "look-up": {}}
    for i, layer, direction in product(range(repeats), corpus.load("core"), Direction):
        p = replace(layer.problem, n=layer.problem.n + i).checked()
        walk = read_walk(len(p.axes), *arguments(p).values())
        find = partial(
            plan.find, direction, p.input_shape, p.weight_shape, np.dtype(p.dtype), walk, "auto", None
        )
        steps: tuple[Callable[[], object], ...] = (partial(_choose, p, direction), find, find)
        times = [time.perf_counter()]
        for step in steps:
            step()
            times.append(time.perf_counter())
        for kept, (start, end) in zip(best.values(), pairwise(times), strict=True):
            case = (layer.problem, direction)
            kept[case] = min(kept.get(case, float("inf")), end - start)
    return {
        name: {
            "median": median(values),
            "95th percentile": sorted(values)[int(0.95 * (len(values) - 1))],
            "most": max(values),
        }
        for name, values in ((name, list(kept.values())) for name, kept in best.items())
    }


def _choose(problem: ConvProblem, direction: Direction) -> str:
    return next(ranked(problem, direction, current())[1])


def startup(repeats: int = 3) -> dict[str, dict[str, float]]:
    """Return seconds of importing and of a first call, without and with machine code on disk.

    The choice is timed ``repeats`` times, and each algorithm once: what a user waits for who names it.
    """
    runs: dict[str, list[dict[str, float]]] = {}
    for algorithm in ["auto"] * repeats + [name for name in algorithms() if name != "reference"]:
        suffix = "" if algorithm == "auto" else f": {algorithm}"
        with tempfile.TemporaryDirectory() as folder:
            for state in ("cold cache", "warm cache"):
                runs.setdefault(state + suffix, []).append(_process(folder, algorithm))
    return {state: {key: min(run[key] for run in of) for key in of[0]} for state, of in runs.items()}


def _process(folder: str, algorithm: str) -> dict[str, float]:
    # an installed package has its bytecode; without it half of an import would be compiling sources
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS.format(line=FIRST, algorithm=algorithm)],
        env=environment | {"NUMBA_CACHE_DIR": folder, "FASTCONV_CACHE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def scaling(threads: int, budget: float) -> dict[str, Any]:
    """Return seconds by layer, direction and number of threads: 1, 2, 4 ... and all."""
    counts = sorted({threads, *(2**i for i in range(threads.bit_length()) if 2**i < threads)})
    seconds, speedups = {}, {}
    for line in LARGE:
        problem = ConvProblem.parse(line)
        operands = Operands.normal(problem)
        for direction in Direction:
            call = Ours().make(problem, direction, operands)
            contestants = {str(count): _on(count, call) for count in counts}
            best = {count: sample.best for count, sample in race(contestants, budget).items()}
            seconds[f"{direction} {line}"] = best
            speedups[f"{direction} {line}"] = best["1"] / best[str(threads)]
    return {"threads": threads, "speedups": speedups, "seconds": seconds}


def _on(threads: int, call: Call) -> Call:
    def limited() -> Any:
        with config(threads=threads):
            return call()

    return limited
