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

from fastconv import borders, machine
from fastconv.problem import INPUT_GRAD, ConvProblem, Direction, told
from fastconv.taps import met
from fastconv.threads import SERIAL_FLOPS

# Cycles a core takes for one of each part.  "memory": the share of the bytes' time that arithmetic does not hide.
CYCLES: dict[str, dict[str, float]] = {
    "depthwise": {
        "taps": 0.951,
        "single row": 0.4,
        "copied": 1.5,
        "sorted": 0.2,
        "launches": 1,
        "memory": 0.201,
    },
    "depthwise weight_grad": {
        "blocks": 27.5,
        "taps": 0.992,
        "single row": 0.4,
        "copied": 1.5,
        "sorted": 0.2,
        "launches": 1,
        "memory": 0.172,
    },
    "direct": {
        "products": 1.19,
        "products strided": 1.4,
        "fill": 6.18,
        "fill strided": 9.97,
        "store woven": 12.7,
        "turn": 20,
        "launches": 1,
        "memory": 0.439,
    },
    "direct pixels": {
        "products": 1.12,
        "rows": 4,
        "weights": 10,
        "launches": 2,
        "memory": 0.782,
    },
    "direct weight_grad": {
        "products": 1,
        "turn": 5,
        "rows": 29.2,
        "sums": 5.26,
        "launches": 1,
        "memory": 0.455,
    },
    "fft": {
        "products": 1.84,
        "transform": 3.82,
        "filters": 36,
        "launches": 2,
        "memory": 1.2,
    },
    "fft depthwise": {
        "transform": 6.85,
        "transform beyond L1": 7.66,
        "launches": 2,
        "memory": 0.749,
    },
    "fft depthwise weight_grad": {
        "transform": 5.56,
        "transform beyond L1": 6.71,
        "launches": 2,
        "memory": 0.516,
    },
    "fft pixels": {
        "products": 2.6,
        "transform": 8,
        "filters": 22,
        "launches": 2,
        "memory": 1.2,
    },
    "fft signal": {
        "levels": 0.84,
        "samples": 6.86,
        "lines": 112,
        "products": 0.369,
        "pieces": 68400,
        "launches": 20,
        "memory": 0,
    },
    "fft weight_grad": {
        "products": 3.03,
        "transform": 4.02,
        "launches": 2,
        "memory": 3.8,
    },
    "frame": {
        "products": 1.2,
        "pixels": 20,
        "launches": 1,
        "memory": 0,
    },
    "im2col": {
        "products": 1.4,
        "lower": 7,
        "lower strided": 5.16,
        "segments": 80,
        "store woven": 22,
        "turn": 20,
        "launches": 1,
        "memory": 0.124,
    },
    "im2col added": {
        "products": 1.25,
        "add": 4,
        "lower": 4,
        "weights": 14,
        "store woven": 12.7,
        "launches": 2,
        "memory": 0.45,
    },
    "im2col in place": {
        "products": 1.2,
        "lower": 0,
        "segments": 0,
        "store woven": 12.7,
        "launches": 1,
        "memory": 0.124,
    },
    "im2col taps": {
        "products": 1.4,
        "lower": 4,
        "add": 5,
        "weights": 14,
        "store woven": 22,
        "slices": 300,
        "launches": 2,
        "memory": 0.124,
    },
    "im2col weight_grad": {
        "products": 1.26,
        "lower": 9.89,
        "lower strided": 10.3,
        "turn": 7.2,
        "sums": 4.61,
        "launches": 1,
        "memory": 0.288,
    },
    "winograd": {
        "products": 1.46,
        "source": 6.81,
        "result": 8.04,
        "filters": 4.64,
        "filters in memory": 5.9,
        "launches": 1,
        "memory": 0.496,
    },
    "winograd phases": {
        "products": 1.51,
        "source": 8.21,
        "result": 6.13,
        "filters": 6.06,
        "filters in memory": 13.3,
        "launches": 1,
        "memory": 0.403,
    },
    "winograd pixels": {
        "products": 1.34,
        "source": 7.77,
        "result": 8.91,
        "filters": 7.71,
        "filters in memory": 30,
        "launches": 1,
        "memory": 0.844,
    },
    "winograd weight_grad": {
        "products": 1.56,
        "turn": 6.6,
        "transform": 4.09,
        "back": 6.48,
        "launches": 1,
        "memory": 0.384,
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


@told  # direct and im2col ask for the same
def sizes(problem: ConvProblem, direction: Direction) -> Sizes:
    """Return the numbers of the forward direction, which are the weight gradient's too, or of the input gradient."""
    n, g, out, axes = problem.n, problem.groups, problem.output, problem.axes
    c, k, taps = problem.c // g, problem.k // g, prod(problem.kernel)
    if direction is INPUT_GRAD:
        c, k = k, c
    if taps == 1 and prod(problem.input_shape[2:]) == prod(out):  # a row of pixels
        return Sizes(n, g, c, k, 1, 1, 1, prod(out), 1, 1, 0, 0, prod(out), 1)
    (_, r, down, dilation, top, _), (width, s, right, along, left, _) = problem.last_axes(2)
    high, wide = dilation * (r - 1), along * (s - 1)
    if direction is not INPUT_GRAD:
        p, q = prod(out[:-1]), out[-1]
        return Sizes(n, g, c, k, taps, 1, p, q, down, right, high, wide, q, p)
    phases, p, lines = min(right, width), 1, 1
    q = -(-width // phases)
    for a in axes[:-1]:
        step = min(a.stride, a.size)
        phases, p, lines = phases * step, p * -(-a.size // step), lines * a.size
    reach_h, reach_w = (
        (down - 1 + top) // down + (high - top) // down,
        (right - 1 + left) // right + (wide - left) // right,
    )
    return Sizes(n, g, c, k, taps, phases, p, q, 1, 1, reach_h, reach_w, width, lines)


def multiply(m: float, vectors: float, steps: float, itemsize: int) -> float:
    """Cycles of a product of m rows and ``vectors`` vectors of columns, summed over ``steps``.

    A step of a tile takes its FMAs, but not less than its loads (a row of B may straddle cache lines), nor than
    the latency of 4 cycles that its sums wait for.
    """
    t = machine.tile(itemsize)
    panels, groups = -(-m // t.mr), -(-vectors // t.nr)
    fmas, loads = m * vectors / rates().units, 1.5 * vectors * panels + m * groups / 2
    return steps * max(fmas, loads, 4.0 * panels * groups)


def seconds(kind: str, problem: ConvProblem, parts: dict[str, float]) -> float:
    """Add up the parts of a problem's work; those named "memory" (bytes) and "launches" are not of a core."""
    r, cycles = rates(), CYCLES[kind]
    memory = cycles["memory"] * problem.bytes / r.bandwidth
    return cycles["launches"] * r.launch + computing(kind, problem, parts) + memory


def computing(kind: str, problem: ConvProblem, parts: dict[str, float]) -> float:
    """Return the seconds that cores take for some parts of a problem's work."""
    r, cycles, total = rates(), CYCLES[kind], 0.0
    for name, amount in parts.items():
        total += amount * cycles[name]
    return total / (r.clock * machine.machine().cores if problem.flops > SERIAL_FLOPS else r.clock)


@told
def computed(problem: ConvProblem, direction: Direction) -> ConvProblem:
    """Return the problem that dense kernels compute: pixel by pixel, what pixels of a border receive are results, too."""
    if problem.layout == "nhwc" and borders.framed(problem, direction):
        return borders.written_out(problem)
    return problem


def with_frame(inside: float, problem: ConvProblem, direction: Direction, part: float = 1.0) -> float:
    """Add to the seconds of an input gradient among zeros what borders add, where `frame` computes this part of it."""
    if problem.is_depthwise or not borders.framed(problem, direction):
        return inside
    return inside + (part and rates().launch + part * frame(problem, direction))


@told  # up to three algorithms ask for it
def frame(problem: ConvProblem, direction: Direction) -> float:
    """Return the seconds of what is around the image, but for the launch."""
    pairs = prod(problem.output) * prod(problem.kernel) - prod(map(met, problem.axes))  # of pixels and taps
    vectors, channels = problem.n * pairs / machine.tile(problem.itemsize).vl, problem.k // problem.groups
    rows = multiply(problem.c // problem.groups, vectors, channels, problem.itemsize)
    return computing("frame", problem, {"products": problem.groups * rows, "pixels": problem.k * vectors})


def least(kind: str, problem: ConvProblem, part: float = 1.0) -> float:
    """Return seconds that a product of matrices cannot beat: its multiplications, in full tiles."""
    r = rates()
    peak = 2 * r.clock * r.units * machine.tile(problem.itemsize).vl * machine.machine().cores
    return r.launch + CYCLES[kind]["products"] * part * problem.flops / peak
