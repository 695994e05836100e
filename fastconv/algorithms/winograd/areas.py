"""How a weight gradient is cut: chunks of channels, areas of tiles, and splits of these; and how much work it is."""

from __future__ import annotations

from math import isqrt, sqrt
from typing import NamedTuple

from fastconv import machine
from fastconv.algorithms.winograd.transforms import Tiles
from fastconv.problem import ConvProblem
from fastconv.roofline import multiply as cycles

TASKS = 8  # wanted at least; never taken from the machine's cores, for the result's bits' sake

THIN = 1.5  # vectors: what tiles of one vector cost


class Blocks(NamedTuple):
    """What each task holds at once."""

    c: int  # of a group
    k: int
    alpha_h: int  # pixels of x in a tile
    alpha_w: int
    tiles_h: int
    tiles_w: int
    turned: bool  # whether k has the columns of S
    chunks_c: int
    chunks_k: int
    width_c: int  # channels of a chunk, with those that fill its last vector
    width_k: int
    width: int  #  of S
    height: int
    image_blocks: int
    row_blocks: int
    column_blocks: int
    rows: int  # of tiles of an area
    columns: int
    pixels: int  # of an area

    @property
    def positions(self) -> int:
        """Pixels of x in a tile."""
        return self.alpha_h * self.alpha_w

    @property
    def areas(self) -> int:
        """Areas of all images."""
        return self.image_blocks * self.row_blocks * self.column_blocks


def cut(problem: ConvProblem, tiles: Tiles, cache: int) -> Blocks:
    """Choose blocks for ``cache`` bytes: S may fill a third, V and W another, turned pixels what they need."""
    unit = machine.tile(problem.itemsize)
    c, k = problem.c // problem.groups, problem.k // problem.groups
    (mh, rh), (mw, rw) = tiles
    p, q = (1, *problem.output)[-2:]
    alpha_h, alpha_w = mh + rh - 1, mw + rw - 1
    third = cache // 3 // (alpha_h * alpha_w * problem.itemsize)  # elements at each position

    # A tile one vector wide is bound by its loads: rather k has the columns then.
    turned = k * max(THIN, -(-c // unit.vl)) > c * max(THIN, -(-k // unit.vl))
    chunks_wide, width, chunks_high, height = _chunks(*((k, c) if turned else (c, k)), third, unit)
    padded = -(-height // unit.vl) * unit.vl
    width_c, width_k = (padded, width) if turned else (width, padded)
    chunks_c, chunks_k = (chunks_high, chunks_wide) if turned else (chunks_wide, chunks_high)
    chunks = problem.groups * chunks_c * chunks_k

    tiles_h, tiles_w = -(-p // mh), -(-q // mw)
    room = min(third // (width_c + width_k), -(-problem.n * tiles_h * tiles_w * chunks // TASKS))
    column_blocks = -(-tiles_w // max(1, room))
    columns = -(-tiles_w // column_blocks)
    row_blocks = -(-tiles_h // max(1, room // columns))
    rows = -(-tiles_h // row_blocks)
    image_blocks = -(-problem.n // max(1, room // (tiles_h * tiles_w)))
    pixels = ((rows - 1) * mh + alpha_h) * ((columns - 1) * mw + alpha_w)
    return Blocks(
        c, k, alpha_h, alpha_w, tiles_h, tiles_w, turned, chunks_c, chunks_k, width_c, width_k, width, height, image_blocks, row_blocks, column_blocks,
        rows, columns, pixels,
    )  # fmt: skip


def splits(areas: int, chunks: int) -> int:
    """Return how many partial sums are added afterwards."""
    return max(1, min(areas, -(-TASKS // chunks)))


def _chunks(wide: int, high: int, elements: int, unit: machine.Tile) -> tuple[int, int, int, int]:
    """Cut columns and rows of S into (chunks, length) each; whole tiles of NR vectors run 5 % faster."""
    vectors, panels = -(-wide // unit.vl), -(-high // unit.mr)
    widest = max(1, isqrt(elements) // unit.vl)
    if vectors > widest > unit.nr:
        widest -= widest % unit.nr
    chunks_wide = -(-vectors // widest)
    width = -(-vectors // chunks_wide) * unit.vl
    chunks_high = -(-panels // max(1, elements // width // unit.mr))
    return chunks_wide, width, chunks_high, min(high, -(-panels // chunks_high) * unit.mr)


def work(problem: ConvProblem, tiles: Tiles) -> dict[str, float]:
    """Count vectors of pixels turned, positions transformed, sums transformed back, and the products."""
    g, vl = problem.groups, machine.tile(problem.itemsize).vl
    c, k, (p, q) = problem.c // g, problem.k // g, (1, *problem.output)[-2:]
    (mh, rh), (mw, rw) = tiles
    count, positions = problem.n * -(-p // mh) * -(-q // mw), (mh + rh - 1) * (mw + rw - 1)
    across, down = -(-c // vl), -(-k // vl)
    high, wide = (c, down) if k * max(THIN, across) > c * max(THIN, down) else (k, across)
    # S may fill a third of L2: every chunk of one operand turns and transforms the other again
    chunks = max(1.0, 3 * c * k * positions * problem.itemsize / machine.machine().l2)
    transformed = count * g * (across + down) * sqrt(chunks)
    return {
        "products": cycles(high, wide, g * positions * count, problem.itemsize),
        "turn": mh * mw * transformed,
        "transform": positions * transformed,
        "back": max(g, TASKS / chunks) * positions * high * wide,
    }
