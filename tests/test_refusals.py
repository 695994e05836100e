"""Wrong calls of the functions beside conv2d: each names the argument, and no kernel runs.

`test_bad_inputs` has the rules themselves; here every other function is held to them.
"""

from functools import partial

import numpy as np
import pytest

import fastconv
from fastconv import threads

HUGE = 2**62


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """A kernel that runs fails the test."""
    monkeypatch.setattr(threads, "launch", lambda *_: pytest.fail("a kernel ran for a wrong call"))


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


X = {1: zeros(2, 4, 7), 2: zeros(2, 4, 7, 6), 3: zeros(2, 4, 5, 4, 3)}
W = {1: zeros(6, 4, 3), 2: zeros(6, 4, 3, 3), 3: zeros(6, 4, 3, 2, 1)}
GY = {1: zeros(2, 6, 5), 2: zeros(2, 6, 5, 4), 3: zeros(2, 6, 3, 3, 3)}
LAST = zeros(2, 7, 6, 4), zeros(2, 5, 4, 6)  # x and gy, pixel by pixel


def convolutions():
    """Yield (name, a call that takes the arguments of a walk)."""
    for rank, x in X.items():
        w, gy = W[rank], GY[rank]
        if rank != 2:
            yield f"conv{rank}d", partial(getattr(fastconv, f"conv{rank}d"), x, w)
            yield f"conv{rank}d_input", partial(getattr(fastconv, f"conv{rank}d_input"), x.shape, w, gy)
            yield f"conv{rank}d_weight", partial(getattr(fastconv, f"conv{rank}d_weight"), x, w.shape, gy)
            yield f"conv{rank}d_backward", partial(getattr(fastconv, f"conv{rank}d_backward"), x, w, gy)
        transposed = f"conv_transpose{rank}d"
        yield transposed, partial(getattr(fastconv, transposed), gy, w)
        yield f"{transposed}_backward", partial(getattr(fastconv, f"{transposed}_backward"), gy, w, x)
    yield "NHWC", partial(fastconv.conv2d, LAST[0], W[2], layout="NHWC")
    yield "NHWC_backward", partial(fastconv.conv2d_backward, LAST[0], W[2], LAST[1], layout="NHWC")


CONVOLUTIONS = dict(convolutions())
WALKS = [
    ({"stride": 0}, "stride must be at least 1, got 0"),
    ({"stride": -HUGE}, "stride must be at least 1"),
    ({"stride": 1.0}, "stride must be an integer"),
    ({"stride": None}, "stride must be an integer"),
    ({"dilation": 0}, "dilation must be at least 1"),
    ({"dilation": "1"}, "dilation must be an integer"),
    ({"dilation": HUGE}, "does not fit|too large|grad_output must have"),
    ({"dilation": 2**63 - 1}, "does not fit|too large|grad_output must have"),
    ({"padding": -1}, "padding must be at least 0"),
    ({"padding": HUGE}, "problem too large|output size must be at least 1"),
    ({"padding": None}, "padding must be"),
    ({"groups": 0}, "groups must be at least 1"),
    ({"groups": HUGE}, "groups|grad_output must have|too large"),
    ({"groups": 2.0}, "groups must be an integer"),
    ({"algorithm": "fastest"}, "algorithm must be 'auto' or one of"),
    ({"workspace": -1}, "workspace must be at least 0"),
]  # fmt: skip


@pytest.mark.parametrize("call", CONVOLUTIONS)
@pytest.mark.parametrize(("walk", "message"), WALKS, ids=str)
def test_walks(call, walk, message):
    with pytest.raises((TypeError, ValueError), match=message):
        CONVOLUTIONS[call](**walk)


@pytest.mark.parametrize("call", [c for c in CONVOLUTIONS if not c.startswith("NHWC")])
@pytest.mark.parametrize("layout", ["NHCW", "channels_last", None, 3])
def test_layouts(call, layout):
    with pytest.raises((TypeError, ValueError), match="layout must be"):
        CONVOLUTIONS[call](layout=layout)


@pytest.mark.parametrize("call", [c for c in CONVOLUTIONS if "transpose" not in c])
def test_padding_modes(call):
    for mode in ("edge", None, 0):
        with pytest.raises((TypeError, ValueError), match="padding_mode must be one of zeros, reflect"):
            CONVOLUTIONS[call](padding_mode=mode)
    with pytest.raises(ValueError, match=r"padding must be at least 0 where padding_mode is|does not fit"):
        CONVOLUTIONS[call](
            padding=((-1, 1),) * (2 if call.startswith("NHWC") else int(call[4])), padding_mode="circular"
        )


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("lengthened", [0, 1, 2])
@pytest.mark.parametrize("by", [-1, 1, 1000])
def test_gradients_of_another_shape(rank, lengthened, by):
    """Batch, channels and pixels: what a heap was written past the end by elsewhere."""
    for like, call in (
        (GY[rank], lambda g: getattr(fastconv, f"conv{rank}d_backward")(X[rank], W[rank], g)),
        (GY[rank], lambda g: getattr(fastconv, f"conv{rank}d_input")(X[rank].shape, W[rank], g)),
        (GY[rank], lambda g: getattr(fastconv, f"conv{rank}d_weight")(X[rank], W[rank].shape, g)),
        (X[rank], lambda g: getattr(fastconv, f"conv_transpose{rank}d_backward")(GY[rank], W[rank], g)),
    ):
        shape = list(like.shape)
        shape[lengthened] += by
        for wrong in (shape, shape[1:], [*like.shape, 1], [0] * like.ndim, []):
            with pytest.raises(ValueError, match="grad_output must have the output's shape"):
                call(zeros(*wrong))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transpose", ["", "_transpose"])
def test_empty_operands(rank, transpose):
    """A size of zero is nobody's divisor."""
    function = getattr(fastconv, f"conv{transpose}{rank}d")
    x, w = (GY[rank], W[rank]) if transpose else (X[rank], W[rank])
    for axis in range(1, rank + 2):
        for a, b in (
            (np.take(x, [], axis), w),
            (x, np.take(w, [], axis)),
            (zeros(*[0] * x.ndim), zeros(*[0] * x.ndim)),
        ):
            with pytest.raises(ValueError, match=r"must be at least 1|weight expects|does not fit"):
                function(a, b)


@pytest.mark.parametrize(
    "dtype",
    [object, "U3", "M8[s]", "g", [("a", "f4")]],
    ids=["object", "text", "dates", "long double", "fields"],
)
@pytest.mark.parametrize(
    "call", ["conv1d", "conv3d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "unfold"]
)
def test_dtypes_of_no_use(call, dtype):
    more = {"conv1d": (W[1],), "conv3d": (W[3],), "conv_transpose2d": (zeros(4, 3, 2, 2),)}.get(call, (2,))
    x = {"conv1d": X[1], "conv3d": X[3]}.get(call, X[2]).astype(dtype)
    with pytest.raises(TypeError, match="input must be float"):
        getattr(fastconv, call)(x, *more)


POOLS = [
    ({"kernel_size": 0}, "kernel_size must be at least 1"),
    ({"kernel_size": (2, -1)}, "kernel_size must be at least 1"),
    ({"kernel_size": 2.5}, "kernel_size must be an integer"),
    ({"kernel_size": 2**63 - 1}, "spans|too large"),
    ({"kernel_size": 2**40}, "spans|too large"),
    ({"kernel_size": 2, "stride": 0}, "stride must be at least 1"),
    ({"kernel_size": 2, "stride": (1, -1)}, "stride must be at least 1"),
    ({"kernel_size": 2, "padding": 2}, "at most half of kernel_size"),
    ({"kernel_size": 2, "padding": -1}, "padding must be at least 0"),
    ({"kernel_size": 2, "padding": HUGE}, "padding|too large"),
    ({"kernel_size": 2**64, "padding": 2**63}, "problem too large: spatial axis 0 has"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), [*POOLS, ({"kernel_size": 2, "dilation": 2**40}, "spans")], ids=str
)
def test_pools(arguments, message):
    x = X[2]
    calls = [
        lambda: fastconv.max_pool2d(x, **arguments),
        lambda: fastconv.max_pool2d_backward(x, x, **arguments),
    ]
    if "dilation" not in arguments:
        calls.append(lambda: fastconv.avg_pool2d(x, **arguments))
        calls.append(lambda: fastconv.avg_pool2d_backward(x.shape, x, **arguments))
    for call in calls:
        with pytest.raises((TypeError, ValueError), match=message):
            call()


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 4, 4, 3), (2, 3, 3, 3), (0, 4, 3, 3), (3, 3), (10, 6, 3, 3, 7)]
)
def test_gradients_of_pools(shape):
    """The gradient given with another shape was an advisory of its own, in each of them."""
    for call in (
        lambda g: fastconv.max_pool2d_backward(X[2], g, 2),
        lambda g: fastconv.avg_pool2d_backward(X[2].shape, g, 2),
    ):
        with pytest.raises(ValueError, match=r"grad_output must have the output's shape \(2, 4, 3, 3\)"):
            call(zeros(*shape))


@pytest.mark.parametrize("index", [-2, 16, 2**40, -(2**63)])
def test_places_outside(monkeypatch, index):
    """The kernel looks at each before it writes there."""
    monkeypatch.undo()
    with pytest.raises(ValueError, match="indices must be from 0 to 15"):
        fastconv.max_unpool2d(zeros(1, 2, 2), np.full((1, 2, 2), index), 2)


def test_columns_and_places_too_many():
    with pytest.raises(
        ValueError, match=r"problem too large: the padded image has \[2199023255559, 2199023255558\]"
    ):
        fastconv.unfold(X[2], 2, padding=2**40)
    for more in ({"kernel_size": 2**40}, {"kernel_size": (1, 2**63)}, {"kernel_size": 2, "padding": 2**40}):
        with pytest.raises(ValueError, match=r"is no size: .* for .* windows, stride"):
            fastconv.max_unpool2d(X[2], zeros(*X[2].shape, dtype="int64"), **more)


@pytest.mark.parametrize("norm", ["x", None, float("nan"), 1j, [2]])
def test_norms(norm):
    with pytest.raises(TypeError, match="norm_type must be a number, got"):
        fastconv.lp_pool2d(X[2], norm, 2)


@pytest.mark.parametrize("size", [(-1, 2), (0, 2), (2, 2.5), "12", (1, 2, 3)])
def test_adaptive_sizes(size):
    for pool in (fastconv.adaptive_avg_pool2d, fastconv.adaptive_max_pool2d):
        with pytest.raises((TypeError, ValueError), match="output_size"):
            pool(X[2], size)


def test_residuals():
    for rank, gy in GY.items():
        x, w = X[rank], W[rank]
        for wrong in (gy[:1], gy[0], gy[..., :1], zeros(6, *[1] * rank), zeros(1)):
            with pytest.raises(ValueError, match="residual must have the result's shape"):
                getattr(fastconv, f"conv{rank}d")(x, w, residual=wrong)
            with pytest.raises(ValueError, match="residual must have the result's shape"):
                getattr(fastconv, f"conv{rank}d_backward")(x, w, gy, residual=wrong)
    with pytest.raises(ValueError, match=r"residual must have the result's shape \(2, 5, 4, 6\)"):
        fastconv.conv2d(LAST[0], W[2], residual=GY[2], layout="NHWC")
    with pytest.raises(TypeError, match="residual must"):
        fastconv.conv2d(X[2], W[2], residual=GY[2].astype(object))


def test_results_in_the_way():
    with pytest.raises(ValueError, match="out must have the result's shape"):
        fastconv.conv2d(LAST[0], W[2], out=GY[2], layout="NHWC")
    for rank in (1, 3):
        with pytest.raises(TypeError, match="dtype float32, got float64"):
            getattr(fastconv, f"conv{rank}d")(X[rank], W[rank], out=GY[rank].astype("f8"))
    x = zeros(1, 1, 4)
    with pytest.raises(ValueError, match="out must not share memory with an operand"):
        fastconv.conv_transpose1d(x, zeros(1, 1, 1), out=x)
    with pytest.raises(ValueError, match="out must not share memory with an operand"):
        fastconv.conv1d(x, zeros(1, 1, 1), residual=x[:], out=x)
