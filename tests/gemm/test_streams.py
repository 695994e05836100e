"""Results written past the caches, wherever in memory they begin."""

import numpy as np
import pytest

from fastconv import activations, testing, workspace
from fastconv.algorithms import direct, im2col
from fastconv.algorithms.direct import dense
from fastconv.problem import ConvProblem, Direction

MAKERS = {"im2col": (im2col, im2col, im2col.Im2col), "direct": (dense, direct, direct.Direct)}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "line",
    [
        "n3 c5 k20 i8x16 f1x1",
        "n2 c4 k9 i16x32 f3x3 p1",
        "n1 c400 k8 i16x16 f1x1",
        "n2 c9 k5 i16x66 f2x2 s2",
        "n1 c5 k20 i25x37 f1x1",
        "n2 c400 k40 i15x29 f1x1 g2",
        "n2 c4 k9 i33x35 f3x3 s2",
    ],
)
@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRAD], ids=str)
def test_large_results(name, line, direction, monkeypatch):
    deciding, making, kind = MAKERS[name]
    monkeypatch.setattr(deciding, "streams", lambda *_: True)
    problem = ConvProblem.parse(line)
    one, other, result = testing.shapes(problem, direction)
    first, second = testing.integers(one, problem.dtype, 1), testing.integers(other, problem.dtype, 2)
    making._make.cache_clear()
    try:
        execution = kind().build(problem, direction, 2**40)
    finally:
        making._make.cache_clear()
    size, nothing = np.prod(result), np.empty(0, problem.dtype)
    for offset in (0, 4, 7):  # NumPy's large arrays begin 16 bytes after a line
        around = workspace.aligned(size + 32, problem.dtype)
        around[:] = 77
        out = around[offset : offset + size].reshape(result)
        execution.run(first, second, out, nothing, activations.NONE, nothing)
        testing.assert_exact(problem, direction, first, second, out)
        assert (np.delete(around, slice(offset, offset + size)) == 77).all()
