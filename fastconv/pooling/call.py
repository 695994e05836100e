"""A call of pooling from end to end, for one to three axes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from fastconv import arguments
from fastconv.arrays import FLOATS, common, contiguous, empty, floats, or_on_gpu, package
from fastconv.pooling.windows import Axes, check_rank, windows
from fastconv.typing import Array

INDICES = np.dtype("int64")
NOWHERE = np.empty(0, INDICES)


def replayed(**places: int) -> Callable[[Any], Any]:
    """Return what makes a call's twin for a GPU: itself, given the memory of the arrays at ``places``, and replayed."""

    def made(function: Any) -> Any:
        from fastconv.cuda import backend, replay

        backend()  # DeviceError before kernels are imported
        return replay.replayed(**places)(function)

    return made


@or_on_gpu(1, replayed(input=1))
def max_forward(
    rank: int, input: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any, located: Any
) -> tuple[Array, Array]:  # fmt: skip
    """Return maxima, and their flat places in each map or an empty array."""
    x = images(input, "input")
    return largest(
        x, windows(rank, x.shape, kernel_size, stride, padding, dilation, ceil_mode), rank, located
    )


@or_on_gpu(1, replayed(input=1, grad_output=2, indices=8))
def max_backward(
    rank: int, input: Any, grad_output: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any,
    indices: Any,
) -> Array:  # fmt: skip
    """Return the gradient by the input."""
    x, gy = images(input, "input"), images(grad_output, "grad_output")
    axes = windows(rank, x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    if indices is None:
        return to_largest(x, gy, axes, rank)
    _check_grad_output(gy, x.shape, axes, rank)
    if there(x):
        return kernels_there().to_places(x, gy, indices, axes, rank)  # type: ignore[no-any-return]
    return _scattered()(contiguous(gy, common(x, gy)), indices, x.shape[-rank:], rank, True)


@or_on_gpu(1, replayed(input=1))
def mean_forward(
    rank: int, input: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: Any, count_pad: Any, divisor: Any
) -> Array:  # fmt: skip
    """Return means."""
    x = images(input, "input")
    axes = windows(rank, x.shape, kernel_size, stride, padding, 1, ceil_mode)
    return means(x, axes, rank, bool(count_pad), divisor)


@or_on_gpu(2, replayed(grad_output=2))
def mean_backward(
    rank: int, input_size: Any, grad_output: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: Any,
    count_pad: Any, divisor: Any,
) -> Array:  # fmt: skip
    """Return the gradient by the input."""
    size = arguments.shape(input_size, "input_size")
    axes = windows(rank, size, kernel_size, stride, padding, 1, ceil_mode)
    return to_all(size, images(grad_output, "grad_output"), axes, rank, bool(count_pad), divisor)


def images(value: Any, name: str) -> Any:
    """View an operand as a NumPy array; the memory of one on a GPU is given back."""
    if (type(value) is np.ndarray and value.dtype in FLOATS) or there(value):
        return value
    return floats(value, name)


def there(x: Any) -> bool:
    """Return whether what a call was given is memory on a GPU."""
    kind: Any = type(x)
    return kind is not np.ndarray and package(kind) == "fastconv"


@functools.cache
def kernels_there() -> Any:
    """Return the functions of the same names for memory on a GPU, imported."""
    from fastconv.pooling import cuda

    return cuda


@functools.cache
def whole_maps() -> Any:
    """Return the functions for windows that are all of a map."""
    from fastconv import planes  # imports Numba; the statement takes 1.7 us each time

    return planes


@functools.lru_cache(512)
def kernels(axes: Axes, dtype: np.dtype[Any], backward: bool = False) -> Any:
    """Return the functions for windows: row by row, or where those are not of a shape for it, sixteen maps at a time."""
    from fastconv.pooling import cpu, rowwise  # import Numba

    return rowwise if rowwise.serves(axes, dtype, backward) else cpu


def largest(x: Array, axes: Axes, rank: int, located: Any) -> tuple[Array, Array]:
    """Return the maxima of windows, and their places or an empty array."""
    if there(x):
        return kernels_there().largest(x, axes, rank, bool(located))  # type: ignore[no-any-return]  # the caller's kind
    if axes.whole:
        values, places = whole_maps().maxima(_planes(x, axes, common(x)), located)
        shape = (*x.shape[:-rank], *axes.outputs)
        return values.reshape(shape), places.reshape(shape) if located else places
    y = empty((*x.shape[:-rank], *axes.outputs), common(x))
    indices = empty(y.shape, INDICES) if located else NOWHERE
    kernels(axes, y.dtype).maxima(axes, contiguous(x, y.dtype), y, indices)
    return y, indices


def to_largest(x: Array, gy: Array, axes: Axes, rank: int) -> Array:
    """Return the gradient by the input of maxima."""
    _check_grad_output(gy, x.shape, axes, rank)
    if there(x):
        return kernels_there().to_largest(x, gy, axes, rank)  # type: ignore[no-any-return]
    if axes.whole:
        planes = _planes(x, axes, common(x, gy))
        gx: Array = whole_maps().given(planes, contiguous(gy, planes.dtype).reshape(-1))
        return gx.reshape(x.shape)
    gx = empty(x.shape, common(x, gy))
    backward = kernels(axes, gx.dtype, True).gradient_of_maxima
    backward(axes, contiguous(x, gx.dtype), contiguous(gy, gx.dtype), gx)
    return gx


def means(x: Array, axes: Axes, rank: int, count_pad: bool = True, divisor: Any = None) -> Array:
    """Return the means of windows."""
    divides = _divisor(divisor)
    if there(x):
        return kernels_there().means(x, axes, rank, count_pad, divides)  # type: ignore[no-any-return]
    if axes.whole:
        total: Array = whole_maps().sums(_planes(x, axes, common(x)), divides or axes.pixels)
        return total.reshape(*x.shape[:-rank], *axes.outputs)
    y = empty((*x.shape[:-rank], *axes.outputs), common(x))
    kernels(axes, y.dtype).means(axes, contiguous(x, y.dtype), y, count_pad, divides)
    return y


def to_all(
    size: tuple[int, ...],
    gy: Array,
    axes: Axes,
    rank: int,
    count_pad: bool = True,
    divisor: Any = None,
) -> Array:
    """Return the gradient by the input of means."""
    divides = _divisor(divisor)
    _check_grad_output(gy, size, axes, rank)
    if there(gy):
        return kernels_there().to_all(size, gy, axes, rank, count_pad, divides)  # type: ignore[no-any-return]
    if axes.whole:
        spread: Array = whole_maps().spread(gy.reshape(-1), axes.pixels, divides or axes.pixels)
        return spread.reshape(size)
    gx = empty(size, common(gy))
    kernels(axes, gx.dtype, True).gradient_of_means(axes, contiguous(gy, gx.dtype), gx, count_pad, divides)
    return gx


def _planes(x: Array, axes: Axes, dtype: np.dtype[Any]) -> Array:
    """View whole maps as rows."""
    return contiguous(x, dtype).reshape(x.size // axes.pixels, axes.pixels)


def _divisor(value: Any) -> int:
    return 0 if value is None else arguments.integer(value, "divisor_override", 1)


def _check_grad_output(gy: Array, input_shape: tuple[int, ...], axes: Axes, rank: int) -> None:
    """Refuse a gradient that is not of the output's shape."""
    expected = (*input_shape[:-rank], *axes.outputs)
    if gy.shape != expected:
        raise ValueError(f"grad_output must have the output's shape {expected}, got {gy.shape}")


@or_on_gpu(1, replayed(input=1, indices=2))
def unpool(
    rank: int, input: Any, indices: Any, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> Array:  # fmt: skip
    """Return an image of zeros with the input's values where ``indices`` points."""
    x = images(input, "input")
    check_rank(rank, x.shape)
    kernels = arguments.per_axis(kernel_size, rank, "kernel_size")
    strides = kernels if stride is None else arguments.per_axis(stride, rank, "stride")
    pads = arguments.per_axis(padding, rank, "padding", 0)
    size = tuple(
        (n - 1) * s - 2 * p + k for n, s, p, k in zip(x.shape[-rank:], strides, pads, kernels, strict=True)
    )
    if min(size) < 1 or prod(size) >= arguments.HUGE:
        raise ValueError(
            f"(P - 1) * stride - 2 * padding + kernel_size is no size: {size} for {x.shape[-rank:]} windows, "
            f"stride {strides}, padding {pads}, kernel_size {kernels}"
        )
    if output_size is not None:
        wanted = arguments.shape(output_size, "output_size")[-rank:]
        if len(wanted) != rank or any(abs(w - n) >= s for w, n, s in zip(wanted, size, strides, strict=True)):
            raise ValueError(f"output_size must be nearer than stride {strides} to {size}, got {wanted}")
        size = wanted
    if there(x):
        from fastconv.pooling import cuda_patches

        return cuda_patches.unpool(x, indices, size, rank)  # type: ignore[no-any-return]
    return _scattered()(contiguous(x, common(x)), indices, size, rank, False)


@functools.cache
def _scattered() -> Callable[..., Array]:
    from fastconv.pooling.scatter import scattered  # imports Numba

    return scattered
