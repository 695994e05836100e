"""Layers without convolution: full connection, a change of shape, and dropout."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

import fastconv
from fastconv.arguments import integer
from fastconv.nn.activations import fused
from fastconv.nn.initialisers import kaiming_uniform, uniform
from fastconv.nn.module import Module, Parameter
from fastconv.typing import Array


class Linear(Module):
    """Connect every input with every output: y = x w^T + b.

    y[n, k] = b[k] + sum over c of x[n, c] w[k, c], so by the chain rule gx = gy w, gw = gy^T x, and gb sums
    gy over the batch.  The engine computes these products as convolutions by kernels of one tap: the threads of
    a second library would wait for the same cores.  A convolution is  y = w x  and its weight gradient  gy x^T,
    so each product takes the form whose operands lie in memory as ours do.

    Parameters
    ----------
    in_features, out_features, bias
        As in ``torch.nn.Linear``.
    activation, rng
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Linear(4, 2)(np.ones((3, 4), "float32")).shape
    (3, 2)
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, activation: str | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:  # fmt: skip
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            integer(value, name, 1)
        rng = np.random.default_rng() if rng is None else rng
        self.weight = Parameter(kaiming_uniform(rng, (out_features, in_features), sqrt(5)))
        self.bias = Parameter(uniform(rng, (out_features,), 1 / sqrt(in_features))) if bias else None
        self.activation = fused(activation)
        self.activation_name: Any = activation

    def forward(self, x: Array) -> Array:
        k, c = self.weight.data.shape
        if x.shape[-1] != c:
            raise ValueError(f"input must have {c} features on its last axis, got shape {x.shape}")
        self.x = np.ascontiguousarray(x).reshape(-1, c)
        y: Array = fastconv.conv1d_weight(self.weight.data[None], (len(self.x), k, 1), self.x[None])[:, :, 0]
        if self.bias is not None:
            y += self.bias.data
        if self.activation is not None:
            y = self.activation(y)
        return y.reshape(*x.shape[:-1], k)

    def backward(self, gy: Array) -> Array:
        k, c = self.weight.data.shape
        g = np.ascontiguousarray(gy).reshape(-1, k)
        if self.activation is not None:
            g = self.activation.backward(g)
        self.weight.accumulate(fastconv.conv1d(self.x[None], np.ascontiguousarray(g.T)[:, :, None])[0])
        if self.bias is not None:
            self.bias.accumulate(g.sum(axis=0))
        gx: Array = fastconv.conv1d(self.weight.data[None], g[:, :, None])[0]
        return gx.reshape(*gy.shape[:-1], c)


class Flatten(Module):
    """Lay the channels and pixels of each image in one row; the gradient is laid back.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Flatten()(np.ones((3, 2, 5, 5))).shape
    (3, 50)
    """

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, gy: Array) -> Array:
        return gy.reshape(self.shape)


class Dropout(Module):
    """In training, set each number to 0 with probability p and scale the others by 1 / (1 - p).

    The expectation stays what it was, so inference does nothing.  What was dropped has no influence on the
    loss and no gradient (N. Srivastava et al., JMLR 15, 2014).

    Parameters
    ----------
    p : float, default 0.5
        From 0 on, less than 1.
    rng : numpy.random.Generator, optional
        Draws what is dropped.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> layer = nn.Dropout(0.5, rng=np.random.default_rng(0))
    >>> sorted(set(layer(np.ones(100)).tolist())), layer.eval()(np.ones(2)).tolist()
    ([0.0, 2.0], [1.0, 1.0])
    """

    def __init__(self, p: float = 0.5, *, rng: np.random.Generator | None = None) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"p must be at least 0 and less than 1, got {p}")
        self.p = p
        self.rng = np.random.default_rng() if rng is None else rng

    def forward(self, x: Array) -> Array:
        self.mask: Array | None = None
        if not self.training or not self.p:
            return x
        kept = self.rng.random(x.shape, np.float32) >= self.p
        self.mask = kept.astype(x.dtype) * x.dtype.type(1 / (1 - self.p))
        return x * self.mask

    def backward(self, gy: Array) -> Array:
        return gy if self.mask is None else gy * self.mask
