"""Transforms in a thread's registers: straight-line code on a local array, from what `straight` describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastconv.algorithms.straight import Scalars, Tape
from fastconv.cuda.language import SIMULATED

Program = Callable[[Any, list[Any]], list[Any]]  # of an arithmetic and values


def codelet(program: Program, count: int) -> Any:
    """Return the device function of a program: it reads ``count`` elements of a local array and writes what it makes."""
    if SIMULATED:
        tape = Tape(count)
        results = program(tape, list(range(count)))

        def replay(array: Any) -> None:
            values = tape.replay([array[i] for i in range(count)])
            array[: len(results)] = [values[i] for i in results]

        return replay

    from llvmlite import ir
    from numba.core import types
    from numba.cuda.extending import intrinsic

    @intrinsic
    def apply_scalars(_: Any, array: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            at = [builder.gep(data, [ir.IntType(32)(i)]) for i in range(count)]
            on = Scalars(builder, data.type.pointee)
            for i, value in enumerate(program(on, [builder.load(pointer) for pointer in at])):
                builder.store(value, builder.gep(data, [ir.IntType(32)(i)]))
            return context.get_dummy_value()

        return types.void(array), codegen

    return apply_scalars
