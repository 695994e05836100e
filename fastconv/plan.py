"""Plans: a problem, a direction and the algorithm chosen for them, ready to run, and kept for the next call."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv import arguments, dtypes, strict, taps
from fastconv.algorithms import find as find_algorithm
from fastconv.algorithms.base import Execution
from fastconv.arguments import Walk
from fastconv.config import Settings, current, override
from fastconv.problem import ConvProblem, Direction
from fastconv.select import nobody
from fastconv.tune import decide
from fastconv.typing import Array

KEPT = 512  # plans; the layers of several networks in three directions


class Plan:
    """One problem in one direction by one algorithm; ``run`` is its execution's."""

    __slots__ = (
        "algorithm",
        "direction",
        "execution",
        "layout",
        "nothing",
        "problem",
        "run",
        "shape",
        "used",
    )

    def __init__(
        self,
        problem: ConvProblem,
        direction: Direction,
        settings: Settings,
        device: str = "cpu",
        prepared: bool = False,
    ) -> None:
        self.direction, self.layout = direction, problem.layout  # as asked for
        *_, self.shape = direction.roles(problem.input_shape, problem.weight_shape, problem.output_shape)
        if device == "cpu":
            np.empty(self.shape, problem.dtype)  # MemoryError at once, not after tables as long as the result
        if problem.n:
            served, names = decide(problem, direction, settings, device, prepared)
            for self.algorithm in names:
                algorithm = find_algorithm(self.algorithm, device)
                make = algorithm.build
                if settings.precision == "strict" and direction is Direction.INPUT_GRAD and device == "cpu":
                    make = functools.partial(strict.build, algorithm)
                self.execution = dtypes.build(make, served, direction, settings.workspace)
                if self.execution.workspace <= settings.workspace:
                    break
            if served.axes == problem.axes:
                problem = served  # perhaps in another layout than asked for
            else:
                problem = replace(problem, layout=served.layout)
                self.execution = taps.with_padded(self.execution, problem, direction, settings.workspace)
        else:
            self.algorithm = nobody(settings, device)
            self.execution = _Empty()
        self.problem = problem
        self.run = self.execution.run
        self.nothing = np.empty(0, problem.dtype)
        self.used = True

    def __repr__(self) -> str:
        return f"<Plan {self.direction} {self.problem} by {self.algorithm}>"


class _Empty(Execution):
    """A batch of nothing: an empty result, or a sum of no terms."""

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        out.fill(0)


_plans: dict[Hashable, Plan] = {}
tapes: dict[Hashable, Any] = {}  # of calls on a GPU: `fastconv.cuda.replay`
_lock = threading.Lock()


def _in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def find(
    direction: str,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: np.dtype[Any],
    walk: tuple[Any, ...],
    algorithm: str,
    workspace: int | None,
    device: str = "cpu",
    prepared: bool = False,
    context: Hashable = None,
) -> Plan:
    """Return the plan of a call; on a miss the arguments are checked and the algorithm is chosen.

    A hit costs a tuple and a look-up: nothing is derived from the arguments before.  ``walk`` has the fields of a
    `Walk`, and needs to be one as little.  ``prepared``: the choice is for calls whose weights are prepared;
    ``context``: that of the GPU on which a plan's tables are.
    """
    settings = current()
    if type(algorithm) is not str or algorithm != "auto" or workspace is not None:
        settings = override(settings, algorithm, workspace)
    key = direction, input_shape, weight_shape, dtype, walk, settings.deciding, device, prepared, context
    plan = _plans.get(key)
    if plan is None:
        problem = arguments.problem(input_shape, weight_shape, dtype.name, Walk(*walk))
        plan = Plan(problem, Direction(direction), settings, device, prepared)
        _keep(key, plan)
    plan.used = True
    return plan


def _keep(key: Hashable, plan: Plan) -> None:
    """Store a plan; in the place of one not used since it was last looked at, if all places are taken."""
    with _lock:
        while len(_plans) >= KEPT:
            oldest = next(iter(_plans))
            other = _plans.pop(oldest)
            if other.used:
                other.used = False
                _plans[oldest] = other
        _plans[key] = plan


def clear() -> None:
    """Forget all plans."""
    with _lock:
        _plans.clear()
        tapes.clear()
