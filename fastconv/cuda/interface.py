"""Whatever tells by ``__cuda_array_interface__`` or DLPack where its elements lie, Numba's device arrays among them.

Work goes to the first stream that an operand names, or to the default one; results are Numba device arrays that name
it, too, in memory from the driver's pool.
"""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any

import numpy as np

from fastconv.cuda import backend
from fastconv.cuda.memory import Maker, Memory, Seen, Stream, in_elements, shown

LEGACY = 1  # the default stream by a number of its own, for DLPack as for the driver


class Interface(Memory):
    """An array that describes itself."""

    capsule: Any = None  # of DLPack: keeps the elements alive

    @classmethod
    def of(cls, value: Any, told: Any = None) -> Memory:
        told = told or value.__cuda_array_interface__
        if told.get("mask") is not None:
            raise TypeError("arrays with a mask are not served: masks are not honoured")
        (pointer, readonly), dtype = told["data"], np.dtype(told["typestr"])
        strides = told.get("strides")
        strides = None if strides is None else in_elements(strides, dtype.itemsize)
        memory = Interface(value, pointer or 0, tuple(told["shape"]), dtype, strides)
        memory.named, memory.writeable = told.get("stream") or 0, not readonly
        return memory

    @staticmethod
    def glance(value: Any) -> Seen:
        told = value.__cuda_array_interface__
        (pointer, readonly), strides = told["data"], told.get("strides")
        pointer = pointer or 0
        lies = tuple(told["shape"]), strides and tuple(strides), told["typestr"], pointer % 16
        return pointer, told.get("stream") or 0, (*lies, readonly, told.get("mask"))

    def maker(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: tuple[int, ...] | None = None
    ) -> Maker:
        lies, strides = shown(shape, axes)
        return lambda stream: backend().device_array(lies, strides, dtype, stream)

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Maker:
        count = prod(shape) * dtype.itemsize

        def made(stream: Stream) -> tuple[Any, int]:
            block = backend().Block(count, stream)
            return block, block.pointer

        return made


class Numba(Interface):
    """A Numba device array, which puts together anew what it tells of itself each time that it is asked."""

    @classmethod
    def of(cls, value: Any, told: Any = None) -> Memory:
        memory = Interface.of(value, told)
        memory.named = value.stream  # the object, if it is one, which ends its stream with itself
        return memory

    @staticmethod
    def glance(value: Any) -> Seen:
        data = value.gpu_data
        pointer, gpu = data.device_pointer_value or 0, data.context.device.id
        return pointer, value.stream, (gpu, value.shape, value.strides, value.dtype.str, pointer % 16)


class Simulated(Memory):
    """An array of Numba's CUDA simulator: NumPy inside."""

    @classmethod
    def of(cls, value: Any) -> Memory:
        array = value._ary
        strides = in_elements(array.strides, array.itemsize)
        return cls(value, array.ctypes.data, array.shape, array.dtype, strides)

    maker = Interface.maker


class DLTensor(ctypes.Structure):
    """The head of what a DLPack capsule points to."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


KINDS = {(2, 32, 1): "float32", (2, 64, 1): "float64", (0, 64, 1): "int64"}


def from_dlpack(value: Any) -> Memory:
    """View anything with DLPack on CUDA; its owner has the default stream wait until it may be read there."""
    capsule = value.__dlpack__(stream=LEGACY)
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    t = DLTensor.from_address(address(capsule, b"dltensor"))
    if (kind := (t.code, t.bits, t.lanes)) not in KINDS:
        raise TypeError(f"arrays on a GPU must be float32 or float64, got DLPack's type {kind}")
    strides = tuple(t.strides[: t.ndim]) if t.strides else None
    pointer, dtype = (t.data or 0) + t.byte_offset, np.dtype(KINDS[kind])
    memory = Interface(value, pointer, tuple(t.shape[: t.ndim]), dtype, strides)
    memory.capsule, memory.named = capsule, LEGACY
    return memory
