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
from fastconv.cuda.memory import agree, operand
from fastconv.cuda.tape import LISTENING, Tape

KEPT = 2048  # tapes
OPTIONAL = ("bias", "residual")


def replayed(out: int | None, **places: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a call whose arguments at ``places`` are arrays: it is given their memory.

    A call with an argument ``out`` runs as written.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            given, rest, operands = list(arguments), list(arguments), []
            for name, place in places.items():
                if arguments[place] is not None or name not in OPTIONAL:
                    given[place] = memory = operand(arguments[place], name)
                    rest[place] = True
                    operands.append(memory)
            own = out is None or arguments[out] is None
            key = kind(function.__name__, operands, rest) if own else None
            if key is None:
                return function(*given)
            if (tape := plan.tapes.get(key)) is not None:
                agree(operands)
                return tape.play(operands)
            LISTENING.tape = tape = Tape(operands)
            try:
                result = function(*given)
            finally:
                LISTENING.tape = None
            if tape.close(result):
                if len(plan.tapes) >= KEPT:
                    plan.tapes.clear()
                plan.tapes[key] = tape
            return result

        return call

    return decorate


def kind(name: str, operands: Sequence[Any], rest: list[Any]) -> Hashable:
    """Return what tells calls of one kind, or None for a call that is not kept."""
    if not operands[0].lasting:
        return None
    try:
        told = marshal.dumps(rest, 2)  # bytes, in which 1, 1.0 and True differ; version 2 says all by value
    except ValueError:  # something else than numbers, text and sequences of them
        plain = [
            tuple(r) if isinstance(r, tuple) else r for r in rest
        ]  # PyTorch's shapes are of a class of their own
        if list(map(type, plain)) == list(map(type, rest)):
            return None
        return kind(name, operands, plain)
    s = current()
    lie = [(type(m), m.shape, m.strides, m.dtype, m.device, m.pointer % 16) for m in operands]
    return (name, told, *lie, s.algorithm, s.workspace, s.precision, s.tune, backend().context())  # fmt: skip
