"""The parts of im2col's work in closed form; blocks as `LoweredPass` and `weight_grad` choose them, roughly."""

from __future__ import annotations

from math import prod

from fastconv import machine
from fastconv.gemm.blocking import blocks_of_rows
from fastconv.problem import FORWARD, INPUT_GRAD, WEIGHT_GRAD, ConvProblem, Direction, told
from fastconv.roofline import Sizes, multiply, seconds, sizes, with_frame
from fastconv.taps import met

KC = 160  # rows of a chunk
TAP_KC = 256  # of a tap's, which are added in memory after each
FEW_ROWS = 4  # channels of a result, of which a product's rows are few: half of a tile's
FEW = 0.9  # of what taps read is inside the source where it is asked whether they are better taken one by one

PIXELS = 208  # of a chunk of the weight gradient: whole images, or an equal part of one
WIDTH = 256  # columns of a block of the weight gradient: with its pixels 213 KB
LOWER, TURN = 11, 6  # cycles of a vector there
TASKS = 8  # of the weight gradient at the least, never taken from the machine's cores, for the result's bits' sake


def cost(problem: ConvProblem, direction: Direction) -> float:
    """Predict seconds."""
    if direction is WEIGHT_GRAD:
        s, last = sizes(problem, direction), problem.layout == "nhwc"
        return seconds(kind(problem, direction), problem, weight_grad(s, problem.itemsize, last))
    least = with_frame(min(ways(problem, direction)), problem, direction)
    return min(least, added(problem, direction)) if few(problem, direction) else least


def few(problem: ConvProblem, direction: Direction) -> bool:
    """Tell whether `col2im` is asked, too."""
    return (
        direction is INPUT_GRAD
        and problem.c // problem.groups <= FEW_ROWS
        and problem.k // problem.groups > 1
    )


def adds(problem: ConvProblem, direction: Direction) -> bool:
    """Tell whether what each tap contributes is best added in memory."""
    return few(problem, direction) and added(problem, direction) <= cost(problem, direction)


def added(problem: ConvProblem, direction: Direction) -> float:
    """Predict the seconds of `col2im`: a product with a row for every tap, each line of which is added to sums."""
    s = sizes(problem, direction)
    vl, q = machine.tile(problem.itemsize).vl, problem.output[-1]
    lines = s.n * prod(problem.output[:-1])
    vectors = lines * q / vl
    parts = {
        "products": s.groups * multiply(s.m * s.taps, vectors, s.c, problem.itemsize),
        "add": s.groups * s.m * s.taps * (vectors + lines),  # a line begins anywhere in a vector
        "lower": s.groups * s.c * vectors,
        "weights": s.groups * s.m * s.c * s.taps / vl,
        "store woven": s.n * s.groups * s.m * s.lines * -(-s.width // vl),
    }
    return seconds("im2col added", problem, parts)


def ways(problem: ConvProblem, direction: Direction) -> tuple[float, ...]:
    """Predict seconds with all taps lowered together, and one by one where that leaves out products."""
    s, part, last = sizes(problem, direction), share(problem, direction), problem.layout == "nhwc"
    lowered = seconds(kind(problem, direction), problem, correlation(s, problem.itemsize, last))
    if part == 1.0 or last:
        return (lowered,)
    return lowered, seconds("im2col taps", problem, taps(s, part, problem.itemsize))


def kind(problem: ConvProblem, direction: Direction) -> str:
    """Name a pass by what it costs: in place, where tiles lower the source as they read it."""
    if direction is WEIGHT_GRAD:
        return "im2col weight_grad"
    several = prod(problem.kernel) > 1 and (
        direction is FORWARD or problem.plain
    )  # taps a result, all the more a phase
    near = problem.layout != "nhwc" and not several and in_place(sizes(problem, direction))
    return "im2col in place" if near else "im2col"


def in_place(s: Sizes) -> bool:
    """Tell whether rows of B are those of the source: 1x1, and the input gradient of kernels no larger than their stride."""
    beside = s.reach_h or s.reach_w or s.taps > s.phases
    return s.stride_w == 1 and not beside and (s.p == 1 or s.phases > 1)


def by_tap(problem: ConvProblem, direction: Direction) -> bool:
    """Tell whether taps are best taken one by one."""
    lowered, *one_by_one = ways(problem, direction)
    return bool(one_by_one) and one_by_one[0] < lowered


@told
def share(problem: ConvProblem, direction: Direction) -> float:
    """Return which part of the products is with pixels of the source; 1 if nearly all."""
    if problem.padding_mode != "zeros":
        return 1.0
    part, forward = 1.0, direction is FORWARD
    for a in problem.axes:
        size, kernel, stride, dilation, lo, hi = a
        quarter = size / 4
        if quarter < dilation * kernel or quarter < lo or quarter < hi:
            part *= met(a) / (kernel * (a.output if forward else -(-size // min(stride, size))))
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


def correlation(s: Sizes, itemsize: int, turned: bool = False) -> dict[str, float]:
    """Count a pass: blocks of columns lowered, multiplied, and woven where they are phases; or turned, and back."""
    n, g, c, m, taps, phases, p, q, _, stride_w, _, _, width, lines = s
    tile = machine.tile(itemsize)
    vl, slices = tile.vl, -(-q // (tile.vl * tile.nr))
    rows = -(-taps // phases)  # of B for a channel: taps of one phase, and what other phases read besides
    # blocks of columns fill a third of L2, and their results a half: those of more rows lower again
    again = -(-2 * m * phases // (3 * (min(KC, c * rows))))
    if in_place(s) and not turned:
        again = slices = 0
    lower, store = g * again * c * rows * n * p * -(-q // vl), n * g * m * lines * -(-width // vl)
    parts = {
        "products": g * multiply(m, -(-n * p * q // vl), c * taps, itemsize),
        "segments": g * rows * n * p * slices,  # listed once for all channels
    }
    if turned:
        return parts | {"turn": lower + store}
    return parts | {
        "lower strided" if stride_w > 1 else "lower": lower,
        "store woven": store if phases > 1 else 0,
    }


def weight_grad(s: Sizes, itemsize: int, by_pixel: bool) -> dict[str, float]:
    """Count a weight gradient: rows lowered and turned, products, and sums of splits; or pixels copied, and gw turned."""
    n, g, c, m, taps, _, p, q, _, stride_w, *_ = s
    vl, pixels = machine.tile(itemsize).vl, n * p * q
    identity = taps == p == stride_w == 1
    high, length = (c, m) if identity and not by_pixel and turns_gradient(c, m, pixels) else (m, c * taps)
    blocks = g * -(-length // WIDTH)
    sums = (-(-TASKS // blocks) if blocks < TASKS else 1) * g * m * c * taps / vl
    if by_pixel:
        return {
            "products": g * multiply(high, -(-length // vl), pixels, itemsize),
            "lower": g * taps * pixels * (1.5 + c / (4 * vl)),
            "sums": sums if taps == 1 else 4 * sums,
        }
    return {
        "products": g * multiply(high, -(-length // vl), pixels, itemsize),
        "lower strided" if stride_w > 1 else "lower": 0 if identity else g * length * n * p * -(-q // vl),
        "turn": g * length * pixels / vl,
        "sums": sums,
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
