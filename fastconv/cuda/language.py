"""What kernels are written in: Numba's CUDA dialect, 16-byte loads, integers of 32 bits.

* Numba computes every integer in 64 bits; results wrapped in ``U(...)`` come out as 32-bit instructions.
  Coordinates are unsigned and wrap around: one comparison ``U(y) < height`` tests both borders.
* A loop over ``range`` of a small constant with a small body is unrolled; where the body is large, call a
  function under ``@inline`` as often as wanted (`chained`).  Local arrays live in registers if all their indices
  come out constant.
* Elements of global memory are addressed by int64, those of shared memory by U.  ``further(pointer, number)`` is a
  pointer that much further on, from which 32-bit offsets take one instruction.
* ``spot`` says where an element of shared memory lies, in bytes, and ``pointed`` makes a pointer of that: a number that a loop
  carries on is added to, where an index would be multiplied, and added to the array's beginning, each time.
* ``copy`` and ``copy4`` go from global to shared memory past the registers, and write zeros for what is not wanted;
  ``arrived`` waits for them and for all threads of the block.
* uint64 and int64 must not meet in one expression: Numba makes floats of that.
"""

from __future__ import annotations

import functools
import math

from numba import config, cuda

SIMULATED = bool(config.ENABLE_CUDASIM)
if SIMULATED:  # Numba's types make the same numbers, but that is most of a simulated kernel's time
    from numpy import float32, float64, int32, int64, uint32, uint64
else:
    from numba import float32, float64, int32, int64, uint32, uint64

U = uint32
DTYPES = {"float32": float32, "float64": float64}

__all__ = ["DTYPES", "SIMULATED", "U", "activation", "add_to", "arrived", "barrier", "block_anew", "chained", "copy", "copy4", "cuda", "divided", "further", "inline", "int32", "int64", "load", "load4", "outer", "pointed", "spaced", "spot", "store", "store4", "storer", "uint64"]  # fmt: skip

if SIMULATED:  # the simulator runs kernels as Python: no intrinsics, and arrays instead of pointers
    import threading

    import numpy as np

    from fastconv.cuda import simulator

    simulator.patch()

    def inline(function):
        """Leave a function to be called as it is."""
        return function

    def barrier():
        """Wait for all threads of the block, in a function of another module than the kernel's."""
        threading.current_thread().syncthreads()

    def block_anew():
        """Return the block's number."""
        return U(threading.current_thread().blockIdx.x)

    def load4(pointer, index):
        """Return four elements."""
        array, index = further(pointer, index)
        return tuple(simulator.memory(array)[index : index + 4])

    def store4(array, index, a, b, c, d):
        """Write four elements."""
        target = simulator.memory(array)[int(index) : int(index) + 4]
        target[:] = np.array((a, b, c, d), target.dtype)

    def further(pointer, number):
        """Return a pointer so many elements further on."""
        array, index = pointer if isinstance(pointer, tuple) else (pointer, 0)
        return array, int(index) + int(number)

    def load(pointer):
        """Return an element."""
        array, index = further(pointer, 0)
        return array[index]

    def spaced(pointer, number, size):
        """Return a pointer a number of times ``size`` bytes further on."""
        array, index = further(pointer, 0)
        return array, index + int(number) * int(size) // simulator.memory(array).itemsize

    def spot(shared, index):
        """Return where an element of shared memory lies, in bytes."""
        return U(int(index) * shared.itemsize)

    def pointed(shared, spot):
        """Return the pointer to where an element lies."""
        return shared, int(spot) // shared.itemsize

    def store(pointer, index, value):
        """Write an element."""
        array, index = further(pointer, index)
        array[index] = value

    def copy(to, at, source, offset, wanted, count=1):
        """Copy one element, or write zero."""
        (shared, to), (array, index) = further(to, at), further(source, offset)
        for i in range(count):
            shared[to + i] = array[index + i] if wanted else 0

    def copy4(to, at, source, offset, wanted):
        """Copy four elements, or write zeros."""
        copy(to, at, source, offset, wanted, 4)

    arrived = barrier

    def add_to(array, index, value):
        """Add to an element."""
        array[int(index)] += value

    def outer(rows):
        """Return the function that adds the products of ``rows`` numbers with eight."""

        def add(a, b, acc):
            simulator.memory(acc)[...] += np.outer(simulator.memory(a), simulator.memory(b))

        return add
else:
    from llvmlite import ir
    from numba.core import types
    from numba.cuda.extending import intrinsic

    inline = cuda.jit(device=True, forceinline=True)
    GLOBAL, SHARED = 1, 3  # kinds of memory, to the compiler

    @inline
    def barrier():
        """Wait for all threads of the block."""
        cuda.syncthreads()

    @intrinsic
    def block_anew(_):
        """Return the block's number as if it had not been known: what follows from it is computed again, not kept."""

        def codegen(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.IntType(32), [])
            return builder.call(ir.InlineAsm(kind, "mov.u32 $0, %ctaid.x;", "=r", side_effect=True), [])

        return U(), codegen

    def _pointer(context, builder, kind, array, index):
        """Return a pointer to an element of an array, or that much further than a pointer; it knows its kind of memory."""
        if isinstance(kind, types.CPointer):
            array = builder.addrspacecast(array, array.type.pointee.as_pointer(kind.addrspace or GLOBAL))
        else:
            array = context.make_array(kind)(context, builder, array).data
        return builder.gep(array, [index])

    def _vector(context, builder, kind, array, index):
        """Return a pointer to a vector of four elements, and their type."""
        pointer = _pointer(context, builder, kind, array, index)
        vector = ir.VectorType(pointer.type.pointee, 4)
        return builder.bitcast(pointer, vector.as_pointer(pointer.type.addrspace)), vector

    @intrinsic
    def load4(_, array, index):
        """Return four elements from a 16-byte boundary: one instruction in float32, two in float64."""

        def codegen(context, builder, signature, arguments):
            at = context.cast(builder, arguments[1], signature.args[1], types.int64)
            pointer, _ = _vector(context, builder, signature.args[0], arguments[0], at)
            loaded = builder.load(pointer)
            loaded.align = 16
            values = [builder.extract_element(loaded, ir.IntType(32)(i)) for i in range(4)]
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(array.dtype, 4)(array, index), codegen

    @intrinsic
    def store4(_, array, index, a, b, c, d):
        """Write four elements to a 16-byte boundary."""
        item = array.dtype

        def codegen(context, builder, signature, arguments):
            at = context.cast(builder, arguments[1], signature.args[1], types.int64)
            pointer, vector = _vector(context, builder, signature.args[0], arguments[0], at)
            value = ir.Constant(vector, ir.Undefined)
            for i in range(4):
                value = builder.insert_element(value, arguments[2 + i], ir.IntType(32)(i))
            builder.store(value, pointer).align = 16
            return context.get_dummy_value()

        return types.void(array, index, item, item, item, item), codegen

    @intrinsic
    def add_to(_, pointer, index, value):
        """Add to an element of global memory by an atomic instruction: in whichever order threads come."""
        item = pointer.dtype

        def codegen(context, builder, signature, arguments):
            at = builder.gep(
                arguments[0], [context.cast(builder, arguments[1], signature.args[1], types.int64)]
            )
            kinds = ir.FunctionType(ir.VoidType(), [ir.IntType(64), arguments[2].type])
            text = f"red.global.add.f{item.bitwidth} [$0], $1;"
            asm = ir.InlineAsm(kinds, text, f"l,{'f' if item.bitwidth == 32 else 'd'}", side_effect=True)
            builder.call(asm, [builder.ptrtoint(at, ir.IntType(64)), arguments[2]])
            return context.get_dummy_value()

        return types.void(pointer, index, item), codegen

    def _away(builder, pointer, number, scale, signed=False):
        """Return a pointer a 32-bit number times ``scale`` bytes further on: one instruction if the product is not always the same.

        Which the assembler makes of a product and a sum, where of a mad.wide it makes two or three.
        """
        wide, narrow = ir.IntType(64), ir.IntType(32)
        text = f"mul.wide.{'s' if signed else 'u'}32 $0, $1, $2; add.u64 $0, $0, $3;"
        asm = ir.InlineAsm(ir.FunctionType(wide, [narrow, narrow, wide]), text, "=&l,r,r,l")
        address = builder.call(asm, [number, scale, builder.ptrtoint(pointer, wide)])
        return builder.inttoptr(address, pointer.type)

    def _further(context, builder, pointer, number, kind):
        if isinstance(kind, types.IntegerLiteral) or kind.bitwidth == 64:
            return builder.gep(pointer, [context.cast(builder, number, kind, types.int64)])
        item = context.get_abi_sizeof(pointer.type.pointee)
        return _away(builder, pointer, number, ir.IntType(32)(item), kind.signed)

    @intrinsic
    def further(_, pointer, number):
        """Return a pointer so many elements further on."""

        def codegen(context, builder, signature, arguments):
            return _further(context, builder, *arguments, signature.args[1])

        return pointer(pointer, number), codegen

    @intrinsic
    def load(_, pointer):
        """Return an element."""

        def codegen(context, builder, signature, arguments):
            (at,) = arguments
            return builder.load(builder.addrspacecast(at, at.type.pointee.as_pointer(1)))

        return pointer.dtype(pointer), codegen

    @intrinsic
    def spaced(_, pointer, number, size):
        """Return a pointer a number of times ``size`` bytes further on, both unsigned and of 32 bits."""

        def codegen(context, builder, signature, arguments):
            number, size = (
                context.cast(builder, value, kind, types.uint32)
                for value, kind in zip(arguments[1:], signature.args[1:], strict=True)
            )
            return _away(builder, arguments[0], number, size)

        return pointer(pointer, number, size), codegen

    @intrinsic
    def spot(_, shared, index):
        """Return where an element of shared memory lies, in bytes."""

        def codegen(context, builder, signature, arguments):
            at = context.cast(builder, arguments[1], signature.args[1], types.int64)
            pointer = _pointer(context, builder, signature.args[0], arguments[0], at)
            pointer = builder.addrspacecast(pointer, pointer.type.pointee.as_pointer(SHARED))
            return builder.ptrtoint(pointer, ir.IntType(32))

        return U(shared, index), codegen

    @intrinsic
    def pointed(_, shared, spot):
        """Return the pointer to where an element of shared memory lies."""
        kind = types.CPointer(shared.dtype, SHARED)

        def codegen(context, builder, signature, arguments):
            item = context.get_data_type(kind.dtype)
            pointer = builder.inttoptr(arguments[1], item.as_pointer(SHARED))
            return builder.addrspacecast(pointer, item.as_pointer())

        return kind(shared, spot), codegen

    @intrinsic
    def store(_, pointer, index, value):
        """Write an element."""

        def codegen(context, builder, signature, arguments):
            at = context.cast(builder, arguments[1], signature.args[1], types.int64)
            to = _pointer(context, builder, signature.args[0], arguments[0], at)
            builder.store(context.cast(builder, arguments[2], signature.args[2], pointer.dtype), to)
            return context.get_dummy_value()

        return types.void(pointer, index, value), codegen

    def _copying(count):
        """Return the intrinsic that copies elements, all from a boundary of as many bytes as they have, at most 16."""

        def codegen(context, builder, signature, arguments):
            kind = signature.args[0]
            shared, to, pointer, offset, wanted = arguments
            item = context.get_abi_sizeof(context.get_data_type(kind.dtype))
            width = min(16, count * item)
            to = context.cast(builder, to, signature.args[1], types.int64)
            target = _pointer(context, builder, kind, shared, to)
            target = builder.addrspacecast(target, target.type.pointee.as_pointer(SHARED))
            target = builder.ptrtoint(target, ir.IntType(32))
            pointer = builder.ptrtoint(
                _further(context, builder, pointer, offset, signature.args[3]), ir.IntType(64)
            )
            size = builder.select(wanted, ir.IntType(32)(width), ir.IntType(32)(0))
            way = "cg" if width == 16 else "ca"
            kinds = ir.FunctionType(ir.VoidType(), [target.type, pointer.type, size.type])
            for begin in range(0, count * item, width):
                text = f"cp.async.{way}.shared.global [$0 + {begin}], [$1 + {begin}], {width}, $2;"
                asm = ir.InlineAsm(kinds, text, "r,l,r,~{memory}", side_effect=True)
                builder.call(asm, [target, pointer, size])
            return context.get_dummy_value()

        return codegen

    @intrinsic
    def copy(_, shared, to, source, offset, wanted):
        """Copy one element, or write zero."""
        return types.void(shared, to, source, offset, wanted), _copying(1)

    @intrinsic
    def copy4(_, shared, to, source, offset, wanted):
        """Copy four elements from and to 16-byte boundaries, or write zeros."""
        return types.void(shared, to, source, offset, wanted), _copying(4)

    @intrinsic
    def _copied(_):
        """Wait for this thread's copies."""

        def codegen(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(ir.InlineAsm(kind, "cp.async.wait_all;", "~{memory}", side_effect=True), [])
            return context.get_dummy_value()

        return types.void(), codegen

    @inline
    def arrived():
        """Wait for all copies of the block."""
        _copied()
        cuda.syncthreads()

    def outer(rows):
        """Return the device function that adds the products of ``rows`` numbers with eight: ``acc`` [i, j] += a [i] * b [j]."""

        @inline
        def add(a, b, acc):
            for i in range(rows):
                for j in range(8):
                    acc[i, j] += a[i] * b[j]

        return add


def chained(functions):
    """Return the device function that calls some one after the other: loops of large bodies would not be unrolled."""

    def pair(first, second):
        @inline
        def both(*given):
            first(*given)
            second(*given)

        return both

    return functools.reduce(pair, functions)


def storer(added):
    """Return the device function that stores an element of a result, or adds to it."""

    @inline
    def store(pointer, index, value):
        pointer[index] = value

    return add_to if added else store


@inline
def divided(value, divisor, magic, shift):
    """Return quotient and remainder of a value below 2**31, by the multiplier of the divisor that `magic` gives."""
    quotient = U((uint64(value) * uint64(magic)) >> uint64(shift))
    return quotient, U(value - U(quotient * divisor))


def activation(name):
    """Return the device function of an activation: NaN goes through every one, as on the CPU."""

    @inline
    def none(v):
        return v

    @inline
    def relu(v):
        return type(v)(0) if v < type(v)(0) else v  # noqa: FURB136  (max drops a NaN here)

    @inline
    def leaky_relu(v):
        return type(v)(0.01) * v if v < type(v)(0) else v

    @inline
    def sigmoid(v):
        return type(v)(1) / (type(v)(1) + math.exp(-v))

    @inline
    def tanh(v):
        return math.tanh(v)

    @inline
    def silu(v):
        return v / (type(v)(1) + math.exp(-v))

    @inline
    def gelu(v):
        return type(v)(0.5) * v * (type(v)(1) + math.erf(v * type(v)(0.7071067811865476)))

    return {f.__name__: f for f in (none, relu, leaky_relu, sigmoid, tanh, silu, gelu)}[name]
