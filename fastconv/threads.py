"""How many threads a call may use, and when it must use one.

Work is split over *outputs* by the kernels, so the count never changes a bit of any result.
A parallel region is unsafe in two places, and runs on the calling thread there instead:

* in a child forked after the parent started Numba's threads: the child does not have them, and waits
  for ever (GNU OpenMP) or is killed;
* under Numba's ``workqueue`` layer while another Python thread is inside one: it aborts the process.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import numba
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
    """Return the threads a call in this context may use."""
    if _orphaned:
        return 1
    wanted = current().threads
    available = _available()
    return available if wanted is None else min(wanted, available)


def _available() -> int:
    """Return what `numba.get_num_threads` does, without the locks by which it sees that the threads run: 0.9 us a call."""
    try:
        return parallel._get_num_threads()  # type: ignore[no-any-return, attr-defined]
    except AttributeError:  # they have not been started
        return int(numba.get_num_threads())


def workers(flops: float) -> int:
    """Return the threads that this much work is worth."""
    return count() if flops > SERIAL_FLOPS else 1


def launch(kernel: Kernel, flops: float, *arguments: Any) -> None:
    """Run ``kernel(workers, *arguments)`` on as many workers as are safe and worth their start."""
    _start(kernel, workers(flops), *arguments)


def share_out(kernel: Kernel, flops: float, *arguments: Any) -> None:
    """Run ``kernel(workers, counters, *arguments)``, whose workers take their tasks by `gemm.schedule`."""
    used = workers(flops)
    _start(kernel, used, counters(used), *arguments)


def _start(kernel: Kernel, used: int, *arguments: Any) -> None:
    if used == 1:
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


def _layer() -> str | None:
    try:
        return str(numba.threading_layer())  # type: ignore[attr-defined]
    except ValueError:  # its threads have not been started, so it has not been chosen
        return None
