"""Batch normalisation: each channel gets the mean 0 and the variance 1, then a learned scale and shift."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fastconv import threads
from fastconv.arrays import empty
from fastconv.nn import channels
from fastconv.nn.module import Module, Parameter
from fastconv.typing import Array


class _BatchNorm(Module):
    """Normalise each channel over the batch and all pixels.

        u = (x - mean) / sqrt(var + eps),   y = weight * u + bias

    mean and var depend on every x, so the gradient loses its mean and its part along u:

        gx = weight / sqrt(var + eps) * (gy - mean(gy) - u * mean(gy * u))

    Inference uses running averages instead, which are constants (S. Ioffe, C. Szegedy, arXiv:1502.03167).
    With ``activation="relu"`` what follows is max(y, 0), in the same pass.
    """

    dimensions: ClassVar[tuple[int, ...]]
    buffers = ("running_mean", "running_var")

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, *, activation: str | None = None
    ) -> None:
        if activation not in (None, "relu"):
            raise ValueError(f"activation of a normalisation must be None or 'relu', got {activation!r}")
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = np.zeros(num_features, np.float32)
        self.running_var = np.ones(num_features, np.float32)
        self.eps, self.momentum = eps, momentum
        self.activation_name = activation

    def forward(self, x: Array) -> Array:
        return self._normalised(x, 0.0 if self.activation_name else -np.inf)

    def forward_added(self, x: Array, other: Array, rectify: bool) -> Array:
        if self.activation_name or other.shape != x.shape or other.dtype != x.dtype:
            return super().forward_added(x, other, rectify)
        return self._normalised(x, 0.0 if rectify else -np.inf, other)

    def _normalised(self, x: Array, floor: float, other: Array | None = None) -> Array:
        if x.ndim not in self.dimensions or x.shape[1] != len(self.running_mean):
            raise ValueError(
                f"input must have {len(self.running_mean)} channels on axis 1, got shape {x.shape}"
            )
        count = x[:, 0].size
        if self.training and count < 2:
            raise ValueError(f"training needs more than one value a channel, got input {x.shape}")
        dtype = np.result_type(x, self.weight.data)
        self.x = np.ascontiguousarray(x, dtype).reshape(*x.shape[:2], -1)
        (self.mean, variance), self.scale = np.empty((2, x.shape[1])), np.empty(x.shape[1], dtype)
        y = empty(self.x.shape, dtype)
        more = np.empty((0, 0, 0), dtype) if other is None else np.ascontiguousarray(other, dtype)
        threads.share_out(
            channels.normalise, 10.0 * x.size, self.x, y, more.reshape(*more.shape[:2], y.shape[2]), *self._line(),
            self.running_mean, self.running_var, self.momentum, self.mean, variance, self.scale, self.eps, floor,
            self.training, _sums(self.x),
        )  # fmt: skip
        return y.reshape(x.shape)

    def backward(self, gy: Array) -> Array:
        g = np.ascontiguousarray(gy, self.x.dtype).reshape(self.x.shape)
        gx = empty(g.shape, g.dtype)
        floor = 0.0 if self.activation_name else -np.inf
        by_bias, by_weight = np.empty(len(self.mean)), np.empty(len(self.mean))
        threads.share_out(
            channels.gradient, 10.0 * g.size, g, self.x, gx, *self._line(), self.mean, self.scale, floor,
            by_bias, by_weight, self.training, _sums(g),
        )  # fmt: skip
        self.bias.accumulate(by_bias.astype(g.dtype))
        self.weight.accumulate(by_weight.astype(g.dtype))
        return gx.reshape(gy.shape)

    def _line(self) -> tuple[Array, Array]:
        """Return weight and bias as the kernels take them."""
        weight, bias = (p.data.astype(self.x.dtype, copy=False) for p in (self.weight, self.bias))
        return weight, bias


def _sums(x: Array) -> Array:
    """Return two rows a channel for each thread to sum the images of some channels in."""
    together = max(1, channels.PAGE // max(1, x.shape[2]))
    return np.empty((threads.count(), 2, together, x.shape[2]), x.dtype)


class BatchNorm1d(_BatchNorm):
    """Normalise the features of (N, C) or the channels of (N, C, L).

    Parameters
    ----------
    num_features, eps, momentum, activation
        As for `BatchNorm2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> x = np.random.default_rng(0).normal(5, 3, (8, 3)).astype("float32")
    >>> y = nn.BatchNorm1d(3)(x)
    >>> y.shape, abs(float(y.mean())) < 1e-5
    ((8, 3), True)
    """

    dimensions = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Normalise the channels of (N, C, H, W).

    u = (x - mean) / sqrt(var + eps),  y = weight * u + bias  (S. Ioffe, C. Szegedy, arXiv:1502.03167).

    Parameters
    ----------
    num_features : int
        Channels.
    eps : float, default 1e-5
    momentum : float, default 0.1
        Share of the running averages, which inference uses, that a batch replaces.
    activation : {None, "relu"}
        What follows is max(y, 0), in the same pass.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> x = np.random.default_rng(0).normal(5, 3, (2, 3, 5, 5)).astype("float32")
    >>> y = nn.BatchNorm2d(3)(x)
    >>> y.shape, abs(float(y.mean())) < 1e-5
    ((2, 3, 5, 5), True)
    """

    dimensions = (4,)
