"""Calls on arrays that live on a GPU, from end to end: the twin of `fastconv.convolve` and `fastconv.transpose`."""

from __future__ import annotations

from math import prod
from typing import Any

from fastconv import arguments, plan
from fastconv.activations import CODES
from fastconv.convolve import Grads, read_need
from fastconv.cuda.memory import Memory, common, operand
from fastconv.problem import ConvProblem
from fastconv.transpose import problem_of


def activation_name(activation: Any) -> str:
    """Return the name of an activation; functions of the user's own are compiled for CPUs alone."""
    if activation is None:
        return "none"
    if isinstance(activation, str) and activation in CODES:
        return activation
    raise ValueError(f"activation on a GPU must be None or one of {', '.join(CODES)}, got {activation!r}")


def channels_first(layout: Any, rank: int) -> None:
    """Refuse a layout that the kernels do not read."""
    if arguments.channels_last(layout, rank):
        raise ValueError(f"arrays on a GPU are read channels first, got layout {layout!r}")


def result(out: Any, shape: tuple[int, ...], like: Memory) -> Memory:
    """Return memory for a result, new or that of a checked ``out``."""
    if out is None:
        return like.empty(shape, like.dtype)
    y = operand(out, "out")
    common(like, y)
    if y.shape != shape:
        raise ValueError(f"out must have the result's shape {shape}, got {y.shape}")
    if not y.contiguous:
        raise ValueError("out must be C-contiguous on a GPU")
    return y


def _apart(y: Memory, *operands: Memory) -> None:
    for x in operands:
        if x.pointer < y.pointer + y.nbytes and y.pointer < x.pointer + x.nbytes:
            raise ValueError("out must not share memory with an operand")


def _single(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return a shape with its batch."""
    return (1, *shape) if len(shape) == rank + 1 else shape


def _solve(
    direction: str, rank: int, size: tuple[int, ...], weight_size: tuple[int, ...], walk: Any,
    first: Memory, second: Memory, bias: Memory | None, activation: str, algorithm: Any, workspace: Any, out: Any,
    expected: tuple[int, ...] | None = None, residual: Memory | None = None,
) -> Any:  # fmt: skip
    """Find the plan, check what its problem tells, and run; the result has a batch if ``first`` or ``size`` has."""
    added = [m for m in (bias, residual) if m is not None]
    dtype = common(first, second, *added)
    p = plan.find(
        direction, _single(size, rank), weight_size, dtype, walk, algorithm, workspace, device="cuda"
    )
    shape = p.shape
    if direction != "weight_grad" and len(size) == rank + 1:
        shape = shape[1:]
    if bias is not None and bias.shape != (p.shape[1],):
        raise ValueError(
            f"bias must have the shape ({p.shape[1]},) of the result's channels, got {bias.shape}"
        )
    if expected is not None:
        _check_gradient(expected, p.problem, len(size) != rank + 1)
    if residual is not None and residual.shape != shape:
        raise ValueError(f"residual must have the result's shape {shape}, got {residual.shape}")
    y = result(out, shape, first)
    first, second = first.compact(), second.compact()
    bias, residual = (None if m is None else m.compact() for m in (bias, residual))
    _apart(y, first, second, *(m for m in (bias, residual) if m is not None))
    run: Any = p.run  # of the GPU's own executions, which take Memory
    run(first, second, y, bias, activation, residual)
    return y.owner if out is None else out


def _check_gradient(shape: tuple[int, ...], problem: ConvProblem, batched: bool) -> None:
    if shape != (expected := problem.output_shape[0 if batched else 1 :]):
        raise ValueError(f"grad_output must have the output's shape {expected}, got {shape}")


def forward(
    rank: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    activation: Any, residual: Any, algorithm: Any, workspace: Any, out: Any, layout: Any,
) -> Any:  # fmt: skip
    """Return y."""
    channels_first(layout, rank)
    x, w = operand(input, "input"), operand(weight, "weight")
    b = None if bias is None else operand(bias, "bias")
    walk = arguments.walk(rank, stride, padding, dilation, groups)
    name, r = activation_name(activation), None if residual is None else operand(residual, "residual")
    return _solve(
        "forward", rank, x.shape, w.shape, walk, x, w, b, name, algorithm, workspace, out, residual=r
    )


def input_grad(
    rank: int, input_size: Any, weight: Any, grad_output: Any, stride: Any, padding: Any, dilation: Any,
    groups: Any, algorithm: Any, workspace: Any, out: Any, layout: Any,
) -> Any:  # fmt: skip
    """Return gx."""
    channels_first(layout, rank)
    size = arguments.shape(input_size, "input_size")
    w, gy = operand(weight, "weight"), operand(grad_output, "grad_output")
    walk = arguments.walk(rank, stride, padding, dilation, groups)
    return _solve(
        "input_grad", rank, size, w.shape, walk, gy, w, None, "none", algorithm, workspace, out, gy.shape
    )


def weight_grad(
    rank: int, input: Any, weight_size: Any, grad_output: Any, stride: Any, padding: Any, dilation: Any,
    groups: Any, algorithm: Any, workspace: Any, out: Any, layout: Any,
) -> Any:  # fmt: skip
    """Return gw."""
    channels_first(layout, rank)
    size = arguments.shape(weight_size, "weight_size")
    x, gy = operand(input, "input"), operand(grad_output, "grad_output")
    walk = arguments.walk(rank, stride, padding, dilation, groups)
    return _solve(
        "weight_grad", rank, x.shape, size, walk, x, gy, None, "none", algorithm, workspace, out, gy.shape
    )


def bias_grad(gy: Memory, shape: tuple[int, ...]) -> Any:
    """Return gb, for gradients of a shape with its batch."""
    from fastconv.cuda import reduce

    gb = gy.empty((shape[1],), gy.dtype)
    reduce.launch(gy.compact(), gb, shape[0], shape[1], prod(shape[2:]))
    return gb.owner


def backward(
    rank: int, input: Any, weight: Any, grad_output: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    need: Any, algorithm: Any, workspace: Any, layout: Any,
) -> Grads:  # fmt: skip
    """Return gx, gw and gb, or those of them that are needed."""
    wanted = read_need(need)
    channels_first(layout, rank)
    x, w, gy = operand(input, "input"), operand(weight, "weight"), operand(grad_output, "grad_output")
    dtype = common(x, w, gy)
    walk = arguments.walk(rank, stride, padding, dilation, groups)
    problem = arguments.problem(_single(x.shape, rank), w.shape, dtype.name, walk)
    _check_gradient(gy.shape, problem, len(x.shape) != rank + 1)
    rest = (walk, algorithm, workspace)
    return Grads(
        _gradient("input_grad", rank, x.shape, w.shape, gy, w, *rest) if "input" in wanted else None,
        _gradient("weight_grad", rank, x.shape, w.shape, x, gy, *rest) if "weight" in wanted else None,
        bias_grad(gy, problem.output_shape) if "bias" in wanted else None,
    )


def _gradient(
    direction: str, rank: int, size: tuple[int, ...], weight_size: tuple[int, ...], first: Memory, second: Memory,
    walk: Any, algorithm: Any, workspace: Any,
) -> Any:  # fmt: skip
    return _solve(
        direction, rank, size, weight_size, walk, first, second, None, "none", algorithm, workspace, None
    )


def transposed(
    rank: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: Any,
    dilation: Any, activation: Any, residual: Any, algorithm: Any, workspace: Any, out: Any, layout: Any,
) -> Any:  # fmt: skip
    """Return y of a transposed convolution: the input gradient of the opposite one."""
    channels_first(layout, rank)
    x, w = operand(input, "input"), operand(weight, "weight")
    b = None if bias is None else operand(bias, "bias")
    shape, walk = problem_of(
        rank, x.shape, w.shape, stride, padding, output_padding, groups, dilation, "nchw"
    )
    size = shape if len(x.shape) != rank + 1 else shape[1:]
    name, r = activation_name(activation), None if residual is None else operand(residual, "residual")
    return _solve(
        "input_grad", rank, size, w.shape, walk, x, w, b, name, algorithm, workspace, out, residual=r
    )


def transposed_backward(
    rank: int, input: Any, weight: Any, grad_output: Any, stride: Any, padding: Any, output_padding: Any,
    groups: Any, dilation: Any, need: Any, algorithm: Any, workspace: Any, layout: Any,
) -> Grads:  # fmt: skip
    """Return gx, gw and gb of a transposed convolution, or those of them that are needed."""
    wanted = read_need(need)
    channels_first(layout, rank)
    x, w, gy = operand(input, "input"), operand(weight, "weight"), operand(grad_output, "grad_output")
    common(x, w, gy)
    shape, walk = problem_of(
        rank, x.shape, w.shape, stride, padding, output_padding, groups, dilation, "nchw"
    )
    size = shape if len(x.shape) != rank + 1 else shape[1:]
    if gy.shape != size:
        raise ValueError(f"grad_output must have the output's shape {size}, got {gy.shape}")
    rest = (walk, algorithm, workspace)
    return Grads(
        _gradient("forward", rank, size, w.shape, gy, w, *rest) if "input" in wanted else None,
        _gradient("weight_grad", rank, size, w.shape, gy, x, *rest) if "weight" in wanted else None,
        bias_grad(gy, shape) if "bias" in wanted else None,
    )
