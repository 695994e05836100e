"""Schedules: the learning rate as a function of how many epochs (or steps) are done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import cos, pi

from fastconv.nn.optimizers import Optimizer


class Schedule(ABC):
    """Sets the optimizer's rate, now and at every `step`."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.base = optimizer, optimizer.lr
        self.done = 0
        optimizer.lr = self.rate(0)

    def step(self) -> None:
        """Count one more."""
        self.done += 1
        self.optimizer.lr = self.rate(self.done)

    @abstractmethod
    def rate(self, done: int) -> float:
        """Return the learning rate after ``done`` steps."""


class StepLR(Schedule):
    """Multiply by gamma every ``step_size`` steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def rate(self, done: int) -> float:
        return float(self.base * self.gamma ** (done // self.step_size))


class CosineAnnealingLR(Schedule):
    """Go down to ``eta_min`` along half a cosine in ``T_max`` steps, after ``warmup`` steps straight up.

    I. Loshchilov, F. Hutter, arXiv:1608.03983; the warm-up P. Goyal et al., arXiv:1706.02677.

    Examples
    --------
    >>> from fastconv import nn
    >>> optimizer = nn.SGD([], lr=1.0)
    >>> schedule, rates = nn.CosineAnnealingLR(optimizer, T_max=2, warmup=1), []
    >>> for _ in range(3):
    ...     rates.append(round(optimizer.lr, 3))
    ...     schedule.step()
    >>> rates
    [0.5, 1.0, 0.5]
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, warmup: int = 0) -> None:
        self.length, self.least, self.warmup = T_max, eta_min, warmup
        super().__init__(optimizer)

    def rate(self, done: int) -> float:
        if done < self.warmup:
            return self.base * (done + 1) / (self.warmup + 1)
        part = min((done - self.warmup) / self.length, 1)
        return self.least + (self.base - self.least) * (1 + cos(pi * part)) / 2
