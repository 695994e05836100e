"""What a call on a GPU asks for and starts, noted while it runs: `fastconv.cuda.replay` starts it again."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

from fastconv.cuda import backend


class Tape:
    """Memory that one call asked for, in order, and the kernels that it started.

    Where a pointer points is noted as (which memory, how far into it): operands first, then what was asked for.  What is
    of neither is a table of a plan's, noted as it is and kept alive.
    """

    def __init__(self, operands: Sequence[Any]) -> None:
        self.count = len(operands)
        self.tables: list[Any] = []
        self.asked_for: list[Any] = []  # shape, dtype and order of axes
        self.launches: list[tuple[Any, list[tuple[int, int]]]] = []  # and where their pointers point
        self.results: list[int] = []  # which memory
        self.whole = True  # whether there is nothing beside
        self.spans = [memory.span for memory in operands]
        for i, memory in enumerate(operands):
            memory.origin, memory.begin = i, memory.pointer

    def asked(self, memory: Any, asked: Any) -> None:
        """Note memory that the call was given."""
        memory.origin, memory.begin = self.count + len(self.asked_for), memory.pointer
        self.asked_for.append(asked)

    def started(self, launch: Any, pointers: Sequence[Any]) -> None:
        """Note a kernel, whose pointers are memory, tables or None."""
        places = []
        for pointer in pointers:
            origin = getattr(pointer, "origin", -1)
            if origin >= 0:
                places.append((origin, pointer.pointer - pointer.begin))
            else:
                places.append((-1, 0 if pointer is None else pointer.pointer))
                self.tables.append(pointer)
        self.launches.append((launch, places))

    def apart(self, pointers: Sequence[int]) -> bool:
        """Return whether the last operand, which is written, ends before each other one or begins behind it."""
        begin, end = (pointers[-1] + distance for distance in self.spans[-1])
        return all(
            at + last <= begin or at + first >= end
            for at, (first, last) in zip(pointers[:-1], self.spans, strict=False)
        )

    def play(self, pointers: list[int], stream: Any) -> Any:
        """Ask for memory and start the kernels anew, for other operands of the same kind; return the result."""
        owners = []
        for make in self.makers:
            owner, pointer = make(stream)
            owners.append(owner)
            pointers.append(pointer)
        for origin, distance in self.further:
            pointers.append(pointers[origin] + distance)
        self.start(pointers, self.streams(stream))
        return self.handed(owners)

    def close(self, result: Any, like: Any) -> bool:
        """Note the form of what the call returned, and return whether the tape can be played, for operands ``like`` one."""
        given = [which - self.count for which in self.results]
        if isinstance(result, tuple):  # of results, and None for what was not asked for
            places = [i for i, value in enumerate(result) if value is not None]
            count: int = len(result)
            form: Any = getattr(result, "_make", tuple)

            def handed(owners: list[Any]) -> Any:
                values = [None] * count
                for place, which in zip(places, given, strict=True):
                    values[place] = owners[which]
                return form(values)

            self.handed: Callable[[list[Any]], Any] = handed
        else:
            places = [0]
            made = bool(given) and given[0] >= 0  # and not an operand, which the caller has
            self.handed = operator.itemgetter(given[0]) if made else lambda _: None
        self.makers = [
            like.maker(*asked) if i in given else like.scratch(*asked[:2])
            for i, asked in enumerate(self.asked_for)
        ]
        self.streams = like.streams()
        # kernels read their pointers from one block: where memory begins, places further on, and tables, which stay
        every = dict.fromkeys(place for _, places_of in self.launches for place in places_of)
        begins = [(i, 0) for i in range(self.count + len(self.asked_for))]
        self.further = [place for place in every if place[0] >= 0 and place[1]]
        tables = [place for place in every if place[0] < 0]
        at = {place: i for i, place in enumerate((*begins, *self.further, *tables))}
        launches = [(launch, [at[place] for place in places_of]) for launch, places_of in self.launches]
        start = getattr(backend(), "in_turn", in_turn)
        self.start = start(launches, len(begins) + len(self.further), [pointer for _, pointer in tables])
        return self.whole and len(places) == len(self.results) > 0


def in_turn(
    launches: Sequence[tuple[Any, Sequence[int]]], count: int, tables: Sequence[int]
) -> Callable[[Sequence[int], int], None]:
    """Return the function that starts kernels on a stream, from ``count`` pointers; ``tables`` are further ones.

    A kernel comes with the numbers of its own among all of them.
    """

    def start(pointers: Sequence[int], stream: int) -> None:
        block = [*pointers, *tables]
        for launch, own in launches:
            launch.start([block[i] for i in own], stream)

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
