"""Callers' arrays on a GPU, results of the caller's kind on the caller's stream, scratch memory.

PyTorch tensors and CuPy arrays get results and scratch from their own allocators, which are pools, on the
current stream of their library.  What else has ``__cuda_array_interface__`` gets Numba device arrays on the
stream that it names, and what has DLPack alone gets them on the default stream; their memory is from the driver's
pool.  NumPy arrays are copied there and back under ``config(device="cuda")``.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from fastconv.arrays import FLOATS, package
from fastconv.config import current
from fastconv.cuda import backend
from fastconv.cuda.tape import LISTENING

INDICES = (np.dtype(np.int64),)


class Memory:
    """An array on a GPU: where its elements lie; ``owner`` is the caller's object, kept alive."""

    device: Any = None  # where, of arrays that need not be on the current GPU
    lasting = True  # whether a call may be played again with other arrays of the kind
    origin: int = -1  # which memory of a `Tape` this is in
    begin: int  # and where that begins
    turn: tuple[int, ...] | None = None  # how the owner's axes were turned
    named: int = 0  # the stream that the owner names, or another of the call's operands
    told: int = 0  # and that the owner names

    def __init__(
        self,
        owner: Any,
        pointer: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        strides: tuple[int, ...] | None = None,
    ) -> None:
        self.owner, self.pointer, self.dtype, self.shape = owner, pointer, dtype, shape
        self.strides = packed(shape) if strides is None else strides  # in elements

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return prod(self.shape) * int(self.dtype.itemsize)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def contiguous(self) -> bool:
        """Whether elements lie side by side in the order of the axes."""
        if self.strides == (wanted := packed(self.shape)) or not self.nbytes:
            return True
        steps = zip(self.shape, self.strides, wanted, strict=True)
        return all(size == 1 or step == side for size, step, side in steps)

    def stream(self) -> int:
        """Return the caller's current stream."""
        return 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        """Return a new array of the same kind on the same device."""
        memory = self.fresh(shape, dtype)
        if (tape := LISTENING.tape) is not None:
            tape.asked(memory)
        return memory

    def fresh(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        """Return it without a note on the tape."""
        raise NotImplementedError

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return memory for so many elements, which no caller sees."""
        return self.fresh(shape, dtype)

    def turned(self, axes: tuple[int, ...]) -> Memory:
        """Return the array with its axes in another order, its owner too."""
        view = self.transpose(axes)
        view.owner, view.turn = self.turned_owner(axes), axes
        return view

    def turned_owner(self, axes: tuple[int, ...]) -> Any:
        """Return the owner with its axes in another order."""
        return self.owner.transpose(axes)

    def result(self) -> Any:
        """Return what the caller gets."""
        return self.owner

    def transpose(self, axes: tuple[int, ...]) -> Memory:
        """View the elements with the axes in another order."""
        return self.viewed(tuple(self.shape[a] for a in axes), tuple(self.strides[a] for a in axes))

    def batched(self) -> Memory:
        """View one image as a batch of one."""
        return self.viewed((1, *self.shape), (prod(self.shape), *self.strides))

    def part(self, begin: int, count: int) -> Memory:
        """View some elements of a flat array."""
        view = self.viewed((count,), (1,))
        view.pointer += begin * self.dtype.itemsize
        return view

    def viewed(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> Memory:
        """View elements in another shape and order."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.shape, view.strides = shape, strides
        return view

    def last(self) -> Memory:
        """View (n, c, h, w) as (n, h, w, c)."""
        return self.transpose((0, *range(2, self.ndim), 1))

    def second(self) -> Memory:
        """View (n, h, w, c) as (n, c, h, w)."""
        return self.transpose((0, self.ndim - 1, *range(1, self.ndim - 1)))

    def laid_as(self, layout: str) -> bool:
        """Return whether images (n, c, h, w) lie side by side in a layout."""
        return (self.last() if layout == "nhwc" else self).contiguous

    @property
    def layout(self) -> str | None:
        """'nhwc' if the channels of a pixel are neighbours, 'nchw' if not, None if images are in both."""
        if self.ndim < 3:
            return "nchw"
        if self.contiguous:
            return None if self.shape[1] == 1 or prod(self.shape[2:]) == 1 else "nchw"
        return "nhwc" if self.strides[1] == 1 and self.shape[1] > 1 else "nchw"

    def laid(self, layout: str = "nchw") -> Memory:
        """Return images in a layout, or any array side by side: copied where it is not so yet."""
        if self.laid_as(layout):
            return self
        from fastconv.cuda.copy import transfer  # and numba-cuda, whose lack `backend` tells first

        here = self.last() if layout == "nhwc" else self
        new = here.empty(here.shape, here.dtype)
        transfer(here, new)
        return new.second() if layout == "nhwc" else new

    def fill(self, value: int) -> None:
        """Fill with zero."""
        if (tape := LISTENING.tape) is not None:
            tape.whole = False
        backend().fill_zero(self.pointer, self.nbytes, self.stream())


@functools.lru_cache(4096)
def packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of elements side by side."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def check_current(device: int, now: int) -> None:
    """Refuse arrays of another GPU than kernels would run on."""
    if device != now:
        raise ValueError(f"arrays are on GPU {device}, and the current one is {now}: make theirs current")


class Torch(Memory):
    """A PyTorch tensor."""

    @classmethod
    def of(cls, value: Any) -> Memory:
        torch = sys.modules["torch"]
        if value.requires_grad and torch.is_grad_enabled():
            raise TypeError("a tensor that requires grad would lose it here; pass tensor.detach()")
        dtype = torch_dtypes().get(value.dtype)
        if dtype is None:
            raise TypeError(f"arrays on a GPU must be float32 or float64, got {value.dtype}")
        check_current(value.device.index, torch.cuda.current_device())
        return cls(value, value.data_ptr(), tuple(value.shape), dtype, value.stride())

    def stream(self) -> int:
        return int(sys.modules["torch"].cuda.current_stream(self.owner.device).cuda_stream)

    def fresh(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        torch, kind = sys.modules["torch"], torch_dtypes()[dtype]
        tensor = torch.empty(shape, dtype=kind, device=self.owner.device)
        return Torch(tensor, tensor.data_ptr(), shape, dtype)

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        torch = sys.modules["torch"]
        return Held(torch.empty(shape, dtype=torch_dtypes()[dtype], device=self.owner.device))

    def turned_owner(self, axes: tuple[int, ...]) -> Any:
        return self.owner.permute(axes)


class Held:
    """Memory of a tensor's that nobody looks at."""

    __slots__ = ("pointer", "tensor")

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.pointer = tensor, tensor.data_ptr()


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
        strides = tuple(s // value.dtype.itemsize for s in value.strides)
        check_current(value.device.id, sys.modules["cupy"].cuda.runtime.getDevice())
        return cls(value, int(value.data.ptr), value.shape, value.dtype, strides)

    def stream(self) -> int:
        return int(sys.modules["cupy"].cuda.get_current_stream().ptr)

    def fresh(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        return Cupy.of(sys.modules["cupy"].empty(shape, dtype))


class Interface(Memory):
    """Anything with ``__cuda_array_interface__``; its results are Numba device arrays, which name the stream, too."""

    @classmethod
    def of(cls, value: Any, told: Any = None) -> Memory:
        told = told or value.__cuda_array_interface__
        dtype, strides = np.dtype(told["typestr"]), told.get("strides")
        if strides is not None:
            strides = tuple(s // dtype.itemsize for s in strides)
        memory = cls(value, told["data"][0] or 0, tuple(told["shape"]), dtype, strides)
        memory.named = memory.told = told.get("stream") or 0
        return memory

    def stream(self) -> int:
        return self.named

    def fresh(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        array, pointer = backend().device_array(shape, packed(shape), dtype, self.named)
        memory = Interface(array, pointer, shape, dtype)
        memory.named = memory.told = self.named
        return memory

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        return backend().Block(prod(shape) * dtype.itemsize, self.named)

    def turned_owner(self, axes: tuple[int, ...]) -> Any:
        view = self.transpose(axes)
        return backend().viewed(self.owner, view.shape, view.strides)


class Simulated(Memory):
    """An array of Numba's CUDA simulator: NumPy inside."""

    @classmethod
    def of(cls, value: Any) -> Memory:
        array = value._ary
        strides = tuple(s // array.itemsize for s in array.strides)
        return cls(value, array.ctypes.data, array.shape, array.dtype, strides)

    def fresh(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        array, pointer = backend().device_array(shape, packed(shape), dtype, 0)
        return Simulated(array, pointer, shape, dtype)


class DLTensor(ctypes.Structure):
    """The head of what a DLPack capsule points to."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


class Dlpack(Interface):
    """Anything with DLPack on CUDA and nothing better; read on the default stream, which its owner makes wait."""

    capsule: Any = None  # keeps the elements alive

    @classmethod
    def of(cls, value: Any, told: Any = None) -> Memory:
        capsule = value.__dlpack__(stream=1)
        address = ctypes.pythonapi.PyCapsule_GetPointer
        address.restype, address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        t = DLTensor.from_address(address(capsule, b"dltensor"))
        kinds = {(2, 32, 1): "float32", (2, 64, 1): "float64"}
        if (t.code, t.bits, t.lanes) not in kinds:
            raise TypeError(
                f"arrays on a GPU must be float32 or float64, got DLPack's type ({t.code}, {t.bits}, {t.lanes})"
            )
        strides = tuple(t.strides[: t.ndim]) if t.strides else None
        pointer, dtype = (t.data or 0) + t.byte_offset, np.dtype(kinds[t.code, t.bits, t.lanes])
        memory = cls(value, pointer, tuple(t.shape[: t.ndim]), dtype, strides)
        memory.device, memory.capsule = (t.device_type, t.device_id), capsule
        return memory


class Host(Memory):
    """A NumPy array and its copy on the GPU."""

    lasting = False

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

    block: Any = None  # on the GPU
    held: Any = None  # and here, side by side

    def fresh(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        return Host.of(np.empty(shape, dtype), upload=False)

    def result(self) -> Any:
        if self.held.nbytes:
            backend().download(self.held, self.pointer)
        if not np.may_share_memory(self.owner, self.held):
            np.copyto(self.owner, self.held)
        return self.owner


def operand(value: Any, name: str) -> Memory:
    """View an array on a GPU, or raise TypeError."""
    kind: Any = type(value)
    library = package(kind)
    if library == "torch" and getattr(value, "is_cuda", False):
        memory = Torch.of(value)
    elif library == "cupy":
        memory = Cupy.of(value)
    elif hasattr(value, "_ary"):
        memory = Simulated.of(value)
    elif told := getattr(value, "__cuda_array_interface__", None):
        memory = Interface.of(value, told)
    elif kind is not np.ndarray and hasattr(value, "__dlpack_device__") and library != "torch":
        memory = Dlpack.of(value)
    elif current().device == "cuda" and library != "torch":
        memory = Host.of(value)
    else:
        raise TypeError(f"{name} must be on the GPU like the other arrays, got {type(value).__name__}")
    dtypes = INDICES if name == "indices" else FLOATS
    if memory.dtype not in dtypes:
        allowed = " or ".join(sorted(map(str, dtypes)))
        raise TypeError(f"{name} must be {allowed} on a GPU, got {memory.dtype}")
    return memory


def common(*operands: Memory) -> np.dtype[Any]:
    """Return the one dtype of operands that live on one GPU."""
    together(*operands)
    first = operands[0]
    for other in operands:
        if other.dtype != first.dtype:
            raise TypeError(f"arrays on a GPU must have one dtype, got {first.dtype} and {other.dtype}")
    return first.dtype


def together(first: Memory, *others: Memory) -> None:
    """Refuse operands that do not live on one GPU, and have them agree on a stream."""
    for other in others:
        if type(other) is not type(first) or other.device != first.device:
            kinds = f"{type(first.owner).__name__} and {type(other.owner).__name__}"
            raise TypeError(f"arrays must be of one kind on one GPU, got {kinds}")
    backend()  # DeviceError before any work
    agree((first, *others))


def agree(operands: Sequence[Memory]) -> None:
    """Have operands name one stream, the first that one of them names; it waits for work on the others."""
    for memory in operands:
        if memory.named:
            own = memory.named
            for other in dict.fromkeys(m.named for m in operands if m.named not in (0, own)):
                backend().wait(own, other)
            for m in operands:
                m.named = own
            return


def part(operands: Sequence[Memory]) -> None:
    """Have the streams that operands named wait for the call's: what is there may be read, written or freed on them next."""
    for memory in operands:
        if memory.told not in (0, memory.named):
            backend().wait(memory.told, memory.named)
