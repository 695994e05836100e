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


def find(name: str) -> Algorithm:
    """Return an algorithm by name; a variant's name follows a colon, as in ``winograd:F(6,3)``."""
    base, _, variant = name.partition(":")
    if base not in registry():
        raise ValueError(f"algorithm must be 'auto' or one of {', '.join(registry())}, got {name!r}")
    algorithm = registry()[base]
    return algorithm.variant(variant) if variant else algorithm
