"""What is to be computed: an immutable description, with the geometry of the forward pass.

One alphabet everywhere::

    x[n, c, h, w]   input            w[k, c/groups, r, s]   weight            y[n, k, p, q]   output

    y[n, k, p, q] = sum over c, r, s of  x[n, c, p*stride + r*dilation - pad_lo, ...] * w[k, c, r, s]

An axis of ``size`` input pixels, padded by ``lo`` and ``hi`` zeros, holds

    output = (lo + size + hi - (dilation * (kernel - 1) + 1)) // stride + 1

positions of the kernel.  Negative padding crops.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

FLOATS = ("float32", "float64")  # what algorithms compute with; `fastconv.dtypes` carries the others by these
ITEMSIZE = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "complex64": 8,
    "complex128": 16,
}
DTYPES = tuple(ITEMSIZE)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
LAYOUTS = ("nchw", "nhwc")  # of the images in memory: channel by channel, or pixel by pixel


class derived(Generic[T]):
    """`functools.cached_property` without its lock, which until Python 3.12 took half of the time of a choice."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function, self.name = function, function.__name__
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type) -> T:
        if instance is None:
            return self  # type: ignore[return-value]
        value = instance.__dict__[self.name] = self.function(instance)
        return value


class Direction(StrEnum):
    """Which of the three convolutions of training is wanted."""

    FORWARD = "forward"  #           input,       weight      -> output
    INPUT_GRAD = "input_grad"  #     grad_output, weight      -> grad_input
    WEIGHT_GRAD = "weight_grad"  #   input,       grad_output -> grad_weight

    def roles(self, x: T, w: T, y: T) -> tuple[T, T, T]:
        """Return which of input, weight and output is the first operand, the second one and the result."""
        if self is Direction.FORWARD:
            return x, w, y
        return (y, w, x) if self is Direction.INPUT_GRAD else (x, y, w)


def told(function: Callable[[ConvProblem, Direction], T]) -> Callable[[ConvProblem, Direction], T]:
    """Keep what a function tells of a problem with the problem: a cache beside them would hash it, and forget others."""
    names = {direction: f"{function.__name__} {direction}" for direction in Direction}

    @functools.wraps(function)
    def known(problem: ConvProblem, direction: Direction) -> T:
        kept, name = problem.__dict__, names[direction]
        if name not in kept:
            kept[name] = function(problem, direction)
        return kept[name]  # type: ignore[no-any-return]

    return known


# Names of the module are found in a fifth of the time of an enumeration's attributes.
FORWARD, INPUT_GRAD, WEIGHT_GRAD = Direction


class Axis(NamedTuple):  # hashed and made in half the time of a dataclass: a choice does both
    """One spatial axis: input size, kernel size and how the kernel walks."""

    size: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    lo: int = 0
    hi: int = 0

    @property
    def extent(self) -> int:
        """Pixels that a kernel spans, gaps included."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def output(self) -> int:
        """Positions of the kernel along this axis."""
        size, kernel, stride, dilation, lo, hi = self
        return (lo + size + hi - dilation * (kernel - 1) - 1) // stride + 1

    @property
    def near(self) -> Axis:
        """The same with a shorter stride, where it steps over the whole image: zeros beside it are alike.

        One position at most meets the image then, and the others stay beside it, so that tables over the padded
        pixels are as long as the result, and not as the padding.

        >>> Axis(5, 3, stride=2**40, lo=2**40 + 1, hi=2**40).near
        Axis(size=5, kernel=3, stride=8, dilation=1, lo=9, hi=5)
        """
        size, extent, stride, outputs = self.size, self.extent, self.size + self.extent, self.output
        if self.stride <= stride:
            return self
        # the first position that is not before the image, and the pixel where it begins
        one = min(max(0, (self.lo - extent) // self.stride + 1), outputs)
        at = min(one * self.stride - self.lo, size) if one < outputs else size
        lo = one * stride - at
        return self._replace(stride=stride, lo=lo, hi=max(0, (outputs - 1) * stride + extent - size - lo))


POINT = Axis(1, 1)  # the axis that a row of pixels lacks


@dataclass(frozen=True)  # without slots: what is derived is kept in the instance
class ConvProblem:
    """An N-dimensional convolution; always the forward geometry, whatever the direction.

    Prints as one line, which `parse` reads back::

        >>> p = ConvProblem.parse("n8 c64 k64 i56x56 f3x3 p1:1x1:1")
        >>> p.output_shape
        (8, 64, 56, 56)
        >>> print(p)
        n8 c64 k64 i56x56 f3x3 p1:1x1:1
    """

    n: int
    c: int
    k: int
    axes: tuple[Axis, ...]
    groups: int = 1
    dtype: str = "float32"
    padding_mode: str = "zeros"  # what fills the padding
    layout: str = "nchw"  # of input and output in memory; shapes are (n, c, h, w) in any

    @derived
    def _hash(self) -> int:
        return hash(
            (self.n, self.c, self.k, self.axes, self.groups, self.dtype, self.padding_mode, self.layout)
        )

    def __hash__(self) -> int:  # kept: a plan is built by a dozen look-ups
        return self._hash

    def __getstate__(self) -> dict[str, object]:  # a process hashes text in its own way
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    @derived
    def input_shape(self) -> tuple[int, ...]:
        """Shape of x: (n, c, h, w)."""
        return (self.n, self.c, *(a.size for a in self.axes))

    @derived
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of w: (k, c / groups, r, s)."""
        return (self.k, self.c // self.groups, *self.kernel)

    @derived
    def output_shape(self) -> tuple[int, ...]:
        """Shape of y: (n, k, p, q)."""
        return (self.n, self.k, *self.output)

    def last_axes(self, count: int) -> tuple[Axis, ...]:
        """Return the last ``count`` axes; those that are missing are of one pixel."""
        missing = count - len(self.axes)
        return self.axes[-count:] if missing <= 0 else (POINT,) * missing + self.axes

    @derived
    def kernel(self) -> tuple[int, ...]:
        """(r, s)."""
        return tuple([a.kernel for a in self.axes])

    @derived
    def output(self) -> tuple[int, ...]:
        """(p, q)."""
        return tuple([a.output for a in self.axes])

    @derived
    def itemsize(self) -> int:
        """Bytes of an element."""
        return ITEMSIZE[self.dtype]

    @derived
    def is_depthwise(self) -> bool:
        """Whether each group reads exactly one channel."""
        return self.groups == self.c and self.groups > 1

    @derived
    def plain(self) -> bool:
        """Whether every stride and dilation is 1."""
        for _, _, stride, dilation, _, _ in self.axes:  # noqa: SIM110  (in a third of the time of a generator)
            if stride != 1 or dilation != 1:
                return False
        return True

    @property
    def unit_stride(self) -> bool:
        """Whether every stride is 1."""
        return self.plain or max([a.stride for a in self.axes]) == 1

    @property
    def undilated(self) -> bool:
        """Whether every dilation is 1."""
        return self.plain or max([a.dilation for a in self.axes]) == 1

    @derived
    def elements(self) -> tuple[int, int, int]:
        """Of input, weight and output."""
        image = self.n * prod([a.size for a in self.axes])
        return self.c * image, self.k * self.reduction, self.n * self.k * prod(self.output)

    @derived
    def flops(self) -> int:
        """Multiplications and additions of the definition, the same in all three directions."""
        _, weight, output = self.elements
        return 2 * output * weight // self.k

    @derived
    def reduction(self) -> int:
        """Products summed into one output: c / groups * r * s."""
        return self.c // self.groups * prod(self.kernel)

    @derived
    def bytes(self) -> int:
        """Size of input, weight and output together: what must move at the least."""
        return self.itemsize * sum(self.elements)

    def __str__(self) -> str:
        def field(letter: str, values: list[str], default: str) -> str:
            return "" if set(values) == {default} else f" {letter}{'x'.join(values)}"

        a = self.axes
        return (
            f"n{self.n} c{self.c} k{self.k} i{'x'.join(str(x.size) for x in a)}"
            f" f{'x'.join(str(x.kernel) for x in a)}"
            + field("s", [str(x.stride) for x in a], "1")
            + field("p", [f"{x.lo}:{x.hi}" for x in a], "0:0")
            + field("d", [str(x.dilation) for x in a], "1")
            + (f" g{self.groups}" if self.groups != 1 else "")
            + (f" {self.dtype}" if self.dtype != "float32" else "")
            + (f" {self.padding_mode}" if self.padding_mode != "zeros" else "")
            + (f" {self.layout}" if self.layout != "nchw" else "")
        )

    @classmethod
    def parse(cls, line: str) -> ConvProblem:
        """Read a problem from its printed line.

        Left out: n and g are 1, k is c, s and d are 1, p is 0.  One value stands for all axes and ``p1`` for
        ``p1:1``.
        """
        if not isinstance(line, str):
            raise TypeError(f"problem line must be text, got {type(line).__name__}")
        fields: dict[str, str] = {}
        dtype = layout = mode = ""
        for word in line.split():
            match = re.fullmatch(
                r"([nckg])(\d+)|([ifsd])(\d+(?:x\d+)*)|(p)(-?\d+(?::-?\d+)?(?:x-?\d+(?::-?\d+)?)*)", word
            )
            if word in DTYPES and not dtype:
                dtype = word
                continue
            if word in PADDING_MODES and not mode:
                mode = word
                continue
            if word in LAYOUTS and not layout:
                layout = word
                continue
            letter, value = [g for g in match.groups() if g] if match else ("", "")
            if not letter or letter in fields:
                raise ValueError(f"problem line: cannot read {word!r} in {line!r}")
            fields[letter] = value
        if missing := [letter for letter in "cif" if letter not in fields]:
            raise ValueError(f"problem line: {', '.join(missing)} missing in {line!r}")
        sizes = [int(v) for v in fields["i"].split("x")]
        rank = len(sizes)

        def per_axis(letter: str, default: str) -> list[str]:
            values = fields.get(letter, default).split("x")
            if len(values) not in (1, rank):
                raise ValueError(
                    f"problem line: {letter} has {len(values)} values for {rank} axes in {line!r}"
                )
            return values * (rank // len(values))

        pads = [v.split(":") for v in per_axis("p", "0")]
        axes = tuple(
            Axis(size, int(f), int(s), int(d), int(p[0]), int(p[-1]))
            for size, f, s, d, p in zip(
                sizes, per_axis("f", ""), per_axis("s", "1"), per_axis("d", "1"), pads, strict=True
            )
        )
        n, c = int(fields.get("n", 1)), int(fields["c"])
        k, groups = int(fields.get("k", c)), int(fields.get("g", 1))
        return cls(n, c, k, axes, groups, dtype or "float32", mode or "zeros", layout or "nchw").checked()

    def checked(self) -> ConvProblem:
        """Return the problem, or raise ValueError with the rule that is broken and its numbers."""
        if self.n < 0:
            raise ValueError(f"batch size must be at least 0, got {self.n}")
        for name, value in (
            ("input channels", self.c), ("output channels", self.k), ("groups", self.groups),
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for what, count in (("input", self.c), ("output", self.k)):
            if count % self.groups:
                raise ValueError(f"{what} channels must be divisible by groups: {count} % {self.groups} != 0")
        for i, a in enumerate(self.axes):
            for name, value in (
                ("input size", a.size), ("kernel size", a.kernel), ("stride", a.stride), ("dilation", a.dilation),
            ):  # fmt: skip
                if value < 1:
                    raise ValueError(f"{name} must be at least 1, got {value} on spatial axis {i}")
            padded = a.lo + a.size + a.hi
            if a.extent > padded:
                raise ValueError(
                    f"kernel does not fit the padded input on spatial axis {i}: it spans "
                    f"{a.dilation} * ({a.kernel} - 1) + 1 = {a.extent} pixels, "
                    f"the input has {a.lo} + {a.size} + {a.hi} = {padded}"
                )
            if self.padding_mode != "zeros" and min(a.lo, a.hi) < 0:
                raise ValueError(
                    f"padding must be at least 0 where padding_mode is {self.padding_mode!r}, got ({a.lo}, {a.hi}) "
                    f"on spatial axis {i}"
                )
            if min(a.lo, a.hi) < -a.size:
                raise ValueError(
                    f"padding ({a.lo}, {a.hi}) crops more than the {a.size} pixels of spatial axis {i}"
                )
        largest = max(self.elements)
        if largest * self.itemsize >= 2**62:
            raise ValueError(f"problem too large: an array would hold {largest} elements")
        if self.padding_mode != "zeros" and not any(a.lo or a.hi for a in self.axes):
            return replace(self, padding_mode="zeros")  # nothing is padded
        return self
