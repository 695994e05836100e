"""From a kernel to machine code, without a GPU or a driver: Numba to LTO-IR, nvJitLink to a cubin, kept on disk.

The cubin is what the driver loads, so tests on any machine read the very code that runs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastconv import jit

OLDEST = (8, 0)  # compute capability that kernels are written for: copies past the registers


@dataclass(frozen=True)
class Kernel:
    """A kernel: ``maker(*constants)`` is its body, called with pointers and then one named tuple of integers."""

    maker: Callable[..., Any]
    constants: tuple[Any, ...]
    pointers: tuple[str, ...]  # dtypes of what the pointer arguments point to
    geometry: Any  # the named tuple's class
    integer: str  # type of every field of the geometry: uint32 or int64
    threads: int
    blocks: int = 1  # on one multiprocessor, which bounds the registers of a thread

    @functools.cached_property
    def body(self) -> Any:
        """The Python function."""
        return self.maker(*self.constants)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.maker, self.constants))

    def __hash__(self) -> int:
        return self._hash

    def cubin(self, capability: tuple[int, int]) -> bytes:
        """Return the machine code for a compute capability, from disk if it is there."""
        parts = ("numba", "numba-cuda", "cuda-core", "nvidia-nvvm", "nvidia-nvjitlink")
        key = repr((self.maker.__qualname__, *map(repr, self.constants), self.pointers, self.integer, self.threads,
                    self.blocks, capability, *map(_version, parts)))  # fmt: skip
        entries = None if " at 0x" in key else _entries(self.maker)
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        if entries:
            with contextlib.suppress(Exception):  # no entry, or one that cannot be read: compile
                if found := entries.load(name):
                    return bytes(found)
        code = _compiled(self, capability)
        if entries:
            with contextlib.suppress(Exception):
                entries.save(name, code)
        return code


@functools.cache
def _version(package: str) -> str:
    try:
        return version(package)
    except Exception:
        return ""


def _entries(maker: Callable[..., Any]) -> Any:
    """Return where the CPU's kernels are kept, too; None if there is no such place."""
    try:
        folder, source = jit._Files(maker).locator.get_cache_path(), Path(maker.__code__.co_filename)
        return jit._Entries(
            folder, f"cuda-{source.stem}-{maker.__name__}", source
        )  # files of a folder may name alike
    except Exception:
        return None


def _compiled(kernel: Kernel, capability: tuple[int, int]) -> bytes:
    from cuda.core import Linker, LinkerOptions, ObjectCode

    options = LinkerOptions(arch="sm_{}{}".format(*capability), link_time_optimization=True)
    return bytes(Linker(ObjectCode.from_ltoir(_for_all(kernel)), options=options).link("cubin").code)


@functools.lru_cache(16)
def _for_all(kernel: Kernel) -> bytes:
    """Return what Numba makes of a kernel, three quarters of the work and for all GPUs from the OLDEST on."""
    import numpy as np

    if not hasattr(np, "row_stack"):  # NumPy 2.5 dropped what numba-cuda 0.30 still asks for
        setattr(np, "row_stack", np.vstack)  # noqa: B010  (as an attribute, linters rename it to vstack)
    from numba import cuda, types

    pointers = [types.CPointer(getattr(types, dtype)) for dtype in kernel.pointers]
    integers = types.NamedUniTuple(
        getattr(types, kernel.integer), len(kernel.geometry._fields), kernel.geometry
    )
    with _without_driver():
        code, _ = cuda.compile(
            kernel.body, types.void(*pointers, integers), device=False, abi="numba", cc=OLDEST,
            output="ltoir", launch_bounds=(kernel.threads, kernel.blocks),
        )  # fmt: skip
    return bytes(code)


_compiling = threading.Lock()


@contextlib.contextmanager
def _without_driver() -> Iterator[None]:
    """Answer numba-cuda's question which GPU device functions are for, in this thread: others may compile for a real one."""
    from numba.cuda import dispatcher

    here = threading.get_ident()
    with _compiling:
        before = dispatcher.get_current_device
        oldest = SimpleNamespace(compute_capability=OLDEST)
        dispatcher.get_current_device = lambda: oldest if threading.get_ident() == here else before()
        try:
            yield
        finally:
            dispatcher.get_current_device = before


def entry(cubin: bytes) -> bytes:
    """Return the name of the kernel in a cubin."""
    return bytes(re.findall(rb"\.text\.([^\0]+)\0", cubin)[0])
