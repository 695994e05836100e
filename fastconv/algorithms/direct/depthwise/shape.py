"""What the passes share: a map as rows and columns, and how much of it is worked on at a time."""

from __future__ import annotations

import numpy as np

from fastconv import borders, machine, threads, workspace
from fastconv.algorithms.base import Array
from fastconv.algorithms.direct.depthwise.schedule import Block, Columns, Tap
from fastconv.problem import Axis, ConvProblem

# Pixels of the border that a row of results reads, for each tap of a row, in place at the most: their weights are listed
# one by one, as many as the square of the padding (15 for kernels of 31: 7.7).  Were there more, rows go through scratch:
# copied with their borders, or padded rows of the input gradient, which are folded.
MOST_REPEATED = 8
# Offsets that are no tap's (circular) at the most in forward and weight gradient, whose rows are copied else.  Time beside
# zeros of the weight gradient in place and with copies: 3x3 (2) 1.08 and 1.28, 5x5 (4) 1.38 and 1.21, at stride 2 (3) 1.32
# and 1.44, 7x7 (6) 1.16 and 1.06.
MOST_FAR = 3
SINGLE = 3  # pixels side by side that are copied one by one


def plane_axes(problem: ConvProblem) -> tuple[Axis, Axis]:
    """Return the vertical and the horizontal axis; one axis alone is a row of a map of height 1."""
    return problem.axes if len(problem.axes) == 2 else (Axis(1, 1), problem.axes[0])


def pitch(columns: int, vl: int) -> int:
    """Return the distance of rows: an odd number of vectors, so that rows spread over the sets of L1."""
    return (-(-columns // vl) | 1) * vl


def parts(planes: int, blocks: int) -> int:
    """Return in how many parts, of whole blocks, to share out a map: all are tasks where there are many maps."""
    wanted = 8 * machine.machine().cores
    return max(1, min(blocks, -(-wanted // max(planes, 1)))) if planes < wanted else 1


def family(v: Axis, h: Axis) -> int:
    """Return the stride of the family of kernels that reads such an image where it lies, or 0."""
    if h.stride == 2:
        both = v.stride == 2 and (v.dilation % 2 == 1 or v.kernel == 1)
        return 2 if both or v.output == 1 else 0
    return int(h.stride == 1)


def stripe(itemsize: int, v: Axis, h: Axis) -> int:
    """Return how many rows of grad_output a weight gradient works on at a time: all its taps find them in L1."""
    return max(4, 2**14 // (h.size * itemsize * v.stride))


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


class Image:
    """How an image is read: where it lies, or from copies of the rows of a block.

    A copy is a row with its borders.  Where no family has the stride, it holds the pixels of each residue modulo the
    stride in a run of their own (polyphase), where each tap is an offset again.
    """

    def __init__(self, problem: ConvProblem) -> None:
        v, h = plane_axes(problem)
        self.axis, self.rows = h, borders.pixels(v, problem.padding_mode).tolist()
        self.itemsize, self.height = problem.itemsize, v.size
        self.copied: list[int] = []  # where rows are in the image and in the copy, block by block
        self.runs: list[int] = []  # (place in a copy, first pixel of the row, count)
        self.singles: list[int] = []  # (place, pixel or -1)
        self._held: set[int] = set()  # rows of the image that the blocks so far have read
        self._most = 0  # rows of a copy
        self.stride, self.pitch = family(v, h), h.size
        self.offsets = [s * h.dilation - h.lo for s in range(h.kernel)]
        self.repeated = repeated(h, problem.padding_mode)
        far = {pixel - h.stride * q for q, _, pixel in self.repeated}.difference(self.offsets)
        few = len(far) <= MOST_FAR and len(self.repeated) <= MOST_REPEATED * h.kernel
        self.in_place = self.stride > 0 and few
        if self.in_place:
            return
        self.repeated = []
        apart = 1 if self.stride else h.stride
        self.stride = self.stride or 1
        index = [s * h.dilation for s in range(h.kernel)]
        phases = sorted({i % apart for i in index})  # residues that some tap reads
        run = max(i // apart for i in index) + self.stride * (h.output - 1) + 1
        self.offsets = [phases.index(i % apart) * run + i // apart for i in index]
        self.pitch = run * len(phases)
        padded = borders.pixels(h, problem.padding_mode).tolist()
        held = [f + apart * j for f in phases for j in range(run)]
        pixels = [padded[i] if i < len(padded) else -1 for i in held]
        self._cut(pixels)

    def _cut(self, pixels: list[int]) -> None:
        """List the runs and the single ones of the pixels that a copy holds."""
        start = 0
        for i in range(1, len(pixels) + 1):
            if i < len(pixels) and pixels[start] >= 0 and pixels[i] == pixels[i - 1] + 1:
                continue
            if i - start > SINGLE:
                self.runs += [start, pixels[start], i - start]
            else:
                self.singles += [n for j in range(start, i) for n in (j, pixels[j])]
            start = i

    @property
    def whole(self) -> bool:
        """Whether each row of the map has a place in the copy, which takes a quarter of L2 at most."""
        return self.pitch * self.height * self.itemsize <= machine.machine().l2 // 4

    @property
    def pieces(self) -> tuple[list[int], int, int]:
        """The table of `copy_row`, and how many runs and single pixels it has."""
        return self.runs + self.singles, len(self.runs) // 3, len(self.singles) // 2

    @property
    def columns(self) -> Columns:
        """The columns of the result."""
        taps = [Tap(offset, s) for s, offset in enumerate(self.offsets)]
        taps += [Tap(pixel - self.stride * q, s, only=q) for q, s, pixel in self.repeated]
        return Columns(self.axis.output, self.pitch, self.stride, (tuple(taps),))

    def read(self, block: Block) -> tuple[Block, int, int, int]:
        """Return the block as it reads memory; the first of the rows to copy, how many, and how many were before.

        Of the ``whole`` map blocks before may have copied a row; of larger ones every block copies all that it reads.
        """
        if self.in_place:
            return block, 0, 0, 0
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
            self.copied += [row * self.axis.size, at * self.pitch]
        self._most = max([self._most, *(at + 1 for at in places)])
        return block, first, len(rows), before

    @property
    def scratch(self) -> int:
        """Elements that the copies for a block take."""
        return self._most * self.pitch


def apart(elements: int, itemsize: int) -> int:
    """Round up the elements of a worker's scratch, so that no two write lines that are fetched together, in pairs."""
    lines = 128 // itemsize
    return (-(-elements // lines) + 1) * lines if elements else 0


def take(per_worker: int, flops: float, dtype: str) -> Array:
    """Take scratch for as many workers as a launch of that much work may use."""
    return workspace.take(per_worker * threads.workers(flops), dtype)
