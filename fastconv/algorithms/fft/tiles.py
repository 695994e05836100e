"""The executions of the route of small tiles: which sizes, how much scratch, which kernels."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import product
from math import log2
from typing import Any

import numpy as np

from fastconv import machine, threads, workspace
from fastconv.algorithms.base import Array, Execution, flat
from fastconv.algorithms.fft import cpu, weight_grad
from fastconv.algorithms.fft.codelets import CHANNEL_COLUMNS, DENSE_COLUMNS, SIZES
from fastconv.algorithms.fft.lanes import table_size
from fastconv.algorithms.fft.tile2d import frequencies, scratch_size
from fastconv.algorithms.fft.tiling import turned
from fastconv.problem import Axis, ConvProblem, Direction

BLOCKS = (16, 32, 64, 128)  # tiles summed at once in a dense weight gradient


def unsuited(problem: ConvProblem, direction: Direction) -> str | None:
    """Return why small tiles cannot serve a problem, or None."""
    if len(problem.axes) > 2:
        return "more than two axes"
    if not problem.undilated:
        return "dilation > 1"
    if max(problem.kernel) > max(SIZES):
        return f"a kernel of more than {max(SIZES)} pixels"
    if problem.n == 0:
        return "no images"
    return None


@dataclass(frozen=True, slots=True)
class Choice:
    """A size of tiles, and what follows from it."""

    geometry: cpu.Geometry
    per_channel: bool  # lanes are channels
    shared: int  # elements of scratch that all workers see: U
    worker: int  # elements of scratch of one worker
    seconds: float

    @property
    def flops(self) -> float:
        """Work, by which a launch decides on its workers."""
        return self.seconds * machine.machine().flops

    def bytes(self, itemsize: int) -> int:
        """Scratch in all."""
        return (self.shared + machine.machine().cores * self.worker) * itemsize


def _sizes(axis: Axis, sizes: tuple[int, ...]) -> list[int]:
    """Return the sizes that hold a kernel, without those beyond the first that needs but one tile."""
    fitting = [a for a in sizes if a >= axis.extent]
    whole = [a for a in fitting if a >= axis.output + axis.extent - 1]
    return [a for a in fitting if not whole or a <= whole[0]]


@functools.lru_cache(maxsize=256)
def choose(problem: ConvProblem, direction: Direction, limit: int) -> Choice | None:
    """Return the cheapest sizes that stay within the limit, or None."""
    if unsuited(problem, direction):
        return None
    source = turned(problem) if direction is Direction.INPUT_GRAD else problem
    axes = source.axes if len(source.axes) == 2 else (Axis(1, 1), *source.axes)
    per_channel = source.c == source.groups and (source.k // source.groups == 1 or direction != "input_grad")
    blocks = (1,) if per_channel else range(1, machine.tile(problem.itemsize).nr + 1)
    if direction is Direction.WEIGHT_GRAD and not per_channel:
        blocks = BLOCKS
    columns = _sizes(axes[0], CHANNEL_COLUMNS if per_channel else DENSE_COLUMNS)
    columns = [1] if axes[0].extent == 1 else columns
    options = [
        _choice(source, direction, axes, size, block, per_channel)
        for size in product(columns, _sizes(axes[1], SIZES))
        for block in blocks
    ]
    within = [o for o in options if o.bytes(problem.itemsize) <= limit]
    return min(within, key=lambda o: o.seconds, default=None)


def _choice(
    source: ConvProblem, direction: Direction, axes: tuple[Axis, ...],
    size: tuple[int, int], vectors: int, per_channel: bool,
) -> Choice:  # fmt: skip
    """Work out one size of tiles."""
    (h, w), (ah, aw) = axes, size
    mh, mw = min(ah - h.extent + 1, h.output), min(aw - w.extent + 1, w.output)
    unit = machine.tile(source.itemsize)
    c, k, turn = source.c // source.groups, source.k // source.groups, direction is Direction.INPUT_GRAD
    taps, bins = h.kernel * w.kernel, frequencies(ah, aw)
    g = cpu.Geometry(
        n=source.n, groups=source.groups, c=c, k=k, h=h.size, w=w.size, p=h.output, q=w.output,
        lo_h=h.lo, lo_w=w.lo, ah=ah, aw=aw, mh=mh, mw=mw, th=-(-h.output // mh), tw=-(-w.output // mw),
        skip_h=h.extent - 1 if turn else 0, skip_w=w.extent - 1 if turn else 0, sign=1.0 if turn else -1.0,
        r=h.kernel, s=w.kernel, w_group=k * c * taps, w_k=taps if turn else c * taps,
        w_c=k * taps if turn else taps, frequencies=bins, lanes=unit.vl, vectors=vectors, mr=unit.mr, nr=unit.nr,
        tile_scratch=scratch_size(ah, aw, unit.vl), table=table_size(unit.vl, aw),
    )  # fmt: skip
    grad = direction is Direction.WEIGHT_GRAD
    if per_channel:
        shared = 0 if grad else -(-g.groups * g.k // g.lanes) * bins * 2 * g.lanes
        worker = g.tile_scratch + bins * 2 * g.lanes * (3 if grad else 1)
        seconds = _per_channel_cost(g, direction, source.itemsize)
    elif grad:
        shared = sum(gradient_parts(g))
        worker = g.tile_scratch + bins * 3 * g.lanes
        seconds = _gradient_cost(g, source.itemsize)
    else:
        shared = g.groups * bins * 3 * (k * c + g.lanes)
        worker = g.tile_scratch + bins * max(3 * (c + k) * vectors * g.lanes + 2 * g.lanes, 3 * g.lanes)
        seconds = _dense_cost(g, source.itemsize)
    return Choice(g, per_channel, shared, worker, seconds)


def gradient_parts(g: cpu.Geometry) -> tuple[int, int, int]:
    """Elements of A, V and M of a dense weight gradient."""
    width, b = -(-g.c // g.lanes) * g.lanes, g.vectors
    sizes = (3 * (g.k * b + g.lanes), 3 * b * width + g.lanes, 3 * g.k * width + g.lanes)
    return tuple(g.frequencies * size for size in sizes)  # type: ignore[return-value]


def _transform(g: cpu.Geometry, itemsize: int) -> float:
    """Seconds to transform one vector of tiles, in either direction, on one core."""
    # measured on Zen 4: 10 cycles a vector to load, transpose and store, 2.2 for each level
    cycles = g.ah * g.aw * (10 + 2.2 * log2(g.ah * g.aw))
    return cycles * 2 * g.lanes / (machine.machine().flops * 4 / itemsize)


def _rounds(units: int) -> int:
    """Units that the busiest core does."""
    return -(-units // machine.machine().cores)


def _per_channel_cost(g: cpu.Geometry, direction: Direction, itemsize: int) -> float:
    vectors, transform = -(-g.groups * g.k // g.lanes), _transform(g, itemsize)
    tiles = g.n * g.th * g.tw
    if direction is Direction.WEIGHT_GRAD:
        seconds = _rounds(vectors) * (2 * tiles + 1) * transform
    else:
        seconds = (_rounds(vectors) + _rounds(vectors * tiles) * 2) * transform
    return seconds + machine.machine().launch


def _dense_cost(g: cpu.Geometry, itemsize: int) -> float:
    m, transform = machine.machine(), _transform(g, itemsize)
    core = m.flops * 4 / itemsize
    block = g.vectors * g.lanes
    units = -(-g.n * g.th * g.tw // block)
    u = g.frequencies * 3 * g.k * g.c * itemsize
    spectra = g.frequencies * 3 * (g.c + g.k) * block * itemsize
    products = 2 * g.frequencies * 3 * g.k * g.c * block / core * 1.2
    reads = u / (m.l2_bandwidth / 4 if u * g.groups < m.l3 / 2 else m.bandwidth / m.cores)
    one = g.groups * (
        (g.c + g.k) * g.vectors * transform + max(products, reads) + 2 * spectra / (m.l2_bandwidth / 2)
    )
    kernels = g.groups * -(-g.k // g.lanes) * g.c * 1.5 * transform / m.cores + 2 * u * g.groups / m.bandwidth
    seconds = kernels + _rounds(units) * one
    return seconds + m.launch


def _gradient_cost(g: cpu.Geometry, itemsize: int) -> float:
    m, transform = machine.machine(), _transform(g, itemsize)
    tiles, vectors = g.n * g.th * g.tw, -(-g.c // g.lanes)
    blocks = -(-tiles // g.vectors)
    products = 6 * g.frequencies * g.k * vectors * g.lanes * tiles / m.peak(itemsize) * 1.3
    a, v, sums = (part * itemsize for part in gradient_parts(g))
    traffic = 2 * blocks * (a + v + sums) / (m.l2_bandwidth / 4 if a + v + sums < m.l3 else m.bandwidth)
    transforms = tiles * (vectors + 1.5 * -(-g.k // g.lanes)) + g.k * vectors
    return g.groups * (transforms * transform / m.cores + products + traffic + 3 * blocks * m.launch)


class _Tiles(Execution):
    """What both executions share: U and the scratch of the workers."""

    def __init__(self, problem: ConvProblem, choice: Choice) -> None:
        self.dtype, self.choice, self.geometry = problem.dtype, choice, choice.geometry
        self.workspace = choice.bytes(problem.itemsize)

    def _scratch(self, before: int) -> Array:
        return workspace.take(before + threads.count() * self.choice.worker, self.dtype)


class Spectral(_Tiles):
    """Forward or input gradient by tiles, dense or per channel."""

    def prepare(self, weight: Array) -> Array:
        u = workspace.aligned(self.choice.shared, self.dtype)
        self._transform(weight, u, self._scratch(0))
        return u

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        scratch = self._scratch(self.choice.shared)
        u, rest = scratch[: self.choice.shared], scratch[self.choice.shared :]
        self._transform(second, u, rest)
        self._multiply(first, u, out, bias, activation, residual, rest)

    def run_prepared(
        self, first: Array, prepared: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        self._multiply(first, prepared, out, bias, activation, residual, self._scratch(0))

    def _transform(self, weight: Array, u: Array, scratch: Array) -> None:
        kernel = cpu.depthwise_weights if self.choice.per_channel else cpu.dense_weights
        threads.launch(kernel, self.choice.flops, flat(weight), u, scratch, self.geometry)

    def _multiply(
        self, x: Array, u: Array, out: Array, bias: Array, activation: Any, residual: Array, scratch: Array
    ) -> None:
        kernel = cpu.depthwise if self.choice.per_channel else cpu.dense
        threads.launch(
            kernel, self.choice.flops, flat(x), u, flat(out), bias, activation, flat(residual), scratch,
            self.geometry,
        )  # fmt: skip


class WeightGrad(_Tiles):
    """Weight gradient by tiles, dense or per channel."""

    def run(
        self, first: Array, second: Array, out: Array, bias: Array, activation: Any, residual: Array
    ) -> None:
        g, flops = self.geometry, self.choice.flops
        operands = flat(first), flat(second), flat(out)
        scratch = self._scratch(self.choice.shared)
        if self.choice.per_channel:
            threads.launch(weight_grad.depthwise_weight_grad, flops, *operands, scratch, g)
            return
        ends = np.cumsum(gradient_parts(g))
        a, v, m, rest = np.split(scratch, ends)
        threads.launch(weight_grad.dense_weight_grad, flops, *operands, a, v, m, rest, g)


def build(problem: ConvProblem, direction: Direction, choice: Choice) -> Execution:
    """Make the execution of a choice."""
    return (WeightGrad if direction is Direction.WEIGHT_GRAD else Spectral)(problem, choice)
