"""The contract of an algorithm, and what it builds.

An `Algorithm` is a stateless singleton that answers four questions about a problem and builds an
`Execution`.  An Execution is made once for one problem, direction and workspace limit: tables are
built and blocks chosen there, so that a call only runs kernels.

To add an algorithm: a folder with a subclass of `Algorithm`, and its line in ``algorithms/__init__.py``.
The contract test then runs it on every case in every direction.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastconv.jit import Kernel
    from fastconv.threads import Typed

CHANNELS_FIRST = "reads images channel by channel (nchw), the problem has them pixel by pixel (nhwc)"


class Execution(ABC):
    """One problem in one direction by one algorithm, ready to run on arrays.

    The two operands by direction::

        FORWARD       input,       weight       -> output        (bias, residual and activation apply)
        INPUT_GRAD    grad_output, weight       -> grad_input    (they do, for transposed convolution)
        WEIGHT_GRAD   input,       grad_output  -> grad_weight

    Operands and ``out`` are aligned, native and of the problem's dtype; C-contiguous, or in the layout nhwc
    such that images (n, c, h, w) would be as (n, h, w, c): `pixels` views those.  ``bias`` is an
    array with an element for each channel of ``out``, or of none.  ``activation`` is a code or a jitted function of
    `fastconv.activations`, applied last.  ``residual`` is added before it: an array like ``out``, or of none.
    """

    workspace: int = 0  # bytes of scratch that run() takes from fastconv.workspace

    @functools.cached_property
    def typed(self) -> Mapping[Kernel, Typed]:
        """Kernels as this execution calls them: each with arguments of the same types every time."""
        from fastconv.threads import TypedKernels  # imports Numba

        return TypedKernels()

    @abstractmethod
    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        """Compute ``out``; every element is written."""

    def prepare(self, weight: Array) -> Array:
        """Return the weight in the form `run_prepared` takes, in memory of its own."""
        return weight.copy()

    def run_prepared(
        self, first: Array, prepared: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        """Like `run`, with what `prepare` returned in the place of the weight."""
        self.run(first, prepared, out, bias, activation, residual)

    def of_more_taps(self, problem: ConvProblem) -> Execution | None:
        """Return the same for weights with taps besides that meet nothing, if those can be passed over in place."""
        return None


class Adapter(Execution):
    """An execution that runs another, ``inner``, on operands and results in another form."""

    inner: Execution

    def through(
        self, run: Any, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        """Call ``run``, the inner `run` or `run_prepared`; ``second`` has its form already."""
        run(first, second, out, bias, activation, residual)

    def turned(self, second: Array) -> Array:
        """Return the second operand in the form that ``inner`` takes."""
        return second

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        self.through(self.inner.run, first, self.turned(second), out, bias, activation, residual)

    def prepare(self, weight: Array) -> Array:
        return self.inner.prepare(self.turned(weight))

    def run_prepared(
        self, first: Array, prepared: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        self.through(self.inner.run_prepared, first, prepared, out, bias, activation, residual)


class Algorithm(ABC):
    """Whether, how fast, with how much memory and how exactly a problem is solved; and the solving."""

    name: ClassVar[str]
    exact: ClassVar[bool] = False  # only adds and multiplies what is given: integers have no error

    def variant(self, suffix: str) -> Algorithm:
        """Return the variant that a user names by ``name:suffix``."""
        raise ValueError(f"algorithm {self.name} has no variants, got '{self.name}:{suffix}'")

    def reject(self, problem: ConvProblem, direction: Direction) -> str | None:
        """Return why the algorithm cannot give the right result, or None; speed is no reason."""
        return None

    @abstractmethod
    def workspace(self, problem: ConvProblem, direction: Direction, limit: int) -> int:
        """Return the bytes of scratch it would take when asked to stay within ``limit``.

        More than ``limit`` means that it cannot work in blocks that small.
        """

    @abstractmethod
    def cost(self, problem: ConvProblem, direction: Direction) -> float:
        """Predict seconds by `fastconv.roofline`, weights not prepared; in microseconds, as a choice asks everyone.

        Never depends on the number of threads in use, so that the choice, and with it every bit of
        the result, does not either.
        """

    def preparing(self, problem: ConvProblem) -> float:
        """Return how many of the seconds of a forward call its weights take, and prepared ones do not."""
        return 0.0

    def floor(self, problem: ConvProblem, direction: Direction) -> float:
        """Return seconds on the CPU that it cannot beat: one that another beats is not asked for its cost.

        Infinite where another always costs less.
        """
        return 0.0

    def error_growth(self, problem: ConvProblem, direction: Direction) -> float:
        """Return the factor of its rounding error over that of naive summation."""
        return 1.0

    @abstractmethod
    def build(self, problem: ConvProblem, direction: Direction, limit: int) -> Execution:
        """Make ready to run within ``limit`` bytes of scratch."""


def flat(array: Array) -> Array:
    """View a contiguous array as one row, as kernels take it."""
    return array.ravel()  # half the time of reshape


def pixels(array: Array) -> Array:
    """View images in the layout nhwc as one row, as kernels take it."""
    return array.transpose((0, *range(2, array.ndim), 1)).reshape(-1)


def equalised(total: int, most: int) -> list[tuple[int, int]]:
    """Cut ``total`` into the fewest parts of at most ``most``, whose sizes differ by at most one.

    >>> equalised(13, 3)
    [(0, 3), (3, 3), (6, 3), (9, 2), (11, 2)]
    """
    parts = -(-total // most)
    starts = [total * i // parts if parts else 0 for i in range(parts + 1)]
    sizes = sorted((b - a for a, b in pairwise(starts)), reverse=True)
    cuts = np.concatenate(([0], np.cumsum(sizes))).astype(int) if parts else [0]
    return [(int(cuts[i]), sizes[i]) for i in range(parts)]
