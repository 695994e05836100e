"""The one place with Numba options, and a disk cache that can be trusted.

Two decorators:

* ``inner``: a device-side function, called from other jitted code; serial, releases the GIL.
* ``kernel``: an entry point with two compiled twins, ``.serial`` and ``.parallel``.  The body splits
  its *outputs* with ``prange(workers)``; the serial twin runs the same loop on one thread.

Numba stamps a cache entry with the time and size of one source file, so a caller in another file goes
on running old machine code after an edit, and a wheel whose files all carry the same time does so after
an upgrade.  Here the stamp is a hash over the whole package and the versions of numba and llvmlite.
Any failure to read or write the cache (read-only, full, broken entry) costs a compilation, no more.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import caching

# Sums may not be re-associated and no NaN or Inf may be assumed away: only contraction to FMA.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


@functools.cache
def fingerprint() -> str:
    """Hash of every source file of the package and of the compiler's versions."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Stamped:
    def get_source_stamp(self) -> str:
        return fingerprint()


class _Environment(_Stamped, caching.UserProvidedCacheLocator):  # NUMBA_CACHE_DIR
    pass


class _InTree(_Stamped, caching.InTreeCacheLocator):  # __pycache__ beside the source
    pass


class _UserWide(_Stamped, caching.UserWideCacheLocator):  # read-only installs
    pass


class _Files(caching.CompileResultCacheImpl):
    _locator_classes = (_Environment, _InTree, _UserWide)


class _Cache(caching.FunctionCache):
    _impl_class = _Files

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a truncated or foreign entry: compile instead
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:  # a full or read-only folder: the next process compiles again
            return


def cached(dispatcher: Any) -> Any:
    """Attach the disk cache; FASTCONV_CACHE=0, or no folder to write to, leaves it off."""
    if os.environ.get("FASTCONV_CACHE", "1") != "0":
        try:
            dispatcher._cache = _Cache(dispatcher.py_func)
        except Exception:  # no locator: nowhere to write
            return dispatcher
    return dispatcher


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that other kernels call."""
    return cached(numba.njit(**OPTIONS)(function))


class Kernel:
    """An entry point: ``serial`` and ``parallel`` are compiled from one body, each when first called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.serial = cached(numba.njit(**OPTIONS)(function))
        self.parallel = cached(numba.njit(parallel=True, **OPTIONS)(function))
        functools.update_wrapper(self, function)


def kernel(function: Callable[..., Any]) -> Kernel:
    """Compile an entry point whose first argument is the number of workers."""
    return Kernel(function)
