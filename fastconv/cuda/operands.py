"""The operands of a call: which kind of array each is, whether they go together, and on which stream."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fastconv.arrays import FLOATS, package
from fastconv.config import current
from fastconv.cuda import backend
from fastconv.cuda.host import Host
from fastconv.cuda.interface import Interface, Numba, Simulated, from_dlpack
from fastconv.cuda.libraries import Cupy, Torch
from fastconv.cuda.memory import Memory, Seen, Stream

INDICES = (np.dtype(np.int64),)
LIBRARIES: dict[str, type[Memory]] = {"torch": Torch, "cupy": Cupy, "numba": Numba}


@functools.lru_cache(256)
def glance_of(kind: Any) -> Callable[[Any], Seen]:
    """Return `Memory.glance` for arrays of a class."""
    return LIBRARIES.get(package(kind), Interface).glance


def operand(value: Any, name: str) -> Memory:
    """View an array on a GPU, or raise TypeError."""
    memory = _viewed(value, name)
    dtypes = INDICES if name == "indices" else FLOATS
    if memory.dtype not in dtypes:
        allowed = " or ".join(sorted(map(str, dtypes)))
        raise TypeError(f"{name} must be {allowed} on a GPU, got {memory.dtype}")
    if memory.pointer % memory.dtype.itemsize:
        raise ValueError(
            f"{name} must begin on a multiple of {memory.dtype.itemsize} bytes, as its elements do"
        )
    backend().check_here(memory.pointer)
    return memory


def _viewed(value: Any, name: str) -> Memory:
    kind: Any = type(value)
    library = package(kind)
    if library == "torch" and getattr(value, "is_cuda", False):
        return Torch.of(value)
    if library == "cupy":
        return Cupy.of(value)
    if hasattr(value, "_ary"):
        return Simulated.of(value)
    if told := getattr(value, "__cuda_array_interface__", None):
        return (Numba if library == "numba" else Interface).of(value, told)
    if kind is not np.ndarray and hasattr(value, "__dlpack_device__") and library != "torch":
        return from_dlpack(value)
    if current().device == "cuda" and library != "torch":
        return Host.of(value)
    raise TypeError(f"{name} must be on the GPU like the other arrays, got {type(value).__name__}")


def common(*operands: Memory) -> np.dtype[Any]:
    """Return the one dtype of operands that live on one GPU."""
    together(*operands)
    first = operands[0]
    for other in operands:
        if other.dtype != first.dtype:
            raise TypeError(f"arrays on a GPU must have one dtype, got {first.dtype} and {other.dtype}")
    return first.dtype


def together(*operands: Memory) -> None:
    """Refuse operands of several kinds."""
    first = operands[0]
    for other in operands:
        if type(other) is not type(first):
            kinds = f"{type(first.owner).__name__} and {type(other.owner).__name__}"
            raise TypeError(f"arrays on a GPU must be of one kind, got {kinds}")


def first_named(streams: Iterable[Stream]) -> tuple[Stream, list[int]]:
    """Return the first stream that is not the default one, and the numbers of others."""
    numbers = {int(stream): stream for stream in streams}
    numbers.pop(0, None)
    own, *others = numbers or (0,)
    return numbers.get(own, 0), others
