"""What no layer shows: the cost of a small call, of starting, and what a second thread brings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from fastconv.bench.measure import race
from fastconv.bench.peers import Call, Operands, Ours, Peer
from fastconv.config import config
from fastconv.explain import algorithms
from fastconv.problem import ConvProblem, Direction

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
    done = subprocess.run(
        [sys.executable, "-c", PROCESS.format(line=FIRST, algorithm=algorithm)],
        env={**os.environ, "NUMBA_CACHE_DIR": folder, "FASTCONV_CACHE": "1"},
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
