"""Losses: one number that says how wrong a batch of outputs is, and its gradient by them.

Each is a mean: over the batch for cross-entropy, over all numbers for the others, as in PyTorch.  ``loss(x,
target)`` returns the number, ``loss.backward()`` the gradient by x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from fastconv.typing import Array


class Loss(ABC):
    """A function of outputs and targets that remembers its gradient.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> class Sum(nn.Loss):
    ...     def compute(self, x, target):
    ...         return (x - target).sum(), np.ones_like(x)
    >>> loss = Sum()
    >>> loss(np.array([3.0, 4.0]), np.array([1.0, 1.0])), loss.backward().tolist()
    (5.0, [1.0, 1.0])
    """

    gradient: Array

    def __call__(self, x: Array, target: Array) -> float:
        value, self.gradient = self.compute(x, target)
        return float(value)

    def backward(self) -> Array:
        """Return the gradient of the last loss by the outputs."""
        return self.gradient

    @abstractmethod
    def compute(self, x: Array, target: Array) -> tuple[float, Array]:
        """Return the loss and its gradient by x."""


class CrossEntropyLoss(Loss):
    """How surprised the softmax of the outputs is by the right classes: mean of -sum of q log softmax(x).

    q is 1 for the right class and 0 for the others, or with label smoothing e spread as 1 - e + e/K and e/K.
    The logarithm of softmax is x - log(sum of exp(x)), and the gradient simply softmax(x) - q.

    Parameters
    ----------
    label_smoothing : float, default 0
        From 0 to 1, the e above (C. Szegedy et al., arXiv:1512.00567).

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> loss = nn.CrossEntropyLoss()
    >>> round(loss(np.zeros((1, 4)), np.array([2])), 4)
    1.3863
    >>> loss.backward()
    array([[ 0.25,  0.25, -0.75,  0.25]])
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
        self.smoothing = label_smoothing

    def compute(self, x: Array, target: Array) -> tuple[float, Array]:
        """Return the loss for outputs (N, K, ...) and classes (N, ...)."""
        k = x.shape[1]
        if target.shape != (x.shape[0], *x.shape[2:]) or not np.issubdtype(target.dtype, np.integer):
            raise ValueError(
                f"target must be integers of shape {(x.shape[0], *x.shape[2:])}, got {target.dtype} {target.shape}"
            )
        if target.size and not 0 <= target.min() <= target.max() < k:
            raise ValueError(f"classes must be from 0 to {k - 1}, got {target.min()} to {target.max()}")
        shifted = x - x.max(axis=1, keepdims=True)
        e = np.exp(shifted)
        total = e.sum(axis=1, keepdims=True)
        q = np.equal(np.arange(k).reshape(-1, *(1,) * (x.ndim - 2)), target[:, None]).astype(x.dtype)
        if self.smoothing:
            q *= 1 - self.smoothing
            q += self.smoothing / k
        value = np.log(total).sum() - (q * shifted).sum()  # q adds up to 1
        return value / target.size, (e / total - q) / x.dtype.type(target.size)


class _Elementwise(Loss):
    def compute(self, x: Array, target: Array) -> tuple[float, Array]:
        if x.shape != target.shape:
            raise ValueError(f"target must have the outputs' shape {x.shape}, got {target.shape}")
        values, slopes = self.each(x, target)
        return values.mean(), slopes / x.dtype.type(x.size)

    @abstractmethod
    def each(self, x: Array, target: Array) -> tuple[Array, Array]:
        """Return the loss of every number and its slope."""


class MSELoss(_Elementwise):
    """Mean of (x - target)^2.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> loss = nn.MSELoss()
    >>> loss(np.array([3.0]), np.array([1.0])), loss.backward().tolist()
    (4.0, [4.0])
    """

    def each(self, x: Array, target: Array) -> tuple[Array, Array]:
        error = x - target
        return error * error, 2 * error


class L1Loss(_Elementwise):
    """Mean of abs(x - target).

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> loss = nn.L1Loss()
    >>> loss(np.array([3.0]), np.array([1.0])), loss.backward().tolist()
    (2.0, [1.0])
    """

    def each(self, x: Array, target: Array) -> tuple[Array, Array]:
        error = x - target
        return np.abs(error), np.sign(error)


class HuberLoss(_Elementwise):
    """Mean of error^2 / 2 where abs(error) is at most delta, and delta (abs(error) - delta / 2) beyond.

    Parameters
    ----------
    delta : float, default 1
        More than 0; smaller errors count by their square (P. Huber, Ann. Math. Statist. 35, 1964).

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> loss = nn.HuberLoss()
    >>> loss(np.array([3.0]), np.array([1.0])), loss.backward().tolist()
    (1.5, [1.0])
    """

    def __init__(self, delta: float = 1.0) -> None:
        if delta <= 0:
            raise ValueError(f"delta must be more than 0, got {delta}")
        self.delta = delta

    def each(self, x: Array, target: Array) -> tuple[Array, Array]:
        error = x - target
        slope = np.clip(error, -self.delta, self.delta)
        return slope * (error - slope / 2), slope


class BCEWithLogitsLoss(_Elementwise):
    """Mean surprise of sigmoid(x) by yes-or-no targets: -t log(sigmoid(x)) - (1 - t) log(1 - sigmoid(x)).

    That is  max(x, 0) - x t + log(1 + exp(-abs(x))), which does not overflow; its slope is sigmoid(x) - t.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> loss = nn.BCEWithLogitsLoss()
    >>> round(loss(np.zeros(1), np.ones(1)), 4), loss.backward().tolist()
    (0.6931, [-0.5])
    """

    def each(self, x: Array, target: Array) -> tuple[Array, Array]:
        values: Array = np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x)))
        return values, (1 + np.tanh(x / 2)) / 2 - target
