"""What a call on a GPU asks for and starts, noted while it runs: `fastconv.cuda.replay` starts it again."""

from __future__ import annotations

import itertools
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

from fastconv.cuda import backend


class Tape:
    """Memory that one call asked for, in order, and the kernels that it started.

    A pointer is noted as (which memory, how far into it): operands first, then what was asked for.  What is of neither
    is a table of a plan's, noted as it is and kept alive.
    """

    def __init__(self, operands: Sequence[Any]) -> None:
        self.count = len(operands)
        self.tables: list[Any] = []
        self.asked_for: list[Any] = []  # shape, dtype and order of axes
        self.launches: list[tuple[Any, int]] = []  # and how many pointers each has
        self.sources: list[tuple[int, int]] = []  # of all their pointers, one launch after the other
        self.results: list[int] = []  # which memory
        self.whole = True  # whether there is nothing beside
        for i, memory in enumerate(operands):
            memory.origin, memory.begin = i, memory.pointer

    def asked(self, memory: Any, asked: Any) -> None:
        """Note memory that the call was given."""
        memory.origin, memory.begin = self.count + len(self.asked_for), memory.pointer
        self.asked_for.append(asked)

    def started(self, launch: Any, pointers: Sequence[Any]) -> None:
        """Note a kernel, whose pointers are memory, tables or None."""
        for pointer in pointers:
            origin = getattr(pointer, "origin", -1)
            if origin >= 0:
                self.sources.append((origin, pointer.pointer - pointer.begin))
            else:
                self.sources.append((-1, 0 if pointer is None else pointer.pointer))
                self.tables.append(pointer)
        self.launches.append((launch, len(pointers)))

    def play(self, pointers: Sequence[int], stream: int) -> Any:
        """Ask for memory and start the kernels anew, for other operands of the same kind; return the result."""
        begins, owners = [*pointers], []
        for make in self.makers:
            owner, pointer = make(stream)
            owners.append(owner)
            begins.append(pointer)
        begins.append(0)  # at -1: tables lie where they lay
        self.start([begins[origin] + distance for origin, distance in self.sources], self.streams(stream))
        return self.handed([owners[i] for i in self.given])

    def close(self, result: Any, like: Any) -> bool:
        """Note the form of what the call returned, and return whether the tape can be played, for operands ``like`` one."""
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
        self.given = [which - self.count for which in self.results]
        self.makers = [
            like.maker(*asked) if i in self.given else like.scratch(*asked[:2])
            for i, asked in enumerate(self.asked_for)
        ]
        self.streams = like.streams()
        self.start = getattr(backend(), "in_turn", in_turn)(self.launches)
        return self.whole and len(places) == len(self.results) > 0


def in_turn(launches: Sequence[tuple[Any, int]]) -> Callable[[Sequence[int], int], None]:
    """Return the function that starts kernels on a stream, from the pointers of all of them."""

    def start(pointers: Sequence[int], stream: int) -> None:
        rest = iter(pointers)
        for launch, count in launches:
            launch.start(list(itertools.islice(rest, count)), stream)

    return start


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
