"""Batch normalisation: each channel gets the mean 0 and the variance 1, then a learned scale and shift."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fastconv import threads
from fastconv.arrays import Array
from fastconv.nn import channels
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
        dtype = np.result_type(x, self.weight.data)
        flat: Array = np.ascontiguousarray(x, dtype).reshape(*x.shape[:2], -1)
        count = flat[:, 0].size
        if self.training and count < 2:
            raise ValueError(f"training needs more than one value a channel, got input {x.shape}")
        mean, var = self.running_mean.astype(float), self.running_var.astype(float)
        self.u, y = np.empty_like(flat), np.empty_like(flat)
        weight, bias = self.weight.data.astype(dtype), self.bias.data.astype(dtype)
        threads.launch(
            channels.normalise, 10.0 * x.size, flat, self.u, y, weight, bias, mean, var, self.eps, self.training,
            _sums(flat),
        )  # fmt: skip
        if self.training:
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (var * count / (count - 1) - self.running_var)
        self.factor = (weight / np.sqrt(var + self.eps)).astype(dtype)
        return y.reshape(x.shape)

    def backward(self, gy: Array) -> Array:
        g = np.ascontiguousarray(gy, self.u.dtype).reshape(self.u.shape)
        gx = np.empty_like(g)
        by_bias, by_weight = np.empty(len(self.factor)), np.empty(len(self.factor))
        threads.launch(
            channels.gradient,
            10.0 * g.size,
            g,
            self.u,
            gx,
            self.factor,
            by_bias,
            by_weight,
            self.training,
            _sums(g),
        )
        self.bias.accumulate(by_bias.astype(g.dtype))
        self.weight.accumulate(by_weight.astype(g.dtype))
        return gx.reshape(gy.shape)


def _sums(x: Array) -> Array:
    """Return a row for each thread to sum the images of a channel in."""
    return np.empty((threads.count(), x.shape[2]), x.dtype)


class BatchNorm1d(_BatchNorm):
    """Normalise the features of (N, C) or the channels of (N, C, L)."""

    dimensions = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Normalise the channels of (N, C, H, W)."""

    dimensions = (4,)
