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
DEVICE_MEMORY = 2  # CU_MEMORYTYPE_DEVICE


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
    status, found = bindings().cuCtxGetCurrent()
    if not status and (number := int(found)):
        return number
    driver = bindings()
    if status == driver.CUresult.CUDA_ERROR_NOT_INITIALIZED:
        raise DeviceError(
            "a GPU that was in use when this process was forked is lost to it: start it by spawn"
        )
    checked((status,))
    primary = checked(driver.cuDevicePrimaryCtxRetain(checked(driver.cuDeviceGet(0))))
    checked(driver.cuCtxSetCurrent(primary))
    return int(primary)


def check_here(pointer: int) -> None:
    """Refuse memory of another GPU than the current one: kernels that meet it would end the context."""
    context()
    driver = bindings()
    asked, here = driver.CUpointer_attribute, int(checked(driver.cuCtxGetDevice()))

    def told(name: str) -> int:
        status, value = driver.cuPointerGetAttribute(getattr(asked, f"CU_POINTER_ATTRIBUTE_{name}"), pointer)
        return -1 if status else int(value)

    there = told("DEVICE_ORDINAL")
    if there not in (-1, here) and told("MEMORY_TYPE") == DEVICE_MEMORY and not told("IS_MANAGED"):
        raise ValueError(f"arrays are on GPU {there}, and the current one is {here}: make theirs current")


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
        in_turn([(self, range(self.count))], self.count, ())(pointers, stream)


def in_turn(
    launches: Sequence[tuple[Launch, Sequence[int]]], count: int, tables: Sequence[int]
) -> Callable[[Sequence[int], int], None]:
    """Return the function that starts kernels on a stream, from pointers that are written once for all of them."""
    block, lock = (ctypes.c_uint64 * (count + len(tables)))(*[0] * count, *tables), threading.Lock()
    pack, at, starts = struct.Struct(f"={count}Q").pack_into, ctypes.addressof(block), []
    for launch, own in launches:
        addresses = (*(at + 8 * i for i in own), *launch.addresses)
        parameters = (ctypes.c_void_p * len(addresses))(*addresses)
        starts.append((launch.launch, ctypes.addressof(parameters), (parameters, launch.numbers)))

    def start(pointers: Sequence[int], stream: int) -> None:
        with lock:  # until the driver has copied the values
            pack(block, 0, *pointers)
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

    def __init__(self, count: int, stream: Any = 0) -> None:
        self.context, self.stream = context(), stream  # if it is an object, it ends its stream with itself
        answer = bindings().cuMemAllocFromPoolAsync(max(1, count), _pool(self.context), int(stream))
        self.pointer = int(checked(answer))

    def __del__(self, ending: Any = sys.is_finalizing) -> None:  # Python takes modules apart at its end
        if hasattr(self, "pointer") and not ending():
            _in_context(self.context, bindings().cuMemFreeAsync, self.pointer, int(self.stream))


def _in_context(context: int, free: Callable[..., Any], *arguments: int) -> None:
    """Free memory from any thread: in its own context, where alone the default stream is the one it was used on."""
    driver = bindings()
    status, found = driver.cuCtxGetCurrent()
    if status:  # in a forked child, whose memory it is not
        return
    if away := int(found) != context:
        driver.cuCtxPushCurrent(context)
    free(*arguments)
    if away:
        driver.cuCtxPopCurrent()


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
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], stream: Any
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

        array.stream = cuda.external_stream(stream) if isinstance(stream, int) else stream
    return array, block.pointer


class Buffer:
    """Memory of the driver's own, for tables that live as long as a plan."""

    def __init__(self, content: np.ndarray[Any, Any]) -> None:
        self.context = context()
        driver, content = bindings(), np.ascontiguousarray(content)
        self.nbytes = content.nbytes
        self.pointer = int(checked(driver.cuMemAlloc(max(1, content.nbytes))))
        checked(driver.cuMemcpyHtoD(self.pointer, content.ctypes.data, content.nbytes))
        checked(driver.cuStreamSynchronize(0))  # PyTorch's streams wait for no copy that is on its way

    def __del__(self, ending: Any = sys.is_finalizing) -> None:
        if hasattr(self, "pointer") and not ending():
            _in_context(self.context, bindings().cuMemFree, self.pointer)
