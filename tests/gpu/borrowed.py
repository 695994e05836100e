"""A GPU that Numba, PyTorch and a CuPy of our own believe in: the emulator computes, and PyTorch on the CPU.

What a first contact would stumble over has been gone through then: imports, arguments, what is printed and written.
``python -m pytest -p borrowed -m cuda``, or ``import borrowed`` before the race.
"""

import sys
import time
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from emulated import MEMORY, Array, Emulated
from numba import cuda
from torch.overrides import TorchFunctionMode

import fastconv.cuda

PROCESSORS = 2
HERE = torch.device("cuda:0")


class Tensor(torch.Tensor):
    """A tensor that says it is on the GPU, and whose elements the emulator finds."""

    is_cuda, device = True, HERE

    def data_ptr(self):
        pointer, count = super().data_ptr(), self.untyped_storage().nbytes()
        begin = self.untyped_storage().data_ptr()
        if count and begin not in MEMORY:
            MEMORY[begin] = torch.empty(0, dtype=torch.uint8).set_(self.untyped_storage()).numpy()
        return pointer

    def cpu(self):
        return self.as_subclass(torch.Tensor)


Tensor.__module__ = "torch"


class Borrowed(TorchFunctionMode):
    """Take what PyTorch is asked to do on the GPU to the CPU."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = dict(named or {})
        there = function is torch.Tensor.cuda or any(map(meant, (*arguments, named.get("device"))))
        if function is torch.Tensor.cuda:
            return arguments[0].as_subclass(Tensor)
        if meant(named.get("device")):
            named["device"] = "cpu"
        result = function(*("cpu" if meant(a) else a for a in arguments), **named)
        return result.as_subclass(Tensor) if there and isinstance(result, torch.Tensor) else result


def meant(device):
    return isinstance(device, str | torch.device) and str(device).startswith("cuda")


class Event:
    """A point in time."""

    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


class ndarray:
    """An array of CuPy's."""

    device = SimpleNamespace(id=0)

    def __init__(self, held):
        self.held, self.shape, self.dtype, self.strides = held, held.shape, held.dtype, held.numpy.strides
        self.data = SimpleNamespace(ptr=held.block.pointer)

    @property
    def __cuda_array_interface__(self):
        return self.held.__cuda_array_interface__

    def transpose(self, axes):
        return ndarray(self.held.transpose(axes))


ndarray.__module__ = "cupy"


class Stream:
    """A stream of CuPy's."""

    ptr = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        pass


cupy = sys.modules["cupy"] = ModuleType("cupy")
cupy.asarray, cupy.asnumpy = (lambda array: ndarray(Array.of(array))), (lambda array: array.held.numpy.copy())
cupy.empty = lambda shape, dtype: ndarray(Array(shape, dtype=dtype))
cupy.cuda = SimpleNamespace(
    Stream=Stream, get_current_stream=Stream, runtime=SimpleNamespace(getDevice=lambda: 0)
)


def to_device(array):
    return Array.of(np.asarray(array))


Array.copy_to_host = lambda array: array.numpy.copy()
fastconv.cuda._found = lambda: DRIVER
DRIVER = Emulated(PROCESSORS)
cuda.is_available, cuda.synchronize, cuda.to_device = (lambda: True), (lambda: None), to_device
cuda.get_current_device = lambda: SimpleNamespace(MULTIPROCESSOR_COUNT=PROCESSORS, compute_capability=(9, 0))
stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
for name, value in {
    "is_available": lambda: True, "current_device": lambda: 0, "current_stream": lambda device=None: stream,
    "synchronize": lambda: None, "Event": Event, "Stream": lambda: stream, "stream": lambda stream: nullcontext(),
    "get_device_name": lambda: "borrowed",
    "get_device_properties": lambda index: SimpleNamespace(major=9, minor=0, multi_processor_count=PROCESSORS),
}.items():  # fmt: skip
    setattr(torch.cuda, name, value)
Borrowed().__enter__()
