"""All gradients of a convolution at once."""

from __future__ import annotations

from numpy.typing import ArrayLike

from fastconv import convolve
from fastconv.arguments import Padding, PaddingMode, PerAxis
from fastconv.convolve import Grads, Need


def conv2d_backward(
    input: ArrayLike,
    weight: ArrayLike,
    grad_output: ArrayLike,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    need: Need = ("input", "weight", "bias"),
    residual: ArrayLike | None = None,
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCHW",
) -> Grads:
    """Return the gradients of a loss by input, weight and bias of `conv2d`, given that by its output.

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W) array
    weight : (K, C/groups, R, S) array
    grad_output : (N, K, P, Q) or (K, P, Q) array
    stride, padding, dilation, groups, padding_mode
        Those of the forward convolution.
    need : sequence of {"input", "weight", "bias"}
        Which to compute; only their work is done.
    residual : array like ``input``, optional
        The gradient by the same input that comes another way; added to this one as it is written.
    algorithm, workspace, layout
        As for `conv2d`.

    Returns
    -------
    Grads
        Named tuple ``(input, weight, bias)``, None where not needed.  The bias gradient is summed pairwise
        over each map and in float64 over the batch.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; also where ``grad_output`` has not the shape that the forward convolution returns.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> x, w = np.ones((2, 3, 5, 5)), np.ones((4, 3, 3, 3))
    >>> grads = fastconv.conv2d_backward(x, w, np.ones((2, 4, 3, 3)), need=("weight", "bias"))
    >>> grads.input is None, grads.weight.shape, grads.bias
    (True, (4, 3, 3, 3), array([18., 18., 18., 18.]))
    """
    return convolve.backward(
        2, input, weight, grad_output, stride, padding, dilation, groups, need, residual, algorithm, workspace,
        layout, padding_mode,
    )  # fmt: skip


def conv1d_backward(
    input: ArrayLike,
    weight: ArrayLike,
    grad_output: ArrayLike,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    need: Need = ("input", "weight", "bias"),
    residual: ArrayLike | None = None,
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCL",
) -> Grads:
    """Return the gradients of a loss by input, weight and bias of `conv1d`; see `conv2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.conv1d_backward(np.ones((1, 1, 3)), np.ones((1, 1, 2)), np.ones((1, 1, 2))).bias
    array([2.])
    """
    return convolve.backward(
        1, input, weight, grad_output, stride, padding, dilation, groups, need, residual, algorithm, workspace,
        layout, padding_mode,
    )  # fmt: skip


def conv3d_backward(
    input: ArrayLike,
    weight: ArrayLike,
    grad_output: ArrayLike,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    need: Need = ("input", "weight", "bias"),
    residual: ArrayLike | None = None,
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCDHW",
) -> Grads:
    """Return the gradients of a loss by input, weight and bias of `conv3d`; see `conv2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> volume, kernel = np.ones((1, 1, 3, 3, 3)), np.ones((1, 1, 2, 2, 2))
    >>> fastconv.conv3d_backward(volume, kernel, np.ones((1, 1, 2, 2, 2))).bias
    array([8.])
    """
    return convolve.backward(
        3, input, weight, grad_output, stride, padding, dilation, groups, need, residual, algorithm, workspace,
        layout, padding_mode,
    )  # fmt: skip
