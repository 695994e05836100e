"""A GPU that is the PTX emulator: the interface of `fastconv.cuda.driver` on memory of the CPU's, `cuda.stand_in` while used."""

import contextlib
import functools
from collections import Counter

import numpy as np
import ptx

from fastconv import cuda, plan
from fastconv.cuda import compiler
from fastconv.cuda.tape import launcher


@functools.cache
def read(kernel):
    """Compile a kernel to PTX and read it."""
    from numba import cuda as numba_cuda
    from numba import types

    pointers = [types.CPointer(getattr(types, dtype)) for dtype in kernel.pointers]
    integers = types.NamedUniTuple(
        getattr(types, kernel.integer), len(kernel.geometry._fields), kernel.geometry
    )
    with compiler._without_driver():
        text, _ = numba_cuda.compile(
            kernel.body, types.void(*pointers, integers), device=False, abi="numba", cc=compiler.OLDEST,
            output="ptx", launch_bounds=(kernel.threads, kernel.blocks),
        )  # fmt: skip
    return ptx.Kernel(text if isinstance(text, str) else text.decode())


class Block:
    """Bytes that begin on 256 as a GPU's do, ``shift`` of them skipped, and are NaN until something is written.

    More than 2**30 are zeros instead, of which those are in memory that are touched.
    """

    def __init__(self, count, stream=0, shift=0):
        room = count + 512 + shift
        whole = np.full(room, 255, "u1") if room < 2**30 else ptx.lazily(room, "u1")
        begin = -whole.ctypes.data % 256 + shift
        self.content = whole[begin : begin + count]
        self.nbytes, self.pointer = count, self.content.ctypes.data
        MEMORY[self.pointer] = self.content

    def __del__(self):
        MEMORY.pop(self.pointer, None)


MEMORY = {}


class Array:
    """An array on that GPU, as any library might hand it over."""

    def __init__(self, shape, strides=None, dtype=np.float32, block=None):
        self.dtype, self.shape = np.dtype(dtype), tuple(shape)
        self.block = block or Block(int(np.prod(shape)) * self.dtype.itemsize)
        self.strides = strides

    @classmethod
    def of(cls, value, last=False, shift=0):
        """Copy an array there; ``last``: with channels behind the pixels, ``shift`` bytes past a boundary."""
        value = np.ascontiguousarray(np.moveaxis(value, 1, -1) if last else value)
        block = Block(value.nbytes, shift=shift)
        block.content[:] = value.reshape(-1).view("u1")
        made = cls(value.shape, None, value.dtype, block)
        return made.transpose((0, value.ndim - 1, *range(1, value.ndim - 1))) if last else made

    @property
    def numpy(self):
        """Its elements."""
        strides = self.strides and [s * self.dtype.itemsize for s in self.strides]
        return np.ndarray(self.shape, self.dtype, self.block.content.data, 0, strides)

    def transpose(self, axes):
        turned = self.numpy.transpose(axes)
        return Array(turned.shape, [s // self.dtype.itemsize for s in turned.strides], self.dtype, self.block)

    @property
    def __cuda_array_interface__(self):
        strides = self.strides and tuple(s * self.dtype.itemsize for s in self.strides)
        told = {"shape": self.shape, "typestr": self.dtype.str, "strides": strides}
        return told | {"data": (self.block.pointer, False), "version": 3}


class Launch:
    """A kernel with its parameters, but for what its pointers point to."""

    profiles = None  # or a dictionary: what each kernel did
    some = staticmethod(lambda kernel, blocks, geometry: range(blocks))  # the blocks to run

    def __init__(self, kernel, blocks, pointers, geometry):
        assert blocks > 0, "a grid without blocks is an error"
        self.kernel, self.blocks, self.geometry = kernel, blocks, geometry

    def start(self, pointers, stream):
        code = read(self.kernel)
        profile = None if self.profiles is None else self.profiles.setdefault(self.kernel, Counter())
        parameters = (*pointers, *self.geometry)
        blocks = self.some(self.kernel, self.blocks, self.geometry)
        code.run(blocks, self.kernel.threads, parameters, list(MEMORY.values()), profile)


class Emulated:
    """The driver."""

    Block, launch = Block, staticmethod(launcher(Launch))

    def __init__(self, count=2):
        self.count = count

    def processors(self):
        return self.count

    def context(self):
        return 0

    def check_here(self, pointer):
        pass

    def fill_zero(self, pointer, count, stream):
        MEMORY[pointer][:count] = 0

    def upload(self, pointer, content):
        MEMORY[pointer][:] = content.reshape(-1).view("u1")

    def download(self, content, pointer):
        content.reshape(-1).view("u1")[:] = MEMORY[pointer]

    def device_array(self, shape, strides, dtype, stream):
        array = Array(shape, strides, dtype)
        return array, array.block.pointer

    def Buffer(self, content):
        block = Block(content.nbytes)
        block.content[:] = np.ascontiguousarray(content).reshape(-1).view("u1")
        return block


@contextlib.contextmanager
def emulated(processors=2):
    """Take calls on a GPU to the emulator."""
    plan.clear()
    cuda.stand_in = Emulated(processors)
    try:
        yield
    finally:
        cuda.stand_in = None
        plan.clear()
