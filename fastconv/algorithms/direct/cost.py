"""The parts of direct convolution's work in closed form; blocks as `dense` and `weight_grad` choose them, roughly."""

from __future__ import annotations

from math import prod

from fastconv import borders, machine
from fastconv.gemm.blocking import blocks_of_rows
from fastconv.gemm.interlace import MOST
from fastconv.problem import INPUT_GRAD, WEIGHT_GRAD, ConvProblem, Direction, told
from fastconv.roofline import Sizes, computed, multiply, seconds, sizes, with_frame
from fastconv.taps import met

PIXELS = 256  # of an area of the weight gradient: C passes through L2 once for as many steps
TASKS = 8  # of the weight gradient at the least; never taken from the machine's cores, for the result's bits' sake


def cost(problem: ConvProblem, direction: Direction) -> float:
    """Predict seconds."""
    if problem.layout == "nhwc":
        return min(ways(problem, direction).values())
    s = sizes(problem, direction)
    if direction is WEIGHT_GRAD:
        return seconds("direct weight_grad", problem, weight_grad(s, problem.itemsize))
    return with_frame(seconds("direct", problem, correlation(s, problem.itemsize)), problem, direction)


def ways(problem: ConvProblem, direction: Direction) -> dict[str, float]:
    """Predict seconds of images held pixel by pixel, by what the lanes are; others than channels where these are few."""
    whole = computed(problem, direction)
    s = sizes(whole, direction)
    found = {"channels": seconds("direct pixels", whole, pixels(s, problem.itemsize, direction))}
    if few(problem, direction):
        if can_turn(problem, direction):
            found["pixels"] = seconds("direct", problem, correlation(s, problem.itemsize, True))
        if problem.groups > 1:
            kind = "depthwise weight_grad" if direction is WEIGHT_GRAD else "depthwise"
            found["groups"] = seconds(kind, problem, by_groups(s, problem))
    return found


def few(problem: ConvProblem, direction: Direction) -> bool:
    """Tell whether the result has so few channels, of images held pixel by pixel, that something else may be the lanes."""
    channels = problem.c if direction is INPUT_GRAD else problem.k
    return problem.layout == "nhwc" and 2 * channels // problem.groups <= machine.tile(problem.itemsize).vl


def can_turn(problem: ConvProblem, direction: Direction) -> bool:
    """Tell whether kernels of rows serve images held pixel by pixel."""
    return (
        direction is not WEIGHT_GRAD and not borders.framed(problem, direction) and not problem.is_depthwise
    )


@told
def lanes(problem: ConvProblem, direction: Direction) -> str:
    """Tell what is best for lanes: result channels, pixels that a task turns to rows, or groups."""
    if problem.is_depthwise:
        return "groups"
    found = ways(problem, direction)
    return min(found, key=found.__getitem__)


def by_groups(s: Sizes, problem: ConvProblem) -> dict[str, float]:
    """Count a pass over groups side by side: products, and planes parted and woven."""
    vectors = s.n * -(-s.groups // machine.tile(problem.itemsize).vl)
    products = vectors * s.c * s.m * prod(met(a) for a in problem.axes)
    source, result = prod(problem.input_shape), prod(problem.output_shape)
    if s.c == 1:
        source = 0
    if s.m == 1:
        result = 0
    one_row = len(problem.axes) == 1 or problem.kernel[-2] == 1
    return {
        "taps": products,
        "single row": products if one_row else 0.0,
        "sorted" if max(s.c, s.m) <= MOST else "copied": source + result,
    }


def pixels(s: Sizes, itemsize: int, direction: Direction) -> dict[str, float]:
    """Count any direction of images held pixel by pixel: lanes are channels, read where they stand."""
    vl, count = machine.tile(itemsize).vl, s.n * s.p * s.q * s.phases
    kept = (
        direction is WEIGHT_GRAD and s.taps > 1
    )  # sums are, in registers; by one tap they are moved as often as rows
    moved = -(-s.c // vl) + (0 if kept else -(-s.m // vl))
    return {
        "products": s.groups * multiply(count, -(-s.m // vl), s.c * s.taps / s.phases, itemsize),
        "rows": s.groups * count * moved,
        "weights": s.groups * s.m * s.c * s.taps / vl,
    }


def correlation(s: Sizes, itemsize: int, turned: bool = False) -> dict[str, float]:
    """Count a pass: rows filled, multiplied, and woven where they are phases; or pixels turned to rows, and back."""
    n, g, c, m, taps, phases, p, q, stride_h, stride_w, _, reach_w, width, lines = s
    vl = machine.tile(itemsize).vl
    in_place = p == stride_w == phases == 1  # a signal, nearly all of it
    # where positions share pixels of several phases, what a slice reads of all of them leaves L1
    apart = phases > 1 or reach_w >= stride_w > 1
    fill = g * n * c * p * stride_h * -(-(q * stride_w + reach_w) // vl)
    store = n * g * m * lines * -(-width // vl)
    parts = {
        "products strided" if apart else "products": (
            g * n * multiply(m, p * -(-q // vl), c * taps, itemsize)
        ),
    }
    if turned:
        return parts | {"turn": fill + store}
    return parts | {
        "fill strided" if stride_w > 1 else "fill": 0 if in_place else fill,
        "store woven": store if phases > 1 else 0,
    }


def weight_grad(s: Sizes, itemsize: int) -> dict[str, float]:
    """Count a weight gradient: pixels turned, products and sums of splits."""
    n, g, c, m, taps, _, p, q, stride_h, stride_w, reach_h, *_ = s
    tile, merged, pixels = machine.tile(itemsize), 1, n * p * q
    if g > 1:
        merged = mergeable(g, c, tile.vl)
    groups, high, vectors = g // merged, m * merged, -(-c * merged // tile.vl)
    blocks = max(-(-vectors // (2 * tile.nr)), 2 if vectors > 3 else 1)
    tasks = groups * blocks
    # rows between those of a kernel of one row are left out
    turned = groups * vectors * pixels * stride_w * (stride_h if reach_h else 1)
    return {
        "products": tasks * multiply(high, -(-vectors // blocks), taps * pixels, itemsize),
        "turn": turned,
        "sums": (TASKS / tasks if tasks < TASKS else 1) * g * m * c * taps / tile.vl,
        "rows": groups * -(-vectors // tile.nr) * -(-high // tile.mr) * taps * n * p * -(-q // PIXELS),
    }


def mergeable(groups: int, channels: int, vl: int) -> int:
    """Return how many groups of the weight gradient fill a vector together: a divisor of their number."""
    return max(i for i in range(1, max(1, min(groups, vl // channels)) + 1) if groups % i == 0)


def over_results(m: int, width: int, itemsize: int) -> bool:
    """Tell whether vectors over ``m`` channels of grad_output do more than such over ``width`` channels of x."""
    vl = machine.tile(itemsize).vl
    return m % vl == 0 and multiply(width, m // vl, 1, itemsize) < multiply(m, -(-width // vl), 1, itemsize)


def cut(
    m: int,
    vectors: int,
    taps: int,
    pixels: int,
    turned: int,
    groups: int,
    whole: bool,
    planar: bool,
    third: int,
    tile: machine.Tile,
) -> tuple[int, int]:
    """Cut the channels of a weight gradient into blocks of (c, k), whose sums take a third of L2 at most.

    Every block of k turns ``turned`` pixels of x again.
    """
    c_blocks = 1 if whole else max(-(-vectors // (2 * tile.nr)), min(2, vectors // 2), 1)
    panels = -(-m // tile.mr)
    least = -(-panels * tile.mr * taps * -(-vectors // c_blocks) * tile.vl // third)
    if not planar:
        return c_blocks, min(panels, max(1, least, min(2, m // 32)))
    return c_blocks, blocks_of_rows(
        TASKS, c_blocks * groups, max(1, least), panels, m * taps * pixels / 2, 8 * turned, 4 * m * taps
    )
