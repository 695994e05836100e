"""Batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastconv.arguments import integer
from fastconv.typing import Array


def batches(
    x: Array, y: Array, batch_size: int, rng: np.random.Generator | None = None
) -> Iterator[tuple[Array, Array]]:
    """Yield ``batch_size`` samples at a time with their targets, shuffled if ``rng`` is given.

    Parameters
    ----------
    x, y : array
        Samples and targets along their first axes.
    batch_size : int
        The last batch has what is left.
    rng : numpy.random.Generator, optional
        Draws the order.

    Returns
    -------
    iterator of (array, array)

    Raises
    ------
    TypeError, ValueError
        There are not as many targets as samples, or a batch has no size.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> [len(x) for x, y in nn.batches(np.zeros((5, 2)), np.zeros(5), 2)]
    [2, 2, 1]
    """
    batch_size = integer(batch_size, "batch_size", 1)
    if len(x) != len(y):
        raise ValueError(f"there must be a target for each sample, got {len(x)} samples and {len(y)} targets")
    order = np.arange(len(x)) if rng is None else rng.permutation(len(x))
    for start in range(0, len(x), batch_size):
        chosen = order[start : start + batch_size]
        yield x[chosen], y[chosen]
