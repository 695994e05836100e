"""What a call on a GPU asks for and starts, noted while it runs: `fastconv.cuda.replay` starts it again."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any


class Tape:
    """Memory that one call asked for, in order, and the kernels that it started.

    A pointer is noted as (which memory, how far into it): operands first, then what was asked for.  What is of neither
    is a table of a plan's, noted as it is and kept alive.
    """

    def __init__(self, operands: Sequence[Any]) -> None:
        self.count = len(operands)
        self.tables: list[Any] = []
        self.asked_for: list[tuple[tuple[int, ...], Any]] = []  # shape and dtype
        self.launches: list[tuple[Any, list[tuple[int, int]]]] = []
        self.results: list[tuple[int, tuple[int, ...] | None]] = []  # which memory, its axes in which order
        self.whole = True  # whether there is nothing beside
        for i, memory in enumerate(operands):
            memory.origin, memory.begin = i, memory.pointer

    def asked(self, memory: Any) -> None:
        """Note memory that the call was given."""
        memory.origin, memory.begin = self.count + len(self.asked_for), memory.pointer
        self.asked_for.append((memory.shape, memory.dtype))

    def started(self, launch: Any, pointers: Sequence[Any]) -> None:
        """Note a kernel, whose pointers are memory, tables or None."""
        sources = []
        for pointer in pointers:
            origin = getattr(pointer, "origin", -1)
            if origin >= 0:
                sources.append((origin, pointer.pointer - pointer.begin))
            else:
                sources.append((-1, 0 if pointer is None else pointer.pointer))
                self.tables.append(pointer)
        self.launches.append((launch, sources))

    def play(self, operands: Sequence[Any]) -> Any:
        """Ask for memory and start the kernels anew, for other operands of the same kind; return the result."""
        like = operands[0]
        made = [
            like.fresh(shape, dtype) if kept else like.scratch(shape, dtype)
            for shape, dtype, kept in self.made
        ]
        begins = [m.pointer for m in operands]
        begins += [m.pointer for m in made]
        begins.append(0)  # at -1: tables lie where they lay
        stream = like.stream()
        for launch, sources in self.launches:
            launch.start([begins[origin] + distance for origin, distance in sources], stream)
        results = []
        for which, axes in self.results:
            memory = made[which - self.count]
            results.append((memory.turned(axes) if axes else memory).owner)
        return self.handed(results)

    def close(self, result: Any) -> bool:
        """Note the form of what the call returned, and return whether the tape can be played."""
        if isinstance(result, tuple):  # of results, and None for what was not asked for
            places = [i for i, value in enumerate(result) if value is not None]
            count: int = len(result)
            form: Any = getattr(result, "_make", tuple)

            def handed(results: list[Any]) -> Any:
                values = [None] * count
                for place, value in zip(places, results, strict=True):
                    values[place] = value
                return form(values)

            self.handed: Callable[[list[Any]], Any] = handed
        else:
            places, self.handed = [0], operator.itemgetter(0)
        kept = {which - self.count for which, _ in self.results}
        self.made = [(*asked, i in kept) for i, asked in enumerate(self.asked_for)]
        return self.whole and len(places) == len(self.results) > 0


class Listening(threading.local):
    """The tape of this thread's present call."""

    tape: Tape | None = None


LISTENING = Listening()


def launcher(make: Callable[..., Any]) -> Callable[..., None]:
    """Return a function that starts a kernel; ``make(kernel, blocks, pointers, geometry)`` has ``start``."""

    def launch(kernel: Any, blocks: int, stream: int, *arguments: Any) -> None:
        """Start a kernel; pointers are `fastconv.cuda.memory.Memory`, tables or None."""
        *pointers, geometry = arguments
        made = make(kernel, blocks, pointers, geometry)
        made.start([0 if p is None else p.pointer for p in pointers], stream)
        if (tape := LISTENING.tape) is not None:
            tape.started(made, pointers)

    return launch
