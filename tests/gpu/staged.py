"""Transformed tiles in Numba's CUDA simulator: blocks, splits, layouts and epilogues; started by test_staged.py."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from numba import cuda

import fastconv
from fastconv import testing
from fastconv.algorithms import find
from fastconv.cuda import backend
from fastconv.cuda.operands import operand
from fastconv.gemm import batched
from fastconv.gemm.cuda import BK
from fastconv.problem import ConvProblem, Direction


def device(array):
    return operand(cuda.to_device(np.ascontiguousarray(array)), "array")


def check_calls(name):
    """The public functions, with images channel by channel and pixel by pixel; what does not fit is refused."""
    x, w = testing.normals((1, 3, 5, 4), "float32", 0), testing.normals((2, 3, 3, 3), "float32", 1)
    walk = {"padding": 1, "algorithm": name}
    y = fastconv.conv2d(x, w, padding=1)
    there = cuda.to_device(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    ours = fastconv.conv2d(there, cuda.to_device(w), layout="NHWC", **walk).copy_to_host()
    np.testing.assert_allclose(ours, y.transpose(0, 2, 3, 1), 1e-4, 1e-4)
    ours = fastconv.conv2d_weight(cuda.to_device(x), w.shape, cuda.to_device(y), **walk).copy_to_host()
    np.testing.assert_allclose(ours, fastconv.conv2d_weight(x, w.shape, y, padding=1), 1e-3, 1e-3)
    with pytest.raises(fastconv.AlgorithmError, match="stride"):
        fastconv.conv2d(cuda.to_device(x), cuda.to_device(w), stride=2, algorithm=name)


def images(array, layout):
    """Return images as they lie in memory."""
    return array if layout == "nchw" else np.moveaxis(array, 1, -1)


def check(algorithm, line, layout="nchw", tight=False):
    """Every direction, forward with bias, residual and ReLU; ``tight``: with the least workspace there is."""
    problem = replace(ConvProblem.parse(line), layout=layout)
    for direction in Direction:
        chosen = find(algorithm, "cuda")
        assert chosen.reject(problem, direction) is None
        least = chosen.workspace(problem, direction, 0)
        limit = least if tight else 2**30
        execution = chosen.build(problem, direction, limit)
        assert execution.workspace <= limit
        assert not tight or execution.runs > 1, "one block, of the least size"
        shapes = testing.shapes(problem, direction)
        first, second = (testing.normals(s, problem.dtype, i) for i, s in enumerate(shapes[:2]))
        gradient = direction is Direction.WEIGHT_GRAD
        out = device(
            np.full(
                shapes[2] if gradient else images(np.empty(shapes[2]), layout).shape, np.nan, problem.dtype
            )
        )
        arguments = [
            device(images(first, layout)),
            device(images(second, layout) if gradient else second),
            out,
        ]
        exact = testing.definition(problem, direction, first, second)
        if direction is Direction.FORWARD:
            bias, residual = (
                testing.normals((problem.k,), problem.dtype, 5),
                testing.normals(shapes[2], problem.dtype, 6),
            )
            execution.run(*arguments, device(bias), "relu", device(images(residual, layout)))
            exact = np.maximum(exact + bias.reshape(-1, *[1] * len(problem.axes)) + residual, 0)
        else:
            execution.run(*arguments, None, "none")
        result = out.owner.copy_to_host()
        if not gradient and layout == "nhwc":
            result = np.moveaxis(result, -1, 1)
        allowed = testing.tolerance(problem, direction, first, second) * chosen.error_growth(
            problem, direction
        )
        error = np.abs(result - exact).max()
        assert error <= allowed, (
            f"{algorithm} {direction} {problem}: error {error:.3g}, allowed {allowed:.3g}"
        )


def check_products():
    """Every tile, with splits, written and added."""
    for dtype in ("float32", "float64"):
        for tile in batched.tiles(dtype):
            p = batched.Product(tile, tile.bm, tile.bn, 2)
            a, b = (
                testing.integers((1, 3 * BK, size), dtype, i) for i, size in enumerate((tile.bm, tile.bn))
            )
            out = device(np.ones((2, 1, tile.bm, tile.bn), dtype))
            kernel, blocks, g = batched.described(dtype, p, 1, 3 * BK, True)
            backend().launch(kernel, blocks, 0, device(a), device(b), out, g)
            both = out.owner.copy_to_host().sum(0)
            np.testing.assert_array_equal(both, np.einsum("brm,brn->bmn", a, b) + 2)


if __name__ == "__main__":
    check_calls(name := sys.argv[1].split()[0].partition(":")[0])
    if name == "winograd":
        check_products()
    for case in sys.argv[1:]:
        print(case, flush=True)
        algorithm, _, line = case.partition(" ")
        words = line.split()
        options = [w for w in words if w in ("nhwc", "tight")]
        line = " ".join(w for w in words if w not in options)
        check(algorithm, line, "nhwc" if "nhwc" in options else "nchw", "tight" in options)
    print("done")
