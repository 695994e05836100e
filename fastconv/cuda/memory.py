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
from collections.abc import Callable, Hashable, Iterable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

from fastconv.arrays import FLOATS, package
from fastconv.config import current
from fastconv.cuda import backend
from fastconv.cuda.tape import LISTENING

INDICES = (np.dtype(np.int64),)
Seen: TypeAlias = tuple[int, int, Hashable]
Maker: TypeAlias = Callable[[int], tuple[Any, int]]


class Memory:
    """An array on a GPU: where its elements lie; ``owner`` is the caller's object, kept alive."""

    device: Any = None  # where, of arrays that need not be on the current GPU
    origin: int = -1  # which memory of a `Tape` this is in
    begin: int  # and where that begins
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

    def seen(self) -> Seen:
        """Return where elements begin, the stream that is named, and all else that tells how they lie: None of a kind of its own."""
        lies = type(self), self.shape, self.strides, self.dtype, self.device, self.pointer % 16
        return self.pointer, self.named, lies

    @staticmethod
    def glance(value: Any) -> Seen:
        """Return the same of an array that nobody has read: what a later call wants of it; it raises where it cannot."""
        raise NotImplementedError

    def streams(self) -> Callable[[int], int]:
        """Return the function from the stream that operands name to the caller's current one."""
        return int

    def stream(self) -> int:
        """Return the caller's current stream."""
        return self.streams()(self.named)

    def empty(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: tuple[int, ...] | None = None
    ) -> Memory:
        """Return a new array of the same kind on the same device, which shows the axes in another order."""
        owner, pointer = self.maker(shape, dtype, axes)(self.named)
        lies, strides = shown(shape, axes)
        memory = type(self)(owner, pointer, lies, dtype, strides)
        memory.named = memory.told = self.named
        if (tape := LISTENING.tape) is not None:
            tape.asked(memory, (shape, dtype, axes))
        return memory

    def maker(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: tuple[int, ...] | None = None
    ) -> Maker:
        """Return the function that makes such an array on the stream that operands name, and tells where it begins."""
        raise NotImplementedError

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Maker:
        """Return the function that makes what no caller sees."""
        return self.maker(shape, dtype)

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


def shown(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return shape and strides of elements side by side, with their axes in another order."""
    strides = packed(shape)
    if axes is None:
        return shape, strides
    return tuple(shape[a] for a in axes), tuple(strides[a] for a in axes)


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

    @staticmethod
    def glance(value: Any) -> Seen:
        pointer = value.data_ptr()
        refused = value.requires_grad and sys.modules["torch"].is_grad_enabled()
        return pointer, 0, (value.shape, value.stride(), value.dtype, value.device, pointer % 16, refused)

    def streams(self) -> Callable[[int], int]:
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

        def made(_: int) -> tuple[Any, int]:
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
        strides = tuple(s // value.dtype.itemsize for s in value.strides)
        check_current(value.device.id, sys.modules["cupy"].cuda.runtime.getDevice())
        return cls(value, int(value.data.ptr), value.shape, value.dtype, strides)

    @staticmethod
    def glance(value: Any) -> Seen:
        pointer = value.data.ptr
        lies = value.shape, value.strides, value.dtype.char, value.device.id, pointer % 16
        return pointer, 0, ("cupy", *lies)

    def streams(self) -> Callable[[int], int]:
        cuda = sys.modules["cupy"].cuda
        return lambda _: int(cuda.get_current_stream().ptr)

    def maker(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: tuple[int, ...] | None = None
    ) -> Maker:
        empty = sys.modules["cupy"].empty

        def made(_: int) -> tuple[Any, int]:
            array = empty(shape, dtype)
            return array if axes is None else array.transpose(axes), int(array.data.ptr)

        return made


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

    @staticmethod
    def glance(value: Any) -> Seen:
        told = value.__cuda_array_interface__
        pointer, strides = told["data"][0] or 0, told.get("strides")
        lies = tuple(told["shape"]), strides and tuple(strides), told["typestr"], pointer % 16
        return pointer, told.get("stream") or 0, lies

    def maker(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: tuple[int, ...] | None = None
    ) -> Maker:
        lies, strides = shown(shape, axes)
        return lambda stream: backend().device_array(lies, strides, dtype, stream)

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Maker:
        count = prod(shape) * dtype.itemsize

        def made(stream: int) -> tuple[Any, int]:
            block = backend().Block(count, stream)
            return block, block.pointer

        return made


class Numba(Interface):
    """A Numba device array, which puts together anew what it tells of itself each time that it is asked."""

    @staticmethod
    def glance(value: Any) -> Seen:
        pointer, stream = value.gpu_data.device_pointer_value or 0, value.stream
        lies = "numba", value.shape, value.strides, value.dtype.str, pointer % 16
        return pointer, int(stream) if stream else 0, lies


class Simulated(Memory):
    """An array of Numba's CUDA simulator: NumPy inside."""

    @classmethod
    def of(cls, value: Any) -> Memory:
        array = value._ary
        strides = tuple(s // array.itemsize for s in array.strides)
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
    own, others = first_named(m.named for m in operands)
    for other in others:
        backend().wait(own, other)
    for memory in operands:
        memory.named = own


def first_named(streams: Iterable[int]) -> tuple[int, list[int]]:
    """Return the first stream that is not the default one, and the others."""
    own, *others = dict.fromkeys(filter(None, streams)) or (0,)
    return own, others


def part(operands: Sequence[Memory]) -> None:
    """Have the streams that operands named wait for the call's: what is there may be read, written or freed on them next."""
    for memory in operands:
        if memory.told not in (0, memory.named):
            backend().wait(memory.told, memory.named)


@functools.lru_cache(256)
def glance_of(kind: Any) -> Callable[[Any], Seen]:
    """Return `Memory.glance` for arrays of a class, or `Memory.seen` if it is memory."""
    if issubclass(kind, Memory):
        seen: Callable[[Any], Seen] = kind.seen
        return seen
    libraries: dict[str, type[Memory]] = {"torch": Torch, "cupy": Cupy, "numba": Numba}
    return libraries.get(package(kind), Interface).glance
