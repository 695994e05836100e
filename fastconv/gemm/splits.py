"""Adding the partial sums of a reduction that was cut into splits."""

from __future__ import annotations

import numba

from fastconv import jit
from fastconv.gemm.schedule import part

BLOCK = 1024  # elements summed at a time: they stay in L1


@jit.kernel
def add_splits(workers, partial, out, splits):
    """Set ``out`` to the sum of ``splits`` arrays of its size, first to last."""
    for worker in numba.prange(workers):
        last = part(out.size, workers, worker + 1)
        for begin in range(part(out.size, workers, worker), last, BLOCK):
            total = out[begin : min(begin + BLOCK, last)]
            total[:] = partial[begin : begin + total.size]
            for split in range(1, splits):
                at = split * out.size + begin
                terms = partial[at : at + total.size]
                for i in range(total.size):  # from 0 on, that no index can be negative: vectors of sums
                    total[i] += terms[i]
