"""A call of transposed convolution from end to end.

Its output y takes the place of the input of a forward problem, its input x that of the output::

    y[n, k, h] = b[k] + sum over c, p, r with h = p*stride + r*dilation - lo  of  x[n, c, p] * w[c, k, r]

so y is the INPUT_GRAD of that problem, the gradient by x its FORWARD and the gradient by w its
WEIGHT_GRAD.  The problem's input has

    size = (P - 1) * stride - lo - hi + dilation * (R - 1) + output_padding + 1

pixels along an axis.  With its padding at the end taken as hi - output_padding, the kernel has exactly P
positions on it, whatever the output_padding.
"""

from __future__ import annotations

from typing import Any

from fastconv import arguments, plan
from fastconv.arguments import HUGE, LETTERS, Walk, integer
from fastconv.arrays import Form, common, contiguous, operand, or_on_gpu, order
from fastconv.convolve import Grads, activation_code, bias_grad, by, read_need, run
from fastconv.typing import Array


def problem_of(
    rank: int,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    memory: str,
) -> tuple[tuple[int, ...], Walk]:
    """Return the shape of the output, with its batch, and how the opposite convolution walks over it."""
    letters = ", ".join(LETTERS[rank])
    if len(input_shape) not in (rank + 1, rank + 2):
        raise ValueError(
            f"input must be (N, C, {letters}) or (C, {letters}), got {len(input_shape)} dimensions: {input_shape}"
        )
    if len(weight_shape) != rank + 2:
        raise ValueError(
            f"weight must be (C, K/groups, {letters}), got {len(weight_shape)} dimensions: {weight_shape}"
        )
    n, c, *sizes = input_shape if len(input_shape) == rank + 2 else (1, *input_shape)
    if weight_shape[0] != c:
        raise ValueError(f"weight expects {weight_shape[0]} input channels, input has {c} channels")
    groups = integer(groups, "groups", 1)
    if c % groups:
        raise ValueError(f"input channels must be divisible by groups: {c} % {groups} != 0")
    if weight_shape[1] < 1:
        raise ValueError(f"output channels must be at least 1, got {weight_shape[1] * groups}")
    strides = arguments.per_axis(stride, rank, "stride")
    dilations = arguments.per_axis(dilation, rank, "dilation")
    pads = arguments.padding_pairs(padding, rank)
    if isinstance(pads, str):
        raise TypeError(
            f"padding of a transposed convolution must be numbers, got {padding!r}: such a rule depends on the "
            f"size of the output; conv{rank}d_input takes it with that size"
        )
    extras = arguments.per_axis(output_padding, rank, "output_padding", 0)
    output, walked = [], []
    for i, (size, kernel, s, d, (lo, hi), extra) in enumerate(
        zip(sizes, weight_shape[2:], strides, dilations, pads, extras, strict=True)
    ):
        if size < 1:
            raise ValueError(f"input size must be at least 1, got {size} on spatial axis {i}")
        if extra >= max(s, d):
            raise ValueError(
                f"output_padding must be less than stride or dilation, got {extra} with stride {s} and "
                f"dilation {d} on spatial axis {i}"
            )
        pixels = (size - 1) * s - lo - hi + d * (kernel - 1) + extra + 1
        if pixels < 1:
            raise ValueError(
                f"output size must be at least 1, got ({size} - 1) * {s} - {lo} - {hi} + {d} * ({kernel} - 1) + "
                f"{extra} + 1 = {pixels} on spatial axis {i}"
            )
        if pixels >= HUGE:
            raise ValueError(f"problem too large: the output has {pixels} pixels on spatial axis {i}")
        output.append(pixels)
        walked.append((lo, hi - extra))
    walk = Walk(rank, strides, tuple(walked), dilations, groups, layout=memory)
    return (n, weight_shape[1] * groups, *output), walk


@or_on_gpu(1, by("transposed"))
def forward(
    rank: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any,
    groups: Any, dilation: Any, activation: Any, residual: Any, algorithm: Any, workspace: Any, out: Any,
    layout: Any,
) -> Array:  # fmt: skip
    """Return y."""
    x, w = operand(input, "input"), operand(weight, "weight")
    b = None if bias is None else operand(bias, "bias")
    added = None if residual is None else operand(residual, "residual")
    dtype = common(x, w, *(a for a in (b, added) if a is not None))
    form = Form(x.ndim != rank + 1, arguments.channels_last(layout, rank))
    x = form.taken(x)
    memory = order(x, dtype, form.layout)
    shape, walk = problem_of(
        rank, x.shape, w.shape, stride, padding, output_padding, groups, dilation, memory
    )
    code = activation_code(activation, dtype)
    p = plan.find("input_grad", shape, w.shape, dtype, walk, algorithm, workspace)
    return run(p, form, dtype, x, _opposite(w), out, b, code, added)


@or_on_gpu(1, by("transposed_backward"))
def backward(
    rank: int, input: Any, weight: Any, grad_output: Any, stride: Any, padding: Any, output_padding: Any,
    groups: Any, dilation: Any, need: Any, algorithm: Any, workspace: Any, layout: Any,
) -> Grads:  # fmt: skip
    """Return gx, gw and gb, or those of them that are needed."""
    wanted = read_need(need)
    x, w, gy = operand(input, "input"), operand(weight, "weight"), operand(grad_output, "grad_output")
    dtype = common(x, w, gy)
    form = Form(x.ndim != rank + 1, arguments.channels_last(layout, rank))
    x, given, gy = form.taken(x), gy.shape, form.taken(gy)
    memory = order(x, dtype, form.layout)
    shape, walk = problem_of(
        rank, x.shape, w.shape, stride, padding, output_padding, groups, dilation, memory
    )
    if given != (expected := form.given_shape(shape)):
        raise ValueError(f"grad_output must have the output's shape {expected}, got {given}")
    asked = shape, w.shape, dtype, walk, algorithm, workspace
    to_input = plan.find("forward", *asked) if "input" in wanted else None
    to_weight = plan.find("weight_grad", *asked) if "weight" in wanted else None
    gy = contiguous(gy, dtype, walk.layout)
    return Grads(
        run(to_input, form, dtype, gy, _opposite(w)) if to_input else None,
        _opposite(run(to_weight, form, dtype, gy, x)) if to_weight else None,
        bias_grad(gy) if "bias" in wanted else None,
    )


def _opposite(weight: Array) -> Array:
    """Return the weight whose gradient map is the layer: gradients conjugate complex weights, this does not."""
    return weight.conj() if weight.dtype.kind == "c" else weight
