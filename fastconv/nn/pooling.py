"""Pooling layers: fewer pixels, each the best or the mean of a window."""

from __future__ import annotations

import fastconv
from fastconv.arguments import PerAxis, per_axis
from fastconv.nn.module import Module
from fastconv.typing import Array


class MaxPool2d(Module):
    """Keep the largest pixel of each window; its gradient goes to that pixel alone.

    Parameters are those of `fastconv.max_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> layer = nn.MaxPool2d(2)
    >>> layer(np.array([[[[1.0, 2.0], [4.0, 3.0]]]])).tolist(), layer.backward(np.ones((1, 1, 1, 1))).tolist()
    ([[[[4.0]]]], [[[[0.0, 0.0], [1.0, 0.0]]]])
    """

    def __init__(
        self, kernel_size: PerAxis, stride: PerAxis | None = None, padding: PerAxis = 0, dilation: PerAxis = 1,
        *, ceil_mode: bool = False,
    ) -> None:  # fmt: skip
        self.window = (kernel_size, stride, padding, dilation, ceil_mode)
        self.places: Array

    def forward(self, x: Array) -> Array:
        self.x = x
        y, self.places = fastconv.max_pool2d(x, *self.window, return_indices=True)
        return y

    def backward(self, gy: Array) -> Array:
        return fastconv.max_pool2d_backward(self.x, gy, *self.window, indices=self.places)


class AvgPool2d(Module):
    """Take the mean of each window; its gradient is shared by the window's pixels.

    Parameters are those of `fastconv.avg_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.AvgPool2d(2)(np.array([[[[1.0, 2.0], [4.0, 3.0]]]])).tolist()
    [[[[2.5]]]]
    """

    def __init__(
        self, kernel_size: PerAxis, stride: PerAxis | None = None, padding: PerAxis = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> None:  # fmt: skip
        self.window = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return fastconv.avg_pool2d(x, *self.window)

    def backward(self, gy: Array) -> Array:
        return fastconv.avg_pool2d_backward(self.shape, gy, *self.window)


class AdaptiveAvgPool2d(Module):
    """Take the means of as many windows as the output is to have; (1, 1) makes global pooling.

    Parameters
    ----------
    output_size : int or (int, int)

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.AdaptiveAvgPool2d(1)(np.ones((2, 8, 7, 7), "float32")).shape
    (2, 8, 1, 1)
    """

    def __init__(self, output_size: PerAxis) -> None:
        self.output_size = per_axis(output_size, 2, "output_size")

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return fastconv.adaptive_avg_pool2d(x, self.output_size)

    def backward(self, gy: Array) -> Array:
        return fastconv.adaptive_avg_pool2d_backward(self.shape, gy)
