"""What kernels are written in: Numba's CUDA dialect, 16-byte loads, integers of 32 bits.

* Numba computes every integer in 64 bits; results wrapped in ``U(...)`` come out as 32-bit instructions.
  Coordinates are unsigned and wrap around: one comparison ``U(y) < height`` tests both borders.
* A loop over ``range`` of a small constant with a small body is unrolled; where the body is large, call a
  function under ``@inline`` as often as wanted.  Local arrays live in registers if all their indices
  come out constant.
* Elements of global memory are addressed by int64, those of shared memory by U.
* uint64 and int64 must not meet in one expression: Numba makes floats of that.
"""

from __future__ import annotations

import math

from numba import config, cuda, float32, float64, int32, int64, uint32, uint64

SIMULATED = bool(config.ENABLE_CUDASIM)
U = uint32
DTYPES = {"float32": float32, "float64": float64}

__all__ = ["DTYPES", "SIMULATED", "U", "activation", "barrier", "cuda", "divided", "inline", "int32", "int64", "load4", "store4", "uint64"]  # fmt: skip

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

    def load4(array, index):
        """Return four elements."""
        return tuple(simulator.memory(array)[int(index) : int(index) + 4])

    def store4(array, index, a, b, c, d):
        """Write four elements."""
        target = simulator.memory(array)[int(index) : int(index) + 4]
        target[:] = np.array((a, b, c, d), target.dtype)
else:
    from llvmlite import ir
    from numba.core import types
    from numba.cuda.extending import intrinsic

    inline = cuda.jit(device=True, forceinline=True)

    @inline
    def barrier():
        """Wait for all threads of the block."""
        cuda.syncthreads()

    def _vector(context, builder, kind, array, index):
        """Return a pointer to a vector of four elements; arrays hold their pointer in a structure."""
        if not isinstance(kind, types.CPointer):
            array = context.make_array(kind)(context, builder, array).data
        pointer = builder.gep(array, [index])
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


@inline
def divided(value, magic, shift):
    """Return ``value // d`` for a value below 2**31, by the multiplier of d that `magic` gives."""
    return U((uint64(value) * uint64(magic)) >> uint64(shift))


def activation(name):
    """Return the device function of an activation: NaN goes through every one, as on the CPU."""

    @inline
    def none(v):
        return v

    @inline
    def relu(v):
        return max(v, type(v)(0))

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
