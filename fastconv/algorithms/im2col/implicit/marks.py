"""Which taps lie outside an image, on a GPU: told by a number of the pixel and one of the tap.

Each offset along each axis has a bit.  A pixel has those set that lead outside from it, and a tap its own: they must not meet.

Where offsets are too many for bits they have numbers, from 0 along each axis, and those inside are from some first to
some last.  So an axis has two fields in a word, of one bit more than a number needs: ``first - 1 - number``, which is not
negative for numbers that are too early, and ``number - last - 1`` for those too late.  With a half of what a field holds
added its topmost bit tells that, and no field borrows from its neighbour: the sum of what is a pixel's and what is a tap's
tells of all axes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.cuda.language import U, inline, int64, load4
from fastconv.typing import Array

BITS = 29  # of offsets, beside these
PRESENT = 1 << 29  # of a tap,
NEVER = 1 << 30  #   of what only fills up where taps are expected, and of all pixels,
ALL = 0xFFFFFFFF  #  of pixels past the last
TOP = 1 << 31  # where offsets have numbers, of what only fills up


class Marks:
    """Offsets along axes, each once and in ascending order, from which taps are made; none where all lead inside."""

    def __init__(self, offsets: Sequence[Sequence[int]]) -> None:
        self.offsets = [np.array(own, np.int64) for own in offsets]
        counts = [len(own) for own in offsets]
        self.are_bits = sum(counts) <= BITS
        if self.are_bits:
            self.starts = [sum(counts[:i]) for i in range(len(counts))]
            self.fit, self.nowhere, self.beyond = True, NEVER, ALL
            self.inside, self.mask = NEVER, 0
            return
        widths = [(count - 1).bit_length() + 1 if count else 0 for count in counts]
        self.starts = [2 * sum(widths[:i]) for i in range(len(widths))]
        self.units = [(1 << start, 1 << start + width) if width else (0, 0)
                      for start, width in zip(self.starts, widths, strict=True)]  # fmt: skip
        tops = sum((1 << width >> 1) * sum(units) for width, units in zip(widths, self.units, strict=True))
        self.fit = 2 * sum(widths) <= 31
        self.nowhere, self.beyond, self.mask = TOP, tops, TOP + tops
        self.inside = tops - sum(
            early + n * late for n, (early, late) in zip(counts, self.units, strict=True)
        )

    def tap(self, offsets: Sequence[int]) -> int:
        """Return the number of a tap."""
        at = [int(np.searchsorted(own, o)) for own, o in zip(self.offsets, offsets, strict=True)]
        if self.are_bits:
            own = zip(self.starts, at, self.offsets, strict=True)
            return PRESENT + sum(1 << start + i for start, i, offsets in own if offsets.size)
        return sum(i * (late - early) for i, (early, late) in zip(at, self.units, strict=True))

    def outside(self, axis: int, at: Array, size: int) -> Array:
        """Return what pixels ``at`` along an axis add to the number of one ``inside`` with all offsets."""
        own = self.offsets[axis]
        first, end = np.searchsorted(own, -at), np.searchsorted(own, size - at)
        if self.are_bits:
            return ((1 << first) - 1 + (1 << own.size) - (1 << end)) << self.starts[axis]
        early, late = self.units[axis]
        return first * early + (own.size - end) * late

    def lines(self) -> list[tuple[int, int, int, int]]:
        """Return what `found` reads: (number inside, mask, number beyond, 0), then of each offset what it adds.

        That is (axis, offset, what it adds where it leads before the first pixel, and beyond the last).
        """
        lines = [(self.inside, self.mask, self.beyond, 0)]
        for axis, own in enumerate(self.offsets):
            for i, offset in enumerate(own.tolist()):
                adds = (1 << self.starts[axis] + i,) * 2 if self.are_bits else self.units[axis]
                lines.append((axis, offset, *adds))
        return lines


def as_int32(lines: Any) -> Array:
    """Return lines of a table; bit 31 becomes the sign."""
    return np.array(lines, np.int64).astype(np.int32)


@inline
def found(lines, count, at, sizes):
    """Return the number of a pixel ``at`` z, y, x, the mask, and the number of pixels past the last."""
    number, mask, beyond, _ = load4(lines, 0)
    number = U(number)
    for i in range(1, count):
        axis, offset, early, late = load4(lines, int64(4) * int64(i))
        here, size = at[2], sizes[2]
        if axis == 0:
            here, size = at[0], sizes[0]
        if axis == 1:
            here, size = at[1], sizes[1]
        here = U(here + offset)
        if here >= U(TOP):  # below 0
            number = U(number + U(early))
        elif here >= size:
            number = U(number + U(late))
    return number, U(mask), U(beyond)


def asker(are_bits):
    """Return the device function that tells whether a tap lies outside from a pixel, by a number that is not 0 then."""

    @inline
    def meet(pixel, tap, mask):
        return U(pixel & U(tap))

    @inline
    def is_beyond(pixel, tap, mask):
        return U(U(pixel + U(tap)) & mask)

    return meet if are_bits else is_beyond
