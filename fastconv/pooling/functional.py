"""Maxima and means of sliding windows, by PyTorch's names, order and defaults; signatures and documentation only."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import ArrayLike

from fastconv.arguments import PerAxis
from fastconv.pooling import call
from fastconv.typing import Array


def max_pool2d(
    input: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Array | tuple[Array, Array]:
    """Return the largest pixel of each window.

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W) array of float32 or float64
    kernel_size : int or (int, int)
        Pixels of a window, down and across.
    stride : int or (int, int), optional
        Pixels from one window to the next; ``kernel_size`` if left out.
    padding : int or (int, int), default 0
        Border that holds no pixel; at most half of ``kernel_size``.
    dilation : int or (int, int), default 1
        Pixels from one pixel of a window to the next.
    ceil_mode : bool, default False
        Whether a last window that reaches past the end is kept, if it begins before it.
    return_indices : bool, default False
        Whether to return where in its map each maximum stands, too.

    Returns
    -------
    (N, C, P, Q) or (C, P, Q) array, or a pair of them
        P is ``(H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1``.  Of equal pixels the first in
        row-major order is taken; a NaN counts as the largest.  Indices are ``row * W + column``, int64.

    Raises
    ------
    TypeError, ValueError
        An argument is not served, or no window fits; the message gives the rule and the numbers.

    See Also
    --------
    max_pool2d_backward

    References
    ----------
    V. Dumoulin, F. Visin: A guide to convolution arithmetic for deep learning, arXiv:1603.07285, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> image = np.array([[[1.0, 2, 5], [4, 3, 0]]])
    >>> fastconv.max_pool2d(image, 2, stride=1, return_indices=True)
    (array([[[4., 5.]]]), array([[[3, 2]]]))
    """
    y, indices = call.max_forward(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return (y, indices) if return_indices else y


def max_pool1d(
    input: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Array | tuple[Array, Array]:
    """Return the largest pixel of each window along one axis; see `max_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.max_pool1d(np.array([[1.0, 3, 2, 5]]), 2)
    array([[3., 5.]])
    """
    y, indices = call.max_forward(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return (y, indices) if return_indices else y


def max_pool3d(
    input: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Array | tuple[Array, Array]:
    """Return the largest pixel of each window along three axes; see `max_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.max_pool3d(np.arange(8.0).reshape(1, 2, 2, 2), 2)
    array([[[[7.]]]])
    """
    y, indices = call.max_forward(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return (y, indices) if return_indices else y


def max_pool2d_backward(
    input: ArrayLike,
    grad_output: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    *,
    indices: ArrayLike | None = None,
) -> Array:
    """Return the gradient of a loss by the input of `max_pool2d`: each window's goes to the pixel it took.

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W) array
    grad_output : (N, C, P, Q) or (C, P, Q) array
    kernel_size, stride, padding, dilation, ceil_mode
        Those of the forward pass.
    indices : array of int64, optional
        What `max_pool2d` returned with ``return_indices``: the maxima are not searched again then, and of ``input``
        only its shape and dtype are read.

    Returns
    -------
    array of the shape of ``input``

    Raises
    ------
    TypeError, ValueError
        As the forward function; also where ``grad_output`` has not the shape that it returns.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> image = np.array([[[1.0, 2, 5], [4, 3, 0]]])
    >>> fastconv.max_pool2d_backward(image, np.array([[[10.0, 20.0]]]), 2, stride=1)
    array([[[ 0.,  0., 20.],
            [10.,  0.,  0.]]])
    """
    return call.max_backward(
        2, input, grad_output, kernel_size, stride, padding, dilation, ceil_mode, indices
    )


def max_pool1d_backward(
    input: ArrayLike,
    grad_output: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    *,
    indices: ArrayLike | None = None,
) -> Array:
    """Return the gradient by the input of maxima along one axis; see `max_pool2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.max_pool1d_backward(np.array([[1.0, 3, 2, 5]]), np.array([[1.0, 2.0]]), 2)
    array([[0., 1., 0., 2.]])
    """
    return call.max_backward(
        1, input, grad_output, kernel_size, stride, padding, dilation, ceil_mode, indices
    )


def max_pool3d_backward(
    input: ArrayLike,
    grad_output: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    *,
    indices: ArrayLike | None = None,
) -> Array:
    """Return the gradient by the input of maxima along three axes; see `max_pool2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> volume = np.arange(8.0).reshape(1, 2, 2, 2)
    >>> fastconv.max_pool3d_backward(volume, np.ones((1, 1, 1, 1)), 2)[0, 1]
    array([[0., 0.],
           [0., 1.]])
    """
    return call.max_backward(
        3, input, grad_output, kernel_size, stride, padding, dilation, ceil_mode, indices
    )


def avg_pool2d(
    input: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Return the mean of each window.

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W) array of float32 or float64
    kernel_size : int or (int, int)
        Pixels of a window, down and across.
    stride : int or (int, int), optional
        Pixels from one window to the next; ``kernel_size`` if left out.
    padding : int or (int, int), default 0
        Zeros around the input; at most half of ``kernel_size``.
    ceil_mode : bool, default False
        Whether a last window that reaches past the end is kept, if it begins before it.
    count_include_pad : bool, default True
        Whether the zeros count as pixels of the mean.
    divisor_override : int, optional
        What the sums are divided by instead.

    Returns
    -------
    (N, C, P, Q) or (C, P, Q) array
        P is ``(H + 2 * padding - kernel_size) // stride + 1``.

    Raises
    ------
    TypeError, ValueError
        An argument is not served, or no window fits; the message gives the rule and the numbers.

    See Also
    --------
    avg_pool2d_backward

    References
    ----------
    V. Dumoulin, F. Visin: A guide to convolution arithmetic for deep learning, arXiv:1603.07285, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.avg_pool2d(np.array([[[1.0, 2, 5], [4, 3, 0]]]), 2, stride=1)
    array([[[2.5, 2.5]]])
    """
    return call.mean_forward(
        2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def avg_pool1d(
    input: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Return the mean of each window along one axis; see `avg_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.avg_pool1d(np.array([[1.0, 3, 2, 6]]), 2)
    array([[2., 4.]])
    """
    return call.mean_forward(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool3d(
    input: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Return the mean of each window along three axes; see `avg_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.avg_pool3d(np.arange(8.0).reshape(1, 2, 2, 2), 2)
    array([[[[3.5]]]])
    """
    return call.mean_forward(
        3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def avg_pool2d_backward(
    input_size: Sequence[int],
    grad_output: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Return the gradient of a loss by the input of `avg_pool2d`: each window's is shared by its pixels.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the input.
    grad_output : (N, C, P, Q) or (C, P, Q) array
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        Those of the forward pass.

    Returns
    -------
    array of shape ``input_size``

    Raises
    ------
    TypeError, ValueError
        As the forward function; also where ``grad_output`` has not the shape that it returns.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.avg_pool2d_backward((1, 2, 3), np.array([[[4.0, 8.0]]]), 2, stride=1)
    array([[[1., 3., 2.],
            [1., 3., 2.]]])
    """
    return call.mean_backward(
        2,
        input_size,
        grad_output,
        kernel_size,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
        divisor_override,
    )


def avg_pool1d_backward(
    input_size: Sequence[int],
    grad_output: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Return the gradient by the input of means along one axis; see `avg_pool2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.avg_pool1d_backward((1, 4), np.array([[1.0, 2.0]]), 2)
    array([[0.5, 0.5, 1. , 1. ]])
    """
    return call.mean_backward(
        1, input_size, grad_output, kernel_size, stride, padding, ceil_mode, count_include_pad, None
    )


def avg_pool3d_backward(
    input_size: Sequence[int],
    grad_output: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Return the gradient by the input of means along three axes; see `avg_pool2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.avg_pool3d_backward((1, 2, 2, 2), np.ones((1, 1, 1, 1)), 2)[0, 0]
    array([[0.125, 0.125],
           [0.125, 0.125]])
    """
    return call.mean_backward(
        3,
        input_size,
        grad_output,
        kernel_size,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
