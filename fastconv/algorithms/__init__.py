"""The table of contents: every algorithm, one line each."""

from __future__ import annotations

import functools

from fastconv.algorithms.base import Algorithm


@functools.cache
def registry() -> dict[str, Algorithm]:
    """Return the algorithms by name; importing them, and Numba's machinery, waits for first use."""
    from fastconv.algorithms.direct import Direct
    from fastconv.algorithms.fft import Fft
    from fastconv.algorithms.im2col import Im2col
    from fastconv.algorithms.reference import Reference
    from fastconv.algorithms.winograd import Winograd

    algorithms: tuple[Algorithm, ...] = (
        Winograd(),  #  fewer multiplications for small kernels
        Fft(),  #       few multiplications for large kernels
        Direct(),  #    the definition, blocked for registers and caches
        Im2col(),  #    a matrix product over blocks lowered into cache
        Reference(),  # NumPy: the definition as it is written
    )
    return {a.name: a for a in algorithms}


def find(name: str) -> Algorithm:
    """Return an algorithm by name; a variant's name follows a colon, as in ``winograd:F(6,3)``."""
    base, _, variant = name.partition(":")
    if base not in registry():
        raise ValueError(f"algorithm must be 'auto' or one of {', '.join(registry())}, got {name!r}")
    algorithm = registry()[base]
    return algorithm.variant(variant) if variant else algorithm
