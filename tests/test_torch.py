"""The same numbers as PyTorch's, in float64, where PyTorch is installed."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import testing

torch = pytest.importorskip("torch")
PROBLEMS = [
    problem
    for file in ("basic", "strided", "dilated", "grouped", "depthwise", "tails")
    for problem in testing.cases(Path(__file__).parent / "cases" / f"{file}.txt")
    if len(problem.axes) <= 2 and all(a.lo == a.hi >= 0 for a in problem.axes)
]


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():
    """PyTorch's threads wait in a loop and would slow what follows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def geometry(problem):
    return (
        tuple(a.stride for a in problem.axes),
        tuple(a.lo for a in problem.axes),
        tuple(a.dilation for a in problem.axes),
        problem.groups,
    )


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_forward_and_gradients(problem):
    rank = len(problem.axes)
    x = testing.normals(problem.input_shape, "float64", 1)
    w = testing.normals(problem.weight_shape, "float64", 2)
    b = testing.normals((problem.k,), "float64", 3)
    g = testing.normals(problem.output_shape, "float64", 4)

    tensors = [torch.from_numpy(a).requires_grad_() for a in (x, w, b)]
    y = getattr(torch.nn.functional, f"conv{rank}d")(*tensors, *geometry(problem))
    y.backward(torch.from_numpy(g))

    # "strict" compiles no transforms for every kernel size; the contract test has them
    with fastconv.config(precision="fast" if problem.kernel == (3, 3) else "strict"):
        ours = getattr(fastconv, f"conv{rank}d")(x, w, b, *geometry(problem))
        grads = getattr(fastconv, f"conv{rank}d_backward")(x, w, g, *geometry(problem))
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(ours, y.detach().numpy(), **close)
    for name, mine, tensor in zip(grads._fields, grads, tensors, strict=True):
        np.testing.assert_allclose(mine, tensor.grad.numpy(), err_msg=name, **close)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch's, of even kernels
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kernel", [1, 2, 3, 6])
def test_named_padding(padding, kernel):
    x = testing.normals((2, 3, 11, 12), "float64", 1)
    w = testing.normals((4, 3, kernel, kernel), "float64", 2)
    theirs = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), padding=padding)
    np.testing.assert_allclose(fastconv.conv2d(x, w, padding=padding), theirs.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh", "silu", "gelu"])
def test_activations(activation):
    x = testing.normals((1, 2, 9, 9), "float64", 1) * 3
    w = testing.normals((3, 2, 3, 3), "float64", 2)
    theirs = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w))
    function = getattr(torch, activation, None) or getattr(torch.nn.functional, activation)
    ours = fastconv.conv2d(x, w, activation=activation)
    np.testing.assert_allclose(ours, function(theirs).numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name", ["conv{}d", "conv_transpose{}d", "conv{}d_input", "conv{}d_weight"])
def test_names_positions_and_defaults_are_torchs(name, rank):
    """What may be given by its place, in order; functions in C tell it in the first line of their documentation."""
    name = name.format(rank)
    parameters = inspect.signature(getattr(fastconv, name)).parameters.values()
    ours = [written(p) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if builtin := getattr(torch.nn.functional, name, None):
        theirs = re.search(rf"{name}\((.*?)\) -> Tensor", builtin.__doc__)[1].split(", ")
    else:
        theirs = [*map(written, inspect.signature(getattr(torch.nn.grad, name)).parameters.values())]
    assert ours == theirs


def written(parameter):
    name, default = parameter.name, parameter.default
    return name if default is parameter.empty else f"{name}={default}"
