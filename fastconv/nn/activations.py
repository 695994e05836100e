"""Functions of single numbers between the layers: without them, a chain of linear layers is one."""

from __future__ import annotations

import math

import numpy as np

from fastconv import jit
from fastconv.nn import pointwise
from fastconv.nn.module import Module
from fastconv.typing import Array


class FromResult(Module):
    """An activation whose slope is told by its result y alone.

    So a layer can apply it where it writes its results, and keeps no x for it: ``Conv2d(..., activation="relu")``.
    """

    y: Array


class ReLU(FromResult):
    """y = max(x, 0), whose slope is 1 where y > 0 and else 0.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> layer = nn.ReLU()
    >>> layer(np.array([-1.0, 2.0])).tolist(), layer.backward(np.array([5.0, 5.0])).tolist()
    ([0.0, 2.0], [0.0, 5.0])
    """

    def forward(self, x: Array) -> Array:
        self.y = pointwise.rectified(x)
        return self.y

    def backward(self, gy: Array) -> Array:
        return pointwise.kept(gy, self.y)


class LeakyReLU(Module):
    """y = x where x > 0, else slope * x.

    Parameters
    ----------
    negative_slope : float, default 0.01

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.LeakyReLU(0.1)(np.array([-1.0, 2.0])).tolist()
    [-0.1, 2.0]
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.slope = negative_slope

    def forward(self, x: Array) -> Array:
        self.factor: Array = np.where(x > 0, 1, self.slope).astype(x.dtype)
        y: Array = x * self.factor
        return y

    def backward(self, gy: Array) -> Array:
        gx: Array = gy * self.factor
        return gx


class Sigmoid(FromResult):
    """y = 1 / (1 + exp(-x)), whose slope is y (1 - y); by tanh, which does not overflow.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Sigmoid()(np.zeros(1)).tolist()
    [0.5]
    """

    def forward(self, x: Array) -> Array:
        self.y = (1 + np.tanh(x / 2)) / 2
        return self.y

    def backward(self, gy: Array) -> Array:
        gx: Array = gy * self.y * (1 - self.y)
        return gx


class Tanh(FromResult):
    """y = tanh(x), whose slope is 1 - y^2.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Tanh()(np.zeros(1)).tolist()
    [0.0]
    """

    def forward(self, x: Array) -> Array:
        self.y = np.tanh(x)
        return self.y

    def backward(self, gy: Array) -> Array:
        gx: Array = gy * (1 - self.y * self.y)
        return gx


@jit.function
def _normal_distribution(x: Array, out: Array) -> None:
    """Write P(X <= x) for X of mean 0 and variance 1."""
    for i in range(x.size):
        out[i] = 0.5 * (1 + math.erf(x[i] * 0.7071067811865476))


class GELU(Module):
    """y = x P(x), P the normal distribution (D. Hendrycks, K. Gimpel, arXiv:1606.08415).

    Its slope is P(x) + x P'(x), with P'(x) = exp(-x^2 / 2) / sqrt(2 pi).

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.GELU()(np.zeros(1)).tolist()
    [0.0]
    """

    def forward(self, x: Array) -> Array:
        self.x = np.ascontiguousarray(x)
        self.p = np.empty_like(self.x)
        _normal_distribution(self.x.reshape(-1), self.p.reshape(-1))
        y: Array = self.x * self.p
        return y

    def backward(self, gy: Array) -> Array:
        density = np.exp(-self.x * self.x / 2) / math.sqrt(2 * math.pi)
        gx: Array = gy * (self.p + self.x * density)
        return gx


class Softmax(Module):
    """y = exp(x) / sum of exp(x) along an axis: positive numbers that add up to 1.

    dy_i / dx_j = y_i (i == j) - y_i y_j, so gx = y (gy - sum of gy y).

    Parameters
    ----------
    dim : int, default 1
        The axis.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Softmax()(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    def __init__(self, dim: int = 1) -> None:
        self.dim = dim

    def forward(self, x: Array) -> Array:
        e: Array = np.exp(x - x.max(axis=self.dim, keepdims=True))
        y: Array = e / e.sum(axis=self.dim, keepdims=True)
        self.y = y
        return y

    def backward(self, gy: Array) -> Array:
        gx: Array = self.y * (gy - (gy * self.y).sum(axis=self.dim, keepdims=True))
        return gx


FUSED: dict[str, type[ReLU | Sigmoid | Tanh]] = {"relu": ReLU, "sigmoid": Sigmoid, "tanh": Tanh}


def fused(name: str | None) -> FromResult | None:
    """Return the activation that a layer applies itself."""
    if name is not None and name not in FUSED:
        raise ValueError(f"activation of a layer must be None or one of {', '.join(FUSED)}, got {name!r}")
    return None if name is None else FUSED[name]()
