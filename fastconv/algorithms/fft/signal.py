"""The route of large kernels and long signals: tiles of any length, transformed by ``numpy.fft``.

NumPy's transform keeps float32, runs at 10-20 GFLOP/s and knows every length, so this route asks for
nothing but patience with its passes over memory.  Work is cut into blocks of groups, output channels
and tiles (`Blocks`) such that all spectra of a block stay within the workspace.  Axes of a spectrum::

    [group, channel, tile, frequency]        for transforms, whose lines are contiguous
    [group, frequency, channel, tile]        for the product over channels, a batched complex GEMM
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import log2, prod
from typing import Any

import numpy as np

from fastconv import borders, machine
from fastconv.activations import finish
from fastconv.algorithms.base import Execution, equalised, flat, pixels
from fastconv.algorithms.fft.tiling import Span, cheapest, overlap, turned, turned_weight
from fastconv.problem import ConvProblem, Direction
from fastconv.roofline import CYCLES, rates, seconds
from fastconv.typing import Array

# Up to this many products of channels (K * C) are taken one by one, without changing the axes' order.
FEW_PRODUCTS = 16
LINE = 15_000  # flop that could be done in the time NumPy takes to begin with a line
CACHE = 2**23  # bytes of spectra in a block of groups or tiles: stays in a share of the last-level cache


@dataclass(frozen=True, slots=True)
class Blocks:
    """How many groups, output channels and tiles are in memory at once, and the bytes they take."""

    groups: int
    k: int
    tiles: int
    bytes: int


def spans(problem: ConvProblem) -> tuple[Span, ...]:
    """Choose tile lengths of the forward geometry, each axis as if it were alone."""
    c, k = problem.c // problem.groups, problem.k // problem.groups

    def cost(span: Span) -> float:  # of a group, in flop: transforms run at a tenth of the products' rate
        tiles = problem.n * span.count
        transforms = (50 * log2(max(span.length, 2)) + LINE / span.length) * (tiles * (c + k) + c * k)
        return span.length * (transforms + tiles * (4 * c * k + 200 * (c + k)))

    return tuple(cheapest(a, cost) for a in problem.axes)


def frequencies(cut: tuple[Span, ...]) -> int:
    """Complex numbers in the half spectrum of one tile."""
    *outer, last = (s.length for s in cut)
    return prod(outer) * (last // 2 + 1)


def blocks(problem: ConvProblem, cut: tuple[Span, ...], limit: int) -> Blocks:
    """Choose the largest blocks that stay within ``limit``, and in cache where that costs nothing."""
    c, k = problem.c // problem.groups, problem.k // problem.groups
    groups, tiles = problem.groups, max(problem.n * prod(s.count for s in cut), 1)
    # spectra of a block, each with a second copy while axes are exchanged or transformed
    spectrum = 2 * problem.itemsize * frequencies(cut)

    def size() -> int:
        return spectrum * groups * (2 * k * c + 3 * (c + k) * tiles)

    while groups > 1 and size() > min(limit, CACHE):
        groups = -(-groups // 2)
    while tiles > 16 and size() > min(limit, max(CACHE, 8 * size() * k * c // (2 * k * c + 3 * (c + k)))):
        tiles = -(-tiles // 2)
    while size() > limit and (tiles > 1 or k > 1):
        if tiles > 4 or k == 1:
            tiles = -(-tiles // 2)
        else:
            k = -(-k // 2)
    return Blocks(groups, k, tiles, size())


def cost(problem: ConvProblem, direction: Direction) -> float:
    """Predict seconds; NumPy transforms on one core, its BLAS multiplies on all."""
    problem = turned(problem) if direction is Direction.INPUT_GRAD else problem
    if problem.padding_mode != "zeros":
        problem = borders.written_out(problem)
    cut, cores = spans(problem), machine.machine().cores
    g, c, k = problem.groups, problem.c // problem.groups, problem.k // problem.groups
    tiles, samples = problem.n * prod(s.count for s in cut), prod(s.length for s in cut)
    channels = cores * g * (tiles * (c + k) + c * k)
    parts = {
        "levels": channels * samples * log2(max(samples, 2)),
        "samples": channels * samples * problem.itemsize / 4,
        "lines": channels * sum(samples / s.length for s in cut),
        "products": frequencies(cut) * g * c * k * tiles * problem.itemsize / 4,
        "pieces": cores * (-(-g // blocks(problem, cut, 2**30).groups) * 4 + tiles),
    }
    return seconds("fft signal", problem, parts)


def floor(problem: ConvProblem, direction: Direction) -> float:
    """Return less seconds than `cost`: tiles without overlap, spectra of kernels no longer than they, no products."""
    kind, r = CYCLES["fft signal"], rates()
    results = prod([a.size if direction is Direction.INPUT_GRAD else a.output for a in problem.axes])
    extent = prod([a.extent for a in problem.axes])
    samples = problem.n * (problem.c + problem.k) * results + prod(problem.weight_shape[:2]) * extent
    cycles = samples * (kind["levels"] * log2(max(extent, 2)) + kind["samples"] * problem.itemsize / 4)
    return kind["launches"] * r.launch + (cycles + 5 * kind["pieces"]) / r.clock


class Signal(Execution):
    """Tiles through ``numpy.fft``; any direction at stride 1, any rank."""

    def __init__(self, problem: ConvProblem, direction: Direction, limit: int) -> None:
        self.direction, self.original = direction, problem
        problem = turned(problem) if direction is Direction.INPUT_GRAD else problem
        self.pixels = [borders.padded(a, problem.padding_mode) for a in problem.axes]
        self.repeats = problem.padding_mode != "zeros"
        self.problem = borders.written_out(problem) if self.repeats else problem
        self.cut = spans(self.problem)
        self.blocks = blocks(self.problem, self.cut, limit)
        self.workspace = self.blocks.bytes
        self.lengths = tuple(s.length for s in self.cut)
        self.spatial = tuple(range(-len(self.lengths), 0))

    def prepare(self, weight: Array) -> Array:
        return self._weight_spectrum(self._forward_weight(weight))

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        if self.direction is Direction.WEIGHT_GRAD:
            self._weight_grad(first, second, out)
            return
        weight = self._forward_weight(second)
        self._correlate(
            first, out, lambda g, k: self._weight_spectrum(weight[g, k]), bias, activation, residual
        )

    def run_prepared(
        self, first: Array, prepared: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        self._correlate(first, out, lambda g, k: prepared[g, k], bias, activation, residual)

    def _forward_weight(self, weight: Array) -> Array:
        """Return the forward problem's weight as [group, k, c, taps]."""
        if self.direction is Direction.INPUT_GRAD:
            weight = turned_weight(self.original, weight)
        return self._by_group(weight, self.problem.k)

    def _by_group(self, array: Array, channels: int) -> Array:
        g = self.problem.groups
        return array.reshape(g, channels // g, *array.shape[1:])

    def _weight_spectrum(self, weight: Array) -> Array:
        """Return conj(W) as [group, k, c, frequency]; gaps of dilation become zeros."""
        spread = np.zeros((*weight.shape[:3], *(a.extent for a in self.problem.axes)), weight.dtype)
        spread[(..., *(slice(None, None, a.dilation) for a in self.problem.axes))] = weight
        return np.conj(self._spectrum(spread))

    def _spectrum(self, tiles: Array) -> Array:
        """Transform real tiles, padded with zeros to their length; frequencies become one axis."""
        spectrum = np.fft.rfftn(tiles, self.lengths, self.spatial)
        return spectrum.reshape(*tiles.shape[:3], -1)

    def _samples(self, spectrum: Array) -> Array:
        *outer, last = self.lengths
        shaped = spectrum.reshape(*spectrum.shape[:3], *outer, last // 2 + 1)
        return np.fft.irfftn(shaped, self.lengths, self.spatial)

    def _walk(self, channels: int) -> Iterator[tuple[slice, slice]]:
        """Yield blocks of groups and of output channels in a group."""
        for g0, gs in equalised(self.problem.groups, self.blocks.groups):
            for k0, ks in equalised(channels, self.blocks.k):
                yield slice(g0, g0 + gs), slice(k0, k0 + ks)

    def _tile_blocks(self) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        """Yield blocks of tiles, each an image and a place along every axis."""
        every = list(product(range(self.problem.n), product(*(range(s.count) for s in self.cut))))
        for start, count in equalised(len(every), self.blocks.tiles):
            yield every[start : start + count]

    def _gather(self, x: Array, group: slice, block: list[tuple[int, tuple[int, ...]]]) -> Array:
        """Copy a block of tiles of all channels of some groups: [group, c, tile, samples]."""
        x = x[:, group]
        tiles = np.zeros((*x.shape[1:3], len(block), *self.lengths), x.dtype)
        for b, (n, place) in enumerate(block):
            pairs = [overlap(s, i) for s, i in zip(self.cut, place, strict=True)]
            where = [pair[0] for pair in pairs]
            if self.repeats:  # a tile of the padded image, read where its pixels are
                where = np.ix_(*(pixels[part] for pixels, part in zip(self.pixels, where, strict=True)))
            source = x[n][(..., *where)]
            tiles[(slice(None), slice(None), b, *(pair[1] for pair in pairs))] = source
        return tiles

    def _outputs(self, place: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return where a tile's outputs lie, in the whole and in the tile."""
        begins = [i * s.step for s, i in zip(self.cut, place, strict=True)]
        sizes = [min(s.step, s.axis.output - b) for s, b in zip(self.cut, begins, strict=True)]
        whole = tuple(slice(b, b + size) for b, size in zip(begins, sizes, strict=True))
        return whole, tuple(slice(0, size) for size in sizes)

    def _correlate(
        self, x: Array, y: Array, spectrum: Any, bias: Array, activation: Any, residual: Array
    ) -> None:
        p = self.problem
        x = x.reshape(p.n, p.groups, p.c // p.groups, *x.shape[2:])
        by_group = y.reshape(p.n, p.groups, p.k // p.groups, *y.shape[2:])
        for group, k in self._walk(p.k // p.groups):
            weight = spectrum(group, k)
            for block in self._tile_blocks():
                inputs = self._spectrum(self._gather(x, group, block))
                outputs = self._samples(_product(weight, inputs))
                for b, (n, place) in enumerate(block):
                    whole, inside = self._outputs(place)
                    by_group[(n, group, k, *whole)] = outputs[(slice(None), slice(None), b, *inside)]
        if bias.size:
            y += bias.reshape(-1, *[1] * len(p.axes))
        if residual.size or activation != 0:
            view = pixels if p.layout == "nhwc" else flat
            added = view(residual) if residual.size else residual
            finish(view(y), 0, y.size, bias[:0], 0, activation, added, 0)

    def _weight_grad(self, x: Array, gy: Array, gw: Array) -> None:
        p = self.problem
        x = x.reshape(p.n, p.groups, p.c // p.groups, *x.shape[2:])
        gy = gy.reshape(p.n, p.groups, p.k // p.groups, *gy.shape[2:])
        by_group = self._by_group(gw, p.k)
        taps = tuple(slice(0, a.extent, a.dilation) for a in p.axes)
        by_group[...] = 0
        for group, k in self._walk(p.k // p.groups):
            total: Any = 0
            for block in self._tile_blocks():
                tiles = np.zeros((*gy[0, group, k].shape[:2], len(block), *self.lengths), gy.dtype)
                for b, (n, place) in enumerate(block):
                    whole, inside = self._outputs(place)
                    tiles[(slice(None), slice(None), b, *inside)] = gy[(n, group, k, *whole)]
                gradient = np.conj(self._spectrum(tiles))
                inputs = self._spectrum(self._gather(x, group, block))
                total = total + _product(gradient, inputs.swapaxes(1, 2))
            if not np.isscalar(total):
                by_group[group, k] = self._samples(total)[(..., *taps)]


def _product(left: Array, right: Array) -> Array:
    """Return, frequency by frequency, left[g, i, t] . right[g, t, j]."""
    _, rows, length, _ = left.shape
    if length == 1:
        return left * right
    if rows * length <= FEW_PRODUCTS:
        return sum(left[:, :, t, None] * right[:, None, t] for t in range(length))
    by_frequency = np.matmul(
        np.ascontiguousarray(left.transpose(0, 3, 1, 2)), np.ascontiguousarray(right.transpose(0, 3, 1, 2))
    )
    return np.ascontiguousarray(by_frequency.transpose(0, 2, 3, 1))
