"""Compile ahead: machine code that first calls would otherwise wait for, put into the disk cache."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import registry
from fastconv.arrays import contiguous, empty
from fastconv.config import config, current, override
from fastconv.plan import Plan
from fastconv.problem import FLOATS, ConvProblem, Direction
from fastconv.select import admitted
from fastconv.typing import Array

# Small ones of each kind that kernels are compiled apart for; a few MFLOP each, so that threads are worth
# their start and the parallel twins are compiled too.
REPRESENTATIVES = (
    "n2 c16 k24 i30x30 f3x3 p1",
    "n1 c16 k24 i30x30 f5x5 s2 p2",
    "n1 c16 k16 i30x30 f3x3 p2 d2 g2",
    "n2 c32 k32 i16x16 f3x3 p8 d8",  # im2col takes taps one by one
    "n1 c3 k32 i40x40 f7x7 s2 p3",
    "n1 c512 k512 i4x4 f1x1",  # weights enough for threads to pack
    "n2 c64 k64 i40x40 f3x3 p1 g64",
    "n1 c64 k64 i41x40 f5x5 s2 p2 g64",
    "n2 c16 k16 i1000 f9 p4",
    "n2 c32 k48 i30x30 f3x3 p1 nhwc",
    "n2 c64 k64 i40x40 f3x3 p1 g64 nhwc",
)


class Job(NamedTuple):
    """One problem in one direction by one algorithm, or the one that is chosen."""

    problem: ConvProblem
    direction: Direction
    algorithm: str = "auto"


def warmup(problems: Iterable[ConvProblem | str] | None = None) -> int:
    """Compile kernels now, with progress shown on the terminal, and keep them on disk.

    Parameters
    ----------
    problems : iterable of ConvProblem or str, optional
        What will be computed, as problems or as their printed lines: the algorithms that would be chosen
        are run on them, in all three directions.  By default every algorithm, in every direction, in float32 and
        float64, on small problems of each kind, in both layouts; borders other than zeros are left to first calls.

    Returns
    -------
    int
        How many combinations of problem, direction and algorithm were run.

    Raises
    ------
    TypeError, ValueError
        A line can't be read.

    Examples
    --------
    >>> import fastconv
    >>> with fastconv.config(algorithm="reference"):
    ...     fastconv.warmup(["n1 c3 k8 i8x8 f3x3"])
    3
    """
    jobs = _all_jobs() if problems is None else _chosen_jobs(problems)
    for job in _shown(jobs):
        _run(job)
    return len(jobs)


def _all_jobs() -> list[Job]:
    return [
        Job(problem, direction, name)
        for problem in (ConvProblem.parse(f"{r} {dtype}") for dtype in FLOATS for r in REPRESENTATIVES)
        for direction in Direction
        for name, algorithm in registry().items()
        if admitted(algorithm, problem, direction, current())
    ]


def _chosen_jobs(problems: Iterable[ConvProblem | str]) -> list[Job]:
    if isinstance(problems, str | ConvProblem) or not isinstance(problems, Iterable):
        raise TypeError(f"problems must be a sequence of problems, got {problems!r}")
    read = [p.checked() if isinstance(p, ConvProblem) else ConvProblem.parse(p) for p in problems]
    return [Job(p, d) for p in read if p.n for d in Direction]


def _run(job: Job) -> None:
    """Run on zeros what a call would, with one thread and with all, for the serial and the parallel twins."""
    asked, direction, settings = job.problem, job.direction, override(current(), job.algorithm, None)
    dtype, plan = np.dtype(asked.dtype), Plan(asked, direction, settings)
    ready = Plan(asked, direction, settings, prepared=True).execution

    def images(shape: tuple[int, ...]) -> Array:
        zeros = empty(shape, dtype, asked.layout)
        zeros.fill(0)
        return contiguous(zeros, dtype, plan.problem.layout)  # as a call turns them, if it does

    x, w, y = images(asked.input_shape), np.zeros(asked.weight_shape, dtype), images(asked.output_shape)
    first, second, out = direction.roles(x, w, y)
    epilogue = plan.nothing, 0, plan.nothing
    for threads in (1, None):
        with config(threads=threads):
            plan.run(first, second, out, *epilogue)
            if direction is Direction.FORWARD:
                ready.run_prepared(first, ready.prepare(second), out, *epilogue)


def _shown(jobs: Sequence[Job]) -> Iterator[Job]:
    """Yield the jobs under a progress bar by rich, if it is installed, or a line on a terminal."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        for i, job in enumerate(jobs, 1):
            if sys.stderr.isatty():
                text = f"fastconv warmup {i}/{len(jobs)} {job.algorithm} {job.direction} {job.problem}"
                print(f"\r{text[:100]:100}", end="", file=sys.stderr, flush=True)
            yield job
        print(f"\rfastconv warmup: {len(jobs)} done{'':80}".rstrip(), file=sys.stderr)
    else:
        yield from track(jobs, "fastconv warmup", console=Console(stderr=True))
