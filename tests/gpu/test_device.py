"""On a GPU: every algorithm in every direction on every case, and callers' kinds of arrays.  ``pytest -m cuda``."""

from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import testing
from fastconv.algorithms import on_gpu
from fastconv.problem import Direction

pytest.importorskip("numba_cuda")
from numba import cuda

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not cuda.is_available(), reason="no GPU")]

PROBLEMS = list(testing.cases(Path(__file__).parents[1] / "cases"))


def call(problem, direction, first, second, algorithm):
    rank = len(problem.axes)
    walk = {
        "stride": tuple(a.stride for a in problem.axes),
        "padding": tuple((a.lo, a.hi) for a in problem.axes),
        "dilation": tuple(a.dilation for a in problem.axes),
        "groups": problem.groups,
        "algorithm": algorithm,
    }
    if direction is Direction.FORWARD:
        return getattr(fastconv, f"conv{rank}d")(first, second, **walk)
    if direction is Direction.INPUT_GRAD:
        return getattr(fastconv, f"conv{rank}d_input")(problem.input_shape, second, first, **walk)
    return getattr(fastconv, f"conv{rank}d_weight")(first, problem.weight_shape, second, **walk)


@pytest.mark.parametrize("name", sorted(on_gpu()))
@pytest.mark.parametrize("direction", list(Direction), ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_right_and_repeatable(name, direction, problem):
    algorithm = on_gpu()[name]
    if reason := algorithm.reject(problem, direction):
        pytest.skip(reason)
    a, b, _ = testing.shapes(problem, direction)
    if algorithm.exact:
        first, second = testing.integers(a, problem.dtype, 1), testing.integers(b, problem.dtype, 2)
        there = cuda.to_device(first), cuda.to_device(second)
        result = call(problem, direction, *there, name).copy_to_host()
        testing.assert_exact(problem, direction, first, second, result)
    first, second = testing.normals(a, problem.dtype, 1), testing.normals(b, problem.dtype, 2)
    there = cuda.to_device(first), cuda.to_device(second)
    results = [call(problem, direction, *there, name).copy_to_host() for _ in range(2)]
    growth = algorithm.error_growth(problem, direction)
    testing.assert_right(problem, direction, first, second, results[0], growth)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_results_are_of_the_callers_kind_on_the_callers_stream(library):
    module = pytest.importorskip(library)
    x, w = testing.normals((2, 3, 9, 8), "float32", 1), testing.normals((4, 3, 3, 3), "float32", 2)
    if library == "torch":
        move, back, stream = (
            lambda a: module.from_numpy(a).cuda(),
            lambda a: a.cpu().numpy(),
            module.cuda.Stream(),
        )
        inside = module.cuda.stream(stream)
    else:
        move, back, stream = module.asarray, module.asnumpy, module.cuda.Stream()
        inside = stream
    there = move(x), move(w)
    stream.synchronize()
    cuda.synchronize()
    with inside:
        y = fastconv.conv2d(*there, padding=1)
        grads = fastconv.conv2d_backward(*there, y, padding=1)
    stream.synchronize()
    assert type(y) is type(there[0])
    expected = fastconv.conv2d(x, w, padding=1)
    np.testing.assert_allclose(back(y), expected, 1e-4, 1e-4)
    for ours, theirs in zip(grads, fastconv.conv2d_backward(x, w, expected, padding=1), strict=True):
        np.testing.assert_allclose(back(ours), theirs, 1e-3, 1e-3)


def test_capture_in_a_graph():
    torch = pytest.importorskip("torch")
    x, w = torch.randn(2, 3, 8, 8, device="cuda"), torch.randn(4, 3, 3, 3, device="cuda")
    expected = fastconv.conv2d(x, w)  # compiles and loads, which a capture can't
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fastconv.conv2d(x, w)
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)
