"""Bias, residual and activation, applied to a block of results while it is in cache.

Built-in activations travel as integer codes, so that all share one compiled kernel; a user's own
``@njit`` scalar function travels as itself and compiles a kernel of its own.
NaN goes through every one of them, as in PyTorch.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import overload

from fastconv import jit
from fastconv.arguments import Activation

NONE, RELU, LEAKY_RELU, SIGMOID, TANH, SILU, GELU = range(7)
CODES = {
    "relu": RELU,
    "leaky_relu": LEAKY_RELU,
    "sigmoid": SIGMOID,
    "tanh": TANH,
    "silu": SILU,
    "gelu": GELU,
}


def resolve(activation: Activation, dtype: np.dtype[Any]) -> Any:
    """Return the code or jitted function that kernels take; refuse anything else."""
    if activation is None:
        return NONE
    if isinstance(activation, str):
        if activation not in CODES:
            raise ValueError(f"activation must be one of {', '.join(CODES)}, got {activation!r}")
        return CODES[activation]
    if isinstance(activation, numba.core.dispatcher.Dispatcher):
        return _tried(activation, dtype)
    raise TypeError(
        f"activation must be None, one of {', '.join(CODES)}, or a scalar function under "
        f"numba.njit, got {type(activation).__name__}"
    )


def _tried(function: Any, dtype: np.dtype[Any]) -> Any:
    """Try a user's function on one number, before a kernel is compiled around it."""
    try:
        result = function(dtype.type(0.5))
    except (numba.core.errors.NumbaError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TypeError(f"activation must take one {dtype} number: {reason}") from error
    if not isinstance(result, float | int):
        raise TypeError(f"activation must return a real number, got {type(result).__name__}")
    return function


@jit.inner
def _builtin(row, code):
    """Apply a built-in activation in place; each is one loop that vectorises on its own."""
    one = row.dtype.type(1)
    zero = row.dtype.type(0)
    if code == RELU:
        for j in range(row.size):
            row[j] = max(row[j], zero)
    elif code == LEAKY_RELU:
        slope = row.dtype.type(0.01)
        for j in range(row.size):
            row[j] = slope * row[j] if row[j] < zero else row[j]
    elif code == SIGMOID:
        for j in range(row.size):
            row[j] = one / (one + math.exp(-row[j]))
    elif code == TANH:
        for j in range(row.size):
            row[j] = math.tanh(row[j])
    elif code == SILU:
        for j in range(row.size):
            row[j] = row[j] / (one + math.exp(-row[j]))
    elif code == GELU:
        half = row.dtype.type(0.5)
        root = row.dtype.type(math.sqrt(0.5))
        for j in range(row.size):
            row[j] = half * row[j] * (one + math.erf(row[j] * root))


def _activate(row: Any, activation: Any) -> None:
    raise RuntimeError("only callable from jitted code")


@overload(_activate)
def _activate_overload(row, activation):
    if isinstance(activation, types.Integer):
        return lambda row, activation: _builtin(row, activation)

    def own(row, activation):
        for j in range(row.size):
            row[j] = activation(row[j])

    return own


def code_of(activation: Any) -> Any:
    """Return the code of a built-in activation, -1 for a function of the user's; in jitted code."""
    raise RuntimeError("only callable from jitted code")


@overload(code_of)
def _code_of_overload(activation):
    if isinstance(activation, types.Integer):
        return lambda activation: activation
    return lambda activation: -1


@jit.inner
def is_plain(activation, residual):
    """Tell whether no more than bias and ReLU are applied, as the tile does it in registers."""
    return residual.size == 0 and (code_of(activation) == NONE or code_of(activation) == RELU)


@jit.function
def finish(block, i, count, bias, channel, activation, residual, at):
    """Add ``bias[channel]`` and ``residual[at:]``, if there are any, to ``block[i : i + count]``; activate it.

    The part is viewed as a row of its own: an index that begins at ``i`` is tested for being negative at each
    step, which takes 0.4 ns a number and keeps loops from being vectorised.
    """
    row = block[i : i + count]
    if bias.size:
        b = bias[channel]
        for j in range(row.size):
            row[j] += b
    if residual.size:
        added = residual[at : at + count]
        for j in range(row.size):
            row[j] += added[j]
    _activate(row, activation)


@jit.kernel
def finish_all(workers, block, activation, nothing):
    """Activate a whole result in place, where it could not be done as it was written."""
    for worker in numba.prange(workers):
        begin, end = block.size * worker // workers, block.size * (worker + 1) // workers
        finish(block, begin, end - begin, nothing, 0, activation, nothing, 0)
