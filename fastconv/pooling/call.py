"""A call of pooling from end to end, for one to three axes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fastconv import arguments, threads
from fastconv.arrays import Array, common, contiguous, operand
from fastconv.pooling.windows import Axis, windows


def max_forward(
    rank: int,
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    located: Any,
) -> tuple[Array, Array]:
    """Return maxima, and their flat places in each map or an empty array."""
    x = operand(input, "input")
    axes = windows(rank, x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    y = np.empty((*x.shape[:-rank], *(a.output for a in axes[-rank:])), common(x))
    indices = np.empty(y.shape if located else 0, np.int64)
    _launch("max_forward", x.shape[:-rank], axes, contiguous(x, y.dtype), y, indices)
    return y, indices


def max_backward(
    rank: int,
    input: Any,
    grad_output: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
) -> Array:
    """Return the gradient by the input."""
    x, gy = operand(input, "input"), operand(grad_output, "grad_output")
    axes = windows(rank, x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    _check_grad_output(gy, x.shape, axes, rank)
    _, indices = max_forward(rank, x, kernel_size, stride, padding, dilation, ceil_mode, True)
    gx = np.empty(x.shape, common(x, gy))
    _launch("max_backward", x.shape[:-rank], axes, indices, contiguous(gy, gx.dtype), gx)
    return gx


def mean_forward(
    rank: int,
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,
    count_pad: Any,
    divisor: Any,
) -> Array:
    """Return means."""
    x = operand(input, "input")
    axes = windows(rank, x.shape, kernel_size, stride, padding, 1, ceil_mode)
    divides = _divisor(divisor)
    y = np.empty((*x.shape[:-rank], *(a.output for a in axes[-rank:])), common(x))
    _launch(
        "mean_forward",
        x.shape[:-rank],
        axes,
        contiguous(x, y.dtype),
        y,
        count_pad=bool(count_pad),
        divisor=divides,
    )
    return y


def mean_backward(
    rank: int, input_size: Any, grad_output: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: Any,
    count_pad: Any, divisor: Any,
) -> Array:  # fmt: skip
    """Return the gradient by the input."""
    size, gy = arguments.shape(input_size, "input_size"), operand(grad_output, "grad_output")
    axes = windows(rank, size, kernel_size, stride, padding, 1, ceil_mode)
    divides = _divisor(divisor)
    _check_grad_output(gy, size, axes, rank)
    gx = np.empty(size, common(gy))
    _launch(
        "mean_backward",
        size[:-rank],
        axes,
        contiguous(gy, gx.dtype),
        gx,
        count_pad=bool(count_pad),
        divisor=divides,
    )
    return gx


def _divisor(value: Any) -> int:
    return 0 if value is None else arguments.integer(value, "divisor_override", 1)


def _check_grad_output(gy: Array, input_shape: tuple[int, ...], axes: tuple[Axis, ...], rank: int) -> None:
    expected = (*input_shape[:-rank], *(a.output for a in axes[-rank:]))
    if gy.shape != expected:
        raise ValueError(f"grad_output must have the output's shape {expected}, got {gy.shape}")


def _launch(
    kernel: str,
    maps: tuple[int, ...],
    axes: tuple[Axis, ...],
    *arrays: Array,
    count_pad: bool = False,
    divisor: int = 0,
) -> None:
    """Run a kernel on flat arrays of ``maps`` planes."""
    from fastconv.gemm.record import record  # both define kernels
    from fastconv.pooling import cpu

    numbers = [number for field in zip(*axes, strict=True) for number in field]
    geometry = cpu.Geometry._make([prod(maps), *numbers, count_pad, divisor])
    work = float(prod(maps) * prod(a.output * a.kernel for a in axes))
    threads.launch(getattr(cpu, kernel), work, *(array.reshape(-1) for array in arrays), record(geometry))
