"""Callers' arrays: which are accepted, and the form that kernels take them in.

Kernels take C-contiguous, aligned, native arrays whose type says writeable (one machine-code version
serves all); whatever else a caller holds is copied once, or viewed, never altered.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

FLOATS = frozenset((np.dtype(np.float32), np.dtype(np.float64)))


def operand(value: Any, name: str) -> Array:
    """View a value as an array of a dtype that fastconv computes with, or raise TypeError."""
    if type(value) is np.ndarray and value.dtype in FLOATS:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: masks are not honoured; pass {name}.filled(0)")
    if value is None or isinstance(value, str | bytes):
        raise TypeError(f"{name} must be an array, got {type(value).__name__}")
    try:
        array = np.asarray(value)
    except Exception as error:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}: {error}") from None
    if array.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(
            f"{name} must be float32 or float64, got {array.dtype}; convert it with {name}.astype(numpy.float32)"
        )
    return array


def common(a: Array, *others: Array) -> np.dtype[Any]:
    """Return the dtype that the result of these operands has: `numpy.result_type`."""
    dtype = a.dtype
    for b in others:
        if b.dtype is not dtype:
            dtype = np.result_type(dtype, b.dtype)
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def contiguous(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return the array as kernels take it, copied where its memory is not already so."""
    if array.dtype is dtype and array.flags.carray:
        return array
    array = np.require(array, dtype, ("C_CONTIGUOUS", "ALIGNED"))
    return array if array.flags.writeable else np.asarray(_Unlocked(array))


class _Unlocked:
    """A view of a read-only array that says it is writeable, for kernels that only read it."""

    def __init__(self, array: Array) -> None:
        self.owner = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def result(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *operands: Array | None) -> Array:
    """Return memory for a result: of its own, or that of a checked ``out`` where kernels can write there."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be an array, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out must have the result's shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"out must have the result's dtype {dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable")
    if any(a is not None and _overlap(out, a) for a in operands):
        raise ValueError("out must not share memory with an operand")
    return np.asarray(out) if out.flags.carray else np.empty(shape, dtype)


def delivered(result: Array, out: Array | None) -> Array:
    """Return what the caller gets: ``out``, filled, or the result."""
    if out is None:
        return result
    if not np.may_share_memory(result, out):
        np.copyto(out, result)
    return out


def _overlap(a: Array, b: Array) -> bool:
    if not np.may_share_memory(a, b):
        return False
    try:  # exact for the usual views; undecided counts as overlapping
        return np.shares_memory(a, b, max_work=1000)  # type: ignore[arg-type]  # any count is taken
    except np.exceptions.TooHardError:
        return True
