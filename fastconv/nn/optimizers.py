"""Optimizers: how parameters move along their gradients.  Formulas and defaults are PyTorch's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from math import sqrt

import numpy as np

from fastconv.arrays import Array
from fastconv.nn.module import Parameter


class Optimizer(ABC):
    """Parameters and a learning rate."""

    def __init__(self, parameters: Iterable[Parameter], lr: float, weight_decay: float = 0.0) -> None:
        self.parameters = list(parameters)
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.lr, self.weight_decay = lr, weight_decay
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
                self.move(i, parameter.data, parameter.grad)

    def decayed(self, data: Array, grad: Array) -> Array:
        """Return the gradient of the loss plus weight_decay / 2 times the squared length of the weights."""
        return grad + self.weight_decay * data if self.weight_decay else grad

    def zeros(self) -> list[Array]:
        """Return an array of zeros for each parameter."""
        return [np.zeros_like(parameter.data) for parameter in self.parameters]

    @abstractmethod
    def move(self, i: int, data: Array, grad: Array) -> None:
        """Change parameter number ``i`` in place."""


class SGD(Optimizer):
    """Stochastic gradient descent:  v = momentum v + g,  w -= lr v.

    With Nesterov's momentum the step is g + momentum v: the gradient counts once more.

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
        self, parameters: Iterable[Parameter], lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(parameters, lr, weight_decay)
        if nesterov and momentum <= 0:
            raise ValueError(f"Nesterov's step needs momentum, got {momentum}")
        self.momentum, self.nesterov = momentum, nesterov
        self.velocity = self.zeros() if momentum else []

    def move(self, i: int, data: Array, grad: Array) -> None:
        grad = self.decayed(data, grad)
        if self.momentum:
            velocity = self.velocity[i]
            velocity *= self.momentum
            velocity += grad
            grad = grad + self.momentum * velocity if self.nesterov else velocity
        data -= self.lr * grad


class Adam(Optimizer):
    """Steps of about lr along every axis (D. Kingma, J. Ba, arXiv:1412.6980).

    m and v are running averages of g and g^2, divided by 1 - beta^t since they begin at 0:
    w -= lr m / (sqrt(v) + eps).
    """

    def __init__(
        self, parameters: Iterable[Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(parameters, lr, weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be at least 0 and less than 1, got {betas}")
        self.betas, self.eps = betas, eps
        self.m, self.v = self.zeros(), self.zeros()

    def move(self, i: int, data: Array, grad: Array) -> None:
        self.advance(i, data, self.decayed(data, grad))

    def advance(self, i: int, data: Array, grad: Array) -> None:
        """Take a step by the averages of gradients."""
        (b1, b2), m, v = self.betas, self.m[i], self.v[i]
        m += (1 - b1) * (grad - m)
        v += (1 - b2) * (grad * grad - v)
        size = self.lr / (1 - b1**self.steps)
        data -= size * m / (np.sqrt(v) / sqrt(1 - b2**self.steps) + self.eps)


class AdamW(Adam):
    """Adam, with weights that shrink by lr * weight_decay beside its steps (I. Loshchilov, arXiv:1711.05101)."""

    def __init__(
        self, parameters: Iterable[Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2,
    ) -> None:  # fmt: skip
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def move(self, i: int, data: Array, grad: Array) -> None:
        data *= 1 - self.lr * self.weight_decay
        self.advance(i, data, grad)


class RMSprop(Optimizer):
    """Divide gradients by a running root of their mean square (G. Hinton's lecture 6e, 2012)."""

    def __init__(
        self, parameters: Iterable[Parameter], lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(parameters, lr, weight_decay)
        self.alpha, self.eps = alpha, eps
        self.square = self.zeros()

    def move(self, i: int, data: Array, grad: Array) -> None:
        grad = self.decayed(data, grad)
        square = self.square[i]
        square += (1 - self.alpha) * (grad * grad - square)
        data -= self.lr * grad / (np.sqrt(square) + self.eps)
