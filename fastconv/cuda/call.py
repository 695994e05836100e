"""Calls on arrays that live on a GPU, from end to end: the twin of `fastconv.convolve` and `fastconv.transpose`."""

from __future__ import annotations

from typing import Any

from fastconv import arguments, plan
from fastconv.activations import CODES
from fastconv.arrays import AS_IS, Form, refusal
from fastconv.convolve import Grads, check_grad_output, read_need
from fastconv.cuda import backend
from fastconv.cuda.memory import Memory
from fastconv.cuda.operands import common, together
from fastconv.cuda.replay import replayed
from fastconv.cuda.tape import LISTENING
from fastconv.transpose import problem_of


def activation_name(activation: Any) -> str:
    """Return the name of an activation; functions of the user's own are compiled for CPUs alone."""
    if activation is None:
        return "none"
    if isinstance(activation, str) and activation in CODES:
        return activation
    raise ValueError(f"activation on a GPU must be None or one of {', '.join(CODES)}, got {activation!r}")


def zeros_alone(padding_mode: Any) -> None:
    """Refuse borders that repeat the image."""
    if padding_mode != "zeros":
        raise TypeError(f"padding_mode must be 'zeros' for arrays on a GPU, got {padding_mode!r}")


def taken(memory: Memory, form: Form) -> Memory:
    """View images of the caller's as (n, c, h, w)."""
    memory = memory if form.batched else memory.batched()
    return memory.second() if form.last and memory.ndim > 2 else memory


def order(*images: Memory, either: str) -> str:
    """Return the layout of images (n, c, h, w): of the first that has but one, or else ``either``."""
    return next((told for m in images if (told := m.layout)), either)


def result(
    out: Any, form: Form, shape: tuple[int, ...], layout: str, *operands: Memory | None, dtype: Any = None
) -> tuple[Memory, Memory]:
    """Return the caller's memory for a result, and what kernels write to: the same, or a place of its own."""
    like = next(m for m in operands if m is not None)
    if out is None:
        n, c, *pixels = shape
        images = (*pixels, c) if layout == "nhwc" else (c, *pixels)
        axes = None
        if form.last != (layout == "nhwc"):
            b, r = int(form.batched), len(pixels)
            turn = (*range(b + 1, b + r + 1), b) if form.last else (b + r, *range(b, b + r))
            axes = (*range(b), *turn)
        y = like.empty((n, *images) if form.batched else images, dtype or like.dtype, axes)
        return y, taken(y, form)
    y = out
    together(like, y)
    inputs = (m.shadow for m in operands if m is not None)
    if error := refusal(y.shadow, form.given_shape(shape), like.dtype, inputs):
        raise error
    inside = taken(y, form)
    if inside.laid_as(layout):
        return y, inside
    return y, result(None, AS_IS, shape, layout, like)[1]


def delivered(y: Memory, inside: Memory, form: Form) -> Any:
    """Return what the caller gets, filled."""
    if inside.pointer != y.pointer:
        from fastconv.cuda.copy import transfer

        transfer(inside, taken(y, form))
    return handed(y)


def handed(y: Memory) -> Any:
    """Return an array to the caller."""
    if (tape := LISTENING.tape) is not None:
        tape.results.append(y.origin)
    return y.result()


def _solve(
    direction: str, form: Form, size: tuple[int, ...], weight_size: tuple[int, ...], walk: Any,
    first: Memory, second: Memory, bias: Memory | None = None, activation: str = "none", algorithm: Any = "auto",
    workspace: Any = None, out: Any = None, expected: tuple[int, ...] | None = None, residual: Memory | None = None,
) -> Any:  # fmt: skip
    """Find the plan, check what its problem tells, and run; images are (n, c, h, w), ``expected`` is a gradient's shape."""
    dtype = common(first, second, *(m for m in (bias, residual) if m is not None))
    asked = direction, size, weight_size, dtype, walk, algorithm, workspace
    p = plan.find(*asked, device="cuda", context=backend().context())
    if expected is not None:
        check_grad_output(expected, p.problem, form)
    if bias is not None and bias.shape != (p.shape[1],):
        raise ValueError(
            f"bias must have the shape ({p.shape[1]},) of the result's channels, got {bias.shape}"
        )
    if residual is not None:
        if residual.shape != (given := form.given_shape(p.shape)):
            raise ValueError(f"residual must have the result's shape {given}, got {residual.shape}")
        residual = taken(residual, form)
    layout, weights = p.problem.layout, direction == "weight_grad"
    form = AS_IS if weights else form
    y, inside = result(out, form, p.shape, "nchw" if weights else layout, first, second, bias, residual)
    run: Any = p.run  # of the GPU's own executions, which take Memory
    run(
        first.laid(layout),
        second.laid(layout if weights else "nchw"),
        inside,
        None if bias is None else bias.laid(),
        activation,
        None if residual is None else residual.laid(layout),
    )
    return delivered(y, inside, form)


@replayed(input=1, weight=2, bias=3, residual=9, out=12)
def forward(
    rank: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    activation: Any, residual: Any, algorithm: Any, workspace: Any, out: Any, layout: Any, padding_mode: Any,
) -> Any:  # fmt: skip
    """Return y."""
    zeros_alone(padding_mode)
    name = activation_name(activation)
    form = Form(input.ndim != rank + 1, arguments.channels_last(layout, rank))
    x, w = taken(input, form), weight
    walk = arguments.walk(rank, stride, padding, dilation, groups, order(x, either=form.layout))
    rest = {"algorithm": algorithm, "workspace": workspace, "out": out, "residual": residual}
    return _solve("forward", form, x.shape, w.shape, walk, x, w, bias, name, **rest)


@replayed(weight=2, grad_output=3, out=10)
def input_grad(
    rank: int, input_size: Any, weight: Any, grad_output: Any, stride: Any, padding: Any, dilation: Any,
    groups: Any, algorithm: Any, workspace: Any, out: Any, layout: Any, padding_mode: Any,
) -> Any:  # fmt: skip
    """Return gx."""
    zeros_alone(padding_mode)
    size = arguments.shape(input_size, "input_size")
    form = Form(len(size) != rank + 1, arguments.channels_last(layout, rank))
    size, given, gy = form.taken_shape(size), grad_output.shape, taken(grad_output, form)
    walk = arguments.walk(rank, stride, padding, dilation, groups, order(gy, either=form.layout))
    rest = {"algorithm": algorithm, "workspace": workspace, "out": out, "expected": given}
    return _solve("input_grad", form, size, weight.shape, walk, gy, weight, **rest)


@replayed(input=1, grad_output=3, out=10)
def weight_grad(
    rank: int, input: Any, weight_size: Any, grad_output: Any, stride: Any, padding: Any, dilation: Any,
    groups: Any, algorithm: Any, workspace: Any, out: Any, layout: Any, padding_mode: Any,
) -> Any:  # fmt: skip
    """Return gw."""
    zeros_alone(padding_mode)
    size = arguments.shape(weight_size, "weight_size")
    form = Form(input.ndim != rank + 1, arguments.channels_last(layout, rank))
    x, given, gy = taken(input, form), grad_output.shape, taken(grad_output, form)
    walk = arguments.walk(rank, stride, padding, dilation, groups, order(x, gy, either=form.layout))
    rest = {"algorithm": algorithm, "workspace": workspace, "out": out, "expected": given}
    return _solve("weight_grad", form, x.shape, size, walk, x, gy, **rest)


def bias_grad(gy: Memory) -> Any:
    """Return gb of gradients (n, k, p, q)."""
    from fastconv.cuda import reduce

    gb = gy.empty((gy.shape[1],), gy.dtype)
    layout = order(gy, either="nchw")
    reduce.launch(gy.laid(layout), gb, layout)
    return handed(gb)


@replayed(input=1, weight=2, grad_output=3, residual=9)
def backward(
    rank: int, input: Any, weight: Any, grad_output: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    need: Any, residual: Any, algorithm: Any, workspace: Any, layout: Any, padding_mode: Any,
) -> Grads:  # fmt: skip
    """Return gx plus a residual, gw and gb, or those of them that are needed."""
    zeros_alone(padding_mode)
    wanted = read_need(need)
    form, w = Form(input.ndim != rank + 1, arguments.channels_last(layout, rank)), weight
    x, given, gy = taken(input, form), grad_output.shape, taken(grad_output, form)
    dtype = common(x, w, gy)
    walk = arguments.walk(rank, stride, padding, dilation, groups, order(x, gy, either=form.layout))
    check_grad_output(given, arguments.problem(x.shape, w.shape, dtype.name, walk), form)
    rest = {"algorithm": algorithm, "workspace": workspace}
    added = rest | {"residual": residual}
    return Grads(
        _solve("input_grad", form, x.shape, w.shape, walk, gy, w, **added) if "input" in wanted else None,
        _solve("weight_grad", form, x.shape, w.shape, walk, x, gy, **rest) if "weight" in wanted else None,
        bias_grad(gy) if "bias" in wanted else None,
    )


@replayed(input=1, weight=2, bias=3, residual=10, out=13)
def transposed(
    rank: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: Any,
    dilation: Any, activation: Any, residual: Any, algorithm: Any, workspace: Any, out: Any, layout: Any,
) -> Any:  # fmt: skip
    """Return y of a transposed convolution: the input gradient of the opposite one."""
    name = activation_name(activation)
    form = Form(input.ndim != rank + 1, arguments.channels_last(layout, rank))
    x, w = taken(input, form), weight
    memory = order(x, either=form.layout)
    size, walk = problem_of(rank, x.shape, w.shape, stride, padding, output_padding, groups, dilation, memory)
    rest = {"algorithm": algorithm, "workspace": workspace, "out": out, "residual": residual}
    return _solve("input_grad", form, size, w.shape, walk, x, w, bias, name, **rest)


@replayed(input=1, weight=2, grad_output=3)
def transposed_backward(
    rank: int, input: Any, weight: Any, grad_output: Any, stride: Any, padding: Any, output_padding: Any,
    groups: Any, dilation: Any, need: Any, algorithm: Any, workspace: Any, layout: Any,
) -> Grads:  # fmt: skip
    """Return gx, gw and gb of a transposed convolution, or those of them that are needed."""
    wanted = read_need(need)
    form, w = Form(input.ndim != rank + 1, arguments.channels_last(layout, rank)), weight
    x, given, gy = taken(input, form), grad_output.shape, taken(grad_output, form)
    common(x, w, gy)
    memory = order(x, gy, either=form.layout)
    size, walk = problem_of(rank, x.shape, w.shape, stride, padding, output_padding, groups, dilation, memory)
    if given != (expected := form.given_shape(size)):
        raise ValueError(f"grad_output must have the output's shape {expected}, got {given}")
    rest = {"algorithm": algorithm, "workspace": workspace}
    return Grads(
        _solve("forward", form, size, w.shape, walk, gy, w, **rest) if "input" in wanted else None,
        _solve("weight_grad", form, size, w.shape, walk, gy, x, **rest) if "weight" in wanted else None,
        bias_grad(gy) if "bias" in wanted else None,
    )
