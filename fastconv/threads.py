"""How many threads a call may use, and when it must use one.

Work is split over *outputs* by the kernels, so the count never changes a bit of any result.
A parallel region is unsafe in two places, and runs on the calling thread there instead:

* in a child forked after the parent started Numba's threads: the child does not have them, and waits
  for ever (GNU OpenMP) or is killed;
* under Numba's ``workqueue`` layer while another Python thread is inside one: it aborts the process.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from numba.core import config as numba_config
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel

from fastconv.config import current
from fastconv.gemm.schedule import counters

if TYPE_CHECKING:
    from fastconv.jit import Kernel

# Below this much work a second thread costs more than it brings: waking it takes 3-5 us, 0.4 MFLOP.
SERIAL_FLOPS = 500_000

_region = threading.Lock()  # held by the one thread inside a region of a layer that takes only one
_orphaned = False  # whether the threads that Numba believes in belong to the parent process


def _in_child() -> None:
    global _orphaned, _region
    global_compiler_lock.release()  # type: ignore[no-untyped-call]
    _orphaned = _orphaned or _layer() is not None
    _region = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A child whose parent forked while another thread compiled would wait for that thread's lock for ever.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=_in_child,
    )


def count() -> int:
    """Return the workers a call in this context may have; Numba shares them out among as many threads as it may use."""
    if _orphaned:
        return 1
    wanted, started = current().threads, numba_config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return started if wanted is None or wanted > started else wanted


def workers(flops: float) -> int:
    """Return the threads that this much work is worth."""
    return count() if flops > SERIAL_FLOPS else 1


def launch(kernel: Kernel | Typed, flops: float, *arguments: Any) -> None:
    """Run ``kernel(workers, *arguments)`` on as many workers as are safe and worth their start."""
    start(kernel, workers(flops), *arguments)


def share_out(kernel: Kernel | Typed, flops: float, *arguments: Any) -> None:
    """Run ``kernel(workers, counters, *arguments)``, whose workers take their tasks by `gemm.schedule`."""
    used = workers(flops)
    start(kernel, used, counters(used), *arguments)


def start(kernel: Kernel | Typed, used: int, *arguments: Any) -> None:
    """Run a kernel on so many workers, or on one where more are not safe."""
    if (heard := _listener.heard) is not None:
        serial = kernel.serial
        heard.append((serial.dispatcher if isinstance(serial, _Twin) else serial, (1, *arguments)))
    elif used == 1:
        kernel.serial(1, *arguments)
    elif _layer() in ("omp", "tbb"):
        kernel.parallel(used, *arguments)
    elif _region.acquire(blocking=False):
        try:
            kernel.parallel(used, *arguments)
        finally:
            _region.release()
    else:
        kernel.serial(1, *arguments)


class _Listener(threading.local):
    heard: list[Any] | None = None


_listener = _Listener()


@contextlib.contextmanager
def listening() -> Iterator[list[Any]]:
    """Yield a list of the serial twins, and their arguments, that are started by this thread, and do not run them."""
    heard: list[Any] = []
    _listener.heard = heard
    try:
        yield heard
    finally:
        _listener.heard = None


def _layer() -> str | None:
    """Return what `numba.threading_layer` does; None before it has been chosen, as its threads start."""
    return parallel._threading_layer


class TypedKernels(dict["Kernel", "Typed"]):
    """Those that one execution has called."""

    def __missing__(self, kernel: Kernel) -> Typed:
        typed = self[kernel] = Typed(kernel)
        return typed


class Typed:
    """A kernel that one execution calls: with arguments of the same types every time, but for the activation.

    Numba's dispatcher finds out the types in each call.  A layer's data put the interpreter out of cache, and then that
    takes 4 to 12 us; so after the first call the machine code that it found is called.
    """

    def __init__(self, kernel: Kernel) -> None:
        names = kernel.__wrapped__.__code__.co_varnames  # type: ignore[attr-defined]
        place = names.index("activation") if "activation" in names else None
        self.serial, self.parallel = _Twin(kernel.serial, place), _Twin(kernel.parallel, place)


class _Twin:
    """One twin of such a kernel."""

    __slots__ = ("code", "dispatcher", "place")

    def __init__(self, dispatcher: Any, place: int | None) -> None:
        self.dispatcher, self.place = dispatcher, place
        self.code: Callable[..., None] | None = None

    def __call__(self, *arguments: Any) -> None:
        if self.place is not None and type(arguments[self.place]) is not int:  # a function: a type of its own
            self.dispatcher(*arguments)
        elif self.code is not None:
            self.code(*arguments)
        else:
            self.dispatcher(*arguments)
            types = tuple(map(self.dispatcher.typeof_pyval, arguments))
            self.code = self.dispatcher.overloads[types].entry_point
