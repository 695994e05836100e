"""NumPy arrays and their copies on a GPU, under ``config(device="cuda")``: there before a call, and back after it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.cuda import backend
from fastconv.cuda.memory import Memory, Seen


class Host(Memory):
    """A NumPy array and its copy on the GPU."""

    block: Any = None  # on the GPU
    held: Any = None  # and here, side by side

    @classmethod
    def of(cls, value: Any, upload: bool = True) -> Memory:
        array = np.asarray(value)
        held = np.ascontiguousarray(array)
        block = backend().Block(held.nbytes)
        memory = cls(array, block.pointer, array.shape, array.dtype)
        memory.block, memory.held = block, held
        if upload and held.nbytes:
            backend().upload(block.pointer, held)
        return memory

    @property
    def shadow(self) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = self.owner
        return array

    def seen(self) -> Seen:
        return self.pointer, 0, None  # its copy is there once

    def empty(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: tuple[int, ...] | None = None
    ) -> Memory:
        memory = Host.of(np.empty(shape, dtype), upload=False)
        if axes is None:
            return memory
        view = memory.transpose(axes)
        view.owner = memory.owner.transpose(axes)
        return view

    def result(self) -> Any:
        if self.held.nbytes:
            backend().download(self.held, self.pointer)
        if not np.may_share_memory(self.owner, self.held):
            np.copyto(self.owner, self.held)
        return self.owner
