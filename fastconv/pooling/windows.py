"""Where windows lie: one axis at a time, with the letters of `fastconv.problem`.

Window p covers the pixels  p*stride + r*dilation - pad,  r < kernel, that exist.  There are

    output = floor((size + 2*pad - dilation*(kernel - 1) - 1) / stride) + 1

of them, or with ``ceil_mode`` as many as ceil gives, less a last one that would begin past the end of the
padding at the start and the pixels (PyTorch's rule).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastconv import arguments
from fastconv.arguments import LETTERS


class Axis(NamedTuple):
    """One axis: pixels, windows, and how a window lies."""

    size: int
    output: int
    kernel: int
    stride: int
    pad: int
    dilation: int


def windows(
    rank: int,
    shape: tuple[int, ...],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
) -> tuple[Axis, ...]:
    """Return three axes, those that the input lacks of one pixel, or raise an error that states the rule."""
    if len(shape) not in (rank + 1, rank + 2):
        letters = ", ".join(LETTERS[rank])
        raise ValueError(
            f"input must be (N, C, {letters}) or (C, {letters}), got {len(shape)} dimensions: {shape}"
        )
    kernels = arguments.per_axis(kernel_size, rank, "kernel_size")
    strides = kernels if stride is None else arguments.per_axis(stride, rank, "stride")
    pads = arguments.per_axis(padding, rank, "padding", 0)
    dilations = arguments.per_axis(dilation, rank, "dilation")
    axes = [Axis(1, 1, 1, 1, 0, 1)] * (3 - rank)
    for i, (size, kernel, s, pad, d) in enumerate(
        zip(shape[-rank:], kernels, strides, pads, dilations, strict=True)
    ):
        extent = d * (kernel - 1) + 1
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
        axes.append(Axis(size, output, kernel, s, pad, d))
    return tuple(axes)
