"""The measured choice: the candidates that the model ranks first are timed once, and the times kept on disk.

``config(tune="off")``, the default, trusts the model alone; "on" measures a problem that is not in the
database yet; "force" measures it again.  A measured choice may differ between machines, and between processes
that Numba gives different numbers of threads (`database.key`), and with it the last bits of results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from fastconv import arrays, dtypes
from fastconv.algorithms import find
from fastconv.config import Settings, config
from fastconv.problem import FLOATS, ConvProblem, Direction
from fastconv.select import Selection, ranked, select

CANDIDATES = 4  # that are timed at the most
HOPELESS = 4.0  # times the least predicted cost: the model is never so wrong
BUDGET = 0.1  # seconds of timing, and five rounds at least


def decide(
    problem: ConvProblem,
    direction: Direction,
    settings: Settings,
    device: str = "cpu",
    prepared: bool = False,
) -> tuple[ConvProblem, Iterator[str]]:
    """Return the problem as it is served, and algorithms to build in turn until one keeps its limit."""
    if settings.tune == "off":
        return ranked(problem, direction, settings, device, prepared)
    selection = choose(problem, direction, settings, device)
    return selection.problem, iter((selection.algorithm,))


def choose(problem: ConvProblem, direction: Direction, settings: Settings, device: str = "cpu") -> Selection:
    """Choose as `select` does, by measured times where the settings ask for them."""
    selection = select(problem, direction, settings, device)
    if settings.tune == "off" or settings.algorithm != "auto" or device != "cpu":
        return selection
    if problem.dtype not in FLOATS:  # carried by algorithms for these
        return selection
    from fastconv import database  # and Numba with it

    key = database.key(selection.problem, direction, settings)
    seconds = database.read(key) if settings.tune == "on" else None
    if seconds is None:
        seconds = measure(selection, settings)
        if seconds:
            database.write(key, seconds)
    return decided(informed(selection, seconds or {}))


def explained(problem: ConvProblem, direction: Direction, settings: Settings) -> Selection:
    """Return the choice without measuring: with the times that are in the database."""
    selection = select(problem, direction, settings)
    if settings.algorithm != "auto":
        return selection
    from fastconv import database

    seconds = database.read(database.key(selection.problem, direction, settings))
    selection = informed(selection, seconds or {})
    return selection if settings.tune == "off" else decided(selection)


def informed(selection: Selection, seconds: Mapping[str, float]) -> Selection:
    """Return a selection whose candidates know their measured times."""
    candidates = tuple(replace(c, measured=seconds.get(c.name)) for c in selection.candidates)
    return replace(selection, candidates=candidates)


def decided(selection: Selection) -> Selection:
    """Return a selection of the candidate measured as the fastest, if any was."""
    times = {c.name: c.measured for c in selection.candidates if c.measured and c.reason is None}
    return replace(selection, algorithm=min(times, key=times.__getitem__)) if times else selection


def likeliest(selection: Selection) -> list[str]:
    """Return the candidates that may be the fastest, the likeliest first."""
    costs = {c.name: c.cost for c in selection.candidates if c.cost is not None and c.reason is None}
    ranked = sorted(costs, key=costs.__getitem__)
    return [name for name in ranked[:CANDIDATES] if costs[name] <= HOPELESS * costs[ranked[0]]]


def measure(selection: Selection, settings: Settings) -> dict[str, float] | None:
    """Time the candidates worth it, on normal numbers and all threads; None where there is only one.

    None too where not all threads can be had, as in a forked child: such times would mislead others.
    """
    import numba
    from numba.core import config as numba_config

    from fastconv import threads
    from fastconv.bench.measure import race

    names = likeliest(selection)
    if len(names) < 2:
        return None
    p, direction = selection.problem, selection.direction
    random, dtype = np.random.default_rng(0), np.dtype(p.dtype)
    x, w, y = (
        random.standard_normal(shape).astype(dtype)
        for shape in (p.input_shape, p.weight_shape, p.output_shape)
    )
    x, y = arrays.contiguous(x, dtype, p.layout), arrays.contiguous(y, dtype, p.layout)
    first, second, out = direction.roles(x, w, y)
    nothing = np.empty(0, p.dtype)
    masked = numba.get_num_threads()
    numba.set_num_threads(numba_config.NUMBA_NUM_THREADS)
    try:
        with config(threads=None):
            if threads.count() != numba_config.NUMBA_NUM_THREADS:
                return None
            runs = {
                name: dtypes.build(find(name).build, p, direction, settings.workspace).run for name in names
            }
            calls = {
                name: lambda run=run: run(first, second, np.empty_like(out), nothing, 0, nothing)
                for name, run in runs.items()
            }
            samples = race(calls, BUDGET, settle=dict.fromkeys(names, 0.0))  # all of one team of threads
    finally:
        numba.set_num_threads(masked)
    return {name: sample.best for name, sample in samples.items()}
