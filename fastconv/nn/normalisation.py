"""Batch normalisation: each channel gets the mean 0 and the variance 1, then a learned scale and shift."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fastconv.arrays import Array
from fastconv.nn.module import Module, Parameter


class _BatchNorm(Module):
    """Normalise each channel over the batch and all pixels.

        u = (x - mean) / sqrt(var + eps),   y = weight * u + bias

    mean and var depend on every x, so the gradient loses its mean and its part along u:

        gx = weight / sqrt(var + eps) * (gy - mean(gy) - u * mean(gy * u))

    Inference uses running averages instead, which are constants (S. Ioffe, C. Szegedy, arXiv:1502.03167).
    """

    dimensions: ClassVar[tuple[int, ...]]
    buffers = ("running_mean", "running_var")

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = np.zeros(num_features, np.float32)
        self.running_var = np.ones(num_features, np.float32)
        self.eps, self.momentum = eps, momentum

    def forward(self, x: Array) -> Array:
        if x.ndim not in self.dimensions or x.shape[1] != len(self.running_mean):
            raise ValueError(
                f"input must have {len(self.running_mean)} channels on axis 1, got shape {x.shape}"
            )
        flat = x.reshape(*x.shape[:2], -1)
        mean, var = self.running_mean, self.running_var
        if self.training:
            count = flat.shape[0] * flat.shape[2]
            if count < 2:
                raise ValueError(f"training needs more than one value a channel, got input {x.shape}")
            mean = flat.mean(axis=(0, 2))
            centred = flat - mean[:, None]
            var = np.einsum("ncp,ncp->c", centred, centred) / count
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (var * count / (count - 1) - self.running_var)
        else:
            centred = flat - mean[:, None].astype(x.dtype)
        self.scale = (1 / np.sqrt(var + self.eps)).astype(x.dtype)
        self.u = centred * self.scale[:, None]
        y: Array = self.u * self.weight.data[:, None] + self.bias.data[:, None]
        return y.reshape(x.shape)

    def backward(self, gy: Array) -> Array:
        g = gy.reshape(self.u.shape)
        by_bias, by_weight = np.einsum("ncp->c", g), np.einsum("ncp,ncp->c", g, self.u)
        self.bias.accumulate(by_bias)
        self.weight.accumulate(by_weight)
        factor = (self.weight.data * self.scale)[:, None]
        if self.training:
            count = g.shape[0] * g.shape[2]
            g = g - (by_bias / count)[:, None] - self.u * (by_weight / count)[:, None]
        gx: Array = factor * g
        return gx.reshape(gy.shape)


class BatchNorm1d(_BatchNorm):
    """Normalise the features of (N, C) or the channels of (N, C, L)."""

    dimensions = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Normalise the channels of (N, C, H, W)."""

    dimensions = (4,)
