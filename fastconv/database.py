"""What `tune` has measured, on disk: a file for each entry, in the user's cache folder.

An entry is named by all that its times depend on (`key`).  It is written under another name and renamed, so
writers at once lose nothing: those of different entries meet in no file, and of the same entry one whole
measurement stays.  A file that cannot be read as the entry of its name is ignored with a warning.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from numba.core import config as numba_config

from fastconv import machine
from fastconv.config import Settings
from fastconv.jit import ROOT
from fastconv.problem import ConvProblem, Direction
from fastconv.roofline import Rates


def folder() -> Path:
    """Return where entries are: FASTCONV_TUNE_FOLDER, or ``fastconv/tune`` in the user's cache folder."""
    if given := os.environ.get("FASTCONV_TUNE_FOLDER"):
        return Path(given)
    from numba.misc.appdirs import AppDirs

    return Path(AppDirs("fastconv", appauthor=False).user_cache_dir) / "tune"  # type: ignore[no-untyped-call]


def bucketed(problem: ConvProblem) -> ConvProblem:
    """Return the problem with the next power of two as its batch: neighbours share an entry.

    >>> print(bucketed(ConvProblem.parse("n5 c3 i8x8 f3x3")))
    n8 c3 k3 i8x8 f3x3
    """
    return replace(problem, n=1 << (problem.n - 1).bit_length())


def key(problem: ConvProblem, direction: Direction, settings: Settings) -> dict[str, Any]:
    """Return all that the times of algorithms depend on.

    The threads are those Numba was started with, whatever the settings bound them to: within a process the
    choice, and with it every bit of a result, stays the same for any number of threads.
    """
    import fastconv

    return {
        "problem": str(bucketed(problem)),
        "direction": str(direction),
        "device": ["cpu", *machine.cpu()],
        "threads": int(numba_config.NUMBA_NUM_THREADS),
        "version": fastconv.__version__,
        "sources": _sources(),
        "precision": settings.precision,
        "workspace": settings.workspace,
    }


@functools.cache
def _sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(ROOT.rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def path(of: Mapping[str, Any]) -> Path:
    """Return the file of an entry."""
    return folder() / (hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:32] + ".json")


def machine_key() -> dict[str, Any]:
    """Return all that the rates of a machine depend on."""
    import fastconv

    return {
        "rates": True,
        "device": ["cpu", *machine.cpu()],
        "cores": machine.machine().cores,
        "version": fastconv.__version__,
    }


def rates() -> Rates | None:
    """Return the rates measured on this machine, or None."""
    found = read(machine_key())
    try:
        return Rates(**found | {"units": int(found["units"])}) if found else None  # type: ignore[arg-type]
    except (KeyError, TypeError):
        return None  # of another version


def read(of: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the seconds of the algorithms measured, or None."""
    file = path(of)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["key"] != of:
            raise ValueError("of another key")
        seconds = {str(name): float(value) for name, value in content["seconds"].items()}
        if not seconds or not all(isfinite(value) and value > 0 for value in seconds.values()):
            raise ValueError("without times")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        warnings.warn(f"{file} is no entry of fastconv's tuning and is ignored: {error}", stacklevel=2)
        return None
    return seconds


def write(of: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
    """Keep an entry; where nothing can be written, the measurement serves this process alone."""
    file = path(of)
    temporary = file.with_suffix(f".{uuid.uuid4().hex[:16]}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"key": of, "seconds": seconds}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        warnings.warn(f"a tuned choice could not be kept: {error}", stacklevel=2)
