"""Scratch memory, kept by each Python thread and grown when a call needs more."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes: a cache line, and the widest vector

_arena = threading.local()


def take(count: int, dtype: str) -> NDArray[np.floating]:
    """Return at least ``count`` uninitialised elements, aligned; the next call may return them again."""
    itemsize = np.dtype(dtype).itemsize
    held = getattr(_arena, "bytes", None)
    if held is None or held.size < count * itemsize:
        _arena.bytes = held = _aligned(count * itemsize)
    return held[: count * itemsize].view(dtype)


def release() -> None:
    """Give this thread's scratch memory back."""
    _arena.bytes = None


def high_water() -> int:
    """Return the bytes of scratch this thread holds: the most that any of its calls needed."""
    held = getattr(_arena, "bytes", None)
    return 0 if held is None else held.size


def aligned(count: int, dtype: str) -> NDArray[np.floating]:
    """Return ``count`` uninitialised elements of their own, on a cache line."""
    return _aligned(count * np.dtype(dtype).itemsize).view(dtype)


def _aligned(size: int) -> NDArray[np.uint8]:
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]
