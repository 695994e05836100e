"""Bare pointers to the elements of arrays.

Passing an array to a jitted function counts a reference, two locked instructions that take as long as
ten vectors of a small map; and a negative index is tested for at each access.  A pointer has neither.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastconv.gemm.tile import data, element


@intrinsic
def pointer(typing: Any, array: Any, index: Any) -> Any:
    """Return the address of element ``index`` of a flat array, which must outlive its use, or after a pointer."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return data(context, builder, signature.args[0], arguments[0], arguments[1])

    return types.CPointer(array.dtype)(array, types.int64), codegen


def scalar_type(kind: types.CPointer) -> Any:
    """Return the LLVM type a pointer points at, and its size in bytes."""
    return element(kind), kind.dtype.bitwidth // 8


def out_of_line(builder: Any, name: str, arguments: Any, emit: Any) -> None:
    """Call a function whose body ``emit(builder, *arguments)`` writes, once in a module.

    Kernels of one process share what has a name: another body is to have another one.

    Inlined into a loop, the addresses of every case of a large switch would be computed before the
    loop and kept on the stack.
    """
    module = builder.module
    function = module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        function = ir.Function(module, kind, name)
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        body = ir.IRBuilder(function.append_basic_block("entry"))
        emit(body, *function.args)
        body.ret_void()
    builder.call(function, arguments)
