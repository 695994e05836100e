"""The kernels of pooling; planes are maps of one channel of one image, three axes each.

A row of results is computed tap by tap: each tap of the window is a row of the input, shifted, read by the
stride and taken into the row of results, so the inner loop runs over neighbouring results and vectorises for
strides of one and two.  Windows wider than the row of results is long, as in global pooling, are gone through
one by one.  Tasks are planes: gradients of overlapping windows meet within one.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from fastconv import jit
from fastconv.gemm.schedule import part


class Geometry(NamedTuple):
    """Planes, then input size, results, window, stride, padding and dilation of (depth, height, width)."""

    planes: int
    size_d: int
    size_h: int
    size_w: int
    out_d: int
    out_h: int
    out_w: int
    kernel_d: int
    kernel_h: int
    kernel_w: int
    stride_d: int
    stride_h: int
    stride_w: int
    pad_d: int
    pad_h: int
    pad_w: int
    dilation_d: int
    dilation_h: int
    dilation_w: int
    count_pad: bool  # whether a mean counts the padding
    divisor: int  #  what a mean divides by instead, if not 0


@jit.inner
def tap_range(first, stride, size, outputs):
    """Return the positions lo <= q < hi for which pixel ``first + q*stride`` exists."""
    lo = max(0, -(first // stride))
    return lo, max(lo, min(outputs, (size - 1 - first) // stride + 1))


@jit.inner
def _larger(y, y0, x, x0, count, step):
    """Take every ``step``-th pixel into the maxima; a NaN wins.  Unsigned indices spare the test for wrapping."""
    if step == 1:
        for q in range(count):
            v, best = x[np.uint64(x0 + q)], y[np.uint64(y0 + q)]
            y[np.uint64(y0 + q)] = v if (v > best) | np.isnan(v) else best
    elif step == 2:
        for q in range(count):
            v, best = x[np.uint64(x0 + 2 * q)], y[np.uint64(y0 + q)]
            y[np.uint64(y0 + q)] = v if (v > best) | np.isnan(v) else best
    else:
        for q in range(count):
            v, best = x[np.uint64(x0 + q * step)], y[np.uint64(y0 + q)]
            y[np.uint64(y0 + q)] = v if (v > best) | np.isnan(v) else best


@jit.inner
def _largest_of_each(y, y0, x, x0, geo):
    """Take each window's pixels of an input row into its maximum, window by window."""
    for q in range(geo.out_w):
        first = q * geo.stride_w - geo.pad_w
        lo, hi = tap_range(first, geo.dilation_w, geo.size_w, geo.kernel_w)
        best = y[y0 + q]
        for s in range(lo, hi):
            v = x[np.uint64(x0 + first + s * geo.dilation_w)]
            best = v if (v > best) | np.isnan(v) else best
        y[y0 + q] = best


@jit.inner
def _larger_at(y, indices, y0, x, plane, pixel, count, step):
    """Do as `_larger`, and keep where in its plane each maximum stands: the first of equals."""
    for q in range(count):
        at = pixel + q * step
        v, best = x[np.uint64(plane + at)], y[np.uint64(y0 + q)]
        won = (v > best) | np.isnan(v) | (indices[np.uint64(y0 + q)] < 0)
        y[np.uint64(y0 + q)] = v if won else best
        indices[np.uint64(y0 + q)] = at if won else indices[np.uint64(y0 + q)]


@jit.inner
def _max_row(y, indices, y0, x, plane, geo, o, p):
    """Compute one row of maxima; ``indices`` is as long as y, or empty."""
    located = indices.size > 0
    y[y0 : y0 + geo.out_w] = -np.inf
    if located:
        indices[y0 : y0 + geo.out_w] = -1
    for t in range(geo.kernel_d):
        d = o * geo.stride_d + t * geo.dilation_d - geo.pad_d
        for r in range(geo.kernel_h):
            h = p * geo.stride_h + r * geo.dilation_h - geo.pad_h
            if d < 0 or d >= geo.size_d or h < 0 or h >= geo.size_h:
                continue
            if geo.out_w < geo.kernel_w and not located:
                _largest_of_each(y, y0, x, plane + (d * geo.size_h + h) * geo.size_w, geo)
                continue
            for s in range(geo.kernel_w):
                first = s * geo.dilation_w - geo.pad_w
                lo, hi = tap_range(first, geo.stride_w, geo.size_w, geo.out_w)
                pixel = (d * geo.size_h + h) * geo.size_w + first + lo * geo.stride_w
                if located:
                    _larger_at(y, indices, y0 + lo, x, plane, pixel, hi - lo, geo.stride_w)
                else:
                    _larger(y, y0 + lo, x, plane + pixel, hi - lo, geo.stride_w)


@jit.kernel
def max_forward(workers, x, y, indices, geos):
    """Write maxima, and where they stand if ``indices`` is as long as y."""
    for worker in numba.prange(workers):
        _max_planes(worker, workers, x, y, indices, geos[0])


@jit.inner
def _max_planes(worker, workers, x, y, indices, geo):
    size = geo.size_d * geo.size_h * geo.size_w
    for plane in range(part(geo.planes, workers, worker), part(geo.planes, workers, worker + 1)):
        for row in range(geo.out_d * geo.out_h):
            y0 = (plane * geo.out_d * geo.out_h + row) * geo.out_w
            _max_row(y, indices, y0, x, plane * size, geo, row // geo.out_h, row % geo.out_h)


@jit.kernel
def max_backward(workers, indices, gy, gx, geos):
    """Give each gradient to the pixel that its window took."""
    for worker in numba.prange(workers):
        _spread_maxima(worker, workers, indices, gy, gx, geos[0])


@jit.inner
def _spread_maxima(worker, workers, indices, gy, gx, geo):
    size, results = geo.size_d * geo.size_h * geo.size_w, geo.out_d * geo.out_h * geo.out_w
    for plane in range(part(geo.planes, workers, worker), part(geo.planes, workers, worker + 1)):
        gx[plane * size : (plane + 1) * size] = 0
        for i in range(plane * results, (plane + 1) * results):
            if indices[i] >= 0:  # a dilated window may step over all pixels
                gx[plane * size + indices[i]] += gy[i]


@jit.inner
def _counted(position, kernel, stride, pad, dilation, size, count_pad):
    """Return how many pixels of an axis a window's mean counts."""
    first = position * stride - pad
    if count_pad:
        return min(first + kernel, size + pad) - first
    lo, hi = tap_range(first, dilation, size, kernel)
    return hi - lo


@jit.inner
def _divisors(shares, geo, o, p):
    """Write the factor of each window of a row: one over the pixels that it counts."""
    rows = _counted(o, geo.kernel_d, geo.stride_d, geo.pad_d, 1, geo.size_d, geo.count_pad) * _counted(
        p, geo.kernel_h, geo.stride_h, geo.pad_h, 1, geo.size_h, geo.count_pad
    )
    for q in range(geo.out_w):
        counted = rows * _counted(q, geo.kernel_w, geo.stride_w, geo.pad_w, 1, geo.size_w, geo.count_pad)
        shares[q] = 1 / (geo.divisor if geo.divisor else counted)


@jit.inner
def _add(to, t0, t_step, source, s0, s_step, count):
    """Add pixels to pixels, each with a step of its own; steps of one and two vectorise."""
    if s_step == t_step == 1:
        for q in range(count):
            to[np.uint64(t0 + q)] += source[np.uint64(s0 + q)]
    elif s_step == 2 and t_step == 1:
        for q in range(count):
            to[np.uint64(t0 + q)] += source[np.uint64(s0 + 2 * q)]
    else:
        for q in range(count):
            to[np.uint64(t0 + t_step * q)] += source[np.uint64(s0 + s_step * q)]


@jit.inner
def _mean_of_each(small, s0, large, l0, geo, backward):
    """Add each window's pixels of an input row to its result, or its result to them, window by window."""
    for q in range(geo.out_w):
        first = q * geo.stride_w - geo.pad_w
        lo, hi = tap_range(first, 1, geo.size_w, geo.kernel_w)
        total = small[s0 + q]
        for s in range(lo, hi):
            if backward:
                large[np.uint64(l0 + first + s)] += total
            else:
                total += large[np.uint64(l0 + first + s)]
        small[s0 + q] = total


@jit.inner
def _mean_taps(small, s0, large, plane, geo, o, p, backward):
    """Add every tap's row of the input to a row of results, or the row of results to every tap's row."""
    for t in range(geo.kernel_d):
        d = o * geo.stride_d + t - geo.pad_d
        for r in range(geo.kernel_h):
            h = p * geo.stride_h + r - geo.pad_h
            if d < 0 or d >= geo.size_d or h < 0 or h >= geo.size_h:
                continue
            if geo.out_w < geo.kernel_w:
                _mean_of_each(small, s0, large, plane + (d * geo.size_h + h) * geo.size_w, geo, backward)
                continue
            for s in range(geo.kernel_w):
                lo, hi = tap_range(s - geo.pad_w, geo.stride_w, geo.size_w, geo.out_w)
                pixel = plane + (d * geo.size_h + h) * geo.size_w + s - geo.pad_w + lo * geo.stride_w
                if backward:
                    _add(large, pixel, geo.stride_w, small, s0 + lo, 1, hi - lo)
                else:
                    _add(small, s0 + lo, 1, large, pixel, geo.stride_w, hi - lo)


@jit.kernel
def mean_forward(workers, x, y, geos):
    """Write means."""
    for worker in numba.prange(workers):
        _mean_planes(worker, workers, x, y, geos[0])


@jit.inner
def _mean_planes(worker, workers, x, y, geo):
    size = geo.size_d * geo.size_h * geo.size_w
    shares = np.empty(geo.out_w, y.dtype)
    for plane in range(part(geo.planes, workers, worker), part(geo.planes, workers, worker + 1)):
        for row in range(geo.out_d * geo.out_h):
            y0 = (plane * geo.out_d * geo.out_h + row) * geo.out_w
            y[y0 : y0 + geo.out_w] = 0
            _mean_taps(y, y0, x, plane * size, geo, row // geo.out_h, row % geo.out_h, False)
            _divisors(shares, geo, row // geo.out_h, row % geo.out_h)
            y[y0 : y0 + geo.out_w] *= shares


@jit.kernel
def mean_backward(workers, gy, gx, geos):
    """Give each pixel its share of the gradients of the windows that count it."""
    for worker in numba.prange(workers):
        _spread_means(worker, workers, gy, gx, geos[0])


@jit.inner
def _spread_means(worker, workers, gy, gx, geo):
    size = geo.size_d * geo.size_h * geo.size_w
    shares = np.empty(geo.out_w, gy.dtype)
    for plane in range(part(geo.planes, workers, worker), part(geo.planes, workers, worker + 1)):
        gx[plane * size : (plane + 1) * size] = 0
        for row in range(geo.out_d * geo.out_h):
            y0 = (plane * geo.out_d * geo.out_h + row) * geo.out_w
            _divisors(shares, geo, row // geo.out_h, row % geo.out_h)
            shares *= gy[y0 : y0 + geo.out_w]
            _mean_taps(shares, 0, gx, plane * size, geo, row // geo.out_h, row % geo.out_h, True)
