"""The one place with Numba options, and a disk cache that can be trusted.

The decorators:

* ``inner``: a function called from other jitted code; serial, releases the GIL, makes no arrays.
* ``function``: the same, for Python to call too.
* ``kernel``: an entry point with two compiled twins, ``.serial`` and ``.parallel``.  The body splits
  its *outputs* with ``prange(workers)``; the serial twin runs the same loop on one thread.

Numba stamps a cache entry with the hash of one source file, so a caller in another file goes on running
old machine code after an edit; it keeps an index beside numbered data files, which processes that write
at once can pair wrongly; and its key does not tell the twins apart.  Here an entry is one file, named by
everything that its machine code depends on: the function's source file and every file of the package that
it imports, directly or through others; the versions and settings of the compiler, the CPU and the vectors
that kernels are made of, the types of the arguments, and which twin it is.  It is written under another
name and renamed, and carries a checksum.  Any failure to read or write it costs a compilation, no more.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import pickle
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
from numba.core import caching, codegen, config
from numba.core.serialize import dumps

from fastconv import machine

# Sums may not be re-associated and no NaN or Inf may be assumed away: only contraction to FMA.
OPTIONS: dict[str, Any] = {
    "nogil": True, "error_model": "numpy", "fastmath": {"contract"}, "no_cfunc_wrapper": True,
}  # fmt: skip

# Inner functions own no memory, so their arrays' references are not counted: the counter of an array that
# all threads pass about took a tenth of a thread's time, and two threads were 1.6 times as fast as one.
INNER = OPTIONS | {"_nrt": False}

# Numba's own settings that change machine code and that it leaves out of its key.
SETTINGS = ("OPT", "BOUNDSCHECK", "LOOP_VECTORIZE", "SLP_VECTORIZE", "DEBUGINFO_DEFAULT", "USING_SVML")

ROOT = Path(__file__).parent
IMPORTED = time.time()


# "from x import a, b" or "import x", the names in parentheses or not.
IMPORT = re.compile(r"^[ \t]*(?:from +([\w.]+) +import +(\([^)]*\)|.*)|import +([\w.]+))", re.MULTILINE)


@functools.cache
def fingerprint(path: Path) -> str:
    """Hash of a source file and of all that it imports from this package, as loaded by this process."""
    digest = hashlib.sha256()
    for source in sorted(sources(path)):
        digest.update(source.relative_to(ROOT).as_posix().encode())
        digest.update(source.read_bytes())
    if edited(path):
        digest.update(os.urandom(16))  # what is loaded is not what is on disk: a name nobody shares
    return digest.hexdigest()[:16]


@functools.cache
def sources(path: Path) -> frozenset[Path]:
    """Return the files of this package that the machine code of a file's functions can depend on."""
    found: set[Path] = set()
    ahead = [path]
    while ahead:
        if (source := ahead.pop()) not in found:
            found.add(source)
            ahead += imports(source)
    return frozenset(found)


@functools.cache
def imports(path: Path) -> list[Path]:
    """Return the files of this package that a file imports anywhere, by the text of its statements."""
    modules: set[str] = set()
    for origin, names, module in IMPORT.findall(path.read_text(encoding="utf-8")):
        # an imported name may be a module of its own
        modules |= {module} if module else {origin, *(f"{origin}.{n}" for n in re.findall(r"\w+", names))}
    files = []
    for package, *parts in (module.split(".") for module in modules):
        if package == ROOT.name and parts:  # the package's own __init__ only names what others define
            at = ROOT.joinpath(*parts)
            files += [file for file in (at.with_suffix(".py"), at / "__init__.py") if file.is_file()]
    return files


def edited(path: Path) -> bool:
    """Whether one of the files changed after this process began to load the package."""
    return any(source.stat().st_ctime > IMPORTED for source in sources(path))


class _Library(codegen.JITCodeLibrary):
    """Code that is optimized, and made machine code, when the address of one of its functions is asked for.

    Numba does both at each step to a kernel, again with all that the step calls: for every inner function,
    and for three functions around the body of a parallel loop.  Only the kernel is ever called.
    """

    _wanted = False

    def _optimize_final_module(self) -> None:
        if self._wanted:
            super()._optimize_final_module()
            # Steps would be found by their names, which number the functions of a process: in code that two processes
            # have stored, steps of one factory, each for other sizes, may have one, and what was loaded first served all.
            for step in self._final_module.functions:
                if step.linkage == llvmlite.binding.Linkage.linkonce_odr:
                    step.linkage = llvmlite.binding.Linkage.internal

    def _finalize_final_module(self) -> None:
        if self._wanted or (self._object_caching_enabled and self._compiled_object):  # the latter from disk
            super()._finalize_final_module()
        else:
            self._finalize_dynamic_globals()
            self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        defined = {f.name for f in self._final_module.functions if not f.is_declaration}
        if name in defined and not self._wanted and "__numba_parfor_gufunc" not in name:
            self._wanted = True
            self._optimize_final_module()
            self._finalize_final_module()
        wrapper = name.startswith("_ZN7cpython")
        return super().get_pointer_to_function(name) or (UNCALLABLE if wrapper else 0)

    def serialize_using_object_code(self) -> Any:
        return super().serialize_using_object_code() if self._wanted else self.serialize_using_bitcode()


class _Codegen(codegen.JITCPUCodegen):
    _library_class = _Library

    def set_env(self, variable: str, environment: Any) -> None:
        if self._engine.is_symbol_defined(variable):  # of code that is made; inner functions own no objects
            super().set_env(variable, environment)


# What Python calls where a function is for jitted code only: raises TypeError.
UNCALLABLE = ctypes.cast(ctypes.pythonapi.PyObject_Call, ctypes.c_void_p).value or 0


@contextlib.contextmanager
def made_when_wanted(target: Any) -> Iterator[None]:
    """Have Numba use `_Library`; its compiler's lock is held."""
    maker = target.codegen()
    before, maker.__class__ = type(maker), _Codegen
    try:
        yield
    finally:
        maker.__class__ = before


class _Entries:
    """One file for each entry of a function: ``function.fingerprint.key.nbc``."""

    def __init__(self, folder: str, function: str, source: Path) -> None:
        self.folder, self.function, self.source = Path(folder), function, source

    def load(self, key: str) -> Any:
        content = self._path(key).read_bytes()
        checksum, data = content[:32], content[32:]
        return pickle.loads(data) if hashlib.sha256(data).digest() == checksum else None

    def save(self, key: str, data: Any) -> None:
        content = dumps(data)
        path = self._path(key)
        temporary = path.with_suffix(f".{uuid.uuid4().hex[:16]}")
        try:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        for old in self.folder.glob(f"{self.function}.*.nbc"):
            if old.name.split(".")[-3] != fingerprint(self.source):  # of sources that are gone
                old.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{self.function}.{fingerprint(self.source)}.{key}.nbc"


class _Files(caching.CompileResultCacheImpl):
    _locator_classes = [  # noqa: RUF012
        caching.UserProvidedCacheLocator,  # NUMBA_CACHE_DIR
        caching.InTreeCacheLocator,  # __pycache__ beside the source
        caching.UserWideCacheLocator,  # read-only installs
    ]


class _Cache(caching.FunctionCache):
    _impl_class = _Files

    def __init__(self, function: Callable[..., Any], twin: str) -> None:
        super().__init__(function)
        self._identity = (twin, self._impl.filename_base)  # module, name, line, Python's version
        self._source = Path(function.__code__.co_filename)
        name = self._impl.filename_base.rpartition("-")[0]
        self._cache_file: Any = _Entries(self._cache_path, name, self._source)

    def _index_key(self, sig: Any, codegen: Any) -> str:
        compiler = [numba.__version__, llvmlite.__version__, *(getattr(config, s, 0) for s in SETTINGS)]
        vectors = machine.simd(), *map(machine.tile, (4, 8))  # not the CPU's, where a test sets others
        key = (*self._identity, compiler, vectors, *super()._index_key(sig, codegen))
        return hashlib.sha256(repr(key).encode()).hexdigest()[:32]

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            with made_when_wanted(target_context):
                return super().load_overload(sig, target_context)
        except Exception:  # no entry, or one that cannot be read: compile instead
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        # A type that is named by an address, as a caller's own activation is, means nothing to the next process.
        try:
            if " at 0x" not in repr(data.signature.args) and not edited(self._source):
                super().save_overload(sig, data)
        except Exception:  # a full or read-only folder: the next process compiles again
            return


def made(dispatcher: Any, twin: str) -> Any:
    """Attach what makes machine code, and the disk cache; FASTCONV_CACHE=0, or nowhere to write, leaves that off."""
    if config.DISABLE_JIT:
        return dispatcher
    dispatcher._compiler.compile = made_when_wanted(dispatcher.targetctx)(dispatcher._compiler.compile)
    if os.environ.get("FASTCONV_CACHE", "1") != "0":
        try:
            dispatcher._cache = _Cache(dispatcher.py_func, twin)
        except Exception:  # no locator: nowhere to write
            return dispatcher
    return dispatcher


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call, and Python does not; it may view arrays, not make them."""
    return made(numba.njit(**(INNER | {"no_cpython_wrapper": True}))(function), "serial")


def function(function: Callable[..., Any]) -> Any:
    """Compile a function that both kernels and Python call, on one thread."""
    return made(numba.njit(**INNER)(function), "serial")


class Kernel:
    """An entry point: ``serial`` and ``parallel`` are compiled from one body, each when first called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.serial = made(numba.njit(**OPTIONS)(function), "serial")
        self.parallel = made(numba.njit(parallel=True, **OPTIONS)(function), "parallel")
        functools.update_wrapper(self, function)  # type: ignore[arg-type]


def kernel(function: Callable[..., Any]) -> Kernel:
    """Compile an entry point whose first argument is the number of workers."""
    return Kernel(function)
