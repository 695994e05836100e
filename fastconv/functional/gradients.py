"""One gradient of a loss, by the input or by the weight of a convolution."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import ArrayLike

from fastconv import convolve
from fastconv.arguments import Padding, PaddingMode, PerAxis
from fastconv.typing import Array


def conv2d_input(
    input_size: Sequence[int],
    weight: ArrayLike,
    grad_output: ArrayLike,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """Return the gradient of a loss by the input of `conv2d`, given the gradient by its output.

    It is the transposed convolution of ``grad_output``; `conv_transpose2d` is the layer of that name.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the input, (N, C, H, W) or (C, H, W): more than one gives the same output shape.
    weight : (K, C/groups, R, S) array
    grad_output : (N, K, P, Q) or (K, P, Q) array
    stride, padding, dilation, groups, padding_mode
        Those of the forward convolution.
    algorithm, workspace, out, layout
        As for `conv2d`.

    Returns
    -------
    array of shape ``input_size``

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; also where ``grad_output`` has not the shape that the forward convolution returns.

    See Also
    --------
    conv2d_weight, conv2d_backward

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> kernel = np.array([[[[1.0, 2], [3, 4]]]])
    >>> fastconv.conv2d_input((1, 1, 3, 3), kernel, np.ones((1, 1, 2, 2)))[0, 0]
    array([[ 1.,  3.,  2.],
           [ 4., 10.,  6.],
           [ 3.,  7.,  4.]])
    """
    return convolve.input_grad(
        2, input_size, weight, grad_output, stride, padding, dilation, groups, algorithm, workspace, out,
        layout, padding_mode,
    )  # fmt: skip


def conv1d_input(
    input_size: Sequence[int],
    weight: ArrayLike,
    grad_output: ArrayLike,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCL",
    out: Array | None = None,
) -> Array:
    """Return the gradient of a loss by the input of `conv1d`; see `conv2d_input`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.conv1d_input((1, 1, 4), np.array([[[1.0, 2.0]]]), np.ones((1, 1, 3)))
    array([[[1., 3., 3., 2.]]])
    """
    return convolve.input_grad(
        1, input_size, weight, grad_output, stride, padding, dilation, groups, algorithm, workspace, out,
        layout, padding_mode,
    )  # fmt: skip


def conv3d_input(
    input_size: Sequence[int],
    weight: ArrayLike,
    grad_output: ArrayLike,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCDHW",
    out: Array | None = None,
) -> Array:
    """Return the gradient of a loss by the input of `conv3d`; see `conv2d_input`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> gx = fastconv.conv3d_input((1, 1, 2, 2, 2), np.ones((1, 1, 1, 1, 2)), np.ones((1, 1, 2, 2, 1)))
    >>> gx.sum()
    np.float64(8.0)
    """
    return convolve.input_grad(
        3, input_size, weight, grad_output, stride, padding, dilation, groups, algorithm, workspace, out,
        layout, padding_mode,
    )  # fmt: skip


def conv2d_weight(
    input: ArrayLike,
    weight_size: Sequence[int],
    grad_output: ArrayLike,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """Return the gradient of a loss by the weight of `conv2d`, given the gradient by its output.

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W) array
    weight_size : sequence of int
        Shape of the weight, (K, C/groups, R, S).
    grad_output : (N, K, P, Q) or (K, P, Q) array
    stride, padding, dilation, groups, padding_mode
        Those of the forward convolution.
    algorithm, workspace, out, layout
        As for `conv2d`.

    Returns
    -------
    array of shape ``weight_size``

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; also where ``grad_output`` has not the shape that the forward convolution returns.

    See Also
    --------
    conv2d_input, conv2d_backward

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> image = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> fastconv.conv2d_weight(image, (1, 1, 2, 2), np.ones((1, 1, 2, 2)))[0, 0]
    array([[ 8., 12.],
           [20., 24.]])
    """
    return convolve.weight_grad(
        2, input, weight_size, grad_output, stride, padding, dilation, groups, algorithm, workspace, out,
        layout, padding_mode,
    )  # fmt: skip


def conv1d_weight(
    input: ArrayLike,
    weight_size: Sequence[int],
    grad_output: ArrayLike,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCL",
    out: Array | None = None,
) -> Array:
    """Return the gradient of a loss by the weight of `conv1d`; see `conv2d_weight`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.conv1d_weight(np.array([[[1.0, 2, 3]]]), (1, 1, 2), np.array([[[1.0, 10.0]]]))
    array([[[21., 32.]]])
    """
    return convolve.weight_grad(
        1, input, weight_size, grad_output, stride, padding, dilation, groups, algorithm, workspace, out,
        layout, padding_mode,
    )  # fmt: skip


def conv3d_weight(
    input: ArrayLike,
    weight_size: Sequence[int],
    grad_output: ArrayLike,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCDHW",
    out: Array | None = None,
) -> Array:
    """Return the gradient of a loss by the weight of `conv3d`; see `conv2d_weight`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> volume = np.arange(8.0).reshape(1, 1, 2, 2, 2)
    >>> fastconv.conv3d_weight(volume, (1, 1, 1, 1, 2), np.ones((1, 1, 2, 2, 1)))
    array([[[[[12., 16.]]]]])
    """
    return convolve.weight_grad(
        3, input, weight_size, grad_output, stride, padding, dilation, groups, algorithm, workspace, out,
        layout, padding_mode,
    )  # fmt: skip
