"""The parts of im2col's work in closed form; blocks as `LoweredPass` and `weight_grad` choose them, roughly."""

from __future__ import annotations

from fastconv import machine
from fastconv.gemm.blocking import streams
from fastconv.problem import ConvProblem, Direction
from fastconv.roofline import Sizes, multiply, seconds, sizes

KC = 160  # rows of a chunk
WIDTH = 256  # columns of a block of the weight gradient, which has so many tasks at the least
TASKS = 8


def cost(problem: ConvProblem, direction: Direction) -> float:
    """Predict seconds."""
    s = sizes(problem, direction)
    if direction is Direction.WEIGHT_GRAD:
        return seconds("im2col weight_grad", problem, weight_grad(s, problem.itemsize))
    return seconds("im2col", problem, correlation(s, direction, problem.itemsize))


def correlation(s: Sizes, direction: Direction, itemsize: int) -> dict[str, float]:
    """Count a pass: blocks of columns lowered, multiplied and stored."""
    vl, m = machine.tile(itemsize).vl, machine.machine()
    vectors = max(1, -(-s.n * s.p * s.q // vl))
    rows = -(-s.taps // s.phases)  # of B for a channel: taps of one phase, and what other phases read besides
    most = max(1, m.l2 // 3 // (min(s.c * rows, KC) * itemsize * vl))
    blocks = -(-vectors // most)
    row_blocks = -(-s.m * s.phases * most * vl * itemsize // (m.l2 // 2))
    lowered = s.groups * row_blocks * s.c * rows * s.n * s.p * -(-s.q // vl)
    stored = s.n * s.groups * s.m * s.lines * -(-s.width // vl)
    weights = s.groups * s.m * s.c * s.taps * (blocks + 3 * (direction is Direction.INPUT_GRAD)) / vl
    far = streams(s.n * s.groups * s.m * s.lines * s.width, itemsize)
    strided, woven = s.stride_w > 1, s.phases > 1
    return {
        "products": s.groups * s.phases * multiply(s.m, vectors, s.c * s.taps / s.phases, itemsize),
        "lower": 0 if strided else lowered,
        "lower strided": lowered if strided else 0,
        "weights": weights,
        "store": 0 if woven or far else stored,
        "store far": stored if far and not woven else 0,
        "store woven": stored if woven else 0,
        "segments": s.groups * rows * s.n * s.p * -(-s.q // (3 * vl)),  # listed once for all channels
        "tasks": s.groups * blocks * row_blocks * -(-s.m // 8),
    }


def weight_grad(s: Sizes, itemsize: int) -> dict[str, float]:
    """Count a weight gradient: blocks lowered and turned, gradients turned, products and sums of splits."""
    vl = machine.tile(itemsize).vl
    length = s.c * s.taps
    vectors = -(-length // vl)
    t_blocks, m_blocks = -(-vectors * vl // WIDTH), -(-s.m // WIDTH)
    splits = max(1, -(-TASKS // (t_blocks * m_blocks * s.groups)))
    pixels = s.n * s.p * s.q
    lowered = s.groups * m_blocks * length * s.n * s.p * -(-s.q // vl)
    identity, strided = s.taps == s.p == 1, s.stride_w > 1
    return {
        "products": s.groups * t_blocks * multiply(s.m, -(-vectors // t_blocks), pixels, itemsize),
        "lower": 0 if strided or identity else lowered,
        "lower strided": lowered if strided else 0,
        "turn": (t_blocks * s.m + m_blocks * length) * s.groups * pixels / vl,
        "sums": splits * s.groups * s.m * length / vl,
        "tasks": s.groups * t_blocks * m_blocks * splits,
    }
