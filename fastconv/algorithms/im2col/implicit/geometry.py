"""What kernels of forward and input gradient are told: numbers as they run, traits as they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fastconv.gemm.cuda import BK, Tile


class Geometry(NamedTuple):
    """What the kernel needs to know; ``_m`` and ``_s`` are a divisor's multiplier and shift."""

    m: int  # result channels of a group
    m_ld: int  # the same in whole tiles: elements of a packed row
    m_tiles: int
    column_tiles: int
    phases: int
    splits: int
    rows: int  # of the packed weights of a group, all phases
    columns: int  # n * positions
    positions: int  # of a phase in an image
    positions_m: int
    positions_s: int
    plane: int  # of them in the last two axes
    plane_m: int
    plane_s: int
    row: int  # and in the last
    row_m: int
    row_s: int
    stride_z: int
    stride_y: int
    stride_x: int
    depth: int  # source pixels
    height: int
    width: int
    pixel_source: int  # elements of the source from one pixel to the next
    group_source: int  # and from one group's channels to the next
    image_source: int
    channel_source: int
    group_result: int
    image_result: int
    channel_result: int
    pixel_result: int
    result_z: int  # result pixels
    result_y: int
    result_x: int
    step_z: int  # between positions
    step_y: int
    step_x: int
    split_result: int  # results of all, in units of 4 elements
    marks: int  # lines of the table that tell which taps lie outside
    has_bias: int
    has_residual: int


class Traits(NamedTuple):
    """What is true of a problem and saves instructions."""

    marked: bool  # offsets along the axes are few enough for a bit each, else they have numbers
    even: bool  # a stage is BK channels of one tap
    dense: bool  # the source is read by 16 bytes: four positions of one tap without borders, or four channels
    plain: bool  # results lie side by side: one phase
    vector: bool  # results are written by 16 bytes: four positions, or four channels
    last: bool = False  # channels stand behind the pixels


@dataclass(frozen=True, slots=True)
class Copies:
    """What a thread copies of B in BK steps: ``loads`` rows, ``step`` apart, of each of its columns."""

    columns: int  # ``threads`` apart
    step: int
    loads: int

    @classmethod
    def of(cls, tile: Tile) -> Copies:
        """Return how a tile's threads share them out."""
        step = max(1, tile.threads // tile.bn)
        return cls(max(1, tile.bn // tile.threads), step, BK // step)
