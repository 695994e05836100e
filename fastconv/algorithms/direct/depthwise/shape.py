"""What the passes share: a map as rows and columns, and how much of it is worked on at a time."""

from __future__ import annotations

from collections import Counter

import numpy as np

from fastconv import borders, machine, threads, workspace
from fastconv.algorithms.direct.depthwise.move import WIDEST
from fastconv.algorithms.direct.depthwise.schedule import Block, Columns, Tap
from fastconv.problem import Axis, ConvProblem
from fastconv.typing import Array

# Pixels of the border that a row of results reads, for each tap of a row, in place at the most: their weights are listed
# one by one, as many as the square of the padding (15 for kernels of 31: 7.7).  Were there more, rows go through scratch:
# copied with their borders, or padded rows of the input gradient, which are folded.
MOST_REPEATED = 8
PICKED = 9  # taps of a kernel whose pixels a stride of 2 picks out of registers, at the most
# Offsets that are no tap's (circular) at the most, where rows are not copied.  Time beside zeros in place and with copies,
# forward and weight gradient: 3x3 (2) 1.10, 1.12 and 1.24, 1.4; 5x5 (4) 1.25, 1.38 and 1.14, 1.14.
MOST_FAR = 2


def plane_axes(problem: ConvProblem) -> tuple[Axis, Axis]:
    """Return the vertical and the horizontal axis; one axis alone is a row of a map of height 1."""
    v, h = problem.last_axes(2)
    return v, h


def pitch(columns: int, vl: int) -> int:
    """Return the distance of rows: an odd number of vectors, so that rows spread over the sets of L1."""
    return (-(-columns // vl) | 1) * vl


def parts(planes: int, blocks: int) -> int:
    """Return in how many parts, of whole blocks, to share out a map: all are tasks where there are many maps."""
    wanted = 8 * machine.machine().cores
    return max(1, min(blocks, -(-wanted // max(planes, 1)))) if planes < wanted else 1


def family(problem: ConvProblem) -> int:
    """Return the stride of the family of kernels that reads the image where it lies, or 0: pixels are sorted first.

    Of more taps than 3 x 3 the second costs more, which picks pixels for each tap: 5x5 1.4 and 7x7 2.5 times what
    sorted ones take, on maps wider than half a vector.
    """
    v, h = plane_axes(problem)
    both = v.stride == 2 and (v.dilation % 2 == 1 or v.kernel == 1)
    if h.stride == 2 and (both or v.output == 1):
        narrow = 2 * h.output <= machine.tile(problem.itemsize).vl
        return 2 if narrow or v.kernel * h.kernel <= PICKED else 0
    return int(h.stride == 1)


def stripe(itemsize: int, v: Axis, h: Axis, copied: bool) -> int:
    """Return how many rows of grad_output a weight gradient works on at a time: all its taps find them in L1.

    Of rows that are ``copied`` it is both places.
    """
    return max(4, (2**13 if copied else 2**14) // (h.size * itemsize * v.stride))


def repeated(axis: Axis, mode: str) -> list[tuple[int, int, int]]:
    """Return (output, tap, pixel) wherever a tap reads a pixel of the border, with the pixel that it repeats."""
    pixel = dict(borders.edges(axis, mode))
    if not pixel:
        return []
    first = np.arange(axis.output) * axis.stride - axis.lo
    near = np.flatnonzero((first < 0) | (first + axis.dilation * (axis.kernel - 1) >= axis.size)).tolist()
    reads = ((q, s, q * axis.stride + s * axis.dilation - axis.lo) for q in near for s in range(axis.kernel))
    return [(q, s, pixel[at]) for q, s, at in reads if at in pixel]


def repeats(problem: ConvProblem) -> int | None:
    """Return None unless borders repeat the image: kernels compiled for None have no code for that."""
    return None if problem.padding_mode == "zeros" else 1


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

    def read(self, block: Block) -> tuple[Block, int, int, int]:
        """Return the block as it reads memory, and which rows to copy, as `Copies.read` does."""
        return self.copies.read(block) if self.copies else (block, 0, 0, 0)


def copy_tables(copies: Copies | None) -> tuple[list[int], list[int], list[int]]:
    """Return what `move.copy_rows` reads."""
    return (copies.copied, copies.pieces, copies.singles) if copies else ([], [], [])


def apart(elements: int, itemsize: int) -> int:
    """Round up the elements of a worker's scratch, so that no two write lines that are fetched together, in pairs."""
    lines = 128 // itemsize
    return (-(-elements // lines) + 1) * lines if elements else 0


def take(per_worker: int, flops: float, dtype: str) -> Array:
    """Take scratch for as many workers as a launch of that much work may use."""
    return workspace.take(per_worker * threads.workers(flops), dtype)
