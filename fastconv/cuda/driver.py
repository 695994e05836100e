"""The GPU through CUDA's driver: load machine code once, launch it on a stream for a few microseconds.

Nothing here waits for the GPU but `upload`, which a plan calls once when it is made.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from math import prod
from typing import Any

import numpy as np

from fastconv.cuda.compiler import OLDEST, Kernel, entry
from fastconv.cuda.tape import launcher
from fastconv.errors import DeviceError

INTEGERS = {"uint32": ctypes.c_uint32, "int64": ctypes.c_int64}


@functools.cache
def bindings() -> Any:
    """Return the driver's bindings, or raise DeviceError where there is no driver, GPU or numba-cuda."""
    try:
        import numba_cuda  # noqa: F401
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceError(
            f"arrays on a GPU need numba-cuda: pip install 'fastconv[cuda]' ({error})"
        ) from None
    try:
        (status,) = driver.cuInit(0)
    except Exception as error:  # no libcuda
        raise DeviceError(f"no CUDA driver: {error}") from None
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"no usable GPU: cuInit gives {status.name}")
    known, wanted = driver.cuDriverGetVersion()[1] // 1000, int(version("cuda-bindings").partition(".")[0])
    if known < wanted:  # it would refuse the machine code
        raise DeviceError(
            f"the driver knows CUDA {known}, and numba-cuda here is for {wanted}: pip install 'numba-cuda[cu{known}]'"
        )
    return driver


def checked(answer: tuple[Any, ...]) -> Any:
    """Return what the driver answered, or raise DeviceError."""
    if answer[0]:  # CUDA_SUCCESS is 0
        raise DeviceError(f"the CUDA driver answers {answer[0].name}")
    return answer[-1]


def context() -> int:
    """Return the current context, the primary one of the first GPU if there is none."""
    driver = bindings()
    found = int(checked(driver.cuCtxGetCurrent()))
    if not found:
        primary = checked(driver.cuDevicePrimaryCtxRetain(checked(driver.cuDeviceGet(0))))
        checked(driver.cuCtxSetCurrent(primary))
        found = int(primary)
    return found


@functools.cache
def _attributes(_: int) -> tuple[tuple[int, int], int]:
    driver = bindings()
    device, names = checked(driver.cuCtxGetDevice()), driver.CUdevice_attribute
    major, minor, processors = (
        checked(driver.cuDeviceGetAttribute(name, device))
        for name in (
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            names.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )
    )
    if (major, minor) < OLDEST:
        raise DeviceError(
            f"kernels need compute capability {OLDEST[0]}.{OLDEST[1]} or later, got {major}.{minor}"
        )
    return (major, minor), processors


def processors() -> int:
    """Return the number of multiprocessors."""
    return _attributes(context())[1]


@functools.cache
def _function(kernel: Kernel, current: int) -> Any:
    """Load a kernel into the current context."""
    driver = bindings()
    cubin = kernel.cubin(_attributes(current)[0])
    library = checked(driver.cuLibraryLoadData(cubin, [], [], 0, [], [], 0))
    return checked(driver.cuKernelGetFunction(checked(driver.cuLibraryGetKernel(library, entry(cubin)))))


@functools.lru_cache(1024)
def _numbers(integer: str, geometry: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """Return a geometry as C holds it, and the address of each of its numbers."""
    kind = INTEGERS[integer]
    values = (kind * len(geometry))(*geometry)
    begin, step = ctypes.addressof(values), ctypes.sizeof(kind)
    return values, tuple(range(begin, begin + step * len(geometry), step))


class Launch:
    """A kernel with all parameters as the driver takes them, but for what its pointers point to."""

    def __init__(
        self, kernel: Kernel, blocks: int, pointers: Sequence[Any], geometry: tuple[int, ...]
    ) -> None:
        self.numbers, self.addresses = _numbers(kernel.integer, geometry)
        shape = blocks, 1, 1, kernel.threads, 1, 1, 0
        function = _function(kernel, context())
        self.launch = functools.partial(bindings().cuLaunchKernel, function, *shape)
        self.count = len(pointers)

    def start(self, pointers: Sequence[int], stream: int) -> None:
        """Start it on a stream."""
        in_turn([(self, self.count)])(pointers, stream)


def in_turn(launches: Sequence[tuple[Launch, int]]) -> Callable[[Sequence[int], int], None]:
    """Return the function that starts kernels on a stream, from the pointers of all of them: written once, for all."""
    total, lock = sum(count for _, count in launches), threading.Lock()
    values = (ctypes.c_uint64 * total)()
    pack, at, starts = struct.Struct(f"={total}Q").pack_into, ctypes.addressof(values), []
    for launch, count in launches:
        addresses = (*range(at, at + 8 * count, 8), *launch.addresses)
        parameters = (ctypes.c_void_p * len(addresses))(*addresses)
        starts.append((launch.launch, ctypes.addressof(parameters), (parameters, launch.numbers)))
        at += 8 * count

    def start(pointers: Sequence[int], stream: int) -> None:
        with lock:  # until the driver has copied the values
            pack(values, 0, *pointers)
            for launch, parameters, _ in starts:
                answer = launch(stream, parameters, 0)
                if answer[0]:
                    checked(answer)

    return start


launch = launcher(Launch)


def wait(stream: int, other: int) -> None:
    """Have what is started on a stream from now on wait for what was started on another."""
    driver = bindings()
    event = checked(driver.cuEventCreate(int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)))
    checked(driver.cuEventRecord(event, other))
    checked(driver.cuStreamWaitEvent(stream, event, 0))
    checked(driver.cuEventDestroy(event))  # once it has come to pass


def fill_zero(pointer: int, count: int, stream: int) -> None:
    """Set bytes to zero."""
    if count:
        checked(bindings().cuMemsetD8Async(pointer, 0, count, stream))


@functools.cache
def _pool(_: int) -> Any:
    """Return the pool of the current GPU, told to keep what it is given back."""
    driver = bindings()
    pool = checked(driver.cuDeviceGetDefaultMemPool(checked(driver.cuCtxGetDevice())))
    keep = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    checked(driver.cuMemPoolSetAttribute(pool, keep, driver.cuuint64_t(2**64 - 1)))
    return pool


class Block:
    """Memory from the driver's pool in the order of a stream, given back when nobody holds it any more."""

    def __init__(self, count: int, stream: int = 0) -> None:
        pool, self.stream = _pool(context()), stream
        self.pointer = int(checked(bindings().cuMemAllocFromPoolAsync(max(1, count), pool, stream)))

    def __del__(self, ending: Any = sys.is_finalizing) -> None:  # Python takes modules apart at its end
        if hasattr(self, "pointer") and not ending():
            context()  # a thread that collects garbage may have none
            bindings().cuMemFreeAsync(self.pointer, self.stream)


def upload(pointer: int, content: np.ndarray[Any, Any]) -> None:
    """Copy a C-contiguous array to the GPU."""
    checked(bindings().cuMemcpyHtoD(pointer, content.ctypes.data, content.nbytes))


def download(content: np.ndarray[Any, Any], pointer: int) -> None:
    """Copy from the GPU to a C-contiguous array when all work before is done."""
    checked(bindings().cuMemcpyDtoH(content.ctypes.data, pointer, content.nbytes))


@functools.lru_cache(1024)
def _described(shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], _: int) -> Any:
    """Return a Numba device array of no memory: to describe one takes longer than a call."""
    from numba import cuda
    from numba.cuda.cudadrv.devicearray import DeviceNDArray
    from numba.cuda.cudadrv.driver import MemoryPointer

    item = dtype.itemsize
    nothing = MemoryPointer(cuda.current_context(), bindings().CUdeviceptr(0), item * prod(shape))
    return DeviceNDArray(shape, tuple(s * item for s in strides), dtype, 0, nothing)


def device_array(
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], stream: int
) -> tuple[Any, int]:
    """Return a Numba device array in memory from the pool, and where it begins; strides count elements."""
    like = _described(shape, strides, dtype, context())
    nothing, array = like.gpu_data, object.__new__(type(like))
    block = Block(nothing.size, stream)
    pointer = bindings().CUdeviceptr(block.pointer)
    array.__dict__.update(like.__dict__)  # as Numba's own `bind` copies one
    array.gpu_data = type(nothing)(nothing.context, pointer, nothing.size, owner=block)
    if stream:
        from numba import cuda

        array.stream = cuda.external_stream(stream)
    return array, block.pointer


class Buffer:
    """Memory of the driver's own, for tables that live as long as a plan."""

    def __init__(self, content: np.ndarray[Any, Any]) -> None:
        context()
        driver, content = bindings(), np.ascontiguousarray(content)
        self.nbytes = content.nbytes
        self.pointer = int(checked(driver.cuMemAlloc(max(1, content.nbytes))))
        checked(driver.cuMemcpyHtoD(self.pointer, content.ctypes.data, content.nbytes))
        checked(driver.cuStreamSynchronize(0))  # PyTorch's streams wait for no copy that is on its way

    def __del__(self, ending: Any = sys.is_finalizing) -> None:
        if hasattr(self, "pointer") and not ending():
            context()
            bindings().cuMemFree(self.pointer)
