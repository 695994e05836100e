"""Callers' arrays on a GPU, results of the caller's kind on the caller's stream, scratch memory.

PyTorch tensors and CuPy arrays get results and scratch from their own allocators, which are pools, on the
current stream of their library.  Everything else that has ``__cuda_array_interface__`` gets Numba device
arrays, on the stream that it names.
"""

from __future__ import annotations

import copy
import sys
from math import prod
from typing import Any, ClassVar

import numpy as np

from fastconv.arrays import FLOATS
from fastconv.cuda import backend


class Memory:
    """An array on a GPU: a pointer and what it points to; ``owner`` is the caller's object, kept alive."""

    library: ClassVar[str]

    def __init__(
        self, owner: Any, pointer: int, shape: tuple[int, ...], dtype: Any, contiguous: bool
    ) -> None:
        self.owner, self.pointer, self.shape, self.dtype = owner, pointer, tuple(shape), np.dtype(dtype)
        self.contiguous = contiguous
        self.nbytes = prod(self.shape) * self.dtype.itemsize

    @property
    def device(self) -> Any:
        """What must be equal for arrays to meet in one call."""
        return None

    def stream(self) -> int:
        """Return the caller's current stream."""
        return 0

    def compact(self) -> Memory:
        """Return the array C-contiguous, copied by its own library where it is not."""
        return self

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        """Return a new array of the same kind on the same device."""
        raise NotImplementedError

    def part(self, begin: int, count: int) -> Memory:
        """View some elements of a flat array."""
        view = copy.copy(self)
        view.pointer, view.shape = self.pointer + begin * self.dtype.itemsize, (count,)
        view.nbytes = count * self.dtype.itemsize
        return view

    def fill(self, value: int) -> None:
        """Fill with zero."""
        backend().fill_zero(self.pointer, self.nbytes, self.stream())


class Torch(Memory):
    """A PyTorch tensor."""

    @classmethod
    def of(cls, value: Any) -> Memory:
        if value.requires_grad and sys.modules["torch"].is_grad_enabled():
            raise TypeError("a tensor that requires grad would lose it here; pass tensor.detach()")
        name = str(value.dtype).rpartition(".")[2]
        if name not in ("float32", "float64", "uint8"):
            raise TypeError(f"arrays on a GPU must be float32 or float64, got {value.dtype}")
        return cls(value, value.data_ptr(), tuple(value.shape), name, value.is_contiguous())

    @property
    def device(self) -> Any:
        return self.owner.device

    def stream(self) -> int:
        return int(sys.modules["torch"].cuda.current_stream(self.owner.device).cuda_stream)

    def compact(self) -> Memory:
        return self if self.contiguous else Torch.of(self.owner.contiguous())

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        torch = sys.modules["torch"]
        return Torch.of(torch.empty(shape, dtype=getattr(torch, dtype.name), device=self.owner.device))


class Cupy(Memory):
    """A CuPy array."""

    @classmethod
    def of(cls, value: Any) -> Memory:
        return cls(value, int(value.data.ptr), value.shape, value.dtype, value.flags.c_contiguous)

    @property
    def device(self) -> Any:
        return int(self.owner.device.id)

    def stream(self) -> int:
        return int(sys.modules["cupy"].cuda.get_current_stream().ptr)

    def compact(self) -> Memory:
        return self if self.contiguous else Cupy.of(sys.modules["cupy"].ascontiguousarray(self.owner))

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        return Cupy.of(sys.modules["cupy"].empty(shape, dtype))


class Interface(Memory):
    """Anything with ``__cuda_array_interface__``; its results are Numba device arrays."""

    @classmethod
    def of(cls, value: Any) -> Memory:
        told = value.__cuda_array_interface__
        dtype, strides = np.dtype(told["typestr"]), told.get("strides")
        memory = cls(value, told["data"][0] or 0, told["shape"], dtype, True)
        step = dtype.itemsize
        for size, stride in zip(reversed(memory.shape), reversed(strides or ()), strict=False):
            memory.contiguous &= size <= 1 or stride == step
            step *= size
        memory.named = told.get("stream") or 0
        return memory

    named: int = 0

    def stream(self) -> int:
        return self.named

    def compact(self) -> Memory:
        if not self.contiguous:
            raise TypeError("an array of this kind must be C-contiguous on a GPU; copy it first")
        return self

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        from numba import cuda

        return Interface.of(cuda.device_array(shape, dtype))


class Simulated(Memory):
    """An array of Numba's CUDA simulator: NumPy inside."""

    @classmethod
    def of(cls, value: Any) -> Memory:
        array = value._ary
        return cls(value, array.ctypes.data, array.shape, array.dtype, array.flags.c_contiguous)

    def compact(self) -> Memory:
        from numba import cuda

        return (
            self if self.contiguous else Simulated.of(cuda.to_device(np.ascontiguousarray(self.owner._ary)))
        )

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        from numba import cuda

        return Simulated.of(cuda.to_device(np.full(shape, np.nan if dtype.kind == "f" else 0, dtype)))


def operand(value: Any, name: str) -> Memory:
    """View an array on a GPU, or raise TypeError."""
    package = type(value).__module__.partition(".")[0]
    if hasattr(value, "_ary"):
        memory = Simulated.of(value)
    elif package == "torch" and getattr(value, "is_cuda", False):
        memory = Torch.of(value)
    elif package == "cupy":
        memory = Cupy.of(value)
    elif hasattr(value, "__cuda_array_interface__"):
        memory = Interface.of(value)
    else:
        raise TypeError(f"{name} must be on the GPU like the other arrays, got {type(value).__name__}")
    if memory.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32 or float64 on a GPU, got {memory.dtype}")
    return memory


def common(*operands: Memory) -> np.dtype[Any]:
    """Return the one dtype of operands that live on one GPU."""
    first = operands[0]
    for other in operands[1:]:
        if type(other) is not type(first) or other.device != first.device:
            raise TypeError(
                "arrays must be of one kind on one GPU, got "
                f"{type(first.owner).__name__} on {first.device} and {type(other.owner).__name__} on {other.device}"
            )
        if other.dtype != first.dtype:
            raise TypeError(f"arrays on a GPU must have one dtype, got {first.dtype} and {other.dtype}")
    backend()  # DeviceError before any work
    dtype: np.dtype[Any] = first.dtype
    return dtype
