"""What the passes share: a map as rows and columns, and how much of it is worked on at a time."""

from __future__ import annotations

import numpy as np

from fastconv import borders, machine, threads, workspace
from fastconv.problem import Axis, ConvProblem
from fastconv.typing import Array

# Pixels of the border that a row of results reads, for each tap of a row, in place at the most: their weights are listed
# one by one, as many as the square of the padding (15 for kernels of 31: 7.7).  Were there more, rows go through scratch:
# copied with their borders, or padded rows of the input gradient, which are folded.
MOST_REPEATED = 8
PICKED = 9  # taps of a kernel whose pixels a stride of 2 picks out of registers, at the most


def plane_axes(problem: ConvProblem) -> tuple[Axis, Axis]:
    """Return the vertical and the horizontal axis; one axis alone is a row of a map of height 1."""
    v, h = problem.last_axes(2)
    return v, h


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


def apart(elements: int, itemsize: int) -> int:
    """Round up the elements of a worker's scratch, so that no two write lines that are fetched together, in pairs."""
    lines = 128 // itemsize
    return (-(-elements // lines) + 1) * lines if elements else 0


def take(per_worker: int, flops: float, dtype: str) -> Array:
    """Take scratch for as many workers as a launch of that much work may use."""
    return workspace.take(per_worker * threads.workers(flops), dtype)
