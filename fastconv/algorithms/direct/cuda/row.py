"""A row of the source: which of its pixels the taps of a thread's positions meet, and loading them once."""

from __future__ import annotations

from typing import NamedTuple

from fastconv.cuda.language import DTYPES, U, inline, int32, int64, load4

TX = 4  # positions of a thread
LONGEST = 9  # taps of a row at once
SPAN = 32  # pixels that they should span
MOST = 64  # and that registers hold


class Phase(NamedTuple):
    """Taps of one phase along an axis, by ascending place."""

    count: int
    first: int  # source offset of the first
    index: int  # its place in the kernel


def equal_piece(taps: int, gap: int, width: int, longest: int, span: int) -> int:
    """Return into how many taps a row is cut evenly: at most ``longest``, which span no more pixels if they can."""
    most = min(longest, max(1, (span - width) // gap + 1))
    return max(1, -(-taps // -(-taps // most))) if taps else 1


class Row(NamedTuple):
    """The last axis, which is written out in the machine code."""

    stride: int
    phases: tuple[Phase, ...]
    gap: int  # source pixels between taps
    skip: int  # taps of the kernel between them; negative in input gradients
    quads: bool  # rows of the source begin on 16 bytes
    whole: bool  # rows of the result do

    @property
    def piece(self) -> int:
        """Taps that are added with one segment in registers."""
        longest = max(p.count for p in self.phases)
        return equal_piece(longest, self.gap, self.width, LONGEST, SPAN)

    @property
    def width(self) -> int:
        """Pixels that one tap meets at the positions of a thread, in all phases."""
        firsts = [p.first for p in self.phases if p.count] or [0]
        return (TX - 1) * self.stride + max(firsts) - min(firsts) + 1

    @property
    def pieces(self) -> int:
        """Segments of a row."""
        return max(1, -(-max(p.count for p in self.phases) // self.piece))

    @property
    def low(self) -> int:
        """The least offset."""
        return min((p.first for p in self.phases if p.count), default=0)

    @property
    def length(self) -> int:
        """Pixels of a segment."""
        return self.width + (self.piece - 1) * self.gap

    @property
    def aligned(self) -> bool:
        """Whether every segment begins equally far from 16 bytes."""
        return self.quads and (self.pieces == 1 or self.piece * self.gap % 4 == 0)


def segment(dtype, low: int, length: int, quads: bool):
    """Return the device function that loads a segment at ``x`` + low, its size, and where its first pixel stands."""
    zero = DTYPES[dtype](0)
    shift = low % 4 if quads else 0
    count = -(-(shift + length) // 4)
    begin = low - shift

    @inline
    def by_pixel(source, row, x, width, seg):
        here = row + int64(int32(x)) + int64(begin)  # what follows are constants in the instructions
        for i in range(length):
            seg[i] = zero
            if U(int64(x) + int64(begin + i)) < width:
                seg[i] = source[here + int64(i)]

    @inline
    def by_quad(source, row, x, width, seg):
        here = row + int64(int32(x)) + int64(begin)
        for i in range(count):
            at = 4 * i
            seg[at], seg[at + 1], seg[at + 2], seg[at + 3] = zero, zero, zero, zero
            if U(int64(x) + int64(begin + at)) < width:
                if i == 0 and shift == 3:
                    seg[3] = source[here + int64(3)]
                elif i == count - 1 and (shift + length) % 4 == 1:
                    seg[at] = source[here + int64(at)]
                else:
                    seg[at], seg[at + 1], seg[at + 2], seg[at + 3] = load4(source, here + int64(at))

    return (by_quad, 4 * count, shift) if quads else (by_pixel, length, 0)
