"""Norms of windows."""

from __future__ import annotations

from math import inf, isnan, prod
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from fastconv import arguments
from fastconv.arrays import common, contiguous, empty, or_on_gpu
from fastconv.pooling import call
from fastconv.pooling.windows import windows
from fastconv.typing import Array


def lp_pool2d(
    input: ArrayLike, norm_type: float, kernel_size: arguments.PerAxis,
    stride: arguments.PerAxis | None = None, ceil_mode: bool = False,
) -> Array:  # fmt: skip
    """Return the ``norm_type``-th root of the sum of powers in each window, as PyTorch does.

    A window that reaches past the end, in ``ceil_mode``, counts as if its missing pixels were means of the others.
    1 gives sums, infinity the largest magnitudes, and minus infinity the smallest.

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W) array of float32 or float64
    norm_type : float
        The power; not 0.
    kernel_size, stride, ceil_mode
        As for `avg_pool2d`.

    Returns
    -------
    (N, C, P, Q) or (C, P, Q) array
        P is ``(H - kernel_size) // stride + 1``, or one more in ``ceil_mode``.

    Raises
    ------
    TypeError, ValueError
        An argument is not served, or no window fits; the message gives the rule and the numbers.

    References
    ----------
    P. Sermanet, S. Chintala, Y. LeCun: Convolutional neural networks applied to house numbers digit classification,
    arXiv:1204.3968, section 2.2.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.lp_pool2d(np.array([[[3.0, 0], [0, 4]]]), 2, 2)
    array([[[5.]]])
    """
    return _norms(2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool1d(
    input: ArrayLike, norm_type: float, kernel_size: arguments.PerAxis,
    stride: arguments.PerAxis | None = None, ceil_mode: bool = False,
) -> Array:  # fmt: skip
    """Return norms of windows along one axis; see `lp_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.lp_pool1d(np.array([[3.0, 4, 1, 0]]), 2, 2)
    array([[5., 1.]])
    """
    return _norms(1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: ArrayLike, norm_type: float, kernel_size: arguments.PerAxis,
    stride: arguments.PerAxis | None = None, ceil_mode: bool = False,
) -> Array:  # fmt: skip
    """Return norms of windows along three axes; see `lp_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.lp_pool3d(np.ones((1, 2, 2, 1)), 2, (2, 2, 1))
    array([[[[2.]]]])
    """
    return _norms(3, input, norm_type, kernel_size, stride, ceil_mode)


@or_on_gpu(1, call.replayed(input=1))
def _norms(
    rank: int, input: ArrayLike, norm_type: float, kernel_size: arguments.PerAxis,
    stride: arguments.PerAxis | None, ceil_mode: bool,
) -> Array:  # fmt: skip
    if not isinstance(norm_type, Real) or isnan(norm_type):
        raise TypeError(f"norm_type must be a number, got {norm_type!r}")
    if norm_type == 0:
        raise ValueError("norm_type must not be 0: there is no zeroth root")
    x = call.images(input, "input")
    taps = prod(arguments.per_axis(kernel_size, rank, "kernel_size"))
    axes = windows(rank, x.shape, kernel_size, stride, 0, 1, ceil_mode)
    if call.there(x):
        from fastconv.pooling import cuda_norms

        return cuda_norms.norms(x, axes, rank, norm_type, taps)
    if norm_type == 2 and (write := call.kernels(axes, common(x)).norms):
        norms = empty((*x.shape[:-rank], *axes.outputs), common(x))
        write(axes, contiguous(x, norms.dtype), norms, taps)
        return norms
    if norm_type in (inf, -inf):
        sign = 1 if norm_type > 0 else -1
        y, _ = call.max_forward(rank, sign * np.abs(x), kernel_size, stride, 0, 1, ceil_mode, False)
        return sign * y
    with np.errstate(all="ignore"):  # what is too large becomes infinite, as in any float
        powers = x * x if norm_type == 2 else x**norm_type
        y = call.means(powers, axes, rank)
        y *= taps
        root: Array = np.sqrt(y) if norm_type == 2 else y ** (1 / norm_type)
    return root
