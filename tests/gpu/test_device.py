"""On a GPU: every algorithm in every direction on every case, and callers' kinds of arrays.  ``pytest -m cuda``."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import testing
from fastconv.algorithms import find, on_gpu
from fastconv.problem import ConvProblem, Direction

pytest.importorskip("numba_cuda")
from numba import cuda
from solving import solve

from fastconv.cuda import ahead

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not cuda.is_available(), reason="no GPU")]

PROBLEMS = [p for p in testing.cases(Path(__file__).parents[1] / "cases") if p.padding_mode == "zeros"]

RUN = PROBLEMS if cuda.is_available() else PROBLEMS[:1]  # to skip thousands of cases takes ten seconds

NAMES = [*sorted(on_gpu()), "winograd:F(2,3)", "winograd:F(4,3)"]


def kernels_of(cases, processors):
    """Return all kernels that (problem, direction, name) start."""
    with ahead.elsewhere(processors) as gpu:
        for problem, direction, name in cases:
            shapes = testing.shapes(problem, direction)[:2]
            arrays = (ahead.Array(shape, dtype=problem.dtype) for shape in shapes)
            with contextlib.suppress(fastconv.AlgorithmError):  # of which the test tells
                solve(problem, direction, *arrays, name)
    return list(gpu.kernels)


@pytest.fixture(scope="session", autouse=True)
def compiled_ahead(request, worker_id):
    """Compile a share of all kernels; the other processes of a run do theirs meanwhile."""
    device = cuda.get_current_device()
    items = [item.callspec.params for item in request.session.items if item.name.startswith("test_right")]
    cases = [(case["problem"], case["direction"], case["name"]) for case in items]
    own = int(worker_id.removeprefix("gw")) if worker_id != "master" else 0
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for kernel in kernels_of(cases, device.MULTIPROCESSOR_COUNT)[own::workers]:
        kernel.cubin(tuple(device.compute_capability))


@pytest.fixture(autouse=True)
def gpu_that_computes(worker_id):
    """End a process whose GPU has met an address that is none, and computes no more: xdist starts another."""
    yield
    try:
        cuda.synchronize()
    except Exception as error:
        if worker_id == "master":
            pytest.exit(f"the GPU's context is lost: {error}")
        os._exit(1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", list(Direction), ids=str)
@pytest.mark.parametrize("problem", RUN, ids=str)
def test_right_and_repeatable(name, direction, problem):
    algorithm = find(name, "cuda")
    if reason := algorithm.reject(problem, direction):
        pytest.skip(reason)
    a, b, _ = testing.shapes(problem, direction)
    if algorithm.exact:
        first, second = testing.integers(a, problem.dtype, 1), testing.integers(b, problem.dtype, 2)
        there = cuda.to_device(first), cuda.to_device(second)
        result = solve(problem, direction, *there, name).copy_to_host()
        testing.assert_exact(problem, direction, first, second, result)
    first, second = testing.normals(a, problem.dtype, 1), testing.normals(b, problem.dtype, 2)
    there = cuda.to_device(first), cuda.to_device(second)
    results = [solve(problem, direction, *there, name).copy_to_host() for _ in range(2)]
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


@pytest.mark.parametrize("name", sorted(on_gpu()))
@pytest.mark.parametrize("line", ["n2 c16 k8 i9x7 f3x3 p1 nhwc", "n2 c8 k8 i9x7 f3x3 p1 s2 g8 nhwc", "n1 c3 k5 i8x8 f5x3 p2x1 nhwc"])  # fmt: skip
def test_channels_last(name, line):
    torch = pytest.importorskip("torch")
    problem = ConvProblem.parse(line)
    for direction in Direction:
        if on_gpu()[name].reject(problem, direction):
            continue
        a, b, _ = testing.shapes(problem, direction)
        first, second = testing.normals(a, "float32", 1), testing.normals(b, "float32", 2)
        there = [
            torch.from_numpy(v).cuda().contiguous(memory_format=torch.channels_last) for v in (first, second)
        ]
        result = solve(problem, direction, *there, name)
        if direction is not Direction.WEIGHT_GRAD:
            assert result.is_contiguous(memory_format=torch.channels_last)
        growth = on_gpu()[name].error_growth(problem, direction)
        testing.assert_right(problem, direction, first, second, result.cpu().numpy(), growth)


def test_pooling_and_numpy_arrays():
    x = testing.normals((2, 3, 9, 8), "float32", 1)
    there, window = cuda.to_device(x), {"kernel_size": 3, "stride": 2, "padding": 1}
    y, places = fastconv.max_pool2d(there, return_indices=True, **window)
    expected, where = fastconv.max_pool2d(x, return_indices=True, **window)
    np.testing.assert_array_equal(y.copy_to_host(), expected)
    np.testing.assert_array_equal(places.copy_to_host(), where)
    gradient = fastconv.max_pool2d_backward(x, expected, **window)
    means = fastconv.avg_pool2d(x, **window)
    with fastconv.config(device="cuda"):
        np.testing.assert_array_equal(fastconv.max_pool2d_backward(x, expected, **window), gradient)
        np.testing.assert_allclose(fastconv.avg_pool2d(x, **window), means, 1e-5, 1e-6)


def test_what_moves_pixels():
    x = testing.normals((2, 3, 9, 8), "float32", 1)
    there, walk = cuda.to_device(x), {"kernel_size": (3, 2), "dilation": (1, 2), "padding": 1, "stride": 2}
    columns = fastconv.unfold(x, **walk)
    np.testing.assert_array_equal(fastconv.unfold(there, **walk).copy_to_host(), columns)
    folded = fastconv.fold(cuda.to_device(columns), (9, 8), **walk).copy_to_host()
    np.testing.assert_allclose(folded, fastconv.fold(columns, (9, 8), **walk), 1e-5, 1e-6)
    y, places = fastconv.max_pool2d(x, 2, return_indices=True)
    back = fastconv.max_unpool2d(cuda.to_device(y), cuda.to_device(places), 2, output_size=(9, 8))
    np.testing.assert_array_equal(
        back.copy_to_host(), fastconv.max_unpool2d(y, places, 2, output_size=(9, 8))
    )
    norms = fastconv.lp_pool2d(cuda.to_device(np.abs(x)), 3.0, 2).copy_to_host()
    np.testing.assert_allclose(norms, fastconv.lp_pool2d(np.abs(x), 3.0, 2), 1e-4, 1e-5)


def test_numba_arrays_come_from_a_pool():
    x, w = (cuda.to_device(testing.normals(s, "float32", 1)) for s in ((1, 4, 64, 64), (4, 4, 3, 3)))
    before = fastconv.conv2d(x, w).copy_to_host()
    for _ in range(100):
        y = fastconv.conv2d(x, w)
    np.testing.assert_array_equal(y.copy_to_host(), before)
