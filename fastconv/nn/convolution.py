"""Convolution layers: a call of the engine forward, one back."""

from __future__ import annotations

from math import sqrt
from typing import Any, ClassVar

import numpy as np

import fastconv
from fastconv.arguments import Padding, PaddingMode, PerAxis, TransposedPadding, integer, per_axis
from fastconv.convolve import Grads
from fastconv.nn import pointwise
from fastconv.nn.activations import ReLU, fused
from fastconv.nn.initialisers import fans, kaiming_uniform, uniform
from fastconv.nn.module import Module, Parameter
from fastconv.typing import Array


class _Convolution(Module):
    """A weight, a bias, the arguments of the engine's functions, and an activation in the same store."""

    forward_call: ClassVar[Any]
    backward_call: ClassVar[Any]

    def __init__(
        self, shape: tuple[int, ...], out_channels: int, bias: bool, activation: str | None, input_grad: bool,
        rng: np.random.Generator | None, arguments: dict[str, Any],
    ) -> None:  # fmt: skip
        rng = np.random.default_rng() if rng is None else rng
        self.weight = Parameter(kaiming_uniform(rng, shape, sqrt(5)))
        self.bias = Parameter(uniform(rng, (out_channels,), 1 / sqrt(fans(shape)[0]))) if bias else None
        self.activation, self.activation_name = fused(activation), activation
        self.input_grad, self.arguments = input_grad, arguments

    def forward(self, x: Array) -> Array:
        self.x, bias = x, None if self.bias is None else self.bias.data
        y: Array = type(self).forward_call(
            x, self.weight.data, bias, **self.arguments, activation=self.activation_name
        )
        if self.activation is not None:
            self.activation.y = y
        return y

    def backward(self, gy: Array) -> Array:
        return self._backward(gy)

    def _backward(self, gy: Array, **added: Array) -> Array:
        need = ["weight", *["input"] * self.input_grad, *["bias"] * (self.bias is not None)]
        if isinstance(self.activation, ReLU) and self.bias is not None:
            gy, by_bias = pointwise.kept_and_summed(gy, self.activation.y)
            self.bias.accumulate(by_bias)
            need.remove("bias")
        elif self.activation is not None:
            gy = self.activation.backward(gy)
        grads: Grads = type(self).backward_call(
            self.x, self.weight.data, gy, **self.arguments, need=need, **added
        )
        assert grads.weight is not None
        self.weight.accumulate(grads.weight)
        if self.bias is not None and grads.bias is not None:
            self.bias.accumulate(grads.bias)
        return gy[:0] if grads.input is None else grads.input


def _check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    sizes = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}
    for name, value in sizes.items():
        integer(value, name, 1)
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"channels must be divisible by groups: {in_channels}, {out_channels} % {groups}")


class _Forward(_Convolution):
    rank: ClassVar[int]

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: PerAxis, stride: PerAxis = 1, padding: Padding = 0,
        dilation: PerAxis = 1, groups: int = 1, bias: bool = True, padding_mode: PaddingMode = "zeros", *,
        activation: str | None = None, input_grad: bool = True, rng: np.random.Generator | None = None,
    ) -> None:  # fmt: skip
        _check_channels(in_channels, out_channels, groups)
        kernel = per_axis(kernel_size, self.rank, "kernel_size")
        arguments = {
            "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": padding_mode
        }  # fmt: skip
        shape = (out_channels, in_channels // groups, *kernel)
        super().__init__(shape, out_channels, bias, activation, input_grad, rng, arguments)

    def backward_added(self, gy: Array, other: Array) -> Array:
        return self._backward(gy, residual=other)


class Conv2d(_Forward):
    r"""Convolve with learned kernels: y[n, k] = b[k] + sum over c of x[n, c] * w[k, c]; see `fastconv.conv2d`.

    Each weight meets one pixel of the input for each pixel of the output, so its gradient is their sum of
    products; each pixel of the input met every tap of the kernels, so its gradient is a transposed
    convolution:

    .. math:: gw[k, c, r, s] = \sum_{n, p, q} gy[n, k, p, q] \, x[n, c, p + r, q + s], \quad
              gx[n, c, h, w] = \sum_{k, r, s} gy[n, k, h - r, w - s] \, w[k, c, r, s], \quad
              gb[k] = \sum_{n, p, q} gy[n, k, p, q]

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As in ``torch.nn.Conv2d``; padding takes all that `fastconv.conv2d` does.
    activation : {None, "relu", "sigmoid", "tanh"}
        Applied to each result as it is written, which costs no pass of its own.
    input_grad : bool, default True
        False for the first layer of a network, whose gradient by the input nobody reads: `backward` then
        returns an empty array.
    rng : numpy.random.Generator, optional
        Draws the first weights, distributed as PyTorch's.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> layer = nn.Conv2d(3, 8, 5, stride=2, padding="same")
    >>> layer(np.ones((1, 3, 9, 9), "float32")).shape
    (1, 8, 5, 5)
    """

    rank, forward_call, backward_call = 2, fastconv.conv2d, fastconv.conv2d_backward


class Conv1d(_Forward):
    """Convolve signals with learned kernels; see `Conv2d`.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As in ``torch.nn.Conv1d``; padding takes all that `fastconv.conv1d` does.
    activation, input_grad, rng
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Conv1d(2, 8, 5, padding="same")(np.ones((1, 2, 30), "float32")).shape
    (1, 8, 30)
    """

    rank, forward_call, backward_call = 1, fastconv.conv1d, fastconv.conv1d_backward


class ConvTranspose2d(_Convolution):
    """Spread each pixel as a learned kernel over a larger image; see `fastconv.conv_transpose2d`.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation
        As in ``torch.nn.ConvTranspose2d``.
    activation, input_grad, rng
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.ConvTranspose2d(8, 4, 2, stride=2)(np.ones((1, 8, 7, 7), "float32")).shape
    (1, 4, 14, 14)
    """

    forward_call, backward_call = fastconv.conv_transpose2d, fastconv.conv_transpose2d_backward

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: PerAxis, stride: PerAxis = 1,
        padding: TransposedPadding = 0, output_padding: PerAxis = 0, groups: int = 1, bias: bool = True,
        dilation: PerAxis = 1, *, activation: str | None = None, input_grad: bool = True,
        rng: np.random.Generator | None = None,
    ) -> None:  # fmt: skip
        _check_channels(in_channels, out_channels, groups)
        shape = (in_channels, out_channels // groups, *per_axis(kernel_size, 2, "kernel_size"))
        arguments = {
            "stride": stride, "padding": padding, "output_padding": output_padding, "groups": groups,
            "dilation": dilation,
        }  # fmt: skip
        super().__init__(shape, out_channels, bias, activation, input_grad, rng, arguments)
