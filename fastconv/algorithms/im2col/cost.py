"""The parts of im2col's work in closed form; blocks as `LoweredPass` and `weight_grad` choose them, roughly."""

from __future__ import annotations

import functools

from fastconv import machine
from fastconv.gemm.blocking import blocks_of_rows
from fastconv.problem import ConvProblem, Direction
from fastconv.roofline import Sizes, multiply, seconds, sizes
from fastconv.taps import met

KC = 160  # rows of a chunk
TAP_KC = 256  # of a tap's, which are added in memory after each
FEW = 0.9  # of what taps read is inside the source where it is asked whether they are better taken one by one

PIXELS = 208  # of a chunk of the weight gradient: whole images, or an equal part of one
WIDTH = 256  # columns of a block of the weight gradient: with its pixels 213 KB
LOWER, TURN = 11, 6  # cycles of a vector there
TASKS = 8  # of the weight gradient at the least, never taken from the machine's cores, for the result's bits' sake


def cost(problem: ConvProblem, direction: Direction) -> float:
    """Predict seconds."""
    if direction is Direction.WEIGHT_GRAD:
        s = sizes(problem, direction)
        return seconds("im2col weight_grad", problem, weight_grad(s, problem.itemsize))
    return min(ways(problem, direction))


def ways(problem: ConvProblem, direction: Direction) -> tuple[float, ...]:
    """Predict seconds with all taps lowered together, and one by one where that leaves out products."""
    s, part = sizes(problem, direction), share(problem, direction)
    lowered = seconds("im2col", problem, correlation(s, problem.itemsize))
    if part == 1.0:
        return (lowered,)
    return lowered, seconds("im2col taps", problem, taps(s, part, problem.itemsize))


def by_tap(problem: ConvProblem, direction: Direction) -> bool:
    """Tell whether taps are best taken one by one."""
    lowered, *one_by_one = ways(problem, direction)
    return bool(one_by_one) and one_by_one[0] < lowered


@functools.lru_cache(maxsize=16)
def share(problem: ConvProblem, direction: Direction) -> float:
    """Return which part of the products is with pixels of the source; 1 if nearly all."""
    if problem.padding_mode != "zeros":
        return 1.0
    part, forward = 1.0, direction is Direction.FORWARD
    for a in problem.axes:
        if 4 * max(a.dilation * a.kernel, a.lo, a.hi) > a.size:
            part *= met(a) / (a.kernel * (a.output if forward else -(-a.size // min(a.stride, a.size))))
    return part if part <= FEW else 1.0


def taps(s: Sizes, part: float, itemsize: int) -> dict[str, float]:
    """Count a pass tap by tap: each lowered, multiplied and added where it meets the source."""
    vl, lines = machine.tile(itemsize).vl, s.n * s.p
    blocks = min(lines, 2 * machine.machine().cores)
    columns = lines * s.q * part  # of a tap
    pieces = s.taps * (columns / vl + lines * part**0.5)  # of vectors, in lines that meet the source
    vectors = columns / blocks / vl + 0.5
    return {
        "products": s.groups * s.taps * blocks * multiply(s.m, vectors, s.c, itemsize),
        "lower": s.groups * s.c * pieces,
        "add": s.groups * s.m * pieces * -(-s.c // TAP_KC),
        "weights": s.groups * s.m * s.c * s.taps / vl,
        "store woven": s.n * s.groups * s.m * s.lines * -(-s.width // vl) if s.phases > 1 else 0,
        "slices": s.groups * s.taps * blocks * -(-vectors // machine.tile(itemsize).nr),
    }


def correlation(s: Sizes, itemsize: int) -> dict[str, float]:
    """Count a pass: blocks of columns lowered, multiplied, and woven where they are phases."""
    tile, m = machine.tile(itemsize), machine.machine()
    vl, slice_ = tile.vl, tile.vl * tile.nr
    vectors = max(1, -(-s.n * s.p * s.q // vl))
    rows = -(-s.taps // s.phases)  # of B for a channel: taps of one phase, and what other phases read besides
    most = max(1, m.l2 // 3 // (min(s.c * rows, KC) * itemsize * vl))
    row_blocks = -(-s.m * s.phases * most * vl * itemsize // (m.l2 // 2))
    lowered = s.groups * row_blocks * s.c * rows * s.n * s.p * -(-s.q // vl)
    # where rows of B are those of the source only slices that go on in the next image are lowered before the tile
    identity = s.taps == s.stride_w == 1 and (s.p == 1 or s.phases > 1)
    apart = min(1.0, (s.n > 1) * slice_ / (s.p * s.q)) if identity else 1.0
    return {
        "products": s.groups * s.phases * multiply(s.m, vectors, s.c * s.taps / s.phases, itemsize),
        "lower strided" if s.stride_w > 1 else "lower": lowered * apart,
        "store woven": s.n * s.groups * s.m * s.lines * -(-s.width // vl) if s.phases > 1 else 0,
        "segments": apart * s.groups * rows * s.n * s.p * -(-s.q // slice_),  # listed once for all channels
    }


def weight_grad(s: Sizes, itemsize: int) -> dict[str, float]:
    """Count a weight gradient: blocks lowered and turned, products, and sums of splits."""
    vl, pixels = machine.tile(itemsize).vl, s.n * s.p * s.q
    identity = s.taps == s.p == s.stride_w == 1
    turned = identity and turns_gradient(s.c, s.m, pixels)
    high, length = (s.c, s.m) if turned else (s.m, s.c * s.taps)
    t_blocks, m_blocks, splits = cut(high, length, pixels, s.groups, identity, machine.machine().l2, itemsize)
    vectors = -(-length // vl)
    lowered = 0 if identity else s.groups * m_blocks * length * s.n * s.p * -(-s.q // vl)
    return {
        "products": s.groups * t_blocks * multiply(high, -(-vectors // t_blocks), pixels, itemsize),
        "lower strided" if s.stride_w > 1 else "lower": lowered,
        "turn": m_blocks * length * s.groups * pixels / vl,
        "sums": splits * s.groups * s.m * s.c * s.taps / vl,
    }


def turns_gradient(c: int, k: int, pixels: int) -> bool:
    """Tell whether a 1x1 weight gradient turns k channels of grad_output, and its results, rather than c of the input."""
    return (c - k) * pixels > c * k * TASKS // 2


def cut(
    high: int, length: int, pixels: int, groups: int, identity: bool, cache: int, itemsize: int
) -> tuple[int, int, int]:
    """Cut ``length`` columns and ``high`` rows of gw into blocks and its pixels into splits; return the numbers.

    Sums of a block of rows stay in L2, nearly.
    """
    tile = machine.tile(itemsize)
    vectors, panels = -(-length // tile.vl), -(-high // tile.mr)
    width = min(WIDTH, cache // 5 // (PIXELS * itemsize))
    t_blocks = -(-vectors // max(1, width // tile.vl))
    rows = cache // (-(-vectors // t_blocks) * tile.vl * itemsize)
    least = -(-panels // max(1, rows // tile.mr))
    turning = (TURN if identity else LOWER + TURN) * pixels
    m_blocks = blocks_of_rows(
        TASKS, t_blocks * groups, max(1, least), panels, high * pixels / 2, turning, 4.5 * high
    )
    return t_blocks, m_blocks, max(1, -(-TASKS // (t_blocks * groups * m_blocks)))
