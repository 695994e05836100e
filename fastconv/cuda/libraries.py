"""Tensors of PyTorch and arrays of CuPy: results and scratch from their own allocators, on their current stream.

Their pools give memory again in the order of that stream, so scratch may be let go of as soon as kernels are started.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.cuda.memory import Maker, Memory, Seen, Stream, in_elements, shown

_told = operator.attrgetter("shape", "dtype", "device", "requires_grad")


class Torch(Memory):
    """A PyTorch tensor."""

    @classmethod
    def of(cls, value: Any) -> Memory:
        if value.requires_grad and sys.modules["torch"].is_grad_enabled():
            raise TypeError("a tensor that requires grad would lose it here; pass tensor.detach()")
        dtype = torch_dtypes().get(value.dtype)
        if dtype is None:
            raise TypeError(f"arrays on a GPU must be float32 or float64, got {value.dtype}")
        if value.is_neg():
            raise TypeError(
                "a tensor that shows the negative of its memory is not served; pass tensor.resolve_neg()"
            )
        return cls(value, value.data_ptr(), tuple(value.shape), dtype, value.stride())

    @staticmethod
    def glance(value: Any) -> Seen:
        pointer, told = value.data_ptr(), _told(value)
        refused = told[3] and sys.modules["torch"].is_grad_enabled()
        return pointer, 0, (told, value.stride(), pointer % 16, refused)

    def streams(self) -> Callable[[Stream], int]:
        cuda, index = sys.modules["torch"].cuda, self.owner.device.index
        # as PyTorch's own compiler asks: an object for a stream takes longer to make than a tensor
        if (raw := getattr(sys.modules["torch"]._C, "_cuda_getCurrentRawStream", None)) is not None:
            return lambda _: int(raw(index))
        return lambda _: int(cuda.current_stream(index).cuda_stream)

    def maker(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: tuple[int, ...] | None = None
    ) -> Maker:
        torch, kind = sys.modules["torch"], torch_dtypes()[dtype]
        make = functools.partial(
            torch.empty_strided, *shown(shape, axes), dtype=kind, device=self.owner.device
        )

        def made(_: Stream) -> tuple[Any, int]:
            tensor = make()
            return tensor, tensor.data_ptr()

        return made


@functools.cache
def torch_dtypes() -> dict[Any, Any]:
    """Return NumPy's dtypes by PyTorch's, and the other way."""
    pairs = [
        (getattr(sys.modules["torch"], n), np.dtype(n)) for n in ("float32", "float64", "int32", "int64")
    ]
    return dict(pairs) | {ours: theirs for theirs, ours in pairs}


class Cupy(Memory):
    """A CuPy array."""

    @classmethod
    def of(cls, value: Any) -> Memory:
        return cls(
            value,
            int(value.data.ptr),
            value.shape,
            value.dtype,
            in_elements(value.strides, value.dtype.itemsize),
        )

    @staticmethod
    def glance(value: Any) -> Seen:
        pointer = value.data.ptr
        lies = value.shape, value.strides, value.dtype.char, value.device.id, pointer % 16
        return pointer, 0, ("cupy", *lies)

    def streams(self) -> Callable[[Stream], int]:
        cuda = sys.modules["cupy"].cuda
        return lambda _: int(cuda.get_current_stream().ptr)

    def maker(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: tuple[int, ...] | None = None
    ) -> Maker:
        empty = sys.modules["cupy"].empty

        def made(_: Stream) -> tuple[Any, int]:
            array = empty(shape, dtype)
            return array if axes is None else array.transpose(axes), int(array.data.ptr)

        return made
