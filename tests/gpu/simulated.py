"""Run calls of fastconv in Numba's CUDA simulator and compare with the definition; started by test_cuda.py."""

import functools
import math
import mmap
import sys

import numpy as np
import pytest
from numba import cuda
from solving import solve

import fastconv
from fastconv import arguments, testing
from fastconv.algorithms import find
from fastconv.problem import ConvProblem, Direction


def call(problem, direction, first, second, algorithm, bias=None, activation=None, residual=None):
    """Compute with the images in the problem's layout, handed over as (n, c, h, w)."""
    rank = len(problem.axes)
    first = moved(first, problem.layout)
    second = moved(second, problem.layout if direction is Direction.WEIGHT_GRAD else "nchw")
    added = {}
    if direction is Direction.FORWARD:
        bias = None if bias is None else cuda.to_device(bias)
        added = {"bias": bias, "activation": activation, "residual": residual}
    result = solve(problem, direction, first, second, algorithm, **added)
    assert type(result) is type(first), "the result is of another kind than the operands"
    if problem.layout == "nhwc" and direction is not Direction.WEIGHT_GRAD:
        assert result.copy_to_host().transpose(0, *range(2, rank + 2), 1).flags.c_contiguous
    return result.copy_to_host()


def moved(array, layout):
    """Move an array to the simulated GPU, images into a layout."""
    if layout == "nchw":
        return cuda.to_device(array)
    rank = array.ndim
    last = np.ascontiguousarray(array.transpose(0, *range(2, rank), 1))
    return cuda.to_device(last).transpose((0, rank - 1, *range(1, rank - 1)))


def check(line, algorithm, exact):
    problem = ConvProblem.parse(line)
    for direction in Direction:
        if find(algorithm, "cuda").reject(problem, direction):
            continue
        a, b, _ = testing.shapes(problem, direction)
        if exact:
            first, second = (
                testing.integers(a, problem.dtype, 1),
                testing.integers(b, problem.dtype, 2),
            )
            testing.assert_exact(
                problem, direction, first, second, call(problem, direction, first, second, algorithm)
            )
        else:
            first, second = testing.normals(a, problem.dtype, 1), testing.normals(b, problem.dtype, 2)
            testing.assert_right(
                problem, direction, first, second, call(problem, direction, first, second, algorithm)
            )


def check_epilogues(algorithm):
    problem = ConvProblem.parse("n1 c2 k3 i4x4 f3x3 p1")
    x, w = (
        testing.normals(problem.input_shape, "float32", 1),
        testing.normals(problem.weight_shape, "float32", 2),
    )
    bias = testing.normals((3,), "float32", 3)
    names = (None, *arguments.Activation.__args__[0].__args__)
    for activation in (
        names if algorithm == "reference" else names[1:4:2]
    ):  # they are the same functions everywhere
        result = call(problem, Direction.FORWARD, x, w, algorithm, bias, activation)
        expected = fastconv.conv2d(x, w, bias, padding=1, activation=activation, algorithm="reference")
        np.testing.assert_allclose(result, expected, 1e-5, 1e-5, err_msg=str(activation))


def check_residual(algorithm):
    """Added before the activation; on whole vectors, on single pixels, and after splits."""
    for line in ("n1 c8 k3 i4x4 f3x3 p1", "n1 c3 k2 i3x5 f2x2", "n1 c16 k3 i4x3 f3x3 p1"):
        problem = ConvProblem.parse(line)
        x, w, r = (
            testing.integers(s, "float32", 7)
            for s in (problem.input_shape, problem.weight_shape, problem.output_shape)
        )
        bias = testing.integers((problem.k,), "float32", 8)
        ours = call(problem, Direction.FORWARD, x, w, algorithm, bias, "relu", cuda.to_device(r))
        plain = testing.definition(problem, Direction.FORWARD, x, w)
        np.testing.assert_array_equal(ours, np.maximum(plain + bias.reshape(-1, 1, 1) + r, 0))
    v = testing.integers((3, 2, 2, 2), "float32", 9)
    y = fastconv.conv_transpose2d(x := testing.integers((1, 3, 3, 2), "float32", 10), v, stride=2)
    there = [cuda.to_device(a) for a in (x, v, y)]
    ours = fastconv.conv_transpose2d(*there[:2], stride=2, residual=there[2], algorithm=algorithm)
    np.testing.assert_array_equal(ours.copy_to_host(), 2 * y)


def check_layouts(algorithm):
    """Results are laid out as the images are; ``layout`` names how their axes stand; ``out`` may lie anywhere."""
    x, w = testing.normals((2, 3, 5, 4), "float32", 0), testing.normals((2, 3, 3, 2), "float32", 1)
    b, same = (
        testing.normals((2,), "float32", 2),
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
    )
    expected = fastconv.conv2d(x, w, b, padding=1, activation="relu")
    weight, bias = cuda.to_device(w), cuda.to_device(b)
    walk = {"padding": 1, "activation": "relu", "algorithm": algorithm}
    last = cuda.to_device(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    y = fastconv.conv2d(last, weight, bias, layout="NHWC", **walk).copy_to_host()
    assert y.flags.c_contiguous
    same(y.transpose(0, 3, 1, 2), expected)
    one = fastconv.conv2d(cuda.to_device(last.copy_to_host()[1]), weight, bias, layout="NHWC", **walk)
    same(one.copy_to_host().transpose(2, 0, 1), expected[1])
    turned = cuda.to_device(x).transpose((0, 2, 3, 1))  # channels first, handed over with the axes turned
    y = fastconv.conv2d(turned, weight, bias, layout="NHWC", **walk).copy_to_host()
    assert y.transpose(0, 3, 1, 2).flags.c_contiguous
    same(y.transpose(0, 3, 1, 2), expected)
    for given in (moved(np.zeros_like(expected), "nhwc"), cuda.to_device(np.zeros_like(expected))):
        out = fastconv.conv2d(moved(x, "nhwc"), weight, bias, out=given, **walk)
        assert out is given
        same(out.copy_to_host(), expected)
    gy = testing.normals(expected.shape, "float32", 3)
    ours = fastconv.conv2d_backward(
        last, weight, cuda.to_device(np.ascontiguousarray(gy.transpose(0, 2, 3, 1))), padding=1, layout="NHWC"
    )
    theirs = fastconv.conv2d_backward(x, w, gy, padding=1)
    same(ours.input.copy_to_host().transpose(0, 3, 1, 2), theirs.input)
    same(ours.weight.copy_to_host(), theirs.weight)
    same(ours.bias.copy_to_host(), theirs.bias)


class Capsule:
    """An array that shows DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, stream=None):
        assert stream == 1, "the default stream is to wait"
        return self.array.__dlpack__()


def check_kinds(algorithm):
    """NumPy arrays there and back, and what has DLPack alone."""
    x, w = testing.integers((2, 2, 4, 5), "float32", 0), testing.integers((3, 2, 3, 2), "float32", 1)
    gy = testing.integers((2, 3, 4, 6), "float32", 2)
    with fastconv.config(algorithm="reference"):
        expected, gradients = fastconv.conv2d(x, w, padding=1), fastconv.conv2d_backward(x, w, gy, padding=1)
    for module in (x, w):
        module.flags.writeable = False
    with fastconv.config(device="cuda"):
        y = fastconv.conv2d(x, w, padding=1, algorithm=algorithm)
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, expected)
        out = np.zeros(expected.shape[::-1], "float32").transpose()
        assert fastconv.conv2d(x, w, padding=1, algorithm=algorithm, out=out) is out
        np.testing.assert_array_equal(out, expected)
        last = fastconv.conv2d(x.transpose(0, 2, 3, 1), w, padding=1, algorithm=algorithm, layout="NHWC")
        np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), expected)
        grads = fastconv.conv2d_backward(x, w, gy, padding=1, algorithm=algorithm)
    for ours, theirs in zip(grads, gradients, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    x, w = x.copy(), w.copy()
    np.testing.assert_array_equal(
        fastconv.conv2d(Capsule(x), Capsule(w), padding=1, algorithm=algorithm).copy_to_host(), expected
    )
    turned = Capsule(np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(fastconv.conv2d(turned, Capsule(w), padding=1).copy_to_host(), expected)
    with pytest.raises(TypeError, match="float32 or float64"):
        fastconv.conv2d(Capsule(x.astype("int32")), Capsule(w))


def check_large(algorithm):
    """More than 2**31 elements, of which a few are read: memory that is never touched is never there."""
    shape, stride = (9, 1, 2**24, 16), (2**23, 14)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    x = np.frombuffer(mmap.mmap(-1, 4 * math.prod(shape), flags=flags), np.float32).reshape(shape)
    assert x.size > 2**31
    w = testing.integers((2, 1, 2, 2), "float32", 1)
    taps = [np.s_[:, :, r :: stride[0], s :: stride[1]] for r in range(2) for s in range(2)]
    for i, tap in enumerate(taps):
        x[tap] = testing.integers((9, 1, 2, 2), "float32", 2 + i)
    expected = sum(x[tap] * w[:, 0].reshape(2, 4)[:, i].reshape(2, 1, 1) for i, tap in enumerate(taps))
    there = type(cuda.to_device(w))(x)
    y = fastconv.conv2d(there, cuda.to_device(w), stride=stride, algorithm=algorithm).copy_to_host()
    np.testing.assert_array_equal(y, expected)
    gw = fastconv.conv2d_weight(there, w.shape, cuda.to_device(y), stride=stride, algorithm=algorithm)
    sums = [[(x[tap] * y[:, k : k + 1]).sum() for tap in taps] for k in range(2)]
    np.testing.assert_array_equal(gw.copy_to_host(), np.float32(sums).reshape(w.shape))


POOLS = [  # rank, shape, arguments of the window
    (2, (2, 2, 5, 6), {"kernel_size": 2}),
    (2, (1, 3, 6, 5), {"kernel_size": 3, "stride": (2, 1), "padding": 1, "ceil_mode": True}),
    (1, (2, 9), {"kernel_size": 4, "stride": 3, "padding": 2}),
    (3, (1, 2, 3, 4, 3), {"kernel_size": 2, "stride": 1, "padding": 1}),
]


def check_patches():
    """Norms as near as powers are; what only moves pixels, exactly."""
    same, near = np.testing.assert_array_equal, functools.partial(np.testing.assert_allclose, rtol=1e-5)
    x = testing.normals((1, 2, 5, 6), "float32", 0)
    for norm in (2, 3.0, np.inf, -np.inf):
        expected = fastconv.lp_pool2d(np.abs(x), norm, (2, 3), 2, ceil_mode=True)
        near(
            fastconv.lp_pool2d(cuda.to_device(np.abs(x)), norm, (2, 3), 2, ceil_mode=True).copy_to_host(),
            expected,
        )
    near(fastconv.lp_pool1d(cuda.to_device(x[0, 0]), 2, 2).copy_to_host(), fastconv.lp_pool1d(x[0, 0], 2, 2))
    walk = {"kernel_size": (3, 2), "dilation": (1, 2), "padding": (2, 0), "stride": (2, 1)}
    for image in (x, x[0]):
        columns = fastconv.unfold(image, **walk)
        same(fastconv.unfold(cuda.to_device(image), **walk).copy_to_host(), columns)
        near(
            fastconv.fold(cuda.to_device(columns), (5, 6), **walk).copy_to_host(),
            fastconv.fold(columns, (5, 6), **walk),
        )
    y, places = fastconv.max_pool2d(x, 2, return_indices=True)
    back = fastconv.max_unpool2d(cuda.to_device(y), cuda.to_device(places), 2, output_size=(5, 6))
    same(back.copy_to_host(), fastconv.max_unpool2d(y, places, 2, output_size=(5, 6)))
    with fastconv.config(device="cuda"):
        same(
            fastconv.max_unpool2d(y, places, 2),
            fastconv.config(device="cpu")(fastconv.max_unpool2d)(y, places, 2),
        )
        same(fastconv.unfold(x, 2), fastconv.config(device="cpu")(fastconv.unfold)(x, 2))


def check_pooling(_):
    """As on the CPU to the last bit: NaN and equal pixels, borders, both layouts, all gradients."""
    same = np.testing.assert_array_equal
    for rank, shape, window in POOLS:
        x = testing.integers(shape, "float32", 0)
        x.flat[3] = np.nan
        name = f"pool{rank}d"
        for dilation in (1, 2):
            if dilation == 2 and (window.get("ceil_mode") or min(shape[-rank:]) < 4):
                continue
            given = window | {"dilation": dilation}
            y, places = getattr(fastconv, f"max_{name}")(x, return_indices=True, **given)
            gy = testing.integers(y.shape, "float32", 1)
            gx = getattr(fastconv, f"max_{name}_backward")(x, gy, **given)
            for layout in ("nchw", "nhwc") if len(shape) == rank + 2 else ("nchw",):
                there = moved(x, layout), moved(gy, layout)
                ours, found = getattr(fastconv, f"max_{name}")(there[0], return_indices=True, **given)
                same(ours.copy_to_host(), y)
                same(found.copy_to_host(), places)
                assert found.copy_to_host().dtype == np.int64
                ours = getattr(fastconv, f"max_{name}_backward")(*there, **given).copy_to_host()
                same(ours, gx)
                given_places = getattr(fastconv, f"max_{name}_backward")(*there, indices=found, **given)
                same(given_places.copy_to_host(), gx)
                assert ours.flags.c_contiguous == (layout == "nchw")
        for given in (window, window | {"count_include_pad": False}, window | {"divisor_override": 3})[
            : rank + 1
        ]:
            y = getattr(fastconv, f"avg_{name}")(x, **given)
            same(getattr(fastconv, f"avg_{name}")(cuda.to_device(x), **given).copy_to_host(), y)
            gy = 72 * testing.integers(y.shape, "float32", 1)  # whole shares, whatever a window holds
            gx = getattr(fastconv, f"avg_{name}_backward")(shape, gy, **given)
            ours = getattr(fastconv, f"avg_{name}_backward")(shape, cuda.to_device(gy), **given)
            same(ours.copy_to_host(), gx)
    x = testing.integers((1, 2, 5, 7), "float64", 2)
    there = cuda.to_device(x)
    for function in (fastconv.adaptive_avg_pool2d, fastconv.adaptive_max_pool2d):
        same(function(there, (3, 2)).copy_to_host(), function(x, (3, 2)))
    gy = testing.integers((1, 2, 3, 2), "float64", 3)
    ours = fastconv.adaptive_avg_pool2d_backward(x.shape, cuda.to_device(gy)).copy_to_host()
    same(ours, fastconv.adaptive_avg_pool2d_backward(x.shape, gy))
    from fastconv.pooling import cuda as kernels

    expected = fastconv.max_pool2d(x, 2)
    narrow, kernels.LIMIT = kernels.LIMIT, 0  # elements numbered in 64 bits
    same(fastconv.max_pool2d(there, 2).copy_to_host(), expected)
    ours = fastconv.adaptive_avg_pool2d_backward(x.shape, cuda.to_device(gy)).copy_to_host()
    same(ours, fastconv.adaptive_avg_pool2d_backward(x.shape, gy))
    kernels.LIMIT = narrow
    with fastconv.config(device="cuda"):
        same(fastconv.max_pool2d(x, 2), expected)
    assert fastconv.max_pool2d(cuda.to_device(x[:0]), 2).shape == (0, 2, 2, 3)


def check_calls(algorithm):
    """What is not one convolution: all gradients at once, transposed, one image, an empty batch, ``out``, errors."""
    x, w = testing.normals((2, 2, 5, 4), "float32", 0), testing.normals((3, 2, 3, 2), "float32", 1)
    v = testing.normals((3, 2, 2, 3), "float32", 3)
    walk = {"stride": 2, "padding": (1, 0), "algorithm": algorithm}
    g = testing.normals(fastconv.conv2d(x, w, **walk).shape, "float32", 2)
    there = [cuda.to_device(a) for a in (x, w, g, v)]
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    for ours, expected in zip(
        fastconv.conv2d_backward(*there[:3], **walk), fastconv.conv2d_backward(x, w, g, **walk), strict=True
    ):
        same(ours.copy_to_host(), expected)
    assert fastconv.conv2d_backward(*there[:3], need=("bias",), **walk)[:2] == (None, None)

    y = fastconv.conv_transpose2d(g, v, stride=2, output_padding=1)
    same(fastconv.conv_transpose2d(there[2], there[3], stride=2, output_padding=1).copy_to_host(), y)
    gy = testing.normals(y.shape, "float32", 4)
    for ours, expected in zip(
        fastconv.conv_transpose2d_backward(
            there[2], there[3], cuda.to_device(gy), stride=2, output_padding=1
        ),
        fastconv.conv_transpose2d_backward(g, v, gy, stride=2, output_padding=1),
        strict=True,
    ):
        same(ours.copy_to_host(), expected)

    one = fastconv.conv2d(cuda.to_device(x[0]), there[1], **walk)
    same(one.copy_to_host(), fastconv.conv2d(x[0], w, **walk))
    assert fastconv.conv2d(cuda.to_device(x[:0]), there[1], **walk).shape[0] == 0
    empty = fastconv.conv2d_weight(cuda.to_device(x[:0]), w.shape, cuda.to_device(g[:0]), **walk)
    assert not empty.copy_to_host().any()
    out = cuda.to_device(np.zeros(g.shape, "float32"))
    assert fastconv.conv2d(there[0], there[1], out=out, **walk) is out
    same(out.copy_to_host(), fastconv.conv2d(x, w, **walk))
    turned = cuda.to_device(np.ascontiguousarray(x.transpose(0, 1, 3, 2))).transpose((0, 1, 3, 2))
    same(fastconv.conv2d(turned, there[1], **walk).copy_to_host(), fastconv.conv2d(x, w, **walk))

    for mistake, message in (
        (lambda: fastconv.conv2d(there[0], w), "on the GPU like the other arrays"),
        (lambda: fastconv.conv2d(there[0], cuda.to_device(w.astype("float64"))), "one dtype"),
        (lambda: fastconv.conv2d(there[0], there[1], out=there[2]), "result's shape"),
        (lambda: fastconv.conv2d_weight(there[0], w.shape, there[0]), "output's shape"),
        (lambda: fastconv.conv2d(there[0], there[1], there[0]), "bias must have the shape"),
        (lambda: fastconv.conv2d(there[0], there[1], residual=there[0]), "residual must have the result"),
        (lambda: fastconv.conv2d(there[0], there[1], algorithm="quick"), "algorithm must be"),
        (lambda: fastconv.conv2d(there[0], there[1], activation="quick"), "activation on a GPU"),
        (lambda: fastconv.conv2d(there[0], there[1], layout="CHWN"), "layout must be"),
        (lambda: fastconv.conv2d(cuda.to_device(x.astype("int32")), there[1]), "float32 or float64"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            mistake()


if __name__ == "__main__":
    algorithm, *lines = sys.argv[1:]
    if algorithm == "pooling":
        check_pooling(algorithm)
        check_patches()
        print("done")
        sys.exit()
    for line in lines:
        print(line, flush=True)
        check(line, algorithm, exact=True)
    if line := {"direct": "n12 c2 k2 i9x9 f2x2 g2 nhwc", "im2col": "n5 c2 k3 i10x9 f2x2"}.get(algorithm):
        with fastconv.config(deterministic=False):  # splits add to the result
            check(line, algorithm, exact=True)
    if algorithm != "im2col:explicit":
        check_epilogues(algorithm)
        check_large(algorithm)
    check_residual(algorithm)
    if algorithm == "reference":
        check_calls(algorithm)
        check_layouts(algorithm)
        check_kinds(algorithm)
    print("done")
