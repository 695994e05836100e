"""What a convolution costs: multiplications at the rate of the FMA units, all else in cycles, and memory.

    seconds = launches * launch + sum over parts of (amount * cycles) / (clock * cores) + bytes / bandwidth

Each algorithm counts the parts of its work by closed forms: multiplications as cycles of the GEMM tile
(`multiply`), everything else as vectors that are copied, transposed, transformed, stored.  What a vector of each kind
takes is in `CYCLES`, fitted over the suite ``core`` (``bench/fit_costs.py``).  Cycles carry over from CPU to CPU far better
than seconds do: a second FMA unit doubles the rate of multiplications and of nothing else.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from fastconv import machine
from fastconv.problem import ConvProblem, Direction
from fastconv.threads import SERIAL_FLOPS

# Cycles a core takes for one of each part.  "memory": the share of the bytes' time that arithmetic does not hide.
CYCLES: dict[str, dict[str, float]] = {
    "depthwise": {
        "planes": 58.5,
        "copy": 4.61,
        "copy strided": 4.47,
        "single row": 1,
        "taps": 0.67,
        "woven": 0.459,
        "launches": 1,
        "memory": 0.13,
    },
    "depthwise weight_grad": {
        "planes": 151,
        "copy": 4.19,
        "copy strided": 6.83,
        "single row": 1,
        "taps": 0.849,
        "sums": 1.53,
        "launches": 1,
        "memory": 0.195,
    },
    "direct": {
        "products": 1.15,
        "fill": 4.25,
        "fill strided": 9.59,
        "weights": 4.59,
        "store": 1.86,
        "store far": 4.53,
        "store woven": 10.6,
        "tasks": 92.3,
        "launches": 1,
        "memory": 0.309,
    },
    "direct pixels": {
        "products": 1.12,
        "rows": 4,
        "weights": 10,
        "launches": 2,
        "memory": 0.782,
    },
    "direct weight_grad": {
        "products": 1.27,
        "fill": 9.24,
        "fill strided": 10.3,
        "turn": 6.86,
        "sums": 8.27,
        "tasks": 545,
        "launches": 1,
        "memory": 0.538,
    },
    "fft": {
        "products": 1.67,
        "transform": 4.08,
        "spectra": 2.85,
        "filters read": 4.63,
        "filters": 17.4,
        "filters in memory": 6.06,
        "launches": 2,
        "memory": 0.932,
    },
    "fft depthwise": {
        "transform": 6.62,
        "transform beyond L1": 6.68,
        "launches": 2,
        "memory": 0.706,
    },
    "fft depthwise weight_grad": {
        "transform": 5.81,
        "transform beyond L1": 6.7,
        "launches": 2,
        "memory": 0.5,
    },
    "fft signal": {
        "levels": 0.734,
        "samples": 6.18,
        "lines": 110,
        "products": 0.368,
        "pieces": 68500,
        "launches": 20,
        "memory": 0,
    },
    "fft weight_grad": {
        "products": 2.78,
        "transform": 5.7,
        "spectra": 0.749,
        "blocks": 34000,
        "launches": 2,
        "memory": 1.9,
    },
    "im2col": {
        "products": 1.32,
        "lower": 3.33,
        "lower strided": 4.98,
        "weights": 4.69,
        "store": 1.88,
        "store far": 2.92,
        "segments": 54.5,
        "store woven": 21,
        "tasks": 104,
        "launches": 1,
        "memory": 0.126,
    },
    "im2col weight_grad": {
        "products": 1.14,
        "lower": 14.7,
        "lower strided": 14.5,
        "turn": 6.44,
        "sums": 4.5,
        "tasks": 1040,
        "launches": 1,
        "memory": 0.212,
    },
    "winograd": {
        "products": 1.34,
        "source": 6.64,
        "result": 8.07,
        "filters": 6.53,
        "filters in memory": 6.94,
        "tiles in memory": 7.83,
        "launches": 2,
        "memory": 0.412,
    },
    "winograd pixels": {
        "products": 1.34,
        "source": 7.77,
        "result": 8.91,
        "filters": 7.71,
        "filters in memory": 7.49,
        "launches": 2,
        "memory": 0.844,
    },
    "winograd weight_grad": {
        "products": 1.46,
        "turn": 6.54,
        "transform": 4.11,
        "back": 5.89,
        "sums": 2.81,
        "launches": 1,
        "memory": 0.367,
    },
}


# Cores that have two FMA units of 512 bits.  The name alone does not tell: a virtual machine may give another.
TWO_UNITS = {"skylake-avx512", "cascadelake", "cooperlake", "icelake-server", "znver5"}
TWO_UNITS_FEATURES = {"+avx512fp16", "+amx-tile"}


@dataclass(frozen=True, slots=True)
class Rates:
    """The machine's few numbers."""

    clock: float  #      cycles of a core a second, under vector load
    units: int  #        vector FMAs that a core begins in a cycle
    bandwidth: float  #  of memory, bytes/s that all cores copy together, read and written
    launch: float  #     seconds to start a parallel region

    def flops(self, itemsize: int = 4) -> float:
        """Return the peak of one core, flop/s."""
        return self.clock * self.units * 2 * machine.tile(itemsize).vl


def typical() -> Rates:
    """Return rates by the kind of CPU.

    Measured by independent FMAs of 512 bits: 124 GFLOP/s on Zen 4 at 3.8 GHz, one a cycle; 227 on an Intel
    server, two.  Copying from memory: 20 GB/s by two cores of Zen 4, 13 and 26 by one and two of the Intel; few machines give
    all cores of a larger one as much.
    """
    _, name, features = machine.cpu()
    unit = machine.simd()
    if unit is machine.AVX512:
        units = 2 if name in TWO_UNITS or TWO_UNITS_FEATURES & set(features.split(",")) else 1
    else:
        units = 1 if unit is machine.SSE else 2  # without FMA: a multiplication and an addition
    return Rates(3.5e9, units, 1e10 * min(8, machine.machine().cores), 5e-6)


@functools.cache
def rates() -> Rates:
    """Return what ``python -m fastconv tune --machine`` has measured here, or what is typical."""
    from fastconv import database

    return database.rates() or typical()


class Sizes(NamedTuple):
    """A dense correlation as numbers: forward, or the input gradient as phases computed side by side."""

    n: int
    groups: int
    c: int  #      channels of the source, in a group
    m: int  #      and of the result
    taps: int  #   of all phases
    phases: int
    p: int  #      positions of a phase over all axes but the last, and along the last
    q: int
    stride_h: int  # source pixels from position to position
    stride_w: int
    reach_h: int  # source pixels that results read beyond one each
    reach_w: int
    width: int  #  pixels of a row of the result
    lines: int  #  and rows of a channel of it


@functools.lru_cache(maxsize=16)  # direct and im2col ask for the same
def sizes(problem: ConvProblem, direction: Direction) -> Sizes:
    """Return the numbers of the forward direction, which are the weight gradient's too, or of the input gradient."""
    axes, kernel, g = problem.axes, problem.kernel, problem.groups
    c, k, taps, last = problem.c // g, problem.k // g, prod(kernel), axes[-1]
    above = axes[-2] if len(axes) > 1 else None
    if direction is not Direction.INPUT_GRAD:
        q = last.output
        p = prod(problem.output[:-1])
        if taps == 1 and p * q == prod(problem.input_shape[2:]):  # a row of pixels
            return Sizes(problem.n, g, c, k, 1, 1, 1, p * q, 1, 1, 0, 0, p * q, 1)
        down, right = (above.extent - 1, last.extent - 1) if above else (0, last.extent - 1)
        stride = above.stride if above else 1
        return Sizes(problem.n, g, c, k, taps, 1, p, q, stride, last.stride, down, right, q, p)
    steps = [min(a.stride, a.size) for a in axes]
    lines = prod(a.size for a in axes[:-1])
    if taps == 1 and lines * last.size == prod(problem.output):
        return Sizes(problem.n, g, k, c, 1, 1, 1, lines * last.size, 1, 1, 0, 0, lines * last.size, 1)
    p = prod(-(-a.size // step) for a, step in zip(axes[:-1], steps, strict=False))
    down = -(-(above.extent - 1) // above.stride) if above else 0
    right = -(-(last.extent - 1) // last.stride)
    q = -(-last.size // steps[-1])
    return Sizes(problem.n, g, k, c, taps, prod(steps), p, q, 1, 1, down, right, last.size, lines)


def multiply(m: float, vectors: float, steps: float, itemsize: int) -> float:
    """Cycles of a product of m rows and ``vectors`` vectors of columns, summed over ``steps``.

    A step of a tile takes its FMAs, but not less than its loads (a row of B may straddle cache lines), nor than
    the latency of 4 cycles that its sums wait for.
    """
    t, units = machine.tile(itemsize), rates().units
    panels, groups = -(-m // t.mr), -(-vectors // t.nr)
    rows, nr = m / panels, vectors / groups
    return steps * panels * groups * max(rows * nr / units, 1.5 * nr + rows / 2, 4.0)


def seconds(kind: str, problem: ConvProblem, parts: dict[str, float]) -> float:
    """Add up the parts of a problem's work; those named "memory" (bytes) and "launches" are not of a core."""
    r, cycles = rates(), CYCLES[kind]
    total = 0.0
    for name, amount in parts.items():
        total += amount * cycles[name]
    cores = machine.machine().cores if problem.flops > SERIAL_FLOPS else 1
    memory = cycles["memory"] * problem.bytes / r.bandwidth
    return cycles["launches"] * r.launch + total / (r.clock * cores) + memory
