"""The choice: every algorithm is asked, and the cheapest that is admitted wins.

An algorithm is out when it cannot give the right result (its own words), when it cannot keep the
workspace limit, or when it does anything but add and multiply what it is given and ``precision="strict"`` or the
numbers are integers.  The reference needs no scratch and rejects nothing, so a choice by cost never fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

from fastconv.algorithms import find, on_gpu, registry
from fastconv.algorithms.base import Algorithm
from fastconv.config import Settings
from fastconv.dtypes import carrier
from fastconv.errors import AlgorithmError, WorkspaceError
from fastconv.problem import ConvProblem, Direction
from fastconv.taps import without_padded


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one algorithm answered."""

    name: str
    cost: float | None = None  # predicted seconds
    workspace: int | None = None  # bytes
    reason: str | None = None  # why it is out
    over_limit: bool = False  # out for its workspace alone
    measured: float | None = None  # seconds, if the problem has been tuned
    growth: float | None = None  # rounding error over that of naive summation


@dataclass(frozen=True, slots=True, repr=False)
class Selection:
    """The algorithm chosen for a problem, and every candidate; prints as a table."""

    problem: ConvProblem
    direction: Direction
    algorithm: str
    candidates: tuple[Candidate, ...]
    copied: bool = False  # whether images held pixel by pixel are copied channels first, and the result back

    def __str__(self) -> str:
        width = max(map(len, ("algorithm", *(c.name for c in self.candidates))))
        lines = [
            f"{self.direction} {self.problem}",
            f"  {'algorithm':{width}}  {'predicted':>12}  {'measured':>12}  {'workspace':>10}  {'error':>6}  note",
        ]
        for c in self.candidates:
            mark = "*" if c.name == self.algorithm else " "
            cost, measured = ("-" if s is None else f"{s * 1e3:.3f} ms" for s in (c.cost, c.measured))
            growth = "-" if c.growth is None else f"{c.growth:.3g}x"
            size = "-" if c.workspace is None else _size(c.workspace)
            lines.append(
                f"{mark} {c.name:{width}}  {cost:>12}  {measured:>12}  {size:>10}  {growth:>6}  {c.reason or ''}".rstrip()
            )
        if self.copied:
            lines.append("  images are copied channels first, and the result back")
        return "\n".join(lines)

    __repr__ = __str__


def ranked(
    problem: ConvProblem,
    direction: Direction,
    settings: Settings,
    device: str = "cpu",
    prepared: bool = False,
) -> tuple[ConvProblem, Iterator[str]]:
    """Return the problem as it is served, and who may serve it, the cheapest first.

    What a call asks for: whether an algorithm keeps the workspace limit is known when it has been built.
    ``prepared`` weights cost nothing; there is time to ask everyone then.
    """
    named = settings.algorithm
    problem = _as_served(problem, direction, settings, device)
    if named != "auto":
        _require(_ask(named, find(named, device), problem, direction, settings), problem, direction, settings)
        return problem, iter((named,))
    return problem, _cheapest_first(problem, direction, settings, device, prepared)


def _cheapest_first(
    problem: ConvProblem, direction: Direction, settings: Settings, device: str, prepared: bool
) -> Iterator[str]:
    """Yield who may serve a problem; who is beaten whatever it costs is asked only when the cheapest has failed."""
    carried, exact = carrier(problem), _inexact(problem, settings) is not None
    asked = registry() if device == "cpu" else on_gpu()
    if carried.is_depthwise:
        asked = {"direct": asked["direct"]} | asked  # the likeliest first: others are beaten by their floors
    bounded = device == "cpu" and not prepared  # floors are a CPU's, and count the weights
    costs: dict[str, float] = {}
    cheapest, least, beaten = "", inf, []
    for name, algorithm in asked.items():
        if (exact and not algorithm.exact) or algorithm.reject(carried, direction):
            continue
        if bounded and costs and algorithm.floor(carried, direction) >= least:
            beaten.append(algorithm)
            continue
        cost = algorithm.cost(carried, direction)
        if prepared:
            cost -= algorithm.preparing(carried)
        costs[name] = cost
        if cost < least:
            cheapest, least = name, cost
    yield cheapest
    costs |= {a.name: a.cost(carried, direction) for a in beaten}
    del costs[cheapest]
    yield from sorted(costs, key=costs.__getitem__)


def select(problem: ConvProblem, direction: Direction, settings: Settings, device: str = "cpu") -> Selection:
    """Ask every algorithm everything; choose the one that the settings name, or the cheapest within them."""
    named, layout = settings.algorithm, problem.layout
    if not problem.n:
        return Selection(problem, direction, nobody(settings, device), ())
    problem = _as_served(problem, direction, settings, device)
    copied = problem.layout != layout
    asked = dict(registry() if device == "cpu" else on_gpu())
    if named != "auto":
        asked[named] = find(named, device)
    candidates = tuple(_ask(name, a, problem, direction, settings) for name, a in asked.items())
    if named != "auto":
        _require(next(c for c in candidates if c.name == named), problem, direction, settings)
        return Selection(problem, direction, named, candidates, copied)
    best = min((c for c in candidates if c.reason is None), key=lambda c: c.cost or 0.0)
    return Selection(problem, direction, best.name, candidates, copied)


def nobody(settings: Settings, device: str) -> str:
    """Return who serves a batch without images; a name that is none is an error for any batch."""
    if settings.algorithm != "auto":
        find(settings.algorithm, device)
    return "empty"


def _as_served(problem: ConvProblem, direction: Direction, settings: Settings, device: str) -> ConvProblem:
    """Return the problem without taps in the padding, and channels first if who is named does not serve its layout."""
    if device == "cpu":
        problem = without_padded(problem)
    named = settings.algorithm
    if problem.layout == "nhwc" and named != "auto" and find(named, device).reject(problem, direction):
        return replace(problem, layout="nchw")
    return problem


def admitted(algorithm: Algorithm, problem: ConvProblem, direction: Direction, settings: Settings) -> bool:
    """Return whether an algorithm may serve a problem."""
    return _ask(algorithm.name, algorithm, problem, direction, settings).reason is None


def _inexact(problem: ConvProblem, settings: Settings) -> str | None:
    """Return why an algorithm that does anything but add and multiply what it is given is out, if it is."""
    if problem.dtype == "int64":
        return "rounds, and integers are computed exactly"
    if settings.precision == "strict":
        return "a result's error, and its NaNs, come from a whole tile; precision='strict' admits its own products'"
    if problem.dtype.startswith("complex") and settings.algorithm == "auto":
        return "serves complex numbers by its name alone: it rounds more"
    return None


def _ask(
    name: str, algorithm: Algorithm, problem: ConvProblem, direction: Direction, settings: Settings
) -> Candidate:
    carried = carrier(problem)
    reason = algorithm.reject(carried, direction) or (not algorithm.exact and _inexact(problem, settings))
    if reason:
        return Candidate(name, reason=reason)
    growth = algorithm.error_growth(carried, direction)
    workspace = algorithm.workspace(carried, direction, settings.workspace)
    if workspace > settings.workspace:
        reason = f"needs at least {workspace} bytes of workspace, the limit is {settings.workspace}"
        return Candidate(name, workspace=workspace, growth=growth, reason=reason, over_limit=True)
    return Candidate(name, algorithm.cost(carried, direction), workspace, growth=growth)


def _require(candidate: Candidate, problem: ConvProblem, direction: Direction, settings: Settings) -> None:
    if candidate.reason:
        error = WorkspaceError if candidate.over_limit else AlgorithmError
        raise error(f"algorithm {candidate.name!r} cannot serve {direction} {problem}: {candidate.reason}")


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**19 else f"{count / 2**10:.1f} KiB"
