"""Progress of long work, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """Who is told of each piece of work."""

    def begin(self, what: str) -> None: ...

    def end(self, result: str) -> None: ...


class _Lines:
    """One line for each layer."""

    def __init__(self, count: int) -> None:
        self.count, self.done, self.what = count, 0, ""

    def begin(self, what: str) -> None:
        self.what = what

    def end(self, result: str) -> None:
        self.done += 1
        print(f"{self.done}/{self.count} {self.what}: {result}", file=sys.stderr, flush=True)


class _Bar:
    """A bar with the layer that is running, and what the last one gave."""

    def __init__(self, bar: Any, count: int) -> None:
        self.bar = bar
        self.task = bar.add_task("", total=count, last="")

    def begin(self, what: str) -> None:
        self.bar.update(self.task, description=what)

    def end(self, result: str) -> None:
        self.bar.update(self.task, advance=1, last=result)


@contextmanager
def progress(count: int) -> Iterator[Progress]:
    """Show progress on stderr: a live bar by rich on a terminal, else lines."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars
    except ImportError:
        yield _Lines(count)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(count)
        return
    columns = (MofNCompleteColumn(), BarColumn(20), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bars(*columns, TextColumn("[dim]{task.fields[last]}"), console=console) as bar:
        yield _Bar(bar, count)
