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
        Direct(),  #    the definition, blocked for registers and caches
        Im2col(),  #    a matrix product over blocks lowered into cache
        Fft(),  #       few multiplications for large kernels
        Reference(),  # NumPy: the definition as it is written
    )
    return {a.name: a for a in algorithms}


@functools.cache
def on_gpu() -> dict[str, Algorithm]:
    """Return the algorithms for arrays on a GPU by name."""
    from fastconv.algorithms.direct.cuda import Direct
    from fastconv.algorithms.fft.cuda import Fft
    from fastconv.algorithms.im2col.cuda import Im2col
    from fastconv.algorithms.reference.cuda import Reference
    from fastconv.algorithms.winograd.cuda import Winograd

    algorithms: tuple[Algorithm, ...] = (
        Winograd(),  #  fewer multiplications for small kernels
        Fft(),  #       few multiplications for large kernels
        Direct(),  #    few channels: sums in registers, each pixel from memory once
        Im2col(),  #    an implicit matrix product
        Reference(),  # the definition, a thread for each result
    )
    return {a.name: a for a in algorithms}


def find(name: str, device: str = "cpu") -> Algorithm:
    """Return an algorithm by name; a variant's name follows a colon, as in ``winograd:F(6,3)``."""
    base, _, variant = name.partition(":")
    served = registry() if device == "cpu" else on_gpu()
    if base not in served:
        raise ValueError(f"algorithm must be 'auto' or one of {', '.join(served)}, got {name!r}")
    algorithm = served[base]
    return algorithm.variant(variant) if variant else algorithm
