"""Wrong calls raise ValueError or TypeError with the rule and the numbers, before any work.

The cases are those that have crashed or corrupted other systems: sizes of zero as divisors, shapes that
disagree between the arrays of a gradient, products beyond 64 bits, and types that convert in silence.
"""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastconv
from fastconv import plan

X = np.zeros((2, 4, 7, 6), np.float32)
W = np.zeros((6, 4, 3, 3), np.float32)
B = np.zeros(6, np.float32)
GY = np.zeros((2, 6, 5, 4), np.float32)
HUGE = 2**62


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """A kernel that runs fails the test."""

    class Idle(plan.Plan):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.run = lambda *_: pytest.fail("a kernel ran for a wrong call")

    plan.clear()
    monkeypatch.setattr(plan, "Plan", Idle)
    yield
    plan.clear()


def every(x=X, w=W, gy=GY, **walk):
    """Return the calls that share the arguments of a walk."""
    return {
        "conv2d": lambda: fastconv.conv2d(x, w, **walk),
        "conv2d_input": lambda: fastconv.conv2d_input(x.shape, w, gy, **walk),
        "conv2d_weight": lambda: fastconv.conv2d_weight(x, w.shape, gy, **walk),
        "conv2d_backward": lambda: fastconv.conv2d_backward(x, w, gy, **walk),
        "conv2d_backward_bias": lambda: fastconv.conv2d_backward(x, w, gy, need=("bias",), **walk),
        "prepare": lambda: fastconv.prepare(w, x.shape, **walk),
        "explain": lambda: fastconv.explain(x, w, **walk),
    }


CALLS = tuple(every())


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ["stride", "dilation"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "must be at least 1, got 0"),
        (-1, ValueError, "must be at least 1, got -1"),
        ((1, 0), ValueError, "must be at least 1, got 0"),
        ((1, -HUGE), ValueError, "must be at least 1"),
        (1.0, TypeError, r"must be an integer, got 1\.0"),
        ((1, 1.5), TypeError, r"must be an integer, got 1\.5"),
        (float("nan"), TypeError, "must be an integer, got nan"),
        (True, TypeError, "must be an integer, got True"),
        (np.True_, TypeError, "must be an integer"),
        ("1", TypeError, "must be an integer, got '1'"),
        (None, TypeError, "must be an integer, got None"),
        ({}, TypeError, "must be an integer"),
        ([[1, 1]], TypeError, r"must be an integer, got \[1, 1\]"),
        ((), ValueError, r"must be an integer or 2 of them, got \(\)"),
        ((1, 1, 1), ValueError, r"must be an integer or 2 of them, got \(1, 1, 1\)"),
        (np.ones((1, 2), int), TypeError, "must be an integer"),
        (np.array([1.0, 1.0]), TypeError, "must be an integer"),
    ],
)
def test_stride_and_dilation(call, name, value, error, message):
    with pytest.raises(error, match=f"{name} {message}"):
        every(**{name: value})[call]()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-1, ValueError, r"padding must be at least 0, got -1; to crop, write \(lo, hi\) for each axis"),
        ((0, -1), ValueError, "to crop, write"),
        (HUGE, ValueError, "problem too large: spatial axis 0"),
        (((0, 0), (HUGE, 0)), ValueError, "problem too large: spatial axis 1"),
        (((0, 0), (-HUGE, 0)), ValueError, "padding must be at least"),
        (((-4, -4), (0, 0)), ValueError, "does not fit"),
        (((-8, 9), (0, 0)), ValueError, r"padding \(-8, 9\) crops more than the 7 pixels"),
        (((-8, 999), (0, 0)), ValueError, r"padding \(-8, 999\) crops more than the 7 pixels"),
        (1.0, TypeError, r"padding must be an integer, got 1\.0"),
        (True, TypeError, "padding must be an integer, got True"),
        (None, TypeError, "padding must be an integer, got None"),
        (b"same", TypeError, "padding must be an integer, got b'same'"),
        ("SAME", ValueError, "padding must be one of 'valid', 'same', 'same_lower', 'full', got 'SAME'"),
        ((1, 1, 1), ValueError, r"padding must be an integer, 2 of them, 2 pairs \(lo, hi\), or one of"),
        ((), ValueError, "padding must be an integer, 2 of them"),
        (((1, 1), 1), ValueError, "padding must be an integer, 2 of them"),
        (((1, 1),), ValueError, r"padding must be \(lo, hi\) for each of 2 axes"),
        (((1, 1, 1), (1, 1, 1)), ValueError, r"padding must be \(lo, hi\) for each of 2 axes"),
        (((1, 1), (1, 0.5)), TypeError, r"padding must be an integer, got 0\.5"),
        (
            (1, 2, 3, 4),
            ValueError,
            r"padding \(1, 2, 3, 4\) has two readings: \(\(3, 4\), \(1, 2\)\) in torch.*pad's.*\(\(1, 3\), \(2, 4\)\) in ONNX",
        ),
    ],
)
def test_padding(call, value, error, message):
    with pytest.raises(error, match=message):
        every(padding=value)[call]()


def test_crops_under_strides_over_the_image():
    with pytest.raises(ValueError, match=r"padding \(-8, 999\) crops more than the 7 pixels"):
        fastconv.conv2d(X, W, stride=100, padding=((-8, 999), (0, 0)))


def test_padding_pair_of_one_axis_is_ambiguous():
    x, w = np.zeros((1, 1, 9)), np.zeros((1, 1, 3))
    with pytest.raises(ValueError, match=r"padding must be an integer, 1 of them, 1 pairs \(lo, hi\)"):
        fastconv.conv1d(x, w, padding=(1, 2))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "groups must be at least 1, got 0"),
        (-2, ValueError, "groups must be at least 1, got -2"),
        (2, ValueError, "weight expects 4 input channels per group, input has 4 channels / 2 groups = 2"),
        (3, ValueError, "input channels must be divisible by groups: 4 % 3 != 0"),
        (HUGE, ValueError, "must be divisible by groups"),
        (1.0, TypeError, "groups must be an integer"),
        ((1, 1), TypeError, "groups must be an integer"),
        (None, TypeError, "groups must be an integer"),
    ],
)
def test_groups(call, value, error, message):
    with pytest.raises(error, match=message):
        every(groups=value)[call]()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        ((2, 4, 7), (6, 4, 3, 3), "does not|weight expects|grad_output"),  # read as (C, H, W)
        (
            (7, 6),
            (6, 4, 3, 3),
            r"input must be \(N, C, H, W\) or \(C, H, W\), got 2.*pass input\[None, None\]",
        ),
        ((), (6, 4, 3, 3), "input must be"),
        ((1, 2, 4, 7, 6), (6, 4, 3, 3), "input must be .* got 5 dimensions"),
        ((2, 5, 7, 6), (6, 4, 3, 3), "weight expects 4 input channels per group, input has 5"),
        ((2, 0, 7, 6), (6, 0, 3, 3), "input channels must be at least 1, got 0"),
        ((2, 0, 7, 6), (6, 4, 3, 3), "input channels must be at least 1, got 0"),
        ((2, 4, 7, 6), (0, 4, 3, 3), "output channels must be at least 1, got 0"),
        ((2, 4, 7, 6), (6, 0, 3, 3), "weight expects 0 input channels"),
        ((2, 4, 7, 6), (6, 4, 0, 3), "kernel size must be at least 1, got 0 on spatial axis 0"),
        ((2, 4, 0, 6), (6, 4, 1, 1), "input size must be at least 1, got 0 on spatial axis 0"),
        ((0, 0, 0, 0), (0, 0, 0, 0), "must be at least 1"),
        ((0, 4, 2, 2), (6, 4, 3, 3), "does not fit"),
        (
            (2, 4, 7, 2),
            (6, 4, 3, 3),
            r"spatial axis 1: it spans 1 \* \(3 - 1\) \+ 1 = 3 pixels.* 0 \+ 2 \+ 0 = 2",
        ),
    ],
)
def test_shapes(call, x, w, message):
    with pytest.raises(ValueError, match=message):
        every(np.zeros(x, np.float32), np.zeros(w, np.float32))[call]()


@pytest.mark.parametrize("w", [(), (3,), (3, 3), (4, 3, 3), (1, 6, 4, 3, 3)])
def test_weight_dimensions(w):
    for name, call in every(w=np.zeros(w, np.float32)).items():
        hint = r".*weight\[None, None\]" if len(w) == 2 and name.startswith("conv") else ""
        if len(w) == 3 and name in ("prepare", "explain"):  # one axis: the input does not fit
            hint, what = "", "input"
        else:
            what = "weight"
        if len(w) == 5 and name in ("prepare", "explain"):  # three axes
            with pytest.raises(ValueError, match=r"weight expects|input must be"):
                call()
            continue
        with pytest.raises(ValueError, match=f"{what} must be .*{hint}"):
            call()


@pytest.mark.parametrize("dilation", [4, 2**31, HUGE, 2**63 - 1, 2**70])
def test_dilation_beyond_the_input(dilation):
    for call in every(dilation=dilation).values():
        with pytest.raises(ValueError, match="kernel does not fit the padded input"):
            call()


@pytest.mark.parametrize("dilation", [HUGE, 2**70])
def test_padding_rules_of_huge_kernels(dilation):
    for rule in ("full", "same"):
        with pytest.raises(ValueError, match="problem too large"):
            fastconv.conv2d(X, W, padding=rule, dilation=dilation)


@pytest.mark.parametrize("call", ["conv2d_input", "conv2d_weight", "conv2d_backward", "conv2d_backward_bias"])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 6, 5, 5), (2, 6, 5, 3), (2, 6, 5, 0), (2, 6, 5000, 4), (2, 5, 5, 4), (2, 7, 5, 4), (1, 6, 5, 4),
        (3, 6, 5, 4), (0, 6, 5, 4), (6, 5, 4), (2, 6, 20), (1, 2, 6, 5, 4), (240,), (),
    ],
)  # fmt: skip
def test_grad_output_of_another_shape(call, shape):
    calls = every(gy=np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"grad_output must have the output's shape \(2, 6, 5, 4\), got \("):
        calls[call]()


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (7, TypeError, "must be a sequence of integers, got 7"),
        (None, TypeError, "must be a sequence of integers, got None"),
        ("2467", TypeError, "must be a sequence"),
        ((2, 4, 7.0, 6), TypeError, r"each of .*must be an integer, got 7\.0"),
        ((2, 4, True, 6), TypeError, "must be an integer, got True"),
        ((2, 4, -7, 6), ValueError, "must be at least|does not fit"),
        ([2, 4, -7, 6], ValueError, "must be at least 0, got -7"),
        ((-2, 4, 7, 6), ValueError, "at least 0, got -2|at least 1, got -2"),
        ((), ValueError, "got 0 dimensions"),
        ((2, 4, HUGE, HUGE), ValueError, "too large|does not fit"),
        ((2, 4, 2**32, 2**31), ValueError, "too large|does not fit"),
    ],
)
def test_sizes(size, error, message):
    with pytest.raises(error, match=message):
        fastconv.conv2d_input(size, W, GY)
    with pytest.raises(error, match=message):
        fastconv.conv2d_weight(X, size, GY)
    with pytest.raises(error, match=message):
        fastconv.prepare(W, size)


@pytest.mark.parametrize("bias", [(1,), (5,), (7,), (0,), (), (6, 1), (1, 6), (1, 6, 1, 1)])
def test_bias_of_another_shape(bias):
    b = np.zeros(bias, np.float32)
    for call in (lambda: fastconv.conv2d(X, W, b), lambda: fastconv.prepare(W, X.shape, b)):
        with pytest.raises(
            ValueError, match=r"bias must have one element for each of 6 output channels, got"
        ):
            call()


def arrays_of_no_use():
    yield None, "must be an array, got NoneType"
    yield "image.png", "must be an array, got str"
    yield b"1234", "must be an array, got bytes"
    yield object(), "must be float16, .* or an integer, got object"
    yield [[1.0], [1.0, 2.0]], "must be an array, got list"
    yield X.astype(object), "must be float16, .* or an integer, got object"
    yield np.ma.masked_array(X, X > 1), "must not be a masked array"
    for dtype in ("g", "G", "U3", "M8[s]"):
        yield X.astype(dtype), "must be float16, .* or an integer, got"
    yield np.zeros(X.shape, [("a", "f4")]), "must be float16, .* or an integer, got"


@pytest.mark.parametrize(("value", "message"), list(arrays_of_no_use()))
def test_arrays(value, message):
    calls = {
        "input": [
            lambda: fastconv.conv2d(value, W),
            lambda: fastconv.conv2d_weight(value, W.shape, GY),
            lambda: fastconv.conv2d_backward(value, W, GY),
            lambda: fastconv.explain(value, W),
        ],
        "weight": [
            lambda: fastconv.conv2d(X, value),
            lambda: fastconv.conv2d_input(X.shape, value, GY),
            lambda: fastconv.conv2d_backward(X, value, GY),
            lambda: fastconv.prepare(value, X.shape),
        ],
        "grad_output": [
            lambda: fastconv.conv2d_input(X.shape, W, value),
            lambda: fastconv.conv2d_weight(X, W.shape, value),
            lambda: fastconv.conv2d_backward(X, W, value, need=()),
        ],
        "bias": [] if value is None else [lambda: fastconv.conv2d(X, W, value)],
    }
    for name, those in calls.items():
        for call in those:
            with pytest.raises(TypeError, match=f"{name} {message}"):
                call()


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((2, 6, 5, 5), np.float32), ValueError, r"shape \(2, 6, 5, 4\), got \(2, 6, 5, 5\)"),
        (np.zeros((6, 5, 4), np.float32), ValueError, "out must have the result's shape"),
        (np.zeros((2, 6, 5, 4)), TypeError, "dtype float32, got float64"),
        (np.zeros((2, 6, 5, 4), ">f4"), TypeError, "dtype float32, got >f4"),
        (np.broadcast_to(np.float32(0), (2, 6, 5, 4)), ValueError, "out must be writeable"),
        (np.ma.zeros((2, 6, 5, 4), np.float32), TypeError, "out must be an array, got MaskedArray"),
        ([0.0], TypeError, "out must be an array, got list"),
        (np.float32, TypeError, "out must be an array, got type"),
    ],
)
def test_out(out, error, message):
    with pytest.raises(error, match=message):
        fastconv.conv2d(X, W, out=out)


def test_out_over_itself():
    """Two results would share an element."""
    memory = np.zeros(2000, np.float32)
    for strides in (
        (4 * 120, 4 * 20, 4 * 4, 4 * 2),
        (4 * 119, 80, 16, 4),
        (4 * 120, 80, 16, 0),
        (4 * 120, -76, 16, 4),
    ):
        out = as_strided(memory[100:], (2, 6, 5, 4), strides)
        with pytest.raises(ValueError, match="out must have memory of its own for each element, got strides"):
            fastconv.conv2d(X, W, out=out)


def test_out_over_an_operand():
    x = np.zeros((1, 1, 8), np.float32)
    w = np.zeros((1, 1, 3), np.float32)
    for out in (x, x[..., ::-1]):
        with pytest.raises(ValueError, match="out must not share memory with an operand"):
            fastconv.conv1d(x, w, padding=1, out=out)
    with pytest.raises(ValueError, match="share memory"):
        fastconv.conv1d_weight(x, w.shape, np.zeros((1, 1, 8), np.float32), padding=1, out=x[..., :3])
    b = np.zeros(8, np.float32)
    with pytest.raises(ValueError, match="share memory"):
        fastconv.conv1d(x, w, b[:1], padding=1, out=b.reshape(1, 1, 8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"algorithm": "fastest"},
            ValueError,
            "algorithm must be 'auto' or one of .*reference.*got 'fastest'",
        ),
        ({"algorithm": "reference:x"}, ValueError, "no variants"),
        ({"algorithm": None}, TypeError, "algorithm must be a name, got NoneType"),
        ({"algorithm": ["direct"]}, TypeError, "algorithm must be a name, got list"),
        ({"workspace": -1}, ValueError, "workspace must be at least 0"),
        ({"workspace": 1e9}, TypeError, "workspace must be an integer"),
        ({"workspace": "1GB"}, TypeError, "workspace must be an integer"),
    ],
)
@pytest.mark.parametrize("call", CALLS)
def test_choice(call, arguments, error, message):
    if call == "conv2d_backward_bias":
        pytest.skip("nothing to choose")
    with pytest.raises(error, match=message):
        every(**arguments)[call]()


@pytest.mark.parametrize(
    ("activation", "error", "message"),
    [
        ("swish", ValueError, "activation must be one of relu.*got 'swish'"),
        (abs, TypeError, "activation must be None, one of .*numba.njit"),
        (1, TypeError, "activation must be None"),
    ],
)
def test_activation(activation, error, message):
    for call in (
        lambda: fastconv.conv2d(X, W, activation=activation),
        lambda: fastconv.prepare(W, X.shape, activation=activation),
    ):
        with pytest.raises(error, match=message):
            call()


def test_own_activation_that_kernels_cannot_use():
    numba = pytest.importorskip("numba")
    for function, message in (
        (lambda a, b: a, "must take one float32 number"),
        (lambda a: a.upper(), "must take one float32 number"),
        (lambda a: a * 1j, "must return a real number, got complex"),
        (lambda a: None, "must return a real number, got NoneType"),
    ):
        with pytest.raises(TypeError, match=message):
            fastconv.conv2d(X, W, activation=numba.njit(function))


@pytest.mark.parametrize(
    ("need", "error", "message"),
    [
        ("input", TypeError, "need must be a sequence of names"),
        (("input", "bias", "wieght"), ValueError, "need may name input, weight, bias, got 'wieght'"),
        (None, TypeError, "need must be a sequence of names"),
        ((True, True, False), TypeError, "need must be a sequence of names"),
    ],
)
def test_need(need, error, message):
    with pytest.raises(error, match=message):
        fastconv.conv2d_backward(X, W, GY, need=need)


def test_unknown_keyword():
    with pytest.raises(TypeError, match="strides"):
        fastconv.conv2d(X, W, strides=1)


def test_wrong_number_of_axes():
    with pytest.raises(ValueError, match=r"input must be \(N, C, L\) or \(C, L\), got 4 dimensions"):
        fastconv.conv1d(X, W)
    with pytest.raises(ValueError, match=r"weight must be \(K, C/groups, H, W\), got 3 dimensions"):
        fastconv.conv2d(X, W[..., 0])


def test_huge_strides_are_right(monkeypatch):
    monkeypatch.undo()
    plan.clear()
    x, w = np.ones((1, 1, 5, 5), np.float32), np.ones((1, 1, 3, 3), np.float32)
    for stride in (5, 2**31, 2**63, 2**70):
        y = fastconv.conv2d(x, w, stride=stride)
        np.testing.assert_array_equal(y, np.full((1, 1, 1, 1), 9))
        gx = fastconv.conv2d_input(x.shape, w, y, stride=stride)
        assert gx.sum() == 81
        assert gx[0, 0, 3:].sum() == 0
    y = fastconv.conv2d(x, w[:, :, :1, :1], dilation=2**70)  # one tap has no gaps
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("far", [8, 2**20, 2**46])
@pytest.mark.parametrize("algorithm", ["auto", "direct"])
def test_huge_paddings_under_huge_strides_are_right(monkeypatch, far, algorithm):
    """Nine results, of which one meets the image: nothing is as long as the padding."""
    monkeypatch.undo()
    plan.clear()
    x, w = np.ones((1, 1, 5, 5), np.float32), np.ones((1, 1, 3, 3), np.float32)
    given = {"stride": far, "padding": far, "algorithm": algorithm}
    y = fastconv.conv2d(x, w, **given)
    expected = np.zeros((1, 1, 3, 3))
    expected[0, 0, 1, 1] = 9
    np.testing.assert_array_equal(y, expected)
    grads = fastconv.conv2d_backward(x, w, y + 1, **given)
    assert grads.input.sum() == 90
    assert grads.input[0, 0, 3:].sum() == 0
    np.testing.assert_array_equal(grads.weight, np.full(w.shape, 10))
    for direction in ("forward", "input_grad", "weight_grad"):
        fastconv.explain(x, w, direction=direction, **given)


BEYOND_MEMORY = {
    "conv1d": lambda x, w, long: fastconv.conv1d(x, w, padding=long.size),
    "conv1d_input": lambda x, w, long: fastconv.conv1d_input(long.shape, w, long[..., 2:]),
    "conv1d_weight": lambda x, w, long: fastconv.conv1d_weight(long, long[..., 7:].shape, x),
    "conv1d_weight of padding": lambda x, w, long: fastconv.conv1d_weight(
        x, long[..., 1:].shape, x[..., :2], padding=long.size // 2 - 4
    ),
    "conv_transpose1d": lambda x, w, long: fastconv.conv_transpose1d(x, w, stride=long.size // 2),
}


@pytest.mark.parametrize("call", BEYOND_MEMORY)
def test_results_beyond_memory(call):
    """Refused at once, not after tables as long as they are."""
    x, w = np.ones((1, 1, 8), np.float32), np.ones((1, 1, 3), np.float32)
    with pytest.raises(MemoryError, match="allocate"):
        BEYOND_MEMORY[call](x, w, np.broadcast_to(np.float32(1), (1, 1, 2**46)))


@pytest.mark.parametrize("name", ["padding_mode", "layout", "direction", "algorithm"])
def test_arrays_are_no_names(name):
    """They compare element by element."""
    for value in (np.zeros(3), np.array(["zeros", "NCHW"]), ["zeros"]):
        with pytest.raises((TypeError, ValueError), match=f"{name} must be .*, (got|not) "):
            fastconv.explain(X, W, **{name: value})
        if name != "direction":
            with pytest.raises((TypeError, ValueError), match=f"{name} must be "):
                fastconv.conv2d(X, W, **{name: value})
