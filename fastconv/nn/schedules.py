"""Schedules: the learning rate as a function of how many epochs (or steps) are done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from math import cos, pi

from fastconv.arguments import integer
from fastconv.nn.optimizers import Optimizer


class Schedule(ABC):
    """Sets the optimizer's rate, now and at every `step`."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.base = optimizer, optimizer.initial_lr
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
    """Multiply by gamma every ``step_size`` steps.

    Parameters
    ----------
    optimizer : Optimizer
    step_size : int
    gamma : float, default 0.1

    Examples
    --------
    >>> from fastconv import nn
    >>> optimizer, rates = nn.SGD([], lr=1.0), []
    >>> schedule = nn.StepLR(optimizer, 2)
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.lr, 3))
    ...     schedule.step()
    >>> rates
    [1.0, 1.0, 0.1, 0.1]
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = integer(step_size, "step_size", 1), gamma
        super().__init__(optimizer)

    def rate(self, done: int) -> float:
        return float(self.base * self.gamma ** (done // self.step_size))


class LinearLR(Schedule):
    """Go from ``start_factor`` times the rate to ``end_factor`` times it along a line: a warm-up.

    P. Goyal et al., Accurate, large minibatch SGD, arXiv:1706.02677.

    Parameters
    ----------
    optimizer : Optimizer
    start_factor : float, default 1/3
        More than 0, at most 1.
    end_factor : float, default 1
        From 0 to 1.
    total_iters : int, default 5
        Steps on the line.

    Examples
    --------
    >>> from fastconv import nn
    >>> optimizer, rates = nn.SGD([], lr=1.0), []
    >>> schedule = nn.LinearLR(optimizer, 0.5, total_iters=2)
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.lr, 3))
    ...     schedule.step()
    >>> rates
    [0.5, 0.75, 1.0, 1.0]
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        if not 0 < start_factor <= 1 or not 0 <= end_factor <= 1:
            raise ValueError(
                f"factors must be from 0 to 1, the first more than 0, got {start_factor}, {end_factor}"
            )
        self.first, self.last, self.length = start_factor, end_factor, total_iters
        super().__init__(optimizer)

    def rate(self, done: int) -> float:
        part = min(done, self.length) / max(self.length, 1)
        return self.base * (self.first + (self.last - self.first) * part)


class CosineAnnealingLR(Schedule):
    """Go down to ``eta_min`` along half a cosine in ``T_max`` steps (I. Loshchilov, F. Hutter, arXiv:1608.03983).

    Parameters
    ----------
    optimizer : Optimizer
    T_max : int
    eta_min : float, default 0

    Examples
    --------
    >>> from fastconv import nn
    >>> optimizer, rates = nn.SGD([], lr=1.0), []
    >>> schedule = nn.CosineAnnealingLR(optimizer, T_max=2)
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.lr, 3))
    ...     schedule.step()
    >>> rates
    [1.0, 0.5, 0.0, 0.0]
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.length, self.least = integer(T_max, "T_max", 1), eta_min
        super().__init__(optimizer)

    def rate(self, done: int) -> float:
        part = min(done / self.length, 1)
        return self.least + (self.base - self.least) * (1 + cos(pi * part)) / 2


class SequentialLR(Schedule):
    """Follow one schedule after the other; ``milestones`` are the steps at which the next begins.

    Parameters
    ----------
    optimizer : Optimizer
    schedulers : sequence of schedules
    milestones : sequence of int
        One between any two schedules.

    Examples
    --------
    >>> from fastconv import nn
    >>> optimizer = nn.SGD([], lr=1.0)
    >>> warm, cool = nn.LinearLR(optimizer, 0.5, total_iters=2), nn.CosineAnnealingLR(optimizer, T_max=2)
    >>> schedule, rates = nn.SequentialLR(optimizer, [warm, cool], milestones=[2]), []
    >>> for _ in range(5):
    ...     rates.append(round(optimizer.lr, 3))
    ...     schedule.step()
    >>> rates
    [0.5, 0.75, 1.0, 0.5, 0.0]
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[Schedule], milestones: Sequence[int]
    ) -> None:
        if len(schedulers) != len(milestones) + 1:
            raise ValueError(
                f"there must be a milestone between two schedules, got {len(schedulers)} schedules and "
                f"{len(milestones)} milestones"
            )
        self.schedules, self.begins = list(schedulers), [0, *milestones]
        super().__init__(optimizer)

    def rate(self, done: int) -> float:
        i = bisect_right(self.begins, done) - 1
        return self.schedules[i].rate(done - self.begins[i])
