"""Where windows lie: one axis at a time, with the letters of `fastconv.problem`.

Window p covers the pixels  p*stride + r*dilation - pad,  r < kernel, that exist.  There are

    output = floor((size + 2*pad - dilation*(kernel - 1) - 1) / stride) + 1

of them, or with ``ceil_mode`` as many as ceil gives, less a last one that would begin past the end of the
padding at the start and the pixels (PyTorch's rule).  Adaptive windows share an axis out instead: window p
of P covers the pixels from floor(p*size/P) to ceil((p + 1)*size/P), so neighbours overlap by a pixel where
P does not divide the size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from fastconv import arguments
from fastconv.arguments import HUGE, LETTERS
from fastconv.typing import Array


class Spans(NamedTuple):
    """The windows of one axis as tables: first pixel, number of pixels, and how many pixels a mean counts."""

    begin: Array
    taps: Array
    counted: Array


class Axis(NamedTuple):
    """One axis: pixels, windows, and how a window lies."""

    size: int
    output: int
    kernel: int
    stride: int
    pad: int
    dilation: int

    @property
    def whole(self) -> bool:
        """Whether there is one window, all pixels of the axis."""
        return self.output == 1 and self.kernel == self.size and not self.pad and self.dilation == 1

    def spans(self, count_pad: bool) -> Spans:
        """Return the windows; padding is counted up to the padded end only."""
        first = np.arange(self.output) * self.stride - self.pad
        skipped = np.maximum(-(first // self.dilation), 0)  # taps that lie in the padding before
        end = np.minimum(-((first - self.size) // self.dilation), self.kernel)
        taps = np.maximum(end - skipped, 0)
        padded = np.minimum(first + self.kernel, self.size + self.pad) - first
        return Spans(first + skipped * self.dilation, taps, padded if count_pad else taps)


class Share(NamedTuple):
    """One axis shared out among adaptive windows."""

    size: int
    output: int
    dilation: int = 1

    @property
    def whole(self) -> bool:
        """Whether there is one window, all pixels of the axis."""
        return self.output == 1

    def spans(self, count_pad: bool) -> Spans:
        """Return the windows."""
        p = np.arange(self.output)
        begin = p * self.size // self.output
        taps = -(-(p + 1) * self.size // self.output) - begin
        return Spans(begin, taps, taps)


class Axes(tuple[Axis | Share, ...]):
    """Depth, height and width; those that the images lack have one pixel.

    Equal arguments get the same one, so whatever is kept for it is found by its identity: cheaper than by 18 numbers.
    """

    outputs: tuple[int, ...]  # windows along the axes that the images have
    whole: bool  # whether there is one window, all pixels of a map
    pixels: int  # of a map

    @classmethod
    def of(cls, axes: Sequence[Axis | Share]) -> Axes:
        """Add the lacking axes before."""
        three = cls((*[Axis(1, 1, 1, 1, 0, 1)] * (3 - len(axes)), *axes))
        three.outputs = tuple(axis.output for axis in axes)
        three.pixels = prod(axis.size for axis in axes)
        three.whole = all(axis.whole for axis in axes)
        return three

    __hash__ = object.__hash__
    __eq__ = object.__eq__
    __ne__ = object.__ne__


def windows(
    rank: int,
    shape: tuple[int, ...],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
) -> Axes:
    """Return the axes, or raise an error that states the rule."""
    stride = kernel_size if stride is None else stride
    plain = arguments.whole(kernel_size, stride, padding, 1) and arguments.whole(dilation, 1, 1, 1)
    read = _read if plain else _read.__wrapped__  # True equals 1, and would find what was read for it
    return read(rank, shape, kernel_size, stride, padding, dilation, bool(ceil_mode))


@functools.lru_cache(512)
def _read(
    rank: int,
    shape: tuple[int, ...],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> Axes:
    check_rank(rank, shape)
    kernels = arguments.per_axis(kernel_size, rank, "kernel_size")
    strides = arguments.per_axis(stride, rank, "stride")
    pads = arguments.per_axis(padding, rank, "padding", 0)
    dilations = arguments.per_axis(dilation, rank, "dilation")
    axes = []
    for i, (size, kernel, s, pad, d) in enumerate(
        zip(shape[-rank:], kernels, strides, pads, dilations, strict=True)
    ):
        d = d if kernel > 1 else 1  # a single pixel has no gaps
        extent = d * (kernel - 1) + 1
        if size + 2 * pad >= HUGE:
            raise ValueError(
                f"problem too large: spatial axis {i} has {pad} + {size} + {pad} pixels when padded"
            )
        if 2 * pad > kernel:
            raise ValueError(
                f"padding must be at most half of kernel_size, got {pad} and {kernel} on spatial axis {i}"
            )
        room = size + 2 * pad - extent
        output = -(-room // s) + 1 if ceil_mode else room // s + 1
        if ceil_mode and (output - 1) * s >= size + pad:
            output -= 1
        if size < 1 or output < 1:
            raise ValueError(
                f"no window fits on spatial axis {i}: it spans {extent} pixels, the input has "
                f"{pad} + {size} + {pad} = {size + 2 * pad}"
            )
        axes.append(Axis(size, output, kernel, min(s, size + 2 * pad), pad, d))  # further is as far
    return Axes.of(axes)


def shares(rank: int, shape: tuple[int, ...], output_size: Any) -> Axes:
    """Return the axes for adaptive pooling; an output size of None keeps that of the input."""
    plain = type(output_size) is int or (
        type(output_size) is tuple and {*map(type, output_size)} <= {int, type(None)}
    )
    read = _shares if plain else _shares.__wrapped__
    return read(rank, shape, output_size)


@functools.lru_cache(512)
def _shares(rank: int, shape: tuple[int, ...], output_size: Any) -> Axes:
    check_rank(rank, shape)
    sizes = shape[-rank:]
    if isinstance(output_size, tuple | list) and len(output_size) == rank:
        outputs = [
            size if wanted is None else arguments.integer(wanted, "each of output_size", 1)
            for wanted, size in zip(output_size, sizes, strict=True)
        ]
    else:
        outputs = list(arguments.per_axis(output_size, rank, "output_size"))
    if min(sizes) < 1:
        raise ValueError(f"input must have a pixel on every spatial axis, got shape {shape}")
    return Axes.of([share(size, output) for size, output in zip(sizes, outputs, strict=True)])


@functools.lru_cache(512)
def share(size: int, output: int) -> Axis | Share:
    """Return an axis shared out; as sliding windows, where they are of one size and one distance."""
    shared = Share(size, output)
    begin, taps, _ = shared.spans(True)
    kernel, stride = int(taps[0]), int(begin[1]) if output > 1 else 1
    regular = (taps == kernel).all() and (begin == stride * np.arange(output)).all()
    return Axis(size, output, kernel, stride, 0, 1) if regular else shared


def check_rank(rank: int, shape: tuple[int, ...]) -> None:
    """Refuse an input of the wrong number of dimensions."""
    if len(shape) not in (rank + 1, rank + 2):
        letters = ", ".join(LETTERS[rank])
        raise ValueError(
            f"input must be (N, C, {letters}) or (C, {letters}), got {len(shape)} dimensions: {shape}"
        )
