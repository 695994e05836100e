"""Suites of layers: text files, one problem on a line.

::

    [pointwise]                                         category of what follows; else `category` says
    n16 c64 k256 i56x56 f1x1 x4  # res2a_branch1        four such layers in the network, and a name

``core`` is what the package is tuned on; ``accept`` holds as many layers of the same categories that it
is not tuned on; ``quick`` takes a minute; in each section of ``sweep`` one number grows; the others are
networks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastconv.problem import ConvProblem

SUITES = Path(__file__).parent / "suites"
SWEEP = "sweep:"  # begins the sections in which one number of a layer grows

CATEGORIES = (
    "first-layer", "pointwise", "pointwise-strided", "3x3", "3x3-small-map", "3x3-strided", "5x5-7x7",
    "depthwise", "depthwise-large", "grouped", "dilated", "1d", "other",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """A problem as it occurs in a network."""

    problem: ConvProblem
    category: str
    times: int = 1  # occurrences in the network
    name: str = ""


def category(problem: ConvProblem) -> str:
    """Return the kind of a layer: layers of one kind are limited by the same thing.

    >>> category(ConvProblem.parse("n8 c64 i56x56 f3x3 p1"))
    '3x3'
    """
    kernel, strided = set(problem.kernel), not problem.unit_stride
    suffix = "-strided" if strided else ""
    if len(problem.axes) != 2:
        return f"{len(problem.axes)}d"
    if not problem.undilated:
        return "dilated"
    if problem.is_depthwise:
        return "depthwise-large" if max(kernel) > 7 else "depthwise"
    if problem.groups > 1:
        return "grouped"
    if kernel == {1}:
        return f"pointwise{suffix}"
    if problem.c <= 4:
        return "first-layer"
    if kernel == {3}:
        return "3x3-small-map" if not strided and max(problem.output) <= 14 else f"3x3{suffix}"
    return "5x5-7x7" if kernel in ({5}, {7}) else "other"


def names() -> list[str]:
    """Return the suites that come with the package."""
    return sorted(path.stem for path in SUITES.glob("*.txt"))


def load(suite: str) -> list[Layer]:
    """Read a suite by its name, or a file by its path."""
    path = SUITES / f"{suite}.txt"
    if not path.is_file():
        path = Path(suite)
    if not path.is_file():
        raise ValueError(f"suite must be a file or one of {', '.join(names())}, got {suite!r}")
    return list(parse(path.read_text(encoding="utf-8")))


def parse(text: str) -> Iterator[Layer]:
    """Yield the layers of a suite."""
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        words, _, name = line.partition("#")
        words = words.strip()
        if not words:
            continue
        if header := re.fullmatch(r"\[(\S+)\]", words):
            section = header[1]
            continue
        times = 1
        if counted := re.fullmatch(r"(.*\S)\s+x(\d+)", words):
            words, times = counted[1], int(counted[2])
        try:
            problem = ConvProblem.parse(words)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        yield Layer(problem, section or category(problem), times, name.strip())
