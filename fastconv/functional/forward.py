"""Convolution of signals, images and volumes."""

from __future__ import annotations

from numpy.typing import ArrayLike

from fastconv import convolve
from fastconv.arguments import Activation, Padding, PaddingMode, PerAxis
from fastconv.typing import Array


def conv2d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    activation: Activation = None,
    residual: ArrayLike | None = None,
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    r"""Convolve images with kernels.

    .. math:: y[n, k, p, q] = b[k] + \sum_{c, r, s}
              x[n, c, p \cdot stride + r \cdot dilation - lo, \ldots] \; w[k, c, r, s]

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W) array
        Images.  Pixel by pixel in memory (``array.transpose(0, 3, 1, 2)`` of an (N, H, W, C) array) they are
        read in place as well, and the result is like them; what else is not C-contiguous is copied once.
        float16 and bfloat16 (of ``ml_dtypes``) are summed in float32; integers and booleans exactly; complex
        numbers by `direct`, `im2col` and `fft`.
    weight : (K, C/groups, R, S) array
        Kernels; they are not turned (see Notes).
    bias : (K,) array, optional
        Added to each output channel.
    stride : int or (int, int), default 1
        Pixels from one position of the kernel to the next.
    padding : int, (int, int), ((int, int), (int, int)) or str, default 0
        Zeros around the input: the same on all sides; for rows and for columns; ``((top, bottom), (left,
        right))``, where negative numbers crop; or 'valid' (none), 'same' (output size ceil(H / stride), an
        odd pixel at the end), 'same_lower' (at the start), 'full' (every position that touches a pixel).
    dilation : int or (int, int), default 1
        Pixels from one tap of the kernel to the next.
    groups : int, default 1
        Blocks of channels that do not mix; `C` of them make a depthwise convolution.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, default "zeros"
        What fills the padding: zeros; the image mirrored at its outermost pixels; these repeated; or the
        image again from its other end.  Wider than the image, too, as in `numpy.pad`, up to 2**20; none negative.
    activation : str or jitted function, optional
        'relu', 'leaky_relu' (slope 0.01), 'sigmoid', 'tanh', 'silu', 'gelu' (by erf), or a scalar function
        under ``numba.njit``; applied to the result while it is in cache.
    residual : array like the result, optional
        Added before the activation, in the same pass: ``relu(conv(x) + bias + residual)``.
    algorithm : str, default "auto"
        A name from `algorithms`; "auto" leaves it to `config`, and there to the cost model.
    workspace : int, optional
        Bytes of scratch memory allowed, instead of `config`'s.
    layout : {"NCHW", "NHWC"}, default "NCHW"
        Order of the axes of input and output, and of ``out``; the weight's never changes.  An algorithm that is
        named and does not serve it computes on a copy channels first: `explain` says where.
    out : array, optional
        Where the result goes: of its shape and dtype, sharing no memory with the operands.

    Returns
    -------
    (N, K, P, Q) or (K, P, Q) array
        ``out``, or a new array of ``numpy.result_type(input, weight, bias, residual)``, but int64 where all of
        them are integers; P is ``(lo + H + hi - dilation * (R - 1) - 1) // stride + 1``.

    Raises
    ------
    TypeError
        An argument is of a type or dtype that is not served.
    OverflowError
        A sum of integers exceeds int64, or comes within 2**13 of it.
    ValueError
        Sizes do not fit together; the message gives the rule and the numbers.
    AlgorithmError, WorkspaceError
        The named algorithm can't serve the problem, or not within the workspace (both ValueErrors).

    See Also
    --------
    conv2d_backward : all gradients.
    conv_transpose2d : the way back.
    prepare : for many calls with the same weight.
    scipy.signal.correlate2d : one image, one kernel.

    Notes
    -----
    As in neural networks, this is correlation.  To convolve in the sense of mathematics, pass
    ``weight[..., ::-1, ::-1]``.  Results do not depend on the number of threads.  Winograd spreads
    a NaN or Inf over the tiles that read it, at most 12 outputs a side, or 18 of a gradient at stride 2, a dilation
    apart; FFT over its larger tiles or a whole map.  Their errors are in proportion to what is largest there.
    ``config(precision="strict")`` keeps to algorithms that add and multiply each output's own products.

    References
    ----------
    V. Dumoulin, F. Visin: A guide to convolution arithmetic for deep learning, arXiv:1603.07285.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> image = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    >>> kernel = np.array([[1.0, 0], [0, 1]])
    >>> fastconv.conv2d(image[None, None], kernel[None, None])[0, 0]
    array([[ 6.,  8.],
           [12., 14.]])
    >>> fastconv.conv2d(image[None, None], kernel[None, None], padding="same", stride=2).shape
    (1, 1, 2, 2)
    >>> fastconv.conv2d(image[None, :, :, None], kernel[None, None], layout="NHWC").shape
    (1, 2, 2, 1)
    >>> fastconv.conv2d(image[None, None], kernel[None, None, None])
    Traceback (most recent call last):
    ValueError: weight must be (K, C/groups, H, W), got 5 dimensions: (1, 1, 1, 2, 2)
    """
    return convolve.forward(
        2, input, weight, bias, stride, padding, dilation, groups, activation, residual, algorithm, workspace,
        out, layout, padding_mode,
    )  # fmt: skip


def conv1d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    activation: Activation = None,
    residual: ArrayLike | None = None,
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCL",
    out: Array | None = None,
) -> Array:
    """Convolve signals with kernels: `conv2d` with one spatial axis.

    Parameters
    ----------
    input : (N, C, L) or (C, L) array
    weight : (K, C/groups, S) array
    bias : (K,) array, optional
    stride, padding, dilation, groups, padding_mode, activation, residual, algorithm, workspace, out, layout
        As for `conv2d`; asymmetric padding is written ``((lo, hi),)``.

    Returns
    -------
    (N, K, Q) or (K, Q) array

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> signal = np.array([1.0, 2, 4, 8])
    >>> fastconv.conv1d(signal[None, None], np.array([[[-1.0, 1.0]]]), padding=((1, 0),))
    array([[[1., 1., 2., 4.]]])
    """
    return convolve.forward(
        1, input, weight, bias, stride, padding, dilation, groups, activation, residual, algorithm, workspace,
        out, layout, padding_mode,
    )  # fmt: skip


def conv3d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    activation: Activation = None,
    residual: ArrayLike | None = None,
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str = "NCDHW",
    out: Array | None = None,
) -> Array:
    """Convolve volumes with kernels: `conv2d` with three spatial axes.

    Parameters
    ----------
    input : (N, C, D, H, W) or (C, D, H, W) array
    weight : (K, C/groups, T, R, S) array
    bias : (K,) array, optional
    stride, padding, dilation, groups, padding_mode, activation, residual, algorithm, workspace, out, layout
        As for `conv2d`, with three numbers where they differ by axis.

    Returns
    -------
    (N, K, O, P, Q) or (K, O, P, Q) array

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> volume = np.arange(8.0).reshape(1, 1, 2, 2, 2)
    >>> fastconv.conv3d(volume, np.ones((1, 1, 2, 2, 2))).item()
    28.0
    """
    return convolve.forward(
        3, input, weight, bias, stride, padding, dilation, groups, activation, residual, algorithm, workspace,
        out, layout, padding_mode,
    )  # fmt: skip
