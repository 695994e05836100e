"""Optimizers: how parameters move along their gradients.  Formulas and defaults are PyTorch's.

A step is one pass over each parameter (`fastconv.nn.steps`): NumPy would make an array of every intermediate result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from math import sqrt

import numpy as np

from fastconv.nn import steps
from fastconv.nn.module import Parameter
from fastconv.typing import Array


class Optimizer(ABC):
    """Parameters and a learning rate."""

    def __init__(self, params: Iterable[Parameter], lr: float, weight_decay: float = 0.0) -> None:
        self.parameters = list(params)
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:  # nor NaN
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.lr, self.weight_decay = lr, weight_decay
        self.initial_lr = lr  # what schedules begin from
        self.steps = 0

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        self.steps += 1
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                parameter.data = np.ascontiguousarray(parameter.data)  # as it is, but for a caller's view
                grad = np.ascontiguousarray(parameter.grad, parameter.data.dtype)
                self.move(i, parameter.data.reshape(-1), grad.reshape(-1))

    def zeros(self) -> list[Array]:
        """Return an array of zeros for each parameter."""
        return [np.zeros(parameter.data.size, parameter.data.dtype) for parameter in self.parameters]

    @abstractmethod
    def move(self, i: int, data: Array, grad: Array) -> None:
        """Change parameter number ``i`` in place; its numbers and their gradients are rows."""


class SGD(Optimizer):
    """Stochastic gradient descent:  v = momentum v + g,  w -= lr v.

    With Nesterov's momentum the step is g + momentum v: the gradient counts once more.

    Parameters
    ----------
    params : iterable of Parameter
    lr : float, default 1e-3
        Learning rate.
    momentum : float, default 0
    weight_decay : float, default 0
        Times the weights, is added to the gradient.
    nesterov : bool, default False

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> w = nn.Parameter(np.array([1.0]))
    >>> optimizer = nn.SGD([w], lr=0.1)
    >>> w.accumulate(np.array([2.0]))
    >>> optimizer.step()
    >>> w.data
    array([0.8])
    """

    def __init__(
        self, params: Iterable[Parameter], lr: float = 1e-3, momentum: float = 0.0, *,
        weight_decay: float = 0.0, nesterov: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, weight_decay)
        if nesterov and momentum <= 0:
            raise ValueError(f"Nesterov's step needs momentum, got {momentum}")
        self.momentum, self.nesterov = momentum, nesterov
        self.velocity = self.zeros() if momentum else []

    def move(self, i: int, data: Array, grad: Array) -> None:
        velocity = self.velocity[i] if self.momentum else np.empty_like(data)
        steps.run(steps.sgd, data, grad, velocity, self.lr, self.momentum, self.weight_decay, self.nesterov)


class Adam(Optimizer):
    """Steps of about lr along every axis (D. Kingma, J. Ba, arXiv:1412.6980).

    m and v are running averages of g and g^2, divided by 1 - beta^t since they begin at 0:
    w -= lr m / (sqrt(v) + eps).

    Parameters
    ----------
    params : iterable of Parameter
    lr : float, default 1e-3
        Learning rate.
    betas : (float, float), default (0.9, 0.999)
        Shares of the averages of g and of g^2 that a step keeps.
    eps : float, default 1e-8
    weight_decay : float, default 0
        Times the weights, is added to the gradient.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> w = nn.Parameter(np.array([1.0]))
    >>> optimizer = nn.Adam([w], lr=0.1)
    >>> w.accumulate(np.array([2.0]))
    >>> optimizer.step()
    >>> round(float(w.data[0]), 4)
    0.9
    """

    def __init__(
        self, params: Iterable[Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be at least 0 and less than 1, got {betas}")
        self.betas, self.eps = betas, eps
        self.m, self.v = self.zeros(), self.zeros()

    def move(self, i: int, data: Array, grad: Array) -> None:
        self.advance(i, data, grad, decay=self.weight_decay)

    def advance(self, i: int, data: Array, grad: Array, decay: float = 0.0, shrink: float = 1.0) -> None:
        """Take a step by the averages of gradients, from weights times ``shrink``."""
        b1, b2 = self.betas
        size, root = self.lr / (1 - b1**self.steps), 1 / sqrt(1 - b2**self.steps)
        steps.run(steps.adam, data, grad, self.m[i], self.v[i], b1, b2, size, root, self.eps, decay, shrink)


class AdamW(Adam):
    """Adam, with weights that shrink by lr * weight_decay beside its steps (I. Loshchilov, arXiv:1711.05101).

    Parameters
    ----------
    params, lr, betas, eps
        As for `Adam`.
    weight_decay : float, default 1e-2

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> w = nn.Parameter(np.array([1.0]))
    >>> optimizer = nn.AdamW([w], lr=0.1)
    >>> w.accumulate(np.array([2.0]))
    >>> optimizer.step()
    >>> round(float(w.data[0]), 4)
    0.899
    """

    def __init__(
        self, params: Iterable[Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay)

    def move(self, i: int, data: Array, grad: Array) -> None:
        self.advance(i, data, grad, shrink=1 - self.lr * self.weight_decay)


class RMSprop(Optimizer):
    """Divide gradients by a running root of their mean square (G. Hinton's lecture 6e, 2012).

    v = alpha v + (1 - alpha) g^2,  w -= lr g / (sqrt(v) + eps).

    Parameters
    ----------
    params : iterable of Parameter
    lr : float, default 1e-2
        Learning rate.
    alpha : float, default 0.99
        Share of the average that a step keeps.
    eps : float, default 1e-8
    weight_decay : float, default 0
        Times the weights, is added to the gradient.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> w = nn.Parameter(np.array([1.0]))
    >>> optimizer = nn.RMSprop([w], lr=0.1)
    >>> w.accumulate(np.array([2.0]))
    >>> optimizer.step()
    >>> round(float(w.data[0]), 4)
    0.0
    """

    def __init__(
        self, params: Iterable[Parameter], lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, weight_decay)
        self.alpha, self.eps = alpha, eps
        self.square = self.zeros()

    def move(self, i: int, data: Array, grad: Array) -> None:
        steps.run(steps.rmsprop, data, grad, self.square[i], self.lr, self.alpha, self.eps, self.weight_decay)
