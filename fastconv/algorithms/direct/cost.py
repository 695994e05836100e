"""The parts of direct convolution's work in closed form; blocks as `dense` and `weight_grad` choose them, roughly."""

from __future__ import annotations

from fastconv import machine
from fastconv.gemm.blocking import streams
from fastconv.problem import ConvProblem, Direction
from fastconv.roofline import Sizes, multiply, seconds, sizes

COLUMNS = 256  # of a block of results, at the least
KC = 384  # steps of a chunk
CHANNELS = 64  # of a block of the weight gradient, which has so many tasks at the least
TASKS = 8


def cost(problem: ConvProblem, direction: Direction) -> float:
    """Predict seconds."""
    s = sizes(problem, direction)
    if problem.layout == "nhwc":
        return seconds("direct pixels", problem, pixels(s, problem.itemsize))
    if direction is Direction.WEIGHT_GRAD:
        return seconds("direct weight_grad", problem, weight_grad(s, problem.itemsize))
    return seconds("direct", problem, correlation(s, direction, problem.itemsize))


def pixels(s: Sizes, itemsize: int) -> dict[str, float]:
    """Count any direction of images held pixel by pixel: lanes are channels, read where they stand."""
    vl, count = machine.tile(itemsize).vl, s.n * s.p * s.q * s.phases
    return {
        "products": s.groups * multiply(count, -(-s.m // vl), s.c * s.taps / s.phases, itemsize),
        "rows": s.groups * count * (-(-s.m // vl) + -(-s.c // vl)),
        "weights": s.groups * s.m * s.c * s.taps / vl,
    }


def correlation(s: Sizes, direction: Direction, itemsize: int) -> dict[str, float]:
    """Count a pass: stripes of rows filled, multiplied and stored."""
    vl, third = machine.tile(itemsize).vl, machine.machine().l2 // 3 // itemsize
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
    blocks = s.n * -(-s.p // rows) * -(-s.q // q)
    tasks = s.groups * blocks
    parts = -(-machine.machine().cores // tasks)  # of the result channels, each with a stripe of its own
    lines = rows * min(s.stride_h, s.taps) + s.reach_h
    filled = tasks * parts * s.c * lines * -(-(q * s.stride_w + s.reach_w) // vl)
    weights = s.groups * s.m * s.c * s.taps * (blocks + 3 * (direction is Direction.INPUT_GRAD)) / vl
    stored = s.n * s.groups * s.m * s.lines * -(-s.width // vl)
    far = streams(s.n * s.groups * s.m * s.lines * s.width, itemsize)
    strided, woven = s.stride_w > 1, s.phases > 1
    return {
        "products": tasks * products,
        "fill": 0 if strided else filled,
        "fill strided": filled if strided else 0,
        "weights": weights,
        "store": 0 if woven or far else stored,
        "store far": stored if far and not woven else 0,
        "store woven": stored if woven else 0,
        "tasks": tasks * parts * -(-s.m // 8),
    }


def weight_grad(s: Sizes, itemsize: int) -> dict[str, float]:
    """Count a weight gradient: stripes filled and turned, gradients turned, products and sums of splits."""
    vl, third = machine.tile(itemsize).vl, machine.machine().l2 // 3 // itemsize
    vectors = -(-s.c // vl)
    c_blocks = max(-(-vectors * vl // CHANNELS), min(2, vectors // 2), 1)
    m_blocks = max(-(-s.m * s.taps * CHANNELS // third), min(2, s.m // 32), 1)
    splits = max(1, -(-TASKS // (c_blocks * m_blocks * s.groups)))
    # an area's stripe, its channels side by side, may fill a sixth of L2; areas overlap by the kernel's reach
    phases = min(s.stride_h * s.stride_w, s.taps)
    pitch = min(s.q, COLUMNS) + s.reach_w // s.stride_w
    down = s.reach_h // s.stride_h
    fitting = third // (2 * -(-vectors // c_blocks) * vl * phases * pitch) - down
    rows = max(1, min(s.p, COLUMNS // pitch, fitting))
    areas = s.n * -(-s.p // rows) * -(-s.q // COLUMNS)
    pixels = s.n * s.p * s.q
    turned = s.groups * m_blocks * s.c * areas * phases * (rows + down) * pitch / vl
    strided = s.stride_w > 1
    return {
        "products": s.groups * c_blocks * multiply(s.m, -(-vectors // c_blocks), s.taps * pixels, itemsize),
        "fill": 0 if strided else turned,
        "fill strided": turned if strided else 0,
        "turn": s.groups * c_blocks * s.m * pixels / vl,
        "sums": splits * s.groups * s.m * s.c * s.taps / vl,
        "tasks": s.groups * c_blocks * m_blocks * areas,
    }
