"""An array on a GPU as kernels see it: a pointer, a shape and strides, of whichever library's array.

What a library does its own way, to allocate and to name a stream, subclasses tell: `fastconv.cuda.libraries` of
PyTorch and CuPy, `fastconv.cuda.interface` of all who describe their arrays alone, `fastconv.cuda.host` of NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from math import prod
from typing import Any, TypeAlias

import numpy as np

from fastconv.cuda import backend
from fastconv.cuda.tape import LISTENING

Stream: TypeAlias = (
    Any  # its number, or an object of which that is the ``int``, which lives as long as it is held
)
Seen: TypeAlias = tuple[int, Stream, Hashable]
Maker: TypeAlias = Callable[[Stream], tuple[Any, int]]


class Memory:
    """An array on a GPU: where its elements lie; ``owner`` is the caller's object, kept alive."""

    origin: int = -1  # which memory of a `Tape` this is in
    begin: int  # and where that begins
    named: Stream = 0  # the stream that the owner names; in a call the one of all operands
    writeable: bool = True

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
    def span(self) -> tuple[int, int]:
        """Bytes from the pointer to the first of all elements, and past the last."""
        ends = (
            [(n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)] if self.nbytes else []
        )
        item = self.dtype.itemsize
        return sum(min(0, end) for end in ends) * item, (sum(max(0, end) for end in ends) + 1) * item

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
        lies = type(self), self.shape, self.strides, self.dtype, self.pointer % 16
        return self.pointer, self.named, lies

    @staticmethod
    def glance(value: Any) -> Seen:
        """Return the same of an array that nobody has read: what a later call wants of it; it raises where it cannot."""
        raise NotImplementedError

    def streams(self) -> Callable[[Stream], int]:
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
        memory.named = self.named
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

    @property
    def shadow(self) -> np.ndarray[Any, Any]:
        """NumPy's view of the same addresses: to compare them, never to read there."""
        return np.asarray(_Shadow(self))

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


def in_elements(strides: Iterable[int], itemsize: int) -> tuple[int, ...]:
    """Return strides in elements, from those in bytes."""
    strides = tuple(strides)
    if any(stride % itemsize for stride in strides):
        raise ValueError(f"strides must be multiples of the {itemsize} bytes of an element, got {strides}")
    return tuple(stride // itemsize for stride in strides)


class _Shadow:
    """What NumPy asks of memory."""

    def __init__(self, memory: Memory) -> None:
        item = memory.dtype.itemsize
        self.__array_interface__ = {
            "shape": memory.shape, "strides": tuple(s * item for s in memory.strides), "typestr": memory.dtype.str,
            "data": (memory.pointer, not memory.writeable), "version": 3,
        }  # fmt: skip
