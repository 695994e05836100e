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

    from fastconv.cuda import simulator
    from fastconv.cuda.imitation import (
        add_to,
        arrived,
        barrier,
        block_anew,
        copy,
        copy4,
        further,
        inline,
        load,
        load4,
        outer,
        pointed,
        spaced,
        spot,
        store,
        store4,
    )

    simulator.patch()
else:
    from numba import float32, float64, int32, int64, uint32, uint64

    from fastconv.cuda.intrinsics import (
        add_to,
        arrived,
        barrier,
        block_anew,
        copy,
        copy4,
        further,
        inline,
        load,
        load4,
        outer,
        pointed,
        spaced,
        spot,
        store,
        store4,
    )

U = uint32
DTYPES = {"float32": float32, "float64": float64}

__all__ = ["DTYPES", "SIMULATED", "U", "activation", "add_to", "arrived", "barrier", "block_anew", "chained", "copy", "copy4", "cuda", "divided", "further", "inline", "int32", "int64", "load", "load4", "outer", "pointed", "spaced", "spot", "store", "store4", "storer", "uint64"]  # fmt: skip


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
