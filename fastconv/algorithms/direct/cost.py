"""The parts of direct convolution's work in closed form; blocks as `dense` and `weight_grad` choose them, roughly."""

from __future__ import annotations

from fastconv import machine
from fastconv.gemm.blocking import blocks_of_rows
from fastconv.problem import ConvProblem, Direction
from fastconv.roofline import Sizes, multiply, seconds, sizes

COLUMNS = 256  # of a block of results, at the least
KC = 384  # steps of a chunk
PIXELS = 256  # of an area of the weight gradient: C passes through L2 once for as many steps
TASKS = 8  # of the weight gradient at the least; never taken from the machine's cores, for the result's bits' sake


def cost(problem: ConvProblem, direction: Direction) -> float:
    """Predict seconds."""
    s = sizes(problem, direction)
    if problem.layout == "nhwc":
        return seconds("direct pixels", problem, pixels(s, problem.itemsize))
    if direction is Direction.WEIGHT_GRAD:
        return seconds("direct weight_grad", problem, weight_grad(s, problem.itemsize))
    return seconds("direct", problem, correlation(s, problem.itemsize))


def pixels(s: Sizes, itemsize: int) -> dict[str, float]:
    """Count any direction of images held pixel by pixel: lanes are channels, read where they stand."""
    vl, count = machine.tile(itemsize).vl, s.n * s.p * s.q * s.phases
    return {
        "products": s.groups * multiply(count, -(-s.m // vl), s.c * s.taps / s.phases, itemsize),
        "rows": s.groups * count * (-(-s.m // vl) + -(-s.c // vl)),
        "weights": s.groups * s.m * s.c * s.taps / vl,
    }


def correlation(s: Sizes, itemsize: int) -> dict[str, float]:
    """Count a pass: stripes of rows filled, multiplied, and woven where they are phases."""
    tile, m = machine.tile(itemsize), machine.machine()
    vl, third = tile.vl, m.l2 // 3 // itemsize
    columns = max(vl, min(max(min(COLUMNS, third) // s.phases, third // (s.m * s.phases)), 8 * COLUMNS))
    q, in_rows = min(s.q, columns), -(-min(s.q, columns) // vl)
    pitch = q + s.reach_w // s.stride_w
    channels = min(s.c, max(1, KC // s.taps))
    fitting = third // (channels * pitch * min(s.stride_h * s.stride_w, s.taps)) - s.reach_h // s.stride_h
    rows = max(1, min(s.p, columns // min(pitch, in_rows * vl), fitting))
    if pitch < in_rows * vl and q == s.q:  # tiles run on from row to row
        products = multiply(s.m, -(-(rows * pitch) // vl), s.c * s.taps, itemsize)
    else:
        products = rows * multiply(s.m, in_rows, s.c * s.taps, itemsize)
    tasks = s.groups * s.n * -(-s.p // rows) * -(-s.q // q)
    parts = -(-m.cores // tasks)  # of the result channels, each with a stripe of its own
    lines = rows * min(s.stride_h, s.taps) + s.reach_h
    strided, woven = s.stride_w > 1, s.phases > 1
    # where positions share pixels of several phases, what a slice reads of all of them leaves L1
    read = s.c * (s.reach_h + 1) * s.stride_w * (tile.nr + 1) * vl * itemsize
    apart = woven or (s.reach_w >= s.stride_w > 1 and read > m.l1 // 2)
    return {
        "products strided" if apart else "products": tasks * products,
        "fill strided" if strided else "fill": (
            tasks * parts * s.c * lines * -(-(q * s.stride_w + s.reach_w) // vl)
        ),
        "store woven": s.n * s.groups * s.m * s.lines * -(-s.width // vl) if woven else 0,
    }


def weight_grad(s: Sizes, itemsize: int) -> dict[str, float]:
    """Count a weight gradient: areas turned, products and sums of splits."""
    tile, third = machine.tile(itemsize), machine.machine().l2 // 3 // itemsize
    merged = mergeable(s.groups, s.c, tile.vl)
    groups, c, m = s.groups // merged, s.c * merged, s.m * merged
    vectors, pixels = -(-c // tile.vl), s.n * s.p * s.q
    c_blocks, m_blocks = cut(
        m, vectors, s.taps, pixels, pixels * s.stride_h * s.stride_w, groups, merged > 1, True, third, tile
    )
    splits = max(1, -(-TASKS // (c_blocks * m_blocks * groups)))
    # areas overlap by the kernel's reach; rows between those of a kernel of one row are left out
    q = min(s.q, PIXELS)
    rows = max(
        1, min(s.p, PIXELS // q, third // (-(-vectors // c_blocks) * tile.vl * s.stride_w * s.stride_h * q))
    )
    high = (rows - 1) * (s.stride_h if s.reach_h else 1) + s.reach_h + 1
    areas = s.n * -(-s.p // rows) * -(-s.q // q)
    width = -(-vectors // c_blocks)
    columns = -(-width // tile.nr)  # of tiles
    turned = groups * m_blocks * vectors * areas * high * ((q - 1) * s.stride_w + s.reach_w + 1)
    return {
        "products": groups * c_blocks * multiply(m, -(-vectors // c_blocks), s.taps * pixels, itemsize),
        "turn": turned,
        "sums": splits * s.groups * s.m * s.c * s.taps / tile.vl,
        "rows": groups * c_blocks * columns * -(-m // tile.mr) * s.taps * s.n * s.p * -(-s.q // q),
    }


def mergeable(groups: int, channels: int, vl: int) -> int:
    """Return how many groups of the weight gradient fill a vector together: a divisor of their number."""
    return max(i for i in range(1, max(1, min(groups, vl // channels)) + 1) if groups % i == 0)


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
