"""What the passes share: a map as rows and columns, and how much of it is worked on at a time."""

from __future__ import annotations

from fastconv import borders, machine, threads, workspace
from fastconv.algorithms.base import Array
from fastconv.algorithms.direct.depthwise.schedule import Block, Columns, Tap
from fastconv.problem import Axis, ConvProblem, Direction

# Taps of one column, for each tap of a row, that borders may bring; were there more, rows go through scratch.  Time of
# 7x7 taps, which bring 12 a row of 56, beside zeros: forward 1.34 in place and 1.59 copied, input gradient 1.50 and
# 1.21, weight gradient 1.36 and 1.24.
MOST_REPEATED = {Direction.FORWARD: 2.0, Direction.INPUT_GRAD: 1.5, Direction.WEIGHT_GRAD: 1.5}


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
    reads = (
        (q, s, q * axis.stride + s * axis.dilation - axis.lo)
        for q in range(axis.output)
        for s in range(axis.kernel)
    )
    return [(q, s, pixel[at]) for q, s, at in reads if at in pixel]


class Image:
    """How an image is read: where it lies, or from copies of the rows of a block.

    A copy holds the pixels of each residue modulo the stride in a run of their own (polyphase), where each tap
    is an offset again, and pixels that borders repeat.
    """

    def __init__(self, problem: ConvProblem, direction: Direction) -> None:
        v, h = plane_axes(problem)
        self.axis, self.rows = h, borders.pixels(v, problem.padding_mode).tolist()
        self.itemsize = problem.itemsize
        self.copied: list[int] = []  # rows of the image, block by block
        self.pixels: list[int] = []  # which pixel of a row each place of its copy holds, or -1
        self._most = 0
        self.stride, self.pitch = family(v, h), h.size
        self.offsets = [s * h.dilation - h.lo for s in range(h.kernel)]
        self.repeated = repeated(h, problem.padding_mode)
        self.in_place = self.stride > 0 and len(self.repeated) <= MOST_REPEATED[direction] * h.kernel
        if self.in_place:
            return
        self.stride, self.repeated = 1, []
        index = [s * h.dilation for s in range(h.kernel)]
        phases = sorted({i % h.stride for i in index})  # residues that some tap reads
        run = max(i // h.stride for i in index) + h.output
        self.offsets = [phases.index(i % h.stride) * run + i // h.stride for i in index]
        padded = borders.pixels(h, problem.padding_mode).tolist()
        held = [f + h.stride * j for f in phases for j in range(run)]
        self.pixels = [padded[i] if i < len(padded) else -1 for i in held]
        self.pitch = len(self.pixels)

    @property
    def columns(self) -> Columns:
        """The columns of the result."""
        taps = [Tap(offset, s) for s, offset in enumerate(self.offsets)]
        taps += [Tap(pixel - self.stride * q, s, only=q) for q, s, pixel in self.repeated]
        return Columns(self.axis.output, self.pitch, self.stride, (tuple(taps),))

    def read(self, block: Block) -> tuple[Block, int, int]:
        """Return the block as it reads memory; the first of the rows to copy for it, and how many."""
        if self.in_place:
            return block, 0, 0
        block, rows = block.copied()
        self.copied += [row * self.axis.size for row in rows]
        self._most = max(self._most, len(rows))
        return block, len(self.copied) - len(rows), len(rows)

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
