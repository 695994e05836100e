"""First weights: random, and of such a size that signals neither fade nor grow from layer to layer.

A sum of ``fan_in`` products of unit inputs and weights of variance v has variance fan_in * v.  After a ReLU
half of the second moment is left, hence 2 / fan_in (K. He et al., arXiv:1502.01852); to keep gradients too,
2 / (fan_in + fan_out) (X. Glorot, Y. Bengio, AISTATS 2010).  A uniform distribution on +-b has variance b^2 / 3.
"""

from __future__ import annotations

from math import prod, sqrt

import numpy as np

from fastconv.typing import Array

Shape = tuple[int, ...]


def fans(shape: Shape) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight (outputs, inputs, *kernel).

    >>> fans((16, 3, 5, 5))
    (75, 400)
    """
    pixels = prod(shape[2:])
    return shape[1] * pixels, shape[0] * pixels


def uniform(rng: np.random.Generator, shape: Shape, bound: float) -> Array:
    """Draw float32 numbers between -bound and bound."""
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def kaiming_uniform(rng: np.random.Generator, shape: Shape, slope: float = 0.0) -> Array:
    """Draw by He et al. for a (leaky) ReLU of that slope; PyTorch's layers use the slope sqrt(5)."""
    return uniform(rng, shape, sqrt(6 / ((1 + slope**2) * fans(shape)[0])))


def kaiming_normal(rng: np.random.Generator, shape: Shape, slope: float = 0.0) -> Array:
    """Draw by He et al., normally distributed."""
    scale = sqrt(2 / ((1 + slope**2) * fans(shape)[0]))
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def xavier_uniform(rng: np.random.Generator, shape: Shape) -> Array:
    """Draw by Glorot and Bengio."""
    return uniform(rng, shape, sqrt(6 / sum(fans(shape))))


def xavier_normal(rng: np.random.Generator, shape: Shape) -> Array:
    """Draw by Glorot and Bengio, normally distributed."""
    return (sqrt(2 / sum(fans(shape))) * rng.standard_normal(shape)).astype(np.float32)
