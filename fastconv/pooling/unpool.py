"""Unpooling: maxima back at their places."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import ArrayLike

from fastconv.arguments import PerAxis
from fastconv.pooling import call
from fastconv.typing import Array


def max_unpool2d(
    input: ArrayLike, indices: ArrayLike, kernel_size: PerAxis, stride: PerAxis | None = None, padding: PerAxis = 0,
    output_size: Sequence[int] | None = None,
) -> Array:  # fmt: skip
    """Put maxima back where `max_pool2d` found them, zeros elsewhere.

    Parameters
    ----------
    input : (N, C, P, Q) or (C, P, Q) array of float32 or float64
    indices : array of int64 of that shape
        As `max_pool2d` returns them.
    kernel_size, stride, padding
        Those of the pooling.
    output_size : sequence of int, optional
        Sizes of the result, of which pooling makes the same; ``(P - 1) * stride - 2 * padding + kernel_size`` if left out.

    Returns
    -------
    (N, C, H, W) or (C, H, W) array

    Raises
    ------
    TypeError, ValueError
        An argument is not served or a place lies outside; the message gives the rule and the numbers.

    References
    ----------
    M. D. Zeiler, R. Fergus: Visualizing and understanding convolutional networks, arXiv:1311.2901, section 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.max_unpool2d(np.array([[[4.0]]]), np.array([[[3]]]), 2)
    array([[[0., 0.],
            [0., 4.]]])
    """
    return call.unpool(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool1d(
    input: ArrayLike, indices: ArrayLike, kernel_size: PerAxis, stride: PerAxis | None = None, padding: PerAxis = 0,
    output_size: Sequence[int] | None = None,
) -> Array:  # fmt: skip
    """Put maxima back along one axis; see `max_unpool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.max_unpool1d(np.array([[3.0, 5]]), np.array([[1, 3]]), 2)
    array([[0., 3., 0., 5.]])
    """
    return call.unpool(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: ArrayLike, indices: ArrayLike, kernel_size: PerAxis, stride: PerAxis | None = None, padding: PerAxis = 0,
    output_size: Sequence[int] | None = None,
) -> Array:  # fmt: skip
    """Put maxima back along three axes; see `max_unpool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.max_unpool3d(np.array([[[[7.0]]]]), np.array([[[[3]]]]), (1, 2, 2))
    array([[[[0., 0.],
             [0., 7.]]]])
    """
    return call.unpool(3, input, indices, kernel_size, stride, padding, output_size)
