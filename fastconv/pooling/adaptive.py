"""Adaptive pooling: as many windows as the result is to have, whatever the size of the input."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import ArrayLike

from fastconv import arguments
from fastconv.arrays import or_on_gpu
from fastconv.pooling import call
from fastconv.pooling.windows import shares
from fastconv.typing import Array

Sizes = int | Sequence[int | None]


def adaptive_avg_pool2d(input: ArrayLike, output_size: Sizes) -> Array:
    """Return the means of P x Q windows that share out the pixels; 1 gives global pooling.

    Window p of P covers the rows from ``floor(p * H / P)`` to ``ceil((p + 1) * H / P)``, and columns alike.

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W) array of float32 or float64
    output_size : int or (int, int)
        P and Q; None keeps the input's size.

    Returns
    -------
    (N, C, P, Q) or (C, P, Q) array

    Raises
    ------
    TypeError, ValueError
        An argument is not served; the message gives the rule and the numbers.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun: Spatial pyramid pooling in deep convolutional networks for visual recognition,
    arXiv:1406.4729, section 2.2: windows from floor to ceil.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.adaptive_avg_pool2d(np.array([[[1.0, 2, 6], [3, 4, 8]]]), (1, 2))
    array([[[2.5, 5. ]]])
    """
    return _means(2, input, output_size)


def adaptive_avg_pool1d(input: ArrayLike, output_size: Sizes) -> Array:
    """Return the means of windows that share out one axis; see `adaptive_avg_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.adaptive_avg_pool1d(np.array([[1.0, 3, 2, 6]]), 2)
    array([[2., 4.]])
    """
    return _means(1, input, output_size)


def adaptive_avg_pool3d(input: ArrayLike, output_size: Sizes) -> Array:
    """Return the means of windows that share out three axes; see `adaptive_avg_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.adaptive_avg_pool3d(np.arange(8.0).reshape(1, 2, 2, 2), 1)
    array([[[[3.5]]]])
    """
    return _means(3, input, output_size)


def adaptive_avg_pool2d_backward(input_size: Sequence[int], grad_output: ArrayLike) -> Array:
    """Return the gradient of a loss by the input of `adaptive_avg_pool2d`: each window's is shared by its pixels.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the input, (N, C, H, W) or (C, H, W).
    grad_output : (N, C, P, Q) or (C, P, Q) array of float32 or float64

    Returns
    -------
    array of shape ``input_size``

    Raises
    ------
    TypeError, ValueError
        An argument is not served, or the shapes disagree; the message gives the rule and the numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.adaptive_avg_pool2d_backward((1, 2, 3), np.array([[[4.0, 8.0]]]))
    array([[[1., 3., 2.],
            [1., 3., 2.]]])
    """
    return _means_backward(2, input_size, grad_output)


def adaptive_max_pool2d(
    input: ArrayLike, output_size: Sizes, return_indices: bool = False
) -> Array | tuple[Array, Array]:
    """Return the largest pixels of P x Q windows that share out the input, as those of `adaptive_avg_pool2d` do.

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W) array of float32 or float64
    output_size : int or (int, int)
        P and Q; None keeps the input's size.
    return_indices : bool, default False
        Whether to return where in its map each maximum stands, too, as `max_pool2d` does.

    Returns
    -------
    (N, C, P, Q) or (C, P, Q) array, or a pair of them

    Raises
    ------
    TypeError, ValueError
        An argument is not served; the message gives the rule and the numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.adaptive_max_pool2d(np.array([[[1.0, 2, 6], [3, 4, 8]]]), (1, 2), return_indices=True)
    (array([[[4., 8.]]]), array([[[4, 5]]]))
    """
    return _largest(2, input, output_size, return_indices)


def adaptive_max_pool1d(
    input: ArrayLike, output_size: Sizes, return_indices: bool = False
) -> Array | tuple[Array, Array]:
    """Return the largest pixels of windows that share out one axis; see `adaptive_max_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.adaptive_max_pool1d(np.array([[1.0, 3, 2, 6]]), 2)
    array([[3., 6.]])
    """
    return _largest(1, input, output_size, return_indices)


def adaptive_max_pool3d(
    input: ArrayLike, output_size: Sizes, return_indices: bool = False
) -> Array | tuple[Array, Array]:
    """Return the largest pixels of windows that share out three axes; see `adaptive_max_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.adaptive_max_pool3d(np.arange(8.0).reshape(1, 2, 2, 2), 1)
    array([[[[7.]]]])
    """
    return _largest(3, input, output_size, return_indices)


@or_on_gpu(1, call.replayed(input=1))
def _means(rank: int, input: ArrayLike, output_size: Sizes) -> Array:
    x = call.images(input, "input")
    return call.means(x, shares(rank, x.shape, output_size), rank)


@or_on_gpu(1, call.replayed(input=1))
def _largest(
    rank: int, input: ArrayLike, output_size: Sizes, return_indices: bool
) -> Array | tuple[Array, Array]:
    x = call.images(input, "input")
    y, indices = call.largest(x, shares(rank, x.shape, output_size), rank, return_indices)
    return (y, indices) if return_indices else y


@or_on_gpu(2, call.replayed(grad_output=2))
def _means_backward(rank: int, input_size: Sequence[int], grad_output: ArrayLike) -> Array:
    size = arguments.shape(input_size, "input_size")
    gy = call.images(grad_output, "grad_output")
    if gy.ndim != len(size):
        raise ValueError(f"grad_output must have the input's {len(size)} dimensions, got {gy.shape}")
    return call.to_all(size, gy, shares(rank, size, gy.shape[-rank:]), rank)
