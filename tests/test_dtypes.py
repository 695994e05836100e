"""Dtypes beyond float32 and float64: integers exactly, halves summed wide, complex numbers whole."""

import numpy as np
import pytest

import fastconv
from fastconv import testing
from fastconv.problem import ConvProblem, Direction

INTEGERS = ("bool", "int8", "int64", "uint64")
OTHERS = [pytest.param(d, marks=pytest.mark.slow) for d in ("int16", "int32", "uint8", "uint16", "uint32")]
PROBLEMS = ["n2 c4 k6 i7x9 f3x2 s2x1 p1:0x2:1 g2", "n1 c3 k6 i9 f4 p2 d2 g3", "n1 c2 k2 i3x4x5 f2x3x2 p1"]
each_problem = pytest.mark.parametrize("problem", [ConvProblem.parse(line) for line in PROBLEMS], ids=str)


@pytest.fixture(autouse=True)
def one_algorithm():
    """Which floats carry a dtype does not depend on the algorithm, and each compiles kernels of its own."""
    with fastconv.config(algorithm="im2col"):
        yield


def whole(rng, shape, dtype, largest=100):
    """Draw integers of a dtype, some of them at its limits."""
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -largest), min(limits.max, largest), shape, endpoint=True).astype(
        dtype
    )


def call(problem, function, *operands, **more):
    rank = len(problem.axes)
    return getattr(fastconv, f"conv{rank}d{function}")(
        *operands,
        stride=tuple(a.stride for a in problem.axes),
        padding=tuple((a.lo, a.hi) for a in problem.axes),
        dilation=tuple(a.dilation for a in problem.axes),
        groups=problem.groups,
        **more,
    )


def objects(problem, direction, first, second):
    """Return the definition's result in Python's integers, which have no limit."""
    return testing.reference.DEFINITION[direction](problem, first.astype(object), second.astype(object))


@each_problem
@pytest.mark.parametrize("dtype", [*INTEGERS, *OTHERS])
def test_integers_are_exact(problem, dtype):
    rng = np.random.default_rng(0)
    x, w = whole(rng, problem.input_shape, dtype), whole(rng, problem.weight_shape, "int8")
    gy = whole(rng, problem.output_shape, dtype)
    y = call(problem, "", x, w)
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, objects(problem, Direction.FORWARD, x, w))
    grads = call(problem, "_backward", x, w, gy)
    np.testing.assert_array_equal(grads.input, objects(problem, Direction.INPUT_GRAD, gy, w))
    np.testing.assert_array_equal(grads.weight, objects(problem, Direction.WEIGHT_GRAD, x, gy))
    np.testing.assert_array_equal(grads.bias, gy.sum(axis=(0, *range(2, gy.ndim)), dtype=np.int64))
    assert {a.dtype for a in grads} == {np.dtype(np.int64)}


@pytest.mark.parametrize("exponents", [(20, 20), (40, 15), (15, 40), (57, 0)])
@pytest.mark.parametrize("direction", list(Direction), ids=str)
def test_sums_beyond_a_float(direction, exponents):
    """2**40 a product and more: float64 would round, pieces do not."""
    problem = ConvProblem.parse("n2 c3 k4 i6x5 f3x3 p1")
    rng = np.random.default_rng(1)
    first, second = (
        whole(rng, shape, "int64", 2**e)
        for shape, e in zip(testing.shapes(problem, direction)[:2], exponents, strict=True)
    )
    out = {
        Direction.FORWARD: lambda: fastconv.conv2d(first, second, padding=1),
        Direction.INPUT_GRAD: lambda: fastconv.conv2d_input(problem.input_shape, second, first, padding=1),
        Direction.WEIGHT_GRAD: lambda: fastconv.conv2d_weight(first, problem.weight_shape, second, padding=1),
    }[direction]()
    np.testing.assert_array_equal(out, objects(problem, direction, first, second))


def test_no_sum_wraps():
    most = 2**63 - 2**15  # nearer to the limit, a result that fits may be refused too
    x = np.array([[[most, most, 0, -most]]])
    assert fastconv.conv1d(x, np.array([[[1]]]))[0, 0].tolist() == [most, most, 0, -most]
    assert fastconv.conv1d(x // 2, np.array([[[1, -1]]]))[0, 0].tolist() == [0, most // 2, most // 2]
    for weight in ([[[1, 1]]], [[[2]]]):
        with pytest.raises(OverflowError, match="exceeds the int64 of the result; convert the operands"):
            fastconv.conv1d(x, np.array(weight))
    with pytest.raises(OverflowError, match="int64"):
        fastconv.conv1d(x, np.array([[[1]]]), np.array([2**15]))
    with pytest.raises(OverflowError, match="int64"):
        fastconv.conv1d(np.full((1, 1, 2), 2**64 - 1, np.uint64), np.ones((1, 1, 1), np.uint64))
    out = np.full((1, 1, 4), 7)
    for weight, more in ([[[2]]], {}), ([[[1]]], {"bias": [2**15]}), ([[[1]]], {"residual": x}):
        with pytest.raises(OverflowError, match="int64"):
            fastconv.conv1d(x, np.array(weight), **more, out=out)
        assert (out == 7).all(), "partly written"
    with pytest.raises(OverflowError, match="bias gradient may exceed int64"):
        fastconv.conv1d_backward(x, np.array([[[1]]]), x, need=("bias",))


def test_epilogue_of_integers():
    rng = np.random.default_rng(2)
    x, w = whole(rng, (2, 3, 6, 6), "uint8"), whole(rng, (4, 3, 3, 3), "int8")
    b, r = whole(rng, (4,), "int32", 10**6), whole(rng, (2, 4, 4, 4), "int64", 10**4)
    plain = fastconv.conv2d(x, w)
    expected = np.maximum(plain + b.reshape(-1, 1, 1) + r, 0)
    np.testing.assert_array_equal(fastconv.conv2d(x, w, b, residual=r, activation="relu"), expected)
    layer = fastconv.prepare(w, x.shape, b, activation="relu")
    np.testing.assert_array_equal(layer(x, residual=r), expected)
    out = np.empty((2, 4, 4, 4), np.int64)
    assert fastconv.conv2d(x, w, out=out) is out
    np.testing.assert_array_equal(out, plain)
    back = fastconv.conv_transpose2d(r, w)
    assert (back * x).sum() == (r * plain).sum()
    for activation in ("sigmoid", "gelu"):
        with pytest.raises(TypeError, match="activation of int64 must be None or 'relu'"):
            fastconv.conv2d(x, w, activation=activation)


@pytest.mark.parametrize("name", ["fft", "winograd"])
def test_integers_are_not_transformed(name):
    x, w = np.ones((1, 8, 40, 40), np.int16), np.ones((8, 8, 3, 3), np.int16)
    with fastconv.config(algorithm="auto"):
        assert fastconv.explain(x, w).algorithm not in ("fft", "winograd")
    with pytest.raises(fastconv.AlgorithmError, match="integers are computed exactly"):
        fastconv.conv2d(x, w, algorithm=name)


@each_problem
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_halves(problem, name):
    """The same as float32, rounded once."""
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    dtype = np.dtype(name)
    x, w, gy = (
        testing.normals(s, "float32", i).astype(dtype)
        for i, s in enumerate((problem.input_shape, problem.weight_shape, problem.output_shape))
    )
    wide = [a.astype(np.float32) for a in (x, w, gy)]
    y = call(problem, "", x, w, algorithm="im2col", residual=gy)
    assert y.dtype == dtype
    expected = call(problem, "", *wide[:2], algorithm="im2col", residual=wide[2])
    np.testing.assert_array_equal(y, expected.astype(dtype))
    grads = call(problem, "_backward", x, w, gy, algorithm="im2col")
    expected = call(problem, "_backward", *wide, algorithm="im2col")
    for ours, theirs in zip(grads, expected, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, theirs.astype(dtype))


def test_halves_are_summed_wide():
    ones = np.ones((1, 4096, 1), np.float16)
    assert fastconv.conv1d(ones, ones).item() == 4096
    assert fastconv.conv1d(ones[:, :2] * np.float16(200), ones[:, :2] * np.float16(200)).item() == np.inf


@each_problem
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex(problem, dtype):
    """Real and imaginary parts by real convolutions; gradients are adjoint for <a, b> = sum conj(a) b."""
    rng = np.random.default_rng(3)
    x, w, gy = (
        (rng.integers(-4, 5, s) + 1j * rng.integers(-4, 5, s)).astype(dtype)
        for s in (problem.input_shape, problem.weight_shape, problem.output_shape)
    )
    b = (rng.integers(-4, 5, problem.k) + 1j * rng.integers(-4, 5, problem.k)).astype(dtype)

    def real(a, v):
        return call(problem, "", np.ascontiguousarray(a), np.ascontiguousarray(v), algorithm="im2col")

    y = call(problem, "", x, w, b, residual=gy)
    plain = real(x.real, w.real) - real(x.imag, w.imag) + 1j * (real(x.real, w.imag) + real(x.imag, w.real))
    expected = plain + b.reshape(-1, *[1] * len(problem.axes)) + gy
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected)
    grads = call(problem, "_backward", x, w, gy)
    assert np.vdot(plain, gy) == np.vdot(x, grads.input) == np.vdot(w, grads.weight)
    np.testing.assert_array_equal(grads.bias, gy.sum(axis=(0, *range(2, gy.ndim))))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["direct", "fft"])
def test_complex_by_other_algorithms(algorithm):
    rng = np.random.default_rng(4)
    x, w = (rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in ((1, 2, 24, 24), (3, 2, 5, 5)))
    y = fastconv.conv2d(x, w, padding=2)
    np.testing.assert_allclose(fastconv.conv2d(x, w, padding=2, algorithm=algorithm), y, rtol=1e-9)


def test_complex_prepared_and_refused():
    rng = np.random.default_rng(4)
    x, w = (rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in ((1, 2, 24, 24), (3, 2, 5, 5)))
    y = fastconv.conv2d(x, w, padding=2)
    with fastconv.config(algorithm="auto"):
        assert fastconv.explain(x, w, padding=2).algorithm not in ("fft", "winograd")
    np.testing.assert_allclose(fastconv.prepare(w, x.shape, padding=2)(x), y, rtol=1e-12)
    with pytest.raises(TypeError, match="activation of complex128 must be None"):
        fastconv.conv2d(x, w, activation="relu")


def test_complex_transposed_against_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    x, w = (rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in ((2, 4, 5, 6), (4, 3, 3, 3)))
    tensors = [torch.from_numpy(a).requires_grad_() for a in (x, w)]
    for ours, backward, theirs in (
        (fastconv.conv_transpose2d, fastconv.conv_transpose2d_backward, torch.nn.functional.conv_transpose2d),
        (fastconv.conv2d, fastconv.conv2d_backward, torch.nn.functional.conv2d),
    ):
        kernel = w if ours is fastconv.conv_transpose2d else w.swapaxes(0, 1).copy()
        tensors = [torch.from_numpy(a).requires_grad_() for a in (x, kernel)]
        expected = theirs(*tensors, stride=2, padding=1)
        y = ours(x, kernel, stride=2, padding=1)
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-10)
        gy = rng.standard_normal(y.shape) + 1j * rng.standard_normal(y.shape)
        expected.backward(torch.from_numpy(gy))
        grads = backward(x, kernel, gy, stride=2, padding=1)
        for mine, tensor in zip(grads, tensors, strict=False):
            np.testing.assert_allclose(mine, tensor.grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("int8", "uint64"), "int64"), (("bool", "bool"), "int64"), (("int8", "float16"), "float16"),
        (("int16", "float32"), "float32"), (("int32", "float32"), "float64"), (("float16", "float32"), "float32"),
        (("float32", "complex64"), "complex64"), (("float64", "complex64"), "complex128"),
        (("int64", "complex64"), "complex128"),
    ],
)  # fmt: skip
def test_mixed_operands_are_promoted(dtypes, expected):
    x, w = np.ones((1, 2, 4), dtypes[0]), np.ones((3, 2, 2), dtypes[1])
    y = fastconv.conv1d(x, w)
    assert y.dtype == expected
    np.testing.assert_array_equal(y, np.full((1, 3, 3), 4))


def test_a_bias_is_promoted_with_them():
    """Not rounded to what the operands are."""
    x, w = np.ones((1, 2, 4)), np.ones((3, 2, 2))
    for dtype, bias, expected in (
        ("int8", 0.5, "float64"),
        ("float32", 2**24 + 1, "float64"),
        ("float32", 1j, "complex128"),
    ):
        y = fastconv.conv1d(x.astype(dtype), w.astype(dtype), np.full(3, bias))
        assert y.dtype == expected
        np.testing.assert_array_equal(y, np.full((1, 3, 3), 4 + bias))


def test_problems_of_every_dtype_print_and_parse():
    for dtype in ("float16", "bfloat16", "int64", "complex64", "complex128"):
        problem = ConvProblem.parse(f"n1 c2 k3 i5 f2 {dtype}")
        assert ConvProblem.parse(str(problem)) == problem
