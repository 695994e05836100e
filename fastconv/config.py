"""Settings: defaults < FASTCONV_* environment < `config(...)` as context manager or decorator < arguments."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from fastconv.arguments import integer, named


@dataclass(frozen=True, slots=True)
class Settings:
    """What a call may do; part of the key under which its plan is kept."""

    algorithm: str = "auto"
    precision: Literal["fast", "strict"] = "fast"
    workspace: int = 2**30  # bytes of scratch a call may take
    threads: int | None = None  # None: as many as Numba has
    tune: Literal["off", "on", "force"] = "off"  # whether times measured on this machine decide
    device: Literal["cpu", "cuda"] = "cpu"  # where NumPy arrays are computed with
    reuse: bool = False  # whether results take the memory of results that nobody holds any more
    deterministic: bool = True  # whether sums are added in one order, on a GPU too
    deciding: tuple[Any, ...] = field(init=False, repr=False, compare=False)  # those a plan depends on

    def __post_init__(self) -> None:
        if not isinstance(self.algorithm, str):
            raise TypeError(f"algorithm must be a name, got {type(self.algorithm).__name__}")
        if not named(self.precision, ("fast", "strict")):
            raise ValueError(f"precision must be 'fast' or 'strict', got {self.precision!r}")
        if not named(self.tune, ("off", "on", "force")):
            raise ValueError(f"tune must be 'off', 'on' or 'force', got {self.tune!r}")
        if not named(self.device, ("cpu", "cuda")):
            raise ValueError(f"device must be 'cpu' or 'cuda', got {self.device!r}")
        for name in ("reuse", "deterministic"):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {value!r}")
        object.__setattr__(self, "workspace", integer(self.workspace, "workspace", 0))
        if self.threads is not None:
            object.__setattr__(self, "threads", integer(self.threads, "threads", 1))
        deciding = self.algorithm, self.workspace, self.precision, self.tune, self.deterministic
        object.__setattr__(self, "deciding", deciding)


NAMES = [setting.name for setting in fields(Settings) if setting.init]


@functools.cache
def _environment() -> Settings:
    """Read FASTCONV_ALGORITHM, _PRECISION, _WORKSPACE, _THREADS, _TUNE and _DEVICE, once, at first use."""
    values: dict[str, Any] = {}
    kinds = {"algorithm": str, "precision": str, "workspace": int, "threads": int, "tune": str, "device": str}
    for name, convert in kinds.items():
        if text := os.environ.get(f"FASTCONV_{name.upper()}"):
            try:
                values[name] = convert(text)
                Settings(**values)
            except ValueError as error:
                raise ValueError(f"FASTCONV_{name.upper()}={text}: {error}") from None
    return Settings(**values)


_settings: ContextVar[Settings | None] = ContextVar("fastconv_settings", default=None)


def current() -> Settings:
    """Return the settings in force here."""
    return _settings.get() or _environment()


def override(settings: Settings, algorithm: str, workspace: int | None) -> Settings:
    """Return settings under a call's own arguments: "auto" and None leave them as they are."""
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm must be a name, got {type(algorithm).__name__}")
    algorithm = settings.algorithm if algorithm == "auto" else algorithm
    if workspace is None:
        return _with_algorithm(settings, algorithm)
    return replace(settings, algorithm=algorithm, workspace=workspace)


@functools.lru_cache(maxsize=64)  # to make and check settings takes longer than a small call's kernels
def _with_algorithm(settings: Settings, algorithm: str) -> Settings:
    return replace(settings, algorithm=algorithm)


@contextlib.contextmanager
def config(**changes: Any) -> Iterator[Settings]:
    """Change settings inside a ``with`` block or a decorated function.

    Parameters
    ----------
    algorithm : str, optional
        A name from `fastconv.algorithms`, or "auto": the cheapest by the cost model.
    precision : {"fast", "strict"}, optional
        "strict" admits only algorithms that add and multiply what they are given: no result has more error than
        naive summation of its own products, in all tests within 64 eps times the sum of their magnitudes, whatever
        stands beside; and a NaN or infinity in an image reaches those results alone that read it.  One in a weight
        may also make NaN of results at an edge, where it meets a zero around the image, but of no pixel of an input
        gradient that its tap does not reach.  Depthwise layers multiply a pixel that a border repeats by the sum of
        the weights it meets: infinite times weights of two signs is infinite there, and not NaN.
    workspace : int, optional
        Bytes of scratch memory that a call may take.
    threads : int or None, optional
        Upper limit of threads; None means all that Numba has.  Results do not depend on it.
    tune : {"off", "on", "force"}, optional
        "on" times the likeliest algorithms when a problem is first met, and keeps the times in the user's
        cache folder; "force" times them again.  What is chosen, and with it the last bits of results, then
        depends on the machine and on how many threads Numba was started with.
    device : {"cpu", "cuda"}, optional
        "cuda" copies NumPy arrays to a GPU, computes there and copies the result back.
    reuse : bool, optional
        Whether large results take the memory of earlier ones that no array refers to any more, for loops that make
        the same arrays again and again, such as training.  The memory is kept until the process ends or
        `fastconv.reuse.release` is called.
    deterministic : bool, optional
        False lets im2col and direct on a GPU add up a weight gradient by atomic instructions, which takes no workspace;
        sums come in whichever order threads do then, and the last bits of a result may differ from call to call.
        Winograd, FFT, the reference and everything else keep one order.

    Returns
    -------
    context manager and decorator
        It yields the settings inside.

    Raises
    ------
    TypeError, ValueError
        No such setting or value, when the block is entered.

    Examples
    --------
    >>> import fastconv
    >>> with fastconv.config(precision="strict", threads=1) as settings:
    ...     settings.precision
    'strict'
    """
    unknown = set(changes) - set(NAMES)
    if unknown:
        raise TypeError(f"config has no setting {', '.join(sorted(unknown))}; it has {', '.join(NAMES)}")
    token = _settings.set(replace(current(), **changes))
    try:
        yield current()
    finally:
        _settings.reset(token)
