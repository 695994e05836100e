"""A call from end to end, for any number of axes: read the arguments, find the plan, run it.

With the letters of `fastconv.problem`::

    forward      y[n, k, p, q] = b[k] + sum over c, r, s of  x[n, c, p*stride + r*dilation - lo, ...] * w[k, c, r, s]
    gradients    of sum(y * gy) by x, by w and by b

Everything is checked before memory is copied or a kernel runs.  A small call is mostly this file: each
step is the plainest that serves the common case (plain contiguous arrays, integers) at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from fastconv import arguments, plan
from fastconv.arrays import (
    AS_IS,
    Array,
    Form,
    common,
    contiguous,
    delivered,
    empty,
    on_gpu,
    operand,
    order,
    result,
    to_last,
)
from fastconv.problem import ConvProblem

Need: TypeAlias = Sequence[Literal["input", "weight", "bias"]]

NEEDS = ("input", "weight", "bias")


class Grads(NamedTuple):
    """Gradients of a convolution; None where not asked for."""

    input: Array | None
    weight: Array | None
    bias: Array | None


def activation_code(activation: Any, dtype: np.dtype[Any]) -> Any:
    """Return what kernels take for an activation; 0 for none."""
    if activation is None:
        return 0
    from fastconv.activations import resolve  # imports Numba

    return resolve(activation, dtype)


def forward(
    rank: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: Any,
    algorithm: Any,
    workspace: Any,
    out: Any,
    layout: Any,
) -> Array:
    """Return y."""
    if on_gpu(input):
        from fastconv.cuda import call

        return call.forward(  # type: ignore[no-any-return]  # the caller's kind
            rank,
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            activation,
            algorithm,
            workspace,
            out,
            layout,
        )
    x, w = operand(input, "input"), operand(weight, "weight")
    b = None if bias is None else operand(bias, "bias")
    form = Form(x.ndim != rank + 1, arguments.channels_last(layout, rank))
    x = form.taken(x)
    walk = arguments.walk(rank, stride, padding, dilation, groups, order(x))
    dtype = common(x, w) if b is None else common(x, w, b)
    code = activation_code(activation, dtype)
    p = plan.find("forward", x.shape, w.shape, dtype, walk, algorithm, workspace)
    if b is not None:
        check_bias(b, p.problem)
    memory = p.problem.layout
    y = result(out, form, p.shape, dtype, memory, x, w, b)
    p.run(
        contiguous(x, dtype, memory),
        contiguous(w, dtype),
        y,
        p.no_bias if b is None else contiguous(b, dtype),
        code,
    )
    return delivered(y, form, out)


def check_bias(bias: Array, problem: ConvProblem) -> None:
    """Refuse what NumPy would broadcast."""
    if bias.shape != (problem.k,):
        raise ValueError(
            f"bias must have one element for each of {problem.k} output channels, got shape {bias.shape}"
        )


def input_grad(
    rank: int,
    input_size: Any,
    weight: Any,
    grad_output: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    algorithm: Any,
    workspace: Any,
    out: Any,
    layout: Any,
) -> Array:
    """Return gx."""
    if on_gpu(weight):
        from fastconv.cuda import call

        return call.input_grad(  # type: ignore[no-any-return]  # the caller's kind
            rank,
            input_size,
            weight,
            grad_output,
            stride,
            padding,
            dilation,
            groups,
            algorithm,
            workspace,
            out,
            layout,
        )
    size = arguments.shape(input_size, "input_size")
    w, gy = operand(weight, "weight"), operand(grad_output, "grad_output")
    form = Form(len(size) != rank + 1, arguments.channels_last(layout, rank))
    size, given, gy = form.taken_shape(size), gy.shape, form.taken(gy)
    walk = arguments.walk(rank, stride, padding, dilation, groups, order(gy))
    dtype = common(w, gy)
    p = plan.find("input_grad", size, w.shape, dtype, walk, algorithm, workspace)
    check_grad_output(given, p.problem, form)
    memory = p.problem.layout
    gx = result(out, form, size, dtype, memory, w, gy)
    p.run(contiguous(gy, dtype, memory), contiguous(w, dtype), gx, p.no_bias, 0)
    return delivered(gx, form, out)


def weight_grad(
    rank: int,
    input: Any,
    weight_size: Any,
    grad_output: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    algorithm: Any,
    workspace: Any,
    out: Any,
    layout: Any,
) -> Array:
    """Return gw."""
    if on_gpu(input):
        from fastconv.cuda import call

        return call.weight_grad(  # type: ignore[no-any-return]  # the caller's kind
            rank,
            input,
            weight_size,
            grad_output,
            stride,
            padding,
            dilation,
            groups,
            algorithm,
            workspace,
            out,
            layout,
        )
    size = arguments.shape(weight_size, "weight_size")
    x, gy = operand(input, "input"), operand(grad_output, "grad_output")
    form = Form(x.ndim != rank + 1, arguments.channels_last(layout, rank))
    x, given, gy = form.taken(x), gy.shape, form.taken(gy)
    walk = arguments.walk(rank, stride, padding, dilation, groups, order(x))
    dtype = common(x, gy)
    p = plan.find("weight_grad", x.shape, size, dtype, walk, algorithm, workspace)
    check_grad_output(given, p.problem, form)
    memory = p.problem.layout
    gw = result(out, AS_IS, size, dtype, "nchw", x, gy)
    p.run(contiguous(x, dtype, memory), contiguous(gy, dtype, memory), gw, p.no_bias, 0)
    return delivered(gw, AS_IS, out)


def check_grad_output(given: tuple[int, ...], problem: ConvProblem, form: Form) -> None:
    """Refuse a gradient that is not of the output's shape: kernels size their loops by the problem."""
    shape = form.given_shape(problem.output_shape)
    if given != shape:
        raise ValueError(f"grad_output must have the output's shape {shape}, got {given}")


def backward(
    rank: int,
    input: Any,
    weight: Any,
    grad_output: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    need: Any,
    algorithm: Any,
    workspace: Any,
    layout: Any,
) -> Grads:
    """Return gx, gw and gb, or those of them that are needed."""
    if on_gpu(input):
        from fastconv.cuda import call

        return call.backward(
            rank,
            input,
            weight,
            grad_output,
            stride,
            padding,
            dilation,
            groups,
            need,
            algorithm,
            workspace,
            layout,
        )
    wanted = read_need(need)
    x, w, gy = operand(input, "input"), operand(weight, "weight"), operand(grad_output, "grad_output")
    form = Form(x.ndim != rank + 1, arguments.channels_last(layout, rank))
    x, given, gy = form.taken(x), gy.shape, form.taken(gy)
    walk = arguments.walk(rank, stride, padding, dilation, groups, order(x))
    dtype = common(x, w, gy)
    to_input = (
        plan.find("input_grad", x.shape, w.shape, dtype, walk, algorithm, workspace)
        if "input" in wanted
        else None
    )
    to_weight = (
        plan.find("weight_grad", x.shape, w.shape, dtype, walk, algorithm, workspace)
        if "weight" in wanted
        else None
    )
    either = to_input or to_weight
    problem = either.problem if either else arguments.problem(x.shape, w.shape, dtype.name, walk)
    check_grad_output(given, problem, form)

    gy = contiguous(gy, dtype, problem.layout)
    gx = gw = None
    if to_input:
        memory = to_input.problem.layout
        gx = empty(problem.input_shape, dtype, memory)
        to_input.run(contiguous(gy, dtype, memory), contiguous(w, dtype), gx, to_input.no_bias, 0)
    if to_weight:
        memory = to_weight.problem.layout
        gw = np.empty(problem.weight_shape, dtype)
        to_weight.run(contiguous(x, dtype, memory), contiguous(gy, dtype, memory), gw, to_weight.no_bias, 0)
    return Grads(None if gx is None else form.given(gx), gw, bias_grad(gy) if "bias" in wanted else None)


def bias_grad(gy: Array) -> Array:
    """Return gb[k] = sum over n, p, q of gy[n, k, p, q].

    Long maps are summed pairwise, short ones by einsum, which runs three times as fast where NumPy's
    reduction starts anew for each of many rows; then in float64 over the batch.  Pixel by pixel in memory,
    runs of 256 pixels are summed, and these in float64.
    """
    n, k, *output = gy.shape
    if order(gy) == "nhwc":
        pixels = to_last(gy).reshape(-1, k)
        runs = np.add.reduceat(pixels, np.arange(0, len(pixels), 256), axis=0) if len(pixels) else pixels
        return np.asarray(runs.sum(axis=0, dtype=np.float64).astype(gy.dtype))
    maps = gy.reshape(n * k, prod(output))
    sums: Array = np.einsum("mp->m", maps) if maps.shape[1] <= 1024 else maps.sum(axis=1)
    total: Array = sums.reshape(n, k).sum(axis=0, dtype=np.float64).astype(gy.dtype)
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
