"""A call from end to end, for any number of axes: read the arguments, find the plan, run it.

With the letters of `fastconv.problem`::

    forward      y[n, k, p, q] = b[k] + sum over c, r, s of  x[n, c, p*stride + r*dilation - lo, ...] * w[k, c, r, s]
    gradients    of sum(y * gy) by x, by w and by b

Everything is checked before memory is copied or a kernel runs.  A small call is mostly this file: the common
case, plain contiguous arrays and integers, goes from its arguments to the plan `at_once`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from fastconv import arguments, plan, reuse
from fastconv.arrays import (
    AS_IS,
    FLOATS,
    Form,
    common,
    contiguous,
    delivered,
    empty,
    operand,
    or_on_gpu,
    order,
    ready,
    result,
    to_last,
)
from fastconv.problem import PADDING_MODES, ConvProblem, Direction
from fastconv.typing import Array

Need: TypeAlias = Sequence[Literal["input", "weight", "bias"]]

NEEDS = ("input", "weight", "bias")


class Grads(NamedTuple):
    """Gradients of a convolution; None where not asked for."""

    input: Array | None
    weight: Array | None
    bias: Array | None


@functools.cache
def _resolver() -> Callable[[Any, np.dtype[Any]], Any]:
    from fastconv.activations import resolve  # imports Numba

    return resolve


def activation_code(activation: Any, dtype: np.dtype[Any]) -> Any:
    """Return what kernels take for an activation; 0 for none."""
    if activation is None:
        return 0
    if dtype.kind == "c" or (dtype.kind == "i" and activation != "relu"):
        allowed = "None" if dtype.kind == "c" else "None or 'relu'"
        raise TypeError(f"activation of {dtype} must be {allowed}, got {activation!r}")
    return _resolver()(activation, dtype if dtype in FLOATS else np.dtype("float32"))


def at_once(
    rank: int, images: Any, other: Any, stride: Any, padding: Any, dilation: Any, groups: Any, layout: Any,
    padding_mode: Any,
) -> tuple[Any, ...] | None:  # fmt: skip
    """Return the fields of the `Walk` of a call whose arguments need no reading, or None.

    Then the kernels take both operands as they are, and so they and the integers make the key of its plan.
    """
    memory = "nchw"
    if type(images) is np.ndarray and images.ndim == rank + 2 and not images.flags.c_contiguous:
        images, memory = to_last(images), "nhwc"
    if (
        ready(images, other)
        and images.ndim == rank + 2
        and arguments.whole(stride, padding, dilation, groups)
        and type(layout) is type(padding_mode) is str
        and layout == arguments.LAYOUTS[rank][0]
        and padding_mode in PADDING_MODES
    ):
        return rank, stride, padding, dilation, groups, memory, padding_mode
    return None


def by(name: str) -> Callable[[Any], Any]:
    """Return what finds a call's twin for a GPU, of the same arguments."""

    def found(_: Any) -> Any:
        from fastconv.cuda import call

        return getattr(call, name)

    return found


@or_on_gpu(1, by("forward"))
def forward(
    rank: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    activation: Any, residual: Any, algorithm: Any, workspace: Any, out: Any, layout: Any, padding_mode: Any,
) -> Array:  # fmt: skip
    """Return y."""
    known = at_once(rank, input, weight, stride, padding, dilation, groups, layout, padding_mode)
    if known and residual is None and out is None and (bias is None or ready(bias, weight)):
        dtype = input.dtype
        p = plan.find("forward", input.shape, weight.shape, dtype, known, algorithm, workspace)
        if bias is not None:
            check_bias(bias, p)
        if p.problem.layout == known[5]:
            y = empty(p.shape, dtype, known[5])
            code = 0 if activation is None else activation_code(activation, dtype)
            p.run(input, weight, y, p.nothing if bias is None else bias, code, p.nothing)
            return y
    x, w = operand(input, "input"), operand(weight, "weight")
    b = None if bias is None else operand(bias, "bias")
    form = Form(x.ndim != rank + 1, arguments.channels_last(layout, rank))
    x = form.taken(x)
    added = None if residual is None else operand(residual, "residual")
    dtype = common(x, w, *(a for a in (b, added) if a is not None))
    walk = arguments.walk(rank, stride, padding, dilation, groups, order(x, dtype, form.layout), padding_mode)
    code = activation_code(activation, dtype)
    p = plan.find("forward", x.shape, w.shape, dtype, walk, algorithm, workspace)
    return run(p, form, dtype, x, w, out, b, code, added)


def run(
    p: plan.Plan, form: Form, dtype: np.dtype[Any], first: Array, second: Array, out: Any = None,
    bias: Array | None = None, activation: Any = 0, residual: Array | None = None,
) -> Array:  # fmt: skip
    """Run a plan on images (n, c, h, w) and return the result in the caller's form; the plan tells what to check."""
    if bias is not None:
        check_bias(bias, p)
    if residual is not None:
        residual = check_residual(residual, form, p.shape)
    images, weights = p.problem.layout, p.direction is Direction.WEIGHT_GRAD
    form, memory = (AS_IS, "nchw") if weights else (form, images)
    if out is None:
        y = empty(p.shape, dtype, memory)
    else:
        y = result(out, form, p.shape, dtype, memory, first, second, bias, residual)
    p.run(
        contiguous(first, dtype, images),
        contiguous(second, dtype, images if weights else "nchw"),
        y,
        p.nothing if bias is None else contiguous(bias, dtype),
        activation,
        p.nothing if residual is None else contiguous(residual, dtype, images),
    )
    if out is not None:
        return delivered(y, form, out)
    return form.given(y if weights else contiguous(y, dtype, p.layout))


def check_residual(residual: Array, form: Form, shape: tuple[int, ...]) -> Array:
    """Return it as (n, k, p, q), or refuse what NumPy would broadcast."""
    if residual.shape != (given := form.given_shape(shape)):
        raise ValueError(f"residual must have the result's shape {given}, got {residual.shape}")
    return form.taken(residual)


def check_bias(bias: Array, p: plan.Plan) -> None:
    """Refuse what NumPy would broadcast."""
    if bias.shape != (channels := p.shape[1],):
        raise ValueError(
            f"bias must have one element for each of {channels} output channels, got shape {bias.shape}"
        )


@or_on_gpu(2, by("input_grad"))
def input_grad(
    rank: int, input_size: Any, weight: Any, grad_output: Any, stride: Any, padding: Any, dilation: Any,
    groups: Any, algorithm: Any, workspace: Any, out: Any, layout: Any, padding_mode: Any,
) -> Array:  # fmt: skip
    """Return gx."""
    size = arguments.shape(input_size, "input_size")
    known = at_once(rank, grad_output, weight, stride, padding, dilation, groups, layout, padding_mode)
    if known and len(size) == rank + 2 and out is None:
        p = plan.find("input_grad", size, weight.shape, weight.dtype, known, algorithm, workspace)
        check_grad_output(grad_output.shape, p.problem, AS_IS)
        if p.problem.layout == known[5]:
            gx = empty(size, weight.dtype, known[5])
            p.run(grad_output, weight, gx, p.nothing, 0, p.nothing)
            return gx
    w, gy = operand(weight, "weight"), operand(grad_output, "grad_output")
    form = Form(len(size) != rank + 1, arguments.channels_last(layout, rank))
    size, given, gy = form.taken_shape(size), gy.shape, form.taken(gy)
    dtype = common(w, gy)
    walk = arguments.walk(
        rank, stride, padding, dilation, groups, order(gy, dtype, form.layout), padding_mode
    )
    p = plan.find("input_grad", size, w.shape, dtype, walk, algorithm, workspace)
    check_grad_output(given, p.problem, form)
    return run(p, form, dtype, gy, w, out)


@or_on_gpu(1, by("weight_grad"))
def weight_grad(
    rank: int, input: Any, weight_size: Any, grad_output: Any, stride: Any, padding: Any, dilation: Any,
    groups: Any, algorithm: Any, workspace: Any, out: Any, layout: Any, padding_mode: Any,
) -> Array:  # fmt: skip
    """Return gw."""
    size = arguments.shape(weight_size, "weight_size")
    known = at_once(rank, input, grad_output, stride, padding, dilation, groups, layout, padding_mode)
    if known and known[5] == "nchw" and out is None:
        p = plan.find("weight_grad", input.shape, size, input.dtype, known, algorithm, workspace)
        check_grad_output(grad_output.shape, p.problem, AS_IS)
        gw = reuse.empty(size, input.dtype)
        p.run(input, grad_output, gw, p.nothing, 0, p.nothing)
        return gw
    x, gy = operand(input, "input"), operand(grad_output, "grad_output")
    form = Form(x.ndim != rank + 1, arguments.channels_last(layout, rank))
    x, given, gy = form.taken(x), gy.shape, form.taken(gy)
    dtype = common(x, gy)
    walk = arguments.walk(
        rank, stride, padding, dilation, groups, order(x, dtype, order(gy, dtype, form.layout)), padding_mode
    )
    p = plan.find("weight_grad", x.shape, size, dtype, walk, algorithm, workspace)
    check_grad_output(given, p.problem, form)
    return run(p, form, dtype, x, gy, out)


def check_grad_output(given: tuple[int, ...], problem: ConvProblem, form: Form) -> None:
    """Refuse a gradient that is not of the output's shape: kernels size their loops by the problem."""
    shape = form.given_shape(problem.output_shape)
    if given != shape:
        raise ValueError(f"grad_output must have the output's shape {shape}, got {given}")


@or_on_gpu(1, by("backward"))
def backward(
    rank: int, input: Any, weight: Any, grad_output: Any, stride: Any, padding: Any, dilation: Any,
    groups: Any, need: Any, residual: Any, algorithm: Any, workspace: Any, layout: Any, padding_mode: Any,
) -> Grads:  # fmt: skip
    """Return gx plus a residual, gw and gb, or those of them that are needed."""
    wanted = read_need(need)
    known = at_once(rank, input, weight, stride, padding, dilation, groups, layout, padding_mode)
    added = None if residual is None else operand(residual, "residual")
    plain = ready(grad_output, weight) and (added is None or ready(added, weight))
    if known and known[5] == "nchw" and plain:
        x, w, gy, form = input, weight, grad_output, AS_IS
        given, dtype, walk = gy.shape, w.dtype, arguments.Walk(*known)
    else:
        x, w, gy = operand(input, "input"), operand(weight, "weight"), operand(grad_output, "grad_output")
        form = Form(x.ndim != rank + 1, arguments.channels_last(layout, rank))
        x, given, gy = form.taken(x), gy.shape, form.taken(gy)
        dtype = common(x, w, gy, *(() if added is None else (added,)))
        memory = order(x, dtype, order(gy, dtype, form.layout))
        walk = arguments.walk(rank, stride, padding, dilation, groups, memory, padding_mode)
    asked = x.shape, w.shape, dtype, walk, algorithm, workspace
    to_input = plan.find("input_grad", *asked) if "input" in wanted else None
    to_weight = plan.find("weight_grad", *asked) if "weight" in wanted else None
    plans = [p for p in (to_input, to_weight) if p]
    problem = plans[0].problem if plans else arguments.problem(x.shape, w.shape, dtype.name, walk)
    check_grad_output(given, problem, form)
    layouts = {p.problem.layout for p in plans}
    gy = contiguous(gy, dtype, layouts.pop() if len(layouts) == 1 else walk.layout)
    return Grads(
        run(to_input, form, dtype, gy, w, residual=added) if to_input else None,
        run(to_weight, form, dtype, x, gy) if to_weight else None,
        bias_grad(gy) if "bias" in wanted else None,
    )


def bias_grad(gy: Array) -> Array:
    """Return gb[k] = sum over n, p, q of gy[n, k, p, q].

    Maps are summed by `planes`, and these in float64 over the batch.  Pixel by pixel in memory, runs of 256 pixels
    are summed, and these in float64.
    """
    n, k, *output = gy.shape
    if gy.dtype.kind in "biu":
        return _integer_bias_grad(gy)
    if gy.dtype.itemsize == 2:
        return bias_grad(gy.astype(np.float32)).astype(gy.dtype)
    if order(gy, gy.dtype) == "nhwc":
        pixels = to_last(gy).reshape(-1, k)
        runs = np.add.reduceat(pixels, np.arange(0, len(pixels), 256), axis=0) if len(pixels) else pixels
        return np.asarray(runs.sum(axis=0, dtype=np.float64).astype(gy.dtype))
    maps = gy.reshape(n * k, prod(output))
    if gy.dtype in FLOATS:
        from fastconv.planes import sums  # imports Numba

        maps = sums(maps)
    else:
        maps = maps.sum(axis=1)
    total: Array = maps.reshape(n, k).sum(axis=0, dtype=np.result_type(gy, np.float64)).astype(gy.dtype)
    return total


def _integer_bias_grad(gy: Array) -> Array:
    """Return gb exactly, as int64, or raise OverflowError."""
    axes = (0, *range(2, gy.ndim))
    if np.abs(gy.astype(np.float64)).sum(axis=axes).max(initial=0) >= 2**63 * (1 - 2.0**-30):
        raise OverflowError("the bias gradient may exceed int64; convert grad_output to float64")
    total: Array = gy.sum(axis=axes, dtype=np.int64)
    return total


def read_need(need: Any) -> frozenset[str]:
    """Return the names of the gradients that are wanted."""
    if (
        not isinstance(need, Collection)
        or not all(isinstance(name, str) for name in need)
        or isinstance(need, str)
    ):
        raise TypeError(f"need must be a sequence of names out of {', '.join(NEEDS)}, got {need!r}")
    if unknown := [name for name in need if name not in NEEDS]:
        raise ValueError(f"need may name {', '.join(NEEDS)}, got {unknown[0]!r}")
    return frozenset(need)
