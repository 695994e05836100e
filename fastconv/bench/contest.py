"""One layer in one direction: operands are drawn, every result is checked, and all contestants run in turns."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fastconv
from fastconv import dtypes
from fastconv.bench import memory, peak
from fastconv.bench.check import Truth, truth
from fastconv.bench.corpus import Layer
from fastconv.bench.measure import race
from fastconv.bench.peers import Operands, Ours, OursPrepared, Peer, arguments
from fastconv.bench.results import Row
from fastconv.problem import ConvProblem, Direction
from fastconv.tune import likeliest

LARGEST_OF_OTHERS = 1e-2  # error over the mean square: TF32 would be other arithmetic, and be seen


def measured(
    layer: Layer, direction: Direction, peers: Sequence[Peer], options: argparse.Namespace, budget: float
) -> Row:
    """Check and time one layer; a failure is a row too."""
    p = layer.problem
    flops = dtypes.carrier(p).flops  # of complex numbers those of real ones
    row = Row(str(p), layer.category, layer.name, layer.times, str(direction), flops, p.bytes)
    try:
        operands = Operands.normal(p)
        selection = fastconv.explain(operands.x, operands.w, **arguments(p), direction=str(direction))
        row.algorithm = selection.algorithm
        ours = _ours(selection, options)
        everyone = [peer for peer in (*ours, *peers) if peer.takes(p, direction)]
        calls = _checked(row, p, direction, operands, everyone, options)
        if not row.failure:
            alone = all(isinstance(peer, Ours) for peer in everyone)  # of one team of threads, the peak's too
            settle = {peer.name: 0.0 if alone else peer.settle for peer in everyone}
            late = options.minutes is not None and not budget
            _time(row, p, calls, settle | ({"peak": 0.0} if alone else {}), budget, 3 if late else 5)
            if options.memory:
                found = {name: memory.peak(call) for name, call in calls.items()}
                row.memory = {name: size for name, size in found.items() if size is not None}
    except Exception as error:
        row.failure = _told(error)
    return row


def _ours(selection: fastconv.Selection, options: argparse.Namespace) -> list[Peer]:
    """Return our contestants: auto, the algorithms asked for that apply, and prepared weights."""
    admitted = {c.name for c in selection.candidates if c.reason is None} - {"reference"}
    if options.algorithms == "all":
        names = sorted(admitted)
    elif options.algorithms == "likely":
        names = sorted(likeliest(selection))
    else:
        asked = options.algorithms.split(",") if options.algorithms else []
        names = [name for name in asked if _admits(name, admitted)]
    return [Ours(), *map(Ours, names), *([OursPrepared()] if options.prepared else [])]


def _admits(name: str, admitted: set[str]) -> bool:
    base = name.partition(":")[0]
    if base not in fastconv.algorithms():
        raise ValueError(f"algorithms are all, likely, {', '.join(fastconv.algorithms())}, got {name!r}")
    return base in admitted or base == "reference"


def _checked(
    row: Row,
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    everyone: Sequence[Peer],
    options: argparse.Namespace,
) -> dict[str, Callable[[], Any]]:
    """Compare all first results; return the calls of those who race.

    One of ours that is wrong is a failure; another that is wrong or raises is left out: it is no match.
    """
    right = truth(problem, direction, operands, options.check_all)
    calls, wrong = {}, []
    for peer in everyone:
        own = isinstance(peer, Ours)
        try:
            call = peer.make(problem, direction, operands)
            start = time.perf_counter()
            result = call()
            row.first[peer.name] = time.perf_counter() - start
            error = right.error(peer.array(result, problem, direction)) if right else 0.0
        except Exception as failure:
            if own:
                raise
            row.left_out[peer.name] = _told(failure)
            continue
        if right:
            row.errors[peer.name] = error
        if error <= _allowed(right, own):
            calls[peer.name] = call
        elif own:
            wrong.append(f"{peer.name} by {error:.2g}")
        else:
            row.left_out[peer.name] = f"differs by {error:.2g}"
    if right:
        row.error = max(row.errors[peer.name] for peer in everyone if isinstance(peer, Ours))
        if wrong:
            row.failure = f"wrong, {right.bound:.0e} of the mean allowed: {', '.join(wrong)}"
    return calls


def _allowed(right: Truth | None, own: bool) -> float:
    if right is None:
        return 0.0
    return right.bound if own else max(right.bound, LARGEST_OF_OTHERS)


def _time(
    row: Row,
    problem: ConvProblem,
    calls: Mapping[str, Callable[[], Any]],
    settle: Mapping[str, float],
    budget: float,
    rounds: int,
) -> None:
    multiply, flops = peak.multiply(compute_dtype(problem.dtype))
    samples = race({**calls, "peak": multiply}, budget, settle, rounds)
    row.peak = flops / samples.pop("peak").best
    row.samples = samples


def compute_dtype(dtype: str) -> str:
    """Return the dtype that the engine multiplies in."""
    return dtypes.REAL.get(dtype) or dtypes.PARTS.get(dtype) or dtype


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
