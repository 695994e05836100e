"""Memory of results that nobody holds any more, used again: ``config(reuse=True)``.

A network in training makes the same arrays in every step.  Those of a megabyte come fresh from the system each time,
which hands memory over page by page, as it is first written, at up to 1 ms a megabyte; a layer that writes them
takes no longer itself.  Here a result lies in a buffer that is kept, and that becomes free when the last array
which looks into it is gone: CPython counts references, so nothing has to be given back.
"""

from __future__ import annotations

import sys
import threading
from math import prod
from typing import Any

import numpy as np

from fastconv.config import current
from fastconv.workspace import ALIGNMENT

LEAST = 2**16  # bytes; smaller arrays come from memory that the process already has
MOST = 2**32  # bytes kept; beyond, free buffers are given back before one is added

Buffers = list[tuple[np.ndarray[Any, np.dtype[np.uint8]], int]]  # of each, where its first cache line begins


class _Kept(threading.local):
    """The buffers of one Python thread, by their size in bytes."""

    def __init__(self) -> None:
        self.buffers: dict[int, Buffers] = {}


_kept = _Kept()


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return uninitialised memory for a result, as `numpy.empty` does, that may have held another before."""
    if not current().reuse or (size := prod(shape) * dtype.itemsize) < LEAST:
        return np.empty(shape, dtype)
    buffers = _kept.buffers.setdefault(size, [])
    for i in range(len(buffers)):
        if sys.getrefcount(buffers[i][0]) == FREE:
            return np.ndarray(shape, dtype, *buffers[i])
    if size + sum(n * len(of_size) for n, of_size in _kept.buffers.items()) > MOST:
        release()
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    buffers.append((buffer, -buffer.ctypes.data % ALIGNMENT))
    return np.ndarray(shape, dtype, *buffers[-1])


def release() -> None:
    """Give this thread's free buffers back."""
    for buffers in _kept.buffers.values():
        buffers[:] = [kept for kept in buffers if sys.getrefcount(kept[0]) > FREE]


def _free() -> int:
    """Return what the interpreter counts for a buffer that nothing else refers to."""
    buffers = [(np.empty(1), 0)]
    return sys.getrefcount(buffers[0][0])


FREE = _free()
