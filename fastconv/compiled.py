"""Plans as machine code, for callers without the interpreter.

What a plan's ``run`` does is to start kernels, on memory of its operands, of scratch and of tables that it keeps, and on
small arrays made for the call, in which kernels count and list.  Run while `threads` only listens, twice and on other
operands, it tells which is which: tables are where they were, and what kernels would write is as it was.  A function is
made of that, which starts the serial twins of these kernels one after the other, with all that is not of the call as
constants.

A plan that computes between its kernels, on arrays of its own, is not made of kernels alone: it has no such function.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.np.arrayobj import populate_array

from fastconv import threads, workspace
from fastconv.config import config
from fastconv.plan import Plan
from fastconv.typing import Array

POINTERS = 6  # to first, second, out, bias, residual and scratch
I64, BYTES = ir.IntType(64), ir.IntType(8).as_pointer()
_numbers = itertools.count()


class Function(NamedTuple):
    """``void (first, second, out, bias, residual, scratch)``, pointers to as much memory as the plan's arrays take."""

    address: int
    scratch: int  # bytes, on a cache line
    kept: Any  # what the machine code reads


class _Place(NamedTuple):
    """Where an array of a call is: behind which pointer, and how many bytes."""

    pointer: int
    offset: int


def function(plan: Plan, activation: Any, bias: bool, residual: bool) -> Function | None:
    """Compile a plan, or return None where it is not made of kernels alone."""
    workspace.release()
    _heard(plan, activation, bias, residual, 0)  # to see how much scratch
    first, second = (_heard(plan, activation, bias, residual, value) for value in (1, 2))
    if not first or not second:
        return None
    size = held = -(-workspace.high_water() // workspace.ALIGNMENT) * workspace.ALIGNMENT
    launches = []
    for (kernel, arguments), (_, others) in zip(first.launches, second.launches, strict=True):
        places: list[_Place | None] = []
        for a, b in zip(arguments, others, strict=True):
            place = None
            if not isinstance(a, np.ndarray):
                if a != b:
                    return None
            elif a.size:
                place = _place(a, first.memory)
                if place is None and _address(a) != _address(b):
                    if a.dtype != np.int64:
                        return None
                    place = _Place(POINTERS - 1, size)
                    size += -(-a.nbytes // workspace.ALIGNMENT) * workspace.ALIGNMENT
            places.append(place)
        launches.append((kernel, arguments, places))
    return _assembled(launches, held, size) if launches else None


class _Heard(NamedTuple):
    memory: list[Array]
    launches: list[Any]


def _heard(plan: Plan, activation: Any, bias: bool, residual: bool, value: int) -> _Heard | None:
    """Return the memory of a call on arrays of one value, and what it starts; None if it computes besides."""
    p = plan.problem
    *operands, _ = plan.direction.roles(p.input_shape, p.weight_shape, p.output_shape)
    shapes = [*operands, plan.shape, plan.shape[1:2] if bias else (0,), plan.shape if residual else (0,)]
    arrays = [np.full(shape, value, p.dtype) for shape in shapes]
    workspace.held().fill(value)
    with config(threads=1), threads.listening() as launches:
        first, second, out, added, more = arrays
        plan.run(first, second, out, added, activation, more)
    memory = [*arrays, workspace.held()]
    return _Heard(memory, launches) if all((array == value).all() for array in memory) else None


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _place(array: Array, memory: Sequence[Array]) -> _Place | None:
    """Return in which of the call's memory an array lies."""
    for i, whole in enumerate(memory):
        if 0 <= (offset := _address(array) - _address(whole)) < whole.nbytes:
            return _Place(i, offset)
    return None


@global_compiler_lock
def _assembled(launches: Sequence[Any], held: int, size: int) -> Function:
    """Make the function; behind ``held`` bytes of scratch stand arrays that are zeros when they are made."""
    context = cpu_target.target_context
    name = f"fastconv_plan_{next(_numbers)}"
    library = context.codegen().create_library(name)
    module = library.create_ir_module(name)
    code = ir.Function(module, ir.FunctionType(ir.VoidType(), [BYTES] * POINTERS), name)
    builder = ir.IRBuilder(code.append_basic_block())
    if size > held:
        cgutils.memset(builder, builder.gep(code.args[-1], [I64(held)]), I64(size - held), 0)

    def value(kind: Any, argument: Any, place: _Place | None) -> Any:
        if not isinstance(kind, types.Array):
            return context.get_constant_generic(builder, kind, argument)
        array = context.make_array(kind)(context, builder)
        if place is None:
            pointer = builder.inttoptr(I64(_address(argument)), array.data.type)
        else:
            start = builder.gep(code.args[place.pointer], [I64(place.offset)])
            pointer = builder.bitcast(start, array.data.type)
        shape, strides = ([I64(n) for n in numbers] for numbers in (argument.shape, argument.strides))
        populate_array(array, pointer, shape, strides, I64(argument.itemsize), None)
        return array._getvalue()

    for kernel, arguments, places in launches:
        kinds = tuple(map(kernel.typeof_pyval, arguments))
        kernel.compile(kinds)
        made = kernel.overloads[kinds]
        address = made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
        alias = f"fastconv_kernel_{address:x}"  # names of two processes' caches may be the same
        binding.add_symbol(alias, address)
        kind = context.call_conv.get_function_type(types.none, kinds)
        callee = cgutils.get_or_insert_function(module, kind, alias)
        values = [value(*given) for given in zip(kinds, arguments, places, strict=True)]
        context.call_conv.call_function(builder, callee, types.none, kinds, values)
    builder.ret_void()
    library.add_ir_module(module)
    library.finalize()
    return Function(library.get_pointer_to_function(name), size, (library, launches))
