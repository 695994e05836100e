"""Scratch memory, kept by each Python thread and grown when a call needs more."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


class _Arena(threading.local):
    """The bytes of one thread, and its views of them by dtype: making a view costs 0.5 us."""

    def __init__(self) -> None:
        self.bytes: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.views: dict[str, NDArray[np.floating]] = {}


_arena = _Arena()


def take(count: int, dtype: str) -> NDArray[np.floating]:
    """Return at least ``count`` elements, aligned: zeros, or what was left by the last call that took them."""
    held = _arena.views.get(dtype)
    if held is None or held.size < count:
        itemsize = np.dtype(dtype).itemsize
        size = count * itemsize
        if size > _arena.bytes.size:
            release()
            _arena.bytes = _aligned(size)
        held = _arena.bytes[: _arena.bytes.size // itemsize * itemsize].view(dtype)
        _arena.views[dtype] = held
    return held


def held() -> NDArray[np.uint8]:
    """Return this thread's scratch memory."""
    return _arena.bytes


def release() -> None:
    """Give this thread's scratch memory back."""
    _arena.bytes = np.empty(0, np.uint8)
    _arena.views = {}


def high_water() -> int:
    """Return the bytes of scratch this thread holds: the most that any of its calls needed."""
    return _arena.bytes.size


def aligned(count: int, dtype: str) -> NDArray[np.floating]:
    """Return ``count`` zeros of their own, on a cache line."""
    return _aligned(count * np.dtype(dtype).itemsize).view(dtype)


def _aligned(size: int) -> NDArray[np.uint8]:
    # tiles read lanes that nobody wrote, and drop them: where pointers stood they are denormal numbers, 150 cycles each
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]
