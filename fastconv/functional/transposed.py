"""Transposed convolution: the way from a convolution's output back to its input, as a layer."""

from __future__ import annotations

from numpy.typing import ArrayLike

from fastconv import transpose
from fastconv.arguments import Activation, PerAxis, TransposedPadding
from fastconv.convolve import Grads, Need
from fastconv.typing import Array


def conv_transpose2d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: PerAxis = 1,
    padding: TransposedPadding = 0,
    output_padding: PerAxis = 0,
    groups: int = 1,
    dilation: PerAxis = 1,
    *,
    activation: Activation = None,
    residual: ArrayLike | None = None,
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    r"""Convolve the other way round: spread each pixel of the input as a kernel over a larger image.

    It is the map whose matrix is the transpose of `conv2d`'s, and so its gradient by the input:

    .. math:: y[n, k, h, w] = b[k] + \sum_{c, r, s} x[n, c, p, q] \; w[c, k, r, s]
              \quad\text{where}\quad h = p \cdot stride + r \cdot dilation - lo

    Parameters
    ----------
    input : (N, C, P, Q) or (C, P, Q) array
    weight : (C, K/groups, R, S) array
        The input's channels come first: the weight of the convolution that goes the other way.
    bias : (K,) array, optional
        Added to each output channel.
    stride : int or (int, int), default 1
        Pixels of the output from one pixel of the input to the next.
    padding : int, (int, int) or ((int, int), (int, int)), default 0
        Pixels cut off the output's borders: what the opposite convolution pads.
    output_padding : int or (int, int), default 0
        Pixels kept at the end of each axis beyond that, less than the stride or the dilation: a strided
        convolution has several input sizes with one output size, and this names one of them.
    groups, dilation
        As for `conv2d`; note the order, which is PyTorch's.
    activation, residual, algorithm, workspace, out, layout
        As for `conv2d`.

    Returns
    -------
    (N, K, H, W) or (K, H, W) array
        H is ``(P - 1) * stride - lo - hi + dilation * (R - 1) + output_padding + 1``.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    See Also
    --------
    conv2d_input : the same by the size of its result.
    conv_transpose2d_backward : all gradients.

    References
    ----------
    V. Dumoulin, F. Visin: A guide to convolution arithmetic for deep learning, arXiv:1603.07285, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> image, kernel = np.array([[1.0, 2]]), np.array([[1.0, 1, 1]])
    >>> fastconv.conv_transpose2d(image[None, None], kernel[None, None], stride=(1, 2))[0, 0]
    array([[1., 1., 3., 2., 2.]])
    """
    return transpose.forward(
        2, input, weight, bias, stride, padding, output_padding, groups, dilation, activation, residual,
        algorithm, workspace, out, layout,
    )  # fmt: skip


def conv_transpose1d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: PerAxis = 1,
    padding: TransposedPadding = 0,
    output_padding: PerAxis = 0,
    groups: int = 1,
    dilation: PerAxis = 1,
    *,
    activation: Activation = None,
    residual: ArrayLike | None = None,
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCL",
    out: Array | None = None,
) -> Array:
    """Convolve the other way round along one axis; see `conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.conv_transpose1d(np.array([[[1.0, 2]]]), np.array([[[1.0, 10]]]), stride=2)
    array([[[ 1., 10.,  2., 20.]]])
    """
    return transpose.forward(
        1, input, weight, bias, stride, padding, output_padding, groups, dilation, activation, residual,
        algorithm, workspace, out, layout,
    )  # fmt: skip


def conv_transpose3d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: PerAxis = 1,
    padding: TransposedPadding = 0,
    output_padding: PerAxis = 0,
    groups: int = 1,
    dilation: PerAxis = 1,
    *,
    activation: Activation = None,
    residual: ArrayLike | None = None,
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCDHW",
    out: Array | None = None,
) -> Array:
    """Convolve the other way round along three axes; see `conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.conv_transpose3d(np.ones((1, 1, 2, 2, 2)), np.ones((1, 1, 2, 2, 2)), stride=2).shape
    (1, 1, 4, 4, 4)
    """
    return transpose.forward(
        3, input, weight, bias, stride, padding, output_padding, groups, dilation, activation, residual,
        algorithm, workspace, out, layout,
    )  # fmt: skip


def conv_transpose2d_backward(
    input: ArrayLike,
    weight: ArrayLike,
    grad_output: ArrayLike,
    stride: PerAxis = 1,
    padding: TransposedPadding = 0,
    output_padding: PerAxis = 0,
    groups: int = 1,
    dilation: PerAxis = 1,
    *,
    need: Need = ("input", "weight", "bias"),
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCHW",
) -> Grads:
    """Return the gradients of a loss by input, weight and bias of `conv_transpose2d`.

    By the input it is a plain convolution of ``grad_output``, by the weight `conv2d_weight` with the two
    arrays in each other's place.

    Parameters
    ----------
    input : (N, C, P, Q) or (C, P, Q) array
    weight : (C, K/groups, R, S) array
    grad_output : (N, K, H, W) or (K, H, W) array
    stride, padding, output_padding, groups, dilation
        Those of the transposed convolution.
    need, algorithm, workspace, layout
        As for `conv2d_backward`.

    Returns
    -------
    Grads
        Named tuple ``(input, weight, bias)``, None where not needed.

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose2d`; also where ``grad_output`` has not the shape that it returns.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> x, w = np.ones((2, 3, 4, 4)), np.ones((3, 5, 2, 2))
    >>> grads = fastconv.conv_transpose2d_backward(x, w, np.ones((2, 5, 8, 8)), stride=2)
    >>> grads.input.shape, grads.weight.shape, grads.bias
    ((2, 3, 4, 4), (3, 5, 2, 2), array([128., 128., 128., 128., 128.]))
    """
    return transpose.backward(
        2, input, weight, grad_output, stride, padding, output_padding, groups, dilation, need, algorithm,
        workspace, layout,
    )  # fmt: skip


def conv_transpose1d_backward(
    input: ArrayLike,
    weight: ArrayLike,
    grad_output: ArrayLike,
    stride: PerAxis = 1,
    padding: TransposedPadding = 0,
    output_padding: PerAxis = 0,
    groups: int = 1,
    dilation: PerAxis = 1,
    *,
    need: Need = ("input", "weight", "bias"),
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCL",
) -> Grads:
    """Return the gradients of a loss by input, weight and bias of `conv_transpose1d`.

    See `conv_transpose2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.conv_transpose1d_backward(np.ones((1, 1, 2)), np.ones((1, 1, 2)), np.ones((1, 1, 3))).weight
    array([[[2., 2.]]])
    """
    return transpose.backward(
        1, input, weight, grad_output, stride, padding, output_padding, groups, dilation, need, algorithm,
        workspace, layout,
    )  # fmt: skip


def conv_transpose3d_backward(
    input: ArrayLike,
    weight: ArrayLike,
    grad_output: ArrayLike,
    stride: PerAxis = 1,
    padding: TransposedPadding = 0,
    output_padding: PerAxis = 0,
    groups: int = 1,
    dilation: PerAxis = 1,
    *,
    need: Need = ("input", "weight", "bias"),
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCDHW",
) -> Grads:
    """Return the gradients of a loss by input, weight and bias of `conv_transpose3d`.

    See `conv_transpose2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> x, w, gy = np.ones((1, 1, 2, 2, 2)), np.ones((1, 1, 1, 1, 1)), np.ones((1, 1, 2, 2, 2))
    >>> fastconv.conv_transpose3d_backward(x, w, gy).bias
    array([8.])
    """
    return transpose.backward(
        3, input, weight, grad_output, stride, padding, output_padding, groups, dilation, need, algorithm,
        workspace, layout,
    )  # fmt: skip
