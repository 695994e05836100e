"""What `fastconv.cuda.intrinsics` has, in Python: kernels of the simulator run as such, with arrays in the place of pointers."""

from __future__ import annotations

import threading

import numpy as np

from fastconv.cuda import simulator

U = np.uint32


def inline(function):
    """Leave a function to be called as it is."""
    return function


def barrier():
    """Wait for all threads of the block, in a function of another module than the kernel's."""
    threading.current_thread().syncthreads()


def block_anew():
    """Return the block's number."""
    return U(threading.current_thread().blockIdx.x)


def load4(pointer, index):
    """Return four elements."""
    array, index = further(pointer, index)
    return tuple(simulator.memory(array)[index : index + 4])


def store4(array, index, a, b, c, d):
    """Write four elements."""
    target = simulator.memory(array)[int(index) : int(index) + 4]
    target[:] = np.array((a, b, c, d), target.dtype)


def further(pointer, number):
    """Return a pointer so many elements further on."""
    array, index = pointer if isinstance(pointer, tuple) else (pointer, 0)
    return array, int(index) + int(number)


def load(pointer):
    """Return an element."""
    array, index = further(pointer, 0)
    return array[index]


def spaced(pointer, number, size):
    """Return a pointer a number of times ``size`` bytes further on."""
    array, index = further(pointer, 0)
    return array, index + int(number) * int(size) // simulator.memory(array).itemsize


def spot(shared, index):
    """Return where an element of shared memory lies, in bytes."""
    return U(int(index) * shared.itemsize)


def pointed(shared, spot):
    """Return the pointer to where an element lies."""
    return shared, int(spot) // shared.itemsize


def store(pointer, index, value):
    """Write an element."""
    array, index = further(pointer, index)
    array[index] = value


def copy(to, at, source, offset, wanted, count=1):
    """Copy one element, or write zero."""
    (shared, to), (array, index) = further(to, at), further(source, offset)
    for i in range(count):
        shared[to + i] = array[index + i] if wanted else 0


def copy4(to, at, source, offset, wanted):
    """Copy four elements, or write zeros."""
    copy(to, at, source, offset, wanted, 4)


arrived = barrier


def add_to(array, index, value):
    """Add to an element."""
    array[int(index)] += value


def outer(rows):
    """Return the function that adds the products of ``rows`` numbers with eight."""

    def add(a, b, acc):
        simulator.memory(acc)[...] += np.outer(simulator.memory(a), simulator.memory(b))

    return add
