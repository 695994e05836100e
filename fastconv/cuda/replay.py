"""Calls that were made before, without most of their Python.

Reading arguments, finding the plan and describing its launches takes longer than a small layer computes.  So the first
call of a kind runs as written, while a tape notes what it asks for and starts; later ones play the tape.  A kind is all
that may change what is started: how each operand lies and where on 16 bytes it begins, all other arguments, the
settings, and the GPU's context.
"""

from __future__ import annotations

import functools
import marshal
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from fastconv import plan
from fastconv.config import current
from fastconv.cuda import backend
from fastconv.cuda.memory import Memory, first_named, glance_of, operand, part
from fastconv.cuda.tape import LISTENING, Tape

KEPT = 2048  # tapes
OPTIONAL = ("bias", "residual")


def replayed(
    out: int | None, ours: bool = False, **places: int
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a call whose arguments at ``places`` are arrays, or memory of such: it is given their memory.

    A call with an argument ``out`` runs as written.  ``ours``: other arguments are the caller's no more, so that equal
    ones are of one type.
    """
    arrays = [(name, place, name in OPTIONAL) for name, place in places.items()]

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
            key = None
            if None not in lie and (out is None or rest[out] is None):
                key = key_of(function, lie, tuple(rest) if ours else by_value(rest))
                if (tape := plan.tapes.get(key)) is not None:
                    return played(tape, pointers, named)
            given, operands = list(arguments), []
            for name, place, _ in arrays:
                if (value := given[place]) is not None:
                    if not isinstance(value, Memory):
                        value = read.get(place) or operand(value, name)
                    operands.append(value)
                    given[place] = value
            try:
                return function(*given) if key is None else taped(key, operands, function, given)
            finally:
                part(operands)

        return call

    return decorate


def played(tape: Tape, pointers: Sequence[int], named: Sequence[int]) -> Any:
    """Play a tape on the first of the streams that operands name, in the order of all of them."""
    own, others = first_named(named) if named else (0, ())
    for other in others:
        backend().wait(own, other)
    result = tape.play(pointers, own)
    for other in others:
        backend().wait(other, own)
    return result


def taped(
    key: Hashable, operands: Sequence[Memory], function: Callable[..., Any], given: Sequence[Any]
) -> Any:
    """Call a function while a tape listens, and keep that."""
    LISTENING.tape = tape = Tape(operands)
    try:
        result = function(*given)
    finally:
        LISTENING.tape = None
    if tape.close(result, operands[0]):
        if len(plan.tapes) >= KEPT:
            plan.tapes.clear()
        plan.tapes[key] = tape
    return result


def key_of(function: Any, lie: Sequence[Hashable], rest: Hashable) -> Hashable:
    """Return what tells calls of one kind, or None for a call that is not kept."""
    if rest is None:
        return None
    return (function, rest, *lie, current().deciding, backend().context())


def by_value(rest: list[Any]) -> bytes | None:
    """Return bytes, in which 1, 1.0 and True differ, or None for something else than numbers, text and sequences of them."""
    try:
        return marshal.dumps(rest, 2)  # version 2 says all by value
    except ValueError:
        plain = [
            tuple(r) if isinstance(r, tuple) else r for r in rest
        ]  # PyTorch's shapes are of a class of their own
        return None if list(map(type, plain)) == list(map(type, rest)) else by_value(plain)
