"""A GPU made of Python, under NUMBA_ENABLE_CUDASIM=1: the interface of `driver` on NumPy memory.

Kernels run thread by thread in Numba's simulator, so only tiny problems do.  An index outside an array
raises IndexError, which no GPU would tell.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import warnings
from collections.abc import Callable
from math import prod
from typing import Any, ClassVar

import numpy as np

from fastconv.cuda.tape import launcher


class Lane(threading.Thread):
    """Runs threads of a block one after another, until one waits at a barrier, where another lane goes on.

    Numba's own simulator starts all at once and polls them, which takes most of the time; here one runs at any time.
    """

    spare: ClassVar[list[Lane]] = []
    threadIdx: Any  # read by kernels
    blockIdx: Any
    work: Callable[[Lane], None]
    ended: bool

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.go, self.done = threading.Lock(), threading.Lock()  # released by who is waited for
        self.go.acquire()
        self.done.acquire()
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        while True:
            self.go.acquire()
            self.error = None
            try:
                self.work(self)
            except BaseException as error:
                self.error = error
            self.ended = True
            self.done.release()

    def step(self) -> None:
        """Go on until the end or the next barrier."""
        self.ended = False
        self.go.release()
        self.done.acquire()
        if self.error is not None:
            self.error.add_note(f"in thread {self.threadIdx.x} of block {self.blockIdx.x}")
            raise self.error

    def syncthreads(self) -> None:
        """Wait for the other threads; kernels call this."""
        self.done.release()
        self.go.acquire()


def run_block(manager: Any, place: Any, *arguments: Any) -> None:
    """Run a block; at every second barrier the last thread goes on first, so that a missing barrier shows."""
    from numba.cuda.simulator.kernelapi import Dim3

    points = list(np.ndindex(*manager._block_dim))[::-1]

    def begin(lane: Lane) -> None:
        while points:
            lane.threadIdx = Dim3(*points.pop())
            manager._f(*arguments)

    def step(lane: Lane, waiting: list[Lane]) -> None:
        lane.step()
        (Lane.spare if lane.ended else waiting).append(lane)

    waiting: list[Lane] = []
    while points:
        lane = Lane.spare.pop() if Lane.spare else Lane()
        lane.blockIdx, lane.work = Dim3(*place), begin
        step(lane, waiting)
    while waiting:
        lanes, waiting = waiting[::-1], []
        for lane in lanes:
            step(lane, waiting)


def patch() -> None:
    """Teach the simulator the arguments of shared and local arrays that it lacks, and to run faster."""
    from numba import cuda
    from numba.core import types
    from numba.cuda.simulator import kernel, kernelapi
    from numba.np import numpy_support

    def resolved(dtype: Any) -> Any:
        return numpy_support.as_dtype(dtype) if isinstance(dtype, types.Type) else dtype

    def shared(self: Any, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        frame = sys._getframe(1)  # one array for each line of source in each block
        place = (frame.f_code.co_filename, frame.f_lineno, *threading.current_thread().blockIdx)
        return self._allocations.setdefault(place, _blank(shape, resolved(dtype)))

    def local(self: Any, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        return _blank(shape, resolved(dtype))

    kernelapi.FakeCUDAShared.array = shared
    kernelapi.FakeCUDALocal.array = local
    cuda.local = kernelapi.FakeCUDALocal()  # for functions of other modules than a kernel's
    kernel.BlockManager.run = run_block
    warnings.filterwarnings("ignore", "overflow encountered", RuntimeWarning)  # U wraps, as it does on a GPU


def _blank(shape: Any, dtype: Any) -> Any:
    """Return memory in which what is read before it is written shows."""
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 99, dtype)


def memory(array: Any) -> Any:
    """Return the NumPy array behind what a simulated kernel was given."""
    array = getattr(array, "_item", array)
    return getattr(array, "_ary", array)


def processors() -> int:
    """Return a small number, so that tiny problems meet several waves and splits."""
    return 2


def context() -> int:
    """Return a number for the GPU."""
    return 1


def check_here(pointer: int) -> None:
    """Refuse nothing: there is one."""


class Launch:
    """A kernel with its parameters, but for what its pointers point to."""

    def __init__(self, kernel: Any, blocks: int, pointers: Any, geometry: Any) -> None:
        integer = np.dtype(kernel.integer).type
        self.kernel, self.blocks = kernel, blocks
        self.geometry = type(geometry)(*map(integer, geometry))
        self.sizes = [None if p is None else p.nbytes for p in pointers]

    def start(self, pointers: Any, stream: int) -> None:
        """Run it to its end."""
        from numba import cuda
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        arrays = []
        for pointer, size, dtype in zip(pointers, self.sizes, self.kernel.pointers, strict=True):
            raw = b"" if size is None else (ctypes.c_char * size).from_address(pointer)
            arrays.append(FakeCUDAArray(np.frombuffer(raw, dtype)))  # of NumPy's it makes copies
        cuda.jit(self.kernel.body)[self.blocks, self.kernel.threads](*arrays, self.geometry)


launch = launcher(Launch)


def fill_zero(pointer: int, count: int, stream: int) -> None:
    """Set bytes to zero."""
    ctypes.memset(pointer, 0, count)


class Block:
    """Bytes that are NaN as floating-point numbers until something is written."""

    def __init__(self, count: int, stream: int = 0) -> None:
        self.content = np.full(count, 255, np.uint8)
        self.pointer = self.content.ctypes.data


def upload(pointer: int, content: Any) -> None:
    """Copy an array to where a pointer points."""
    ctypes.memmove(pointer, content.ctypes.data, content.nbytes)


def download(content: Any, pointer: int) -> None:
    """Copy an array from where a pointer points."""
    ctypes.memmove(content.ctypes.data, pointer, content.nbytes)


def device_array(
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any, stream: int
) -> tuple[Any, int]:
    """Return an array of the simulator, and where it begins; strides count elements."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    steps = tuple(s * dtype.itemsize for s in strides)
    array = np.lib.stride_tricks.as_strided(_blank((prod(shape),), dtype), shape, steps)
    return FakeCUDAArray(array), array.ctypes.data


class Buffer:
    """A copy of an array."""

    def __init__(self, content: np.ndarray[Any, Any]) -> None:
        self.content = np.ascontiguousarray(content).copy()
        self.nbytes, self.pointer = self.content.nbytes, self.content.ctypes.data
