"""What the passes share: a map as rows and columns, and how much of it is worked on at a time."""

from __future__ import annotations

from collections.abc import Sequence

from fastconv import machine, threads, workspace
from fastconv.algorithms.base import Array
from fastconv.problem import Axis, ConvProblem


def plane_axes(problem: ConvProblem) -> tuple[Axis, Axis]:
    """Return the vertical and the horizontal axis; one axis alone is a row of a map of height 1."""
    return problem.axes if len(problem.axes) == 2 else (Axis(1, 1), problem.axes[0])


def pitch(columns: int, vl: int) -> int:
    """Return the distance of rows: an odd number of vectors, so that rows spread over the sets of L1."""
    return (-(-columns // vl) | 1) * vl


class PaddedRows:
    """Where the pixels of a padded row lie in its copy: a run for each residue modulo the stride."""

    def __init__(self, axis: Axis, vl: int) -> None:
        index = [s * axis.dilation for s in range(axis.kernel)]
        self.phases = sorted({i % axis.stride for i in index})  # residues that some tap reads
        self.run = -(-(max(i // axis.stride for i in index) + axis.output) // vl) * vl
        self.columns = [self.phases.index(i % axis.stride) * self.run + i // axis.stride for i in index]
        self.pitch = pitch(len(self.phases) * self.run, vl)
        self.stride = axis.stride

    def pixels(self, source: Sequence[int]) -> list[int]:
        """Return which pixel each place of the copy holds; ``source[i]`` is pixel i of the padded row, or -1."""
        index = [f + self.stride * j for f in self.phases for j in range(self.run)]
        held = [source[i] if i < len(source) else -1 for i in index]
        return held + [-1] * (self.pitch - len(held))


def sources(axis: Axis, mode: str) -> list[int]:
    """Return which pixel of the image each pixel of the padded axis is, or -1."""
    if mode != "zeros":
        from fastconv import borders

        return [int(i) for i in borders.pixels(axis, mode)]
    return [i if 0 <= i < axis.size else -1 for i in range(-axis.lo, axis.size + axis.hi)]


def parts(planes: int, blocks: int) -> int:
    """Return in how many parts, of whole blocks, to share out a map: all are tasks where there are many maps."""
    wanted = 8 * machine.machine().cores
    return max(1, min(blocks, -(-wanted // max(planes, 1)))) if planes < wanted else 1


def stripe_rows(axis: Axis, row_bytes: int, limit: int) -> int:
    """Return how many output rows are worked on at a time: their padded input takes a quarter of L2."""
    room = min(machine.machine().l2 // 4, limit // machine.machine().cores) // row_bytes
    most = max(8, (room - axis.extent) // axis.stride + 1)
    stripes = -(-axis.output // most)
    return -(-axis.output // stripes)


def take(per_worker: int, flops: float, dtype: str) -> Array:
    """Take scratch for as many workers as a launch of that much work may use."""
    return workspace.take(per_worker * threads.workers(flops), dtype)
