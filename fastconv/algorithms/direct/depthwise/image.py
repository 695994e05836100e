"""How forward and weight gradient read an image: where it lies, or from copies of its rows."""

from __future__ import annotations

from collections import Counter

from fastconv import borders, machine
from fastconv.algorithms.direct.depthwise.columns import Columns, Tap
from fastconv.algorithms.direct.depthwise.move import WIDEST
from fastconv.algorithms.direct.depthwise.rows import Block
from fastconv.algorithms.direct.depthwise.shape import MOST_REPEATED, family, plane_axes, repeated
from fastconv.problem import Axis, ConvProblem

# Offsets that are no tap's (circular) at the most, where rows are not copied.  Time beside zeros in place and with copies,
# forward and weight gradient: 3x3 (2) 1.10, 1.12 and 1.24, 1.4; 5x5 (4) 1.25, 1.38 and 1.14, 1.14.
MOST_FAR = 2


def pitch(columns: int, vl: int) -> int:
    """Return the distance of rows: an odd number of vectors, so that rows spread over the sets of L1."""
    return (-(-columns // vl) | 1) * vl


class Copies:
    """Rows of a map as they are copied for the blocks that read them: ``pixels`` of it, -1 where no lane reads one.

    At a stride, pixels of each residue modulo the stride have a run of their own (polyphase).
    """

    def __init__(self, pixels: list[int], stride: int, v: Axis, h: Axis, itemsize: int) -> None:
        """``v`` and ``h`` tell the size of the map."""
        self.stride, self.width, self.vl = stride, h.size, machine.tile(itemsize).vl
        self.run = -(-len(pixels) // (stride * self.vl)) * self.vl
        self.pitch = pitch(stride * self.run, self.vl)
        # each row of the map has a place of its own, if that takes a quarter of L2 at most
        self.whole = self.pitch * v.size * itemsize <= machine.machine().l2 // 4
        self.copied: list[int] = []  # where rows are in the map and in the copy, block by block
        self.pieces: list[int] = []  # see `move`
        self.singles: list[int] = []  # (pixel, place)
        self._held: set[int] = set()  # rows of the map that the blocks so far have read
        self._most = 0  # rows of a copy
        for start in range(0, len(pixels), stride * self.vl):
            self._cut(start, pixels[start : start + stride * self.vl])

    def _cut(self, start: int, pixels: list[int]) -> None:
        """List what some pixels of a row are put together from."""
        lanes: Counter[int] = Counter()  # of the pixels that far after them
        for i, pixel in enumerate(pixels):
            if pixel >= 0:
                lanes[pixel - i] += 1 << i
        if self.stride <= WIDEST:
            most = sorted(lanes, key=lambda shift: -lanes[shift].bit_count())
            for shift in [*most, 0, 0][:2]:
                self.pieces += [shift, lanes.pop(shift, 0)]
            self.pieces += [self.at(start), self.run]
        for i, pixel in enumerate(pixels):
            if pixel >= 0 and pixel - i in lanes:
                self.singles += [pixel, self.at(start + i)]

    def at(self, i: int) -> int:
        """Return where pixel i of a row is."""
        return i % self.stride * self.run + i // self.stride

    def read(self, block: Block) -> tuple[Block, int, int, int]:
        """Return the block as it reads copies; the first of the rows to copy, how many, and how many were before.

        Of the ``whole`` map blocks before may have copied a row; of larger ones every block copies all that it reads.
        """
        first, places, before = len(self.copied) // 2, [], 0
        if self.whole:
            read = {row for chunk in block.chunks for row in chunk.reads if row >= 0}
            before = len(read & self._held)
            rows = places = sorted(read & self._held) + sorted(read - self._held)
            self._held |= read
        else:
            block, rows = block.copied()
            places = list(range(len(rows)))
        for row, at in zip(rows, places, strict=True):
            self.copied += [row * self.width, at * self.pitch]
        self._most = max([self._most, *(at + 1 for at in places)])
        return block, first, len(rows), before

    @property
    def elements(self) -> int:
        """How many elements the copies for a block take."""
        return self._most * self.pitch


class Image:
    """How forward and weight gradient read an image: where it lies, or from copies of the rows of a block."""

    def __init__(self, problem: ConvProblem) -> None:
        v, h = plane_axes(problem)
        mode = problem.padding_mode
        self.rows = borders.padded(v, mode).tolist()
        places = [s * h.dilation for s in range(h.kernel)]  # of a column's pixels in a padded row
        found = repeated(h, mode)
        far = {pixel + h.lo - h.stride * q for q, _, pixel in found}.difference(places)
        weighed = len(far) <= MOST_FAR and len(found) <= MOST_REPEATED * h.kernel
        stride = family(problem)
        self.copies: Copies | None = None
        if not weighed or not stride:
            pixels = borders.padded(h, "zeros" if weighed else mode).tolist()
            self.copies, stride = Copies(pixels, h.stride, v, h, problem.itemsize), 1
        self.stride, self.pitch = stride, self.copies.pitch if self.copies else h.size

        def at(i: int) -> int:
            """Return where pixel i of a padded row is."""
            return self.copies.at(i) if self.copies else i - h.lo

        def readers(i: int) -> range:
            """Return the columns that read a pixel by a tap that is i pixels after the first."""
            if not weighed:
                return range(h.output)
            return range(-((i - h.lo) // h.stride), -((i - h.lo - h.size) // h.stride))

        taps = [Tap(at(i), s, readers(i)) for s, i in enumerate(places)]
        if weighed:
            taps += [Tap(at(p + h.lo) - stride * q, s, range(q, q + 1), more=True) for q, s, p in found]
        self.columns = Columns(h.output, stride, (tuple(taps),))


def as_read(copies: Copies | None, block: Block) -> tuple[Block, int, int, int]:
    """Return the block as it reads memory, and which rows to copy, as `Copies.read` does."""
    return copies.read(block) if copies else (block, 0, 0, 0)


def copy_tables(copies: Copies | None) -> tuple[list[int], list[int], list[int]]:
    """Return what `move.copy_rows` reads."""
    return (copies.copied, copies.pieces, copies.singles) if copies else ([], [], [])
