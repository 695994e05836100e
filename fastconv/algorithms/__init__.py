"""The table of contents: every algorithm, one line each."""

from __future__ import annotations

import functools

from fastconv.algorithms.base import Algorithm


@functools.cache
def registry() -> dict[str, Algorithm]:
    """Return the algorithms by name; importing them, and Numba's machinery, waits for first use."""
    from fastconv.algorithms.reference import Reference

    algorithms: tuple[Algorithm, ...] = (
        Reference(),  #    NumPy: the definition
    )
    return {a.name: a for a in algorithms}
