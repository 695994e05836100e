"""Pooling on a GPU: a thread for each result, and in gradients for each pixel.

A window's pixels are met by its neighbours' threads too and come from cache; what counts is to read and write each
pixel of memory once.  In gradients a pixel goes through the windows that may hold it, in their order, so that what it
receives is added as on the CPU: of maxima, that of the windows whose place is this pixel.  Threads are numbered in the
order of memory, so both layouts are read and written side by side.
"""

from __future__ import annotations

import functools
from math import inf, isnan, prod
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import Form
from fastconv.cuda import backend
from fastconv.cuda.call import handed, order, result, taken
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import DTYPES, U, cuda, inline, int64
from fastconv.cuda.memory import Memory
from fastconv.cuda.operands import common, together
from fastconv.gemm.record import joined
from fastconv.pooling.windows import Axes

THREADS = 128
LIMIT = 2**31  # elements that are numbered in 32 bits


class Geometry(NamedTuple):
    """Pixels and windows of (depth, height, width), steps between a window's pixels, and where tables begin."""

    count: int  # results, or pixels in gradients
    inner: int  # channels, if they stand behind the pixels
    divisor: int  # of means; 0: the pixels counted
    located: int  # whether places are written
    size_d: int
    size_h: int
    size_w: int
    out_d: int
    out_h: int
    out_w: int
    step_d: int
    step_h: int
    step_w: int
    begin_d: int  # first pixels of windows
    taps_d: int  # and their pixels
    counted_d: int
    first_d: int  # windows that may hold a pixel
    last_d: int
    begin_h: int
    taps_h: int
    counted_h: int
    first_h: int
    last_h: int
    begin_w: int
    taps_w: int
    counted_w: int
    first_w: int
    last_w: int


def index(wide):
    """Return the type of whole numbers, and device functions of coordinates and divisors in it."""
    I = int64 if wide else U

    @inline
    def coordinates(at, inner, depth, height, width):
        """Return the plane's number, channel behind the pixels, and place of an element of images in memory."""
        i, rest = I(at % inner), I(at // inner)
        w, rest = I(rest % width), I(rest // width)
        h, rest = I(rest % height), I(rest // height)
        return I(rest // depth), i, I(rest % depth), h, w

    @inline
    def counted(tables, g, o, p, q):
        """Return what a mean is divided by."""
        if g.divisor > I(0):
            return I(g.divisor)
        d, h, w = tables[g.counted_d + o], tables[g.counted_h + p], tables[g.counted_w + q]
        return I(I(d) * I(I(h) * I(w)))

    return I, coordinates, counted


def pooling(dtype, mean, wide):
    """Make the kernel of results; a NaN is taken whenever it is met, and of equal pixels the first."""
    real, zero, low = DTYPES[dtype], DTYPES[dtype](0), DTYPES[dtype](-inf)
    I, coordinates, counted = index(wide)

    def pool(x, tables, out, places, g):
        at = I(I(cuda.blockIdx.x) * I(THREADS) + I(cuda.threadIdx.x))
        if at < g.count:
            plane, i, o, p, q = coordinates(at, g.inner, g.out_d, g.out_h, g.out_w)
            base = I(plane * I(g.size_d * I(g.size_h * g.size_w)))
            total, best, place = zero, low, int64(-1)
            a, taps_d, d = I(0), I(tables[g.taps_d + o]), I(tables[g.begin_d + o])
            while a < taps_d:
                b, taps_h, h = I(0), I(tables[g.taps_h + p]), I(tables[g.begin_h + p])
                while b < taps_h:
                    c, taps_w = I(0), I(tables[g.taps_w + q])
                    pixel = I(I(I(d * g.size_h) + h) * g.size_w + I(tables[g.begin_w + q]))
                    while c < taps_w:
                        value = x[int64(I(I(base + pixel) * g.inner + i))]
                        if mean:
                            total += value
                        elif place < int64(0) or value > best or isnan(value):
                            best, place = value, int64(pixel)
                        pixel = I(pixel + g.step_w)
                        c = I(c + I(1))
                    b, h = I(b + I(1)), I(h + g.step_h)
                a, d = I(a + I(1)), I(d + g.step_d)
            if mean:
                out[int64(at)] = total / real(counted(tables, g, o, p, q))
            else:
                out[int64(at)] = best
                if g.located:
                    places[int64(at)] = place

    return pool


def giving(dtype, mean, wide):
    """Make the kernel of gradients by pixels."""
    real, zero = DTYPES[dtype], DTYPES[dtype](0)
    I, coordinates, counted = index(wide)

    @inline
    def holds(tables, begin, taps, step, window, pixel):
        """Return whether one axis of a window has a pixel."""
        away = I(pixel - I(tables[begin + window]))  # below the first: huge, or negative
        return away >= I(0) and away % step == I(0) and I(away // step) < I(tables[taps + window])

    def give(gy, places, tables, out, g):
        at = I(I(cuda.blockIdx.x) * I(THREADS) + I(cuda.threadIdx.x))
        if at < g.count:
            plane, i, d, h, w = coordinates(at, g.inner, g.size_d, g.size_h, g.size_w)
            here = int64(I(I(I(d * g.size_h) + h) * g.size_w + w))
            total = zero
            o, last_d = I(tables[g.first_d + d]), I(tables[g.last_d + d])
            while o < last_d:
                p, last_h = I(tables[g.first_h + h]), I(tables[g.last_h + h])
                if not holds(tables, g.begin_d, g.taps_d, g.step_d, o, d):
                    p = last_h
                while p < last_h:
                    q, last_w = I(tables[g.first_w + w]), I(tables[g.last_w + w])
                    if not holds(tables, g.begin_h, g.taps_h, g.step_h, p, h):
                        q = last_w
                    line = I(I(I(plane * g.out_d) + o) * g.out_h + p)
                    while q < last_w:
                        window = int64(I(I(I(line * g.out_w) + q) * g.inner + i))
                        if mean:
                            if holds(tables, g.begin_w, g.taps_w, g.step_w, q, w):
                                total += gy[window] / real(counted(tables, g, o, p, q))
                        elif places[window] == here:
                            total += gy[window]
                        q = I(q + I(1))
                    p = I(p + I(1))
                o = I(o + I(1))
            out[int64(at)] = total

    return give


@functools.cache
def pool_kernel(dtype: str, mean: bool, wide: bool) -> Kernel:
    """Return the kernel of results; ``wide``: elements are numbered in 64 bits."""
    integer, pointers = "int64" if wide else "uint32", (dtype, "int32", dtype, "int64")
    return Kernel(pooling, (dtype, mean, wide), pointers, Geometry, integer, THREADS)


@functools.cache
def give_kernel(dtype: str, mean: bool, wide: bool) -> Kernel:
    """Return the kernel of gradients."""
    integer, pointers = "int64" if wide else "uint32", (dtype, "int64", "int32", dtype)
    return Kernel(giving, (dtype, mean, wide), pointers, Geometry, integer, THREADS)


@functools.lru_cache(512)
def described(axes: Axes, count_pad: bool, context: int) -> tuple[Any, Geometry]:
    """Return the tables on the GPU of a context, and the geometry of one plane."""
    tables = {}
    for letter, axis in zip("dhw", axes, strict=True):
        span = axis.spans(count_pad)
        pixels = np.arange(axis.size)
        after = np.where(span.taps > 0, span.begin + (span.taps - 1) * axis.dilation + 1, 0)
        begin = np.minimum.accumulate(np.where(span.taps > 0, span.begin, axis.size)[::-1])[::-1]
        windows = {
            "begin": span.begin, "taps": span.taps, "counted": span.counted,
            "first": np.searchsorted(np.maximum.accumulate(after), pixels, side="right"),
            "last": np.searchsorted(begin, pixels, side="right"),
        }  # fmt: skip
        tables |= {f"{name}_{letter}": table for name, table in windows.items()}
    content, starts = joined(**tables)
    numbers = [getattr(axis, field) for field in ("size", "output", "dilation") for axis in axes]
    geometry = Geometry(0, 1, 0, 0, *numbers, **starts)
    return backend().Buffer(np.asarray(content, np.int32)), geometry


def largest(x: Memory, axes: Axes, rank: int, located: bool) -> tuple[Any, Any]:
    """Return the maxima of windows, and their places or None."""
    y, _, places = pooled(x, axes, rank, False, located)
    return handed(y), None if places is None else handed(places)


def means(x: Memory, axes: Axes, rank: int, count_pad: bool, divisor: int) -> Any:
    """Return the means of windows."""
    return handed(pooled(x, axes, rank, True, False, count_pad, divisor)[0])


def pooled(
    x: Memory, axes: Axes, rank: int, mean: bool, located: bool, count_pad: bool = True, divisor: int = 0
) -> tuple[Memory, str, Memory | None]:
    """Return results, the layout of the images, and places where they are asked for."""
    form = Form(x.ndim == rank + 2)
    images = taken(x, form)
    layout = order(images, either="nchw")
    shape = (*images.shape[:2], *(a.output for a in axes[-rank:]))
    y, inside = result(None, form, shape, layout, x)
    places = result(None, form, shape, layout, x, dtype=np.dtype(np.int64))[0] if located else None
    tables, geometry = described(axes, count_pad, backend().context())
    inner = shape[1] if layout == "nhwc" else 1
    geometry = geometry._replace(count=prod(shape), inner=inner, divisor=divisor, located=int(located))
    if prod(shape):
        wide = max(images.nbytes, y.nbytes) // x.dtype.itemsize >= LIMIT
        blocks, kernel = -(-prod(shape) // THREADS), pool_kernel(x.dtype.name, mean, wide)
        backend().launch(kernel, blocks, y.stream(), images.laid(layout), tables, inside, places, geometry)
    return y, layout, places


def to_largest(x: Memory, gy: Memory, axes: Axes, rank: int) -> Any:
    """Return the gradient by the input of maxima, whose places are found again."""
    common(x, gy)
    _, layout, places = pooled(x, axes, rank, False, True)
    return _given(x.shape, gy, places, layout, axes, rank)


def to_places(x: Memory, gy: Memory, found: Memory, axes: Axes, rank: int) -> Any:
    """Return the gradient by the input of maxima whose places are known."""
    common(x, gy)
    together(x, gy, found)
    if found.shape != gy.shape:
        raise ValueError(f"indices must have grad_output's shape {gy.shape}, got {found.shape}")
    images = taken(x, Form(x.ndim == rank + 2))
    layout = order(images, either="nchw")
    places = taken(found, Form(gy.ndim == rank + 2)).laid(layout)
    return _given(x.shape, gy, places, layout, axes, rank)


def to_all(size: tuple[int, ...], gy: Memory, axes: Axes, rank: int, count_pad: bool, divisor: int) -> Any:
    """Return the gradient by the input of means."""
    layout = order(taken(gy, Form(gy.ndim == rank + 2)), either="nchw")
    return _given(size, gy, None, layout, axes, rank, count_pad, divisor)


def _given(
    size: tuple[int, ...], gy: Memory, places: Memory | None, layout: str, axes: Axes, rank: int,
    count_pad: bool = True, divisor: int = 0,
) -> Any:  # fmt: skip
    form = Form(gy.ndim == rank + 2)
    shape = form.taken_shape(size)
    gx, inside = result(None, form, shape, layout, gy)
    tables, geometry = described(axes, count_pad, backend().context())
    inner = shape[1] if layout == "nhwc" else 1
    geometry = geometry._replace(count=prod(shape), inner=inner, divisor=divisor)
    if prod(shape):
        wide = max(gx.nbytes, gy.nbytes) // gy.dtype.itemsize >= LIMIT
        blocks, kernel = -(-prod(shape) // THREADS), give_kernel(gy.dtype.name, places is None, wide)
        gradients = taken(gy, form).laid(layout)
        backend().launch(kernel, blocks, gx.stream(), gradients, places, tables, inside, geometry)
    return handed(gx)
