"""Calls that were made before, without most of their Python.

Reading arguments, finding the plan and describing its launches takes longer than a small layer computes.  So the first
call of a kind runs as written, while a tape notes what it asks for and starts; later ones play the tape.  A kind is all
that may change what is started: how each operand lies and where on 16 bytes it begins, all other arguments, the
settings, and the GPU's context.

A call runs on the first stream that an operand names.  That waits for the others, and they for it: what is there may be
read, written or freed on them next.
"""

from __future__ import annotations

import functools
import marshal
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from fastconv import plan
from fastconv.config import current
from fastconv.cuda import backend
from fastconv.cuda.memory import Memory, Stream
from fastconv.cuda.operands import first_named, glance_of, operand
from fastconv.cuda.tape import LISTENING, Tape

KEPT = 2048  # tapes
OPTIONAL = ("bias", "residual", "indices", "out")


def replayed(**places: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a call whose arguments at ``places`` are arrays: it is given their memory; an ``out`` is the last."""
    arrays = [(name, place, name in OPTIONAL) for name, place in places.items()]
    out = places.get("out")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            rest, read, pointers, named, lie = list(arguments), {}, [], [], []
            for name, place, optional in arrays:
                value = arguments[place]
                if value is not None or not optional:
                    kind: Any = type(value)
                    try:
                        pointer, stream, lies = glance_of(kind)(value)
                    except Exception:  # of an array that has to be read, or that is refused then
                        read[place] = operand(value, name)
                        pointer, stream, lies = read[place].seen()
                    pointers.append(pointer)
                    lie.append(lies)
                    if stream:
                        named.append(stream)
                    rest[place] = True
            target = None if out is None else arguments[out]
            key = None
            if not (read and None in lie):
                key = (function, by_value(rest), current().deciding, backend().context(), *lie)
                tape = plan.tapes.get(key)
                if tape is not None and (target is None or tape.apart(pointers)):
                    if not named:
                        result = tape.play(pointers, 0)
                    else:
                        result = in_order(named, lambda own: tape.play(pointers, own))
                    return result if target is None else target
            given, operands = list(arguments), []
            for name, place, _ in arrays:
                if (value := given[place]) is not None:
                    given[place] = memory = read.get(place) or operand(value, name)
                    operands.append(memory)

            def run(own: Stream) -> Any:
                for memory in operands:
                    memory.named = own
                return function(*given) if key is None else taped(key, rest, operands, function, given)

            return in_order([memory.named for memory in operands], run)

        return call

    return decorate


def in_order(named: Sequence[Stream], run: Callable[[Stream], Any]) -> Any:
    """Run on the first of the streams that operands name, in the order of all of them."""
    own, others = first_named(named)
    for other in others:
        backend().wait(int(own), other)
    try:
        return run(own)
    finally:
        for other in others:
            backend().wait(other, int(own))


def taped(
    key: Hashable,
    rest: Sequence[Any],
    operands: Sequence[Memory],
    function: Callable[..., Any],
    given: Sequence[Any],
) -> Any:
    """Call a function while a tape listens, and keep that."""
    LISTENING.tape = tape = Tape(operands)
    try:
        result = function(*given)
    finally:
        LISTENING.tape = None
    if tape.close(result, operands[0]) and plain(rest):
        if len(plan.tapes) >= KEPT:
            plan.tapes.clear()
        plan.tapes[key] = tape
    return result


def by_value(rest: list[Any]) -> bytes | None:
    """Return bytes, in which 1, 1.0 and True differ, or None for something else than numbers, text and sequences of them."""
    try:
        return marshal.dumps(rest, 2)  # version 2 says all by value
    except ValueError:
        known = [
            tuple(r) if isinstance(r, tuple) else r for r in rest
        ]  # PyTorch's shapes are of a class of their own
        return None if list(map(type, known)) == list(map(type, rest)) else by_value(known)


def plain(value: Any) -> bool:
    """Return whether `by_value` tells a value from all others: of what has a buffer, as NumPy's numbers, it tells the bytes alone."""
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)
