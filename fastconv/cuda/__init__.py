"""The CUDA engine: the same calls on arrays that live on a GPU.

An algorithm's kernels stand in the ``cuda.py`` beside its ``cpu.py``; here is what they share::

    language    what kernels are written in: Numba's dialect, and
    intrinsics  what it lacks, as LLVM IR; imitation: the same for the simulator
    compiler    a kernel and its constants -> machine code, kept on disk
    driver      machine code -> a launch on a stream; memory; what the GPU is
    simulator   the same without a GPU: NumPy memory, Numba's CUDA simulator
    memory      an array as kernels see it
    libraries   PyTorch's and CuPy's: their allocators and streams
    interface   arrays that describe themselves, Numba's among them: the driver's pool
    host        NumPy's, there and back
    operands    which of these an array is, and whether several go together
    call        calls from end to end, twins of `fastconv.convolve` and `fastconv.transpose`
    tape        what a call asked for and started
    replay      later calls of the kind: the same from the tape
    ahead       a GPU that is not here, to compile for

Nothing here is imported before the first array on a GPU arrives.  numba-cuda is used to compile and for
nothing else; a kernel takes raw pointers and a named tuple of integers, and is started by the driver.
"""

from __future__ import annotations

import functools
from typing import Any

stand_in: Any = None  # instead of what is here: `fastconv.cuda.ahead`


def backend() -> Any:
    """Return the module that launches kernels: the driver, or under NUMBA_ENABLE_CUDASIM the simulator."""
    return stand_in or _found()


@functools.cache
def _found() -> Any:
    from numba import config

    if config.ENABLE_CUDASIM:
        from fastconv.cuda import simulator

        return simulator
    from fastconv.cuda import driver

    driver.bindings()
    return driver
