"""Checking convolutions: operands for a problem, the definition to compare with, and how near is near.

Three yardsticks::

    exact      small integers: every product and sum is an integer below 2**24, so that kernels which only
               multiply and add have no rounding to hide behind
    rounding   normal numbers: the error against float64 may be twice that of `naive`, times what the
               algorithm declares as its error growth
    adjoint    <conv(x, w), g> = <x, input_grad(g, w)> = <w, weight_grad(x, g)>: ties the three directions
               together without a reference

`cases` reads lists of problems, and `guarded` places an array against memory that must not be touched.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import borders, jit
from fastconv.algorithms import reference
from fastconv.dtypes import terms
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array


def cases(path: str | Path) -> Iterator[ConvProblem]:
    """Yield the problems of a text file, one on a line, or of all files of a folder; ``#`` begins a comment."""
    path = Path(path)
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        for line in file.read_text().splitlines():
            if words := line.partition("#")[0].strip():
                yield ConvProblem.parse(words)


def shapes(problem: ConvProblem, direction: Direction) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of both operands and of the result.

    >>> shapes(ConvProblem.parse("n2 c3 k4 i9 f3"), Direction.WEIGHT_GRAD)
    ((2, 3, 9), (2, 4, 7), (4, 3, 3))
    """
    return direction.roles(problem.input_shape, problem.weight_shape, problem.output_shape)


def integers(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    """Draw integers from -4 to 4."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def normals(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    """Draw normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def definition(problem: ConvProblem, direction: Direction, first: Array, second: Array) -> Array:
    """Return the result of the NumPy reference in float64, or in complex128."""
    wide = "complex128" if first.dtype.kind == "c" else "float64"
    return reference.DEFINITION[direction](problem, first.astype(wide), second.astype(wide))


def naive(problem: ConvProblem, direction: Direction, first: Array, second: Array) -> Array:
    """Return the result of seven loops in the operands' own precision, products added one by one."""
    if problem.padding_mode != "zeros":
        bare = borders.written_out(problem)
        if direction is Direction.INPUT_GRAD:
            return reference.unpadded(problem, naive(bare, direction, first, second))
        return naive(bare, direction, reference.padded(problem, first), second)
    axes = problem.last_axes(3)
    geometry = np.array([(a.size, a.kernel, a.output, a.stride, a.dilation, a.lo) for a in axes])
    x, w, y = (
        np.zeros(prod(shape), first.dtype)
        for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)
    )
    *operands, result = direction.roles(x, w, y)
    for to, value in zip(operands, (first, second), strict=True):
        to[:] = value.reshape(-1)
    _loops(
        x, w, y, problem.n, problem.c, problem.k, problem.groups, geometry, list(Direction).index(direction)
    )
    return result.reshape(shapes(problem, direction)[2])


@jit.function
def _loops(x, w, y, images, channels, kernels, groups, geometry, direction):  # type: ignore[no-untyped-def]
    """Add every product to its place, in the order of the loops."""
    (d, t, o, sd, dd, pd), (h, r, p, sh, dh, ph), (v, s, q, sv, dv, pv) = geometry
    cs, ks = channels // groups, kernels // groups
    for row in range(images * kernels * o * p * q):
        qi, pi, oi = row % q, row // q % p, row // (q * p) % o
        k, n = row // (q * p * o) % kernels, row // (q * p * o * kernels)
        for column in range(cs * t * r * s):
            i2, i1, i0 = column % s, column // s % r, column // (s * r) % t
            z, a, b = oi * sd + i0 * dd - pd, pi * sh + i1 * dh - ph, qi * sv + i2 * dv - pv
            if 0 <= z < d and 0 <= a < h and 0 <= b < v:
                c = k // ks * cs + column // (s * r * t)
                at = (((n * channels + c) * d + z) * h + a) * v + b
                tap = k * cs * t * r * s + column
                if direction == 0:
                    y[row] += x[at] * w[tap]
                elif direction == 1:
                    x[at] += y[row] * w[tap]
                else:
                    w[tap] += x[at] * y[row]


def tolerance(problem: ConvProblem, direction: Direction, first: Array, second: Array) -> float:
    """Return twice the error of `naive`, the largest over the elements.

    Where there are few elements that error is a matter of luck, so it counts as at least what rounding is
    expected to bring, in units of eps: one product of typical operands; sums of T terms that grow to their
    usual size, rms * (1 + sqrt(T) / 8); the largest sum there is, two deviations: peak * sqrt(T) / 4.
    """
    if not first.size or not second.size:
        return 0.0
    exact = definition(problem, direction, first, second)
    error = float(np.abs(naive(problem, direction, first, second) - exact).max())
    squares = definition(problem, direction, first.astype("float64") ** 2, second.astype("float64") ** 2)
    root = sqrt(terms(problem, direction))
    expected = max(
        sqrt(np.mean(first**2) * np.mean(second**2)),
        sqrt(squares.max()) * (1 + root / 8),
        float(np.abs(exact).max()) * root / 4,
    )
    return 2 * max(error, float(np.finfo(first.dtype).eps) * expected)


def assert_right(
    problem: ConvProblem,
    direction: Direction,
    first: Array,
    second: Array,
    result: Array,
    growth: float = 1.0,
    allowed: float | None = None,
) -> None:
    """Raise AssertionError unless the error is within ``growth`` times `tolerance`, or times ``allowed``."""
    exact = definition(problem, direction, first, second)
    assert result.shape == exact.shape, f"{direction} {problem}: shape {result.shape}, not {exact.shape}"
    _assert_written(problem, direction, result)
    if allowed is None:
        allowed = tolerance(problem, direction, first, second)
    allowed *= growth
    error = np.abs(result - exact)
    if error.size and error.max() > allowed:
        at = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
        raise AssertionError(
            f"{direction} {problem}: {result[at]} at {at}, exactly {exact[at]}: error {error[at]:.3g},"
            f" allowed {allowed:.3g}"
        )


def assert_exact(
    problem: ConvProblem, direction: Direction, first: Array, second: Array, result: Array
) -> None:
    """Raise AssertionError unless every element equals the definition's."""
    exact = definition(problem, direction, first, second)
    assert result.shape == exact.shape, f"{direction} {problem}: shape {result.shape}, not {exact.shape}"
    _assert_written(problem, direction, result)
    wrong = np.argwhere(result != exact)
    if len(wrong):
        at = tuple(map(int, wrong[0]))
        raise AssertionError(
            f"{direction} {problem}: {len(wrong)} of {exact.size} elements differ,"
            f" the first at {at}: {result[at]}, exactly {exact[at]}"
        )


def _assert_written(problem: ConvProblem, direction: Direction, result: Array) -> None:
    missing = np.argwhere(np.isnan(result))
    if len(missing):
        at = tuple(map(int, missing[0]))
        raise AssertionError(
            f"{direction} {problem}: {len(missing)} of {result.size} elements NaN, first {at}"
        )


def adjoint_products(x: Array, w: Array, g: Array, y: Array, gx: Array, gw: Array) -> tuple[float, ...]:
    """Return <y, g>, <x, gx> and <w, gw>, which are equal for y = conv(x, w) and its gradients by g."""
    return tuple(
        float(np.vdot(a.astype("float64"), b.astype("float64"))) for a, b in ((y, g), (x, gx), (w, gw))
    )


def guarded(shape: tuple[int, ...], dtype: str, at_end: bool = True) -> Array:
    """Return an array that ends, or begins, at a page which kills the process when it is touched."""
    import ctypes

    size = prod(shape) * np.dtype(dtype).itemsize
    page = mmap.PAGESIZE
    pages = -(-size // page) * page
    memory = mmap.mmap(-1, pages + 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect: Any = ctypes.CDLL(None, use_errno=True).mprotect
    for start in (base, base + page + pages):
        if protect(ctypes.c_void_p(start), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = page + (pages - size if at_end else 0)
    return np.frombuffer(memory, dtype, prod(shape), offset).reshape(shape)
