"""Convolution's lowering as functions of its own: patches to columns, and columns added back to an image."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastconv import arguments
from fastconv.arguments import PerAxis
from fastconv.arrays import or_on_gpu
from fastconv.pooling.call import images, replayed, there
from fastconv.problem import Axis
from fastconv.typing import Array


def unfold(
    input: ArrayLike, kernel_size: PerAxis, dilation: PerAxis = 1, padding: PerAxis = 0, stride: PerAxis = 1
) -> Array:
    """Return the pixels under a kernel as columns, one for each place of the kernel (im2col).

    Then a convolution is the product ``weight.reshape(K, -1) @ unfold(input, ...)``.

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W) array of float32 or float64
    kernel_size, dilation, padding, stride : int or (int, int)
        As for `conv2d`; note the order, which is PyTorch's.

    Returns
    -------
    (N, C*R*S, P*Q) or (C*R*S, P*Q) array
        Row ``(c*R + r)*S + s`` holds pixel ``x[n, c, p*stride + r*dilation - padding, ...]`` at ``p*Q + q``.

    Raises
    ------
    TypeError, ValueError
        An argument is not served; the message gives the rule and the numbers.

    See Also
    --------
    fold : its transpose, and so its gradient.

    References
    ----------
    K. Chellapilla, S. Puri, P. Simard: High performance convolutional neural networks for document processing, IWFHR 2006.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.unfold(np.array([[[1.0, 2, 3], [4, 5, 6]]]), 2)
    array([[1., 2.],
           [2., 3.],
           [4., 5.],
           [5., 6.]])
    """
    return _unfolded(2, input, kernel_size, dilation, padding, stride)


@or_on_gpu(1, replayed(input=1))
def _unfolded(
    rank: int, input: ArrayLike, kernel_size: PerAxis, dilation: PerAxis, padding: PerAxis, stride: PerAxis
) -> Array:
    x = images(input, "input")
    if x.ndim not in (3, 4):
        raise ValueError(f"input must be (N, C, H, W) or (C, H, W), got {x.ndim} dimensions: {x.shape}")
    walk = _Walk(x.shape[-2:], kernel_size, dilation, padding, stride)
    if there(x):
        from fastconv.pooling import cuda_patches

        return cuda_patches.unfold(x, walk.axes)  # type: ignore[no-any-return]  # the caller's kind
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(p, p) for p in walk.padding])
    columns = np.empty((*x.shape[:-2], *walk.kernel, *walk.output), x.dtype)
    for tap, pixels in walk.taps():
        columns[tap] = padded[pixels]
    return columns.reshape(*x.shape[:-3], x.shape[-3] * prod(walk.kernel), prod(walk.output))


def fold(
    input: ArrayLike, output_size: PerAxis, kernel_size: PerAxis, dilation: PerAxis = 1, padding: PerAxis = 0,
    stride: PerAxis = 1,
) -> Array:  # fmt: skip
    """Add columns of pixels back to the image of ``output_size`` that `unfold` takes them from.

    Pixels in several columns become sums: this is the transpose of `unfold`, not its inverse, and each is the
    other's gradient.

    Parameters
    ----------
    input : (N, C*R*S, P*Q) or (C*R*S, P*Q) array of float32 or float64
    output_size : int or (int, int)
        H and W.
    kernel_size, dilation, padding, stride : int or (int, int)
        Those of `unfold`.

    Returns
    -------
    (N, C, H, W) or (C, H, W) array

    Raises
    ------
    TypeError, ValueError
        An argument is not served, or the columns do not fit; the message gives the rule and the numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> fastconv.fold(np.ones((4, 2)), (2, 3), 2)
    array([[[1., 2., 1.],
            [1., 2., 1.]]])
    """
    return _folded(2, input, output_size, kernel_size, dilation, padding, stride)


@or_on_gpu(1, replayed(input=1))
def _folded(
    rank: int, input: ArrayLike, output_size: PerAxis, kernel_size: PerAxis, dilation: PerAxis, padding: PerAxis,
    stride: PerAxis,
) -> Array:  # fmt: skip
    columns = images(input, "input")
    size = arguments.per_axis(output_size, 2, "output_size")
    walk = _Walk(size, kernel_size, dilation, padding, stride)
    rows, places = prod(walk.kernel), prod(walk.output)
    if columns.ndim not in (2, 3) or columns.shape[-2] % rows or columns.shape[-1] != places:
        raise ValueError(
            f"input must be (N, C*R*S, P*Q) or (C*R*S, P*Q) with R*S = {rows} and P*Q = {places}, got {columns.shape}"
        )
    if there(columns):
        from fastconv.pooling import cuda_patches

        return cuda_patches.fold(columns, walk.axes)  # type: ignore[no-any-return]
    channels = columns.shape[-2] // rows
    columns = columns.reshape(*columns.shape[:-2], channels, *walk.kernel, *walk.output)
    (h, w), (ph, pw) = size, walk.padding
    image = np.zeros((*columns.shape[:-4], h + 2 * ph, w + 2 * pw), columns.dtype)
    for tap, pixels in walk.taps():
        image[pixels] += columns[tap]
    return np.ascontiguousarray(image[..., ph : ph + h, pw : pw + w])


class _Walk:
    """Where the taps of a kernel stand at all its places."""

    def __init__(
        self, size: tuple[int, ...], kernel: PerAxis, dilation: PerAxis, padding: PerAxis, stride: PerAxis
    ) -> None:
        self.size = size
        self.kernel = arguments.per_axis(kernel, 2, "kernel_size")
        self.dilation = arguments.per_axis(dilation, 2, "dilation")
        self.padding = arguments.per_axis(padding, 2, "padding", 0)
        self.stride = arguments.per_axis(stride, 2, "stride")
        extents = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        padded = [n + 2 * p for n, p in zip(size, self.padding, strict=True)]
        if any(e > n for e, n in zip(extents, padded, strict=True)):
            raise ValueError(f"the kernel spans {extents} pixels, the padded image has {padded}")
        if prod(padded) * prod(self.kernel) >= arguments.HUGE:
            raise ValueError(
                f"problem too large: the padded image has {padded} pixels, the kernel {self.kernel}"
            )
        self.output = tuple((n - e) // s + 1 for n, e, s in zip(padded, extents, self.stride, strict=True))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of a convolution whose kernel stands at these places."""
        pads = self.padding, self.padding
        numbers = zip(self.size, self.kernel, self.stride, self.dilation, *pads, strict=True)
        return tuple(Axis(*each) for each in numbers)

    def taps(self) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """Yield the index of each tap among the columns, and that of the padded pixels under it."""
        for tap in np.ndindex(*self.kernel):
            axes = zip(tap, self.dilation, self.stride, self.output, strict=True)
            pixels = tuple(slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in axes)
            yield (..., *tap, slice(None), slice(None)), (..., *pixels)
