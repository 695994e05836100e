"""How much memory a call takes at its peak, its result included, as the system counts it.

Linux forgets the peak of a process's resident memory when 5 is written to ``/proc/self/clear_refs``; what
it rises to during a call, over what was resident before, is what the call took.  Memory that an allocator
holds back from earlier calls would hide in "before", so it is given back first, as far as it can be.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastconv import workspace

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(call: Callable[[], Any]) -> int | None:
    """Return the bytes that a call takes at the most; None where the system does not tell."""
    workspace.release()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        RESET.write_text("5")
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except (OSError, LookupError):
        return None


def _resident(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)
