"""What a run has measured, and the ratios drawn from it; written to and read from JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from fastconv.bench.corpus import CATEGORIES
from fastconv.bench.measure import Sample
from fastconv.problem import ConvProblem


@dataclass
class Row:
    """One layer in one direction."""

    line: str
    category: str
    name: str
    times: int
    direction: str
    flops: int
    bytes: int
    algorithm: str = ""
    peak: float = 0.0  # flop/s, measured in the same rounds
    error: float | None = None  # the largest of ours; None: nothing to compare with
    failure: str = ""
    samples: dict[str, Sample] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)  # of each contestant
    first: dict[str, float] = field(default_factory=dict)  # seconds of a first call: plan, loading of kernels
    memory: dict[str, int] = field(default_factory=dict)  # bytes at the peak of a call, result included
    left_out: dict[str, str] = field(default_factory=dict)  # who does not race, and why

    @property
    def problem(self) -> ConvProblem:
        """The layer."""
        return ConvProblem.parse(self.line)

    def best(self, *names: str) -> float | None:
        """Return the least seconds of those contestants that took part."""
        return min((self.samples[n].best for n in names if n in self.samples), default=None)

    def ratio(self, comparison: Comparison) -> float | None:
        """Return how many times as long the others take as we do."""
        others, ours = self.best(*comparison.others), self.best(comparison.ours)
        return others / ours if others and ours else None

    def share(self) -> float | None:
        """Return the definition's operations a second over the peak; above 1 where an algorithm saves some."""
        ours = self.best("fastconv")
        return self.flops / ours / self.peak if ours and self.peak else None

    def bandwidth(self) -> float | None:
        """Return bytes a second, if operands and result move once each."""
        ours = self.best("fastconv")
        return self.bytes / ours if ours else None

    def regret(self) -> float | None:
        """Return t(auto) / t(best); None unless algorithms were timed by name.

        The chosen algorithm runs twice, chosen and by name: the better time of the two is its time, so that
        noise between them is not taken for a wrong choice.
        """
        ours = self.best("fastconv", f"fastconv:{self.algorithm}")
        best = self.best(*(n for n in self.samples if n.startswith("fastconv")))
        named = any(n.startswith("fastconv:") for n in self.samples)
        return ours / best if named and ours and best else None


class Comparison(NamedTuple):
    """Others' time over ours."""

    title: str
    others: tuple[str, ...]
    ours: str = "fastconv"


NCHW = Comparison("torch NCHW", ("torch_nchw",))
BETTER = Comparison("better torch layout", ("torch_nchw", "torch_channels_last"))
PREPARED = Comparison("ONNX Runtime (prepared)", ("onnxruntime",), "prepared")
OPENVINO = Comparison("OpenVINO (prepared)", ("openvino",), "prepared")
JAX = Comparison("JAX", ("jax",))
SCIPY = Comparison("SciPy", ("scipy_signal", "scipy_ndimage"))
OPENCV = Comparison("OpenCV filter2D", ("opencv",))
OPENCV_DNN = Comparison("OpenCV DNN (prepared)", ("opencv_dnn",), "prepared")
COMPARISONS = (NCHW, BETTER, PREPARED, OPENVINO, JAX, SCIPY, OPENCV, OPENCV_DNN)


def _wide(problem: ConvProblem) -> bool:
    return min(problem.c, problem.k) >= 64 and problem.groups == 1


def _big_3x3(row: Row) -> bool:
    p = row.problem
    return row.category == "3x3" and _wide(p) and min(a.size for a in p.axes) >= 28


def _dense_or_1x1(row: Row) -> bool:
    p = row.problem
    return _wide(p) and (row.algorithm == "direct" or set(p.kernel) == {1})


SUBSETS: dict[str, Callable[[Row], bool]] = {
    "3x3 stride 1, C, K >= 64, maps >= 28x28": _big_3x3,
    "direct and 1x1, C, K >= 64": _dense_or_1x1,
}


def geomean(values: Iterable[float | None]) -> float | None:
    """Return the geometric mean of the values that are there.

    >>> geomean([2.0, None, 8.0])
    4.0
    """
    logs = [log(v) for v in values if v]
    return exp(sum(logs) / len(logs)) if logs else None


@dataclass
class Results:
    """A run: where, with what, and every row."""

    machine: dict[str, Any]
    versions: dict[str, str]
    options: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    special: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[Row]:
        """Rows that are wrong."""
        return [row for row in self.rows if row.failure]

    @property
    def directions(self) -> list[str]:
        """Directions measured, in order."""
        return list(dict.fromkeys(row.direction for row in self.rows))

    @property
    def categories(self) -> list[str]:
        """Categories measured, in order."""
        here = {row.category: None for row in self.rows}
        return [*(c for c in CATEGORIES if c in here), *(c for c in here if c not in CATEGORIES)]

    def select(self, direction: str, wanted: Callable[[Row], bool] = lambda row: True) -> list[Row]:
        """Return the rows of a direction that are wanted."""
        return [row for row in self.rows if row.direction == direction and wanted(row)]

    def groups(self, direction: str) -> Iterable[tuple[str, list[Row]]]:
        """Yield each category, all layers, and each named subset, where there are any."""
        for name in self.categories:
            yield name, self.select(direction, lambda row, name=name: row.category == name)  # type: ignore[misc]
        yield "all", self.select(direction)
        for name, wanted in SUBSETS.items():
            if rows := self.select(direction, wanted):
                yield name, rows

    def save(self, path: str | Path) -> None:
        """Write JSON: under another name first, so that an interrupted run leaves what was there."""
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read JSON."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = [
                Row(**{**row, "samples": {name: Sample(**s) for name, s in row["samples"].items()}})
                for row in content.pop("rows")
            ]
            return cls(rows=rows, **content)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} does not hold results of this version: {error}") from None


class Regret(NamedTuple):
    """How much longer the chosen algorithm takes than the best: t(auto) / t(best) over many layers."""

    median: float
    at95: float
    most: float

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Regret | None:
        """Sum up the rows whose algorithms were timed by name."""
        values = sorted(r for row in rows if (r := row.regret()))
        return cls(median(values), values[int(0.95 * (len(values) - 1))], values[-1]) if values else None

    def __str__(self) -> str:
        return f"median {self.median:.2f}, 95th percentile {self.at95:.2f}, most {self.most:.2f}"


ALLOWED = Regret(1.05, 1.3, 2.0)


class Change(NamedTuple):
    """A row in two runs: how much longer it takes than before."""

    row: Row
    slower: float


def regressions(now: Results, before: Results, allowed: float = 1.1) -> list[Change]:
    """Return the rows more than ``allowed`` times slower than before, the worst first.

    Times are weighed with the peak of their own rounds: what slows the whole machine is no regression.
    """

    def work(row: Row) -> float | None:
        seconds = row.best("fastconv")
        return seconds and seconds * (row.peak or 1.0)

    old = {(row.line, row.direction): work(row) for row in before.rows}
    if now.rows and old.keys().isdisjoint((row.line, row.direction) for row in now.rows):
        raise ValueError("the run to compare with holds none of these layers")
    changes = []
    for row in now.rows:
        a, b = work(row), old.get((row.line, row.direction))
        if a and b and a > allowed * b:
            changes.append(Change(row, a / b))
    return sorted(changes, key=lambda change: -change.slower)


def total(rows: Sequence[Row], name: str) -> float | None:
    """Return the seconds of a whole network by one contestant; None unless it ran every layer."""
    seconds = [row.best(name) for row in rows]
    if not rows or None in seconds:
        return None
    return sum(row.times * (s or 0.0) for row, s in zip(rows, seconds, strict=True))
