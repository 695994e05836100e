"""Inference with one weight: packed or transformed once, used in every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastconv import arguments, arrays, convolve, plan, reuse
from fastconv.arguments import Activation, Padding, PaddingMode, PerAxis
from fastconv.arrays import AS_IS, FLOATS, Form
from fastconv.plan import Plan
from fastconv.typing import Array


class Prepared:
    """A convolution that owns its weight and bias; made by `prepare`, called with an input."""

    def __init__(self, p: Plan, weight: Array, bias: Array | None, activation: Any, form: Form) -> None:
        self.problem = p.problem
        self.algorithm = p.algorithm
        self.input_shape = form.given_shape(p.problem.input_shape)
        self.output_shape = form.given_shape(p.problem.output_shape)
        self._form = form
        self._dtype = np.dtype(p.problem.dtype)
        self._as_is = form == AS_IS and p.problem.layout == "nchw" and self._dtype in FLOATS
        self._run = p.execution.run_prepared
        self._weight = p.execution.prepare(arrays.contiguous(weight, self._dtype))
        self._bias = p.nothing if bias is None else arrays.contiguous(bias.copy(), self._dtype)
        self._activation = activation
        self._nothing = p.nothing

    def __call__(
        self, input: ArrayLike, *, residual: ArrayLike | None = None, out: Array | None = None
    ) -> Array:
        """Return the convolution of ``input``, of the shape and dtype prepared for."""
        if (
            self._as_is
            and residual is out is None
            and type(input) is np.ndarray
            and input.shape == self.input_shape
            and input.dtype is self._dtype
            and input.flags.carray
        ):  # what kernels take as it is, as in `convolve.at_once`
            y = reuse.empty(self.output_shape, self._dtype)
            self._run(input, self._weight, y, self._bias, self._activation, self._nothing)
            return y
        x = arrays.operand(input, "input")
        if x.shape != self.input_shape:
            raise ValueError(f"input must have the shape {self.input_shape} prepared for, got {x.shape}")
        if arrays.common(x) != self._dtype:
            raise TypeError(f"input must have the dtype {self._dtype} prepared for, got {x.dtype}")
        memory = self.problem.layout
        added = self._nothing
        if residual is not None:
            added = arrays.operand(residual, "residual")
            added = convolve.check_residual(added, self._form, self.problem.output_shape)
            if arrays.common(x, added) != self._dtype:
                raise TypeError(
                    f"residual must be held by the dtype {self._dtype} prepared for, got {added.dtype}"
                )
            added = arrays.contiguous(added, self._dtype, memory)
        y = arrays.result(out, self._form, self.problem.output_shape, self._dtype, memory, x, added)
        self._run(
            arrays.contiguous(self._form.taken(x), self._dtype, memory),
            self._weight,
            y,
            self._bias,
            self._activation,
            added,
        )
        return arrays.delivered(y, self._form, out)

    def __repr__(self) -> str:
        return f"<Prepared {self.problem} by {self.algorithm}>"


def prepare(
    weight: ArrayLike,
    input_shape: Sequence[int],
    bias: ArrayLike | None = None,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    activation: Activation = None,
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str | None = None,
) -> Prepared:
    """Return a function of ``input`` that keeps the weight in the form its algorithm multiplies.

    Parameters
    ----------
    weight : (K, C/groups, S), (K, C/groups, R, S) or (K, C/groups, T, R, S) array
        Copied: later changes have no effect.
    input_shape : sequence of int
        The shape that the function will be called with, (N, C, H, W) for images; N may be left out, as
        in `conv2d`.
    bias : (K,) array, optional
        Copied too.
    stride, padding, dilation, groups, padding_mode, activation, algorithm, workspace
        As for `conv2d`.  "auto" may choose another algorithm than a call would: weights that are transformed
        beforehand make Winograd the faster one for small images.
    layout : str, optional
        "NHWC" (or "NLC", "NDHWC") if inputs are given, and results wanted, in this form; channels come
        before the pixels by default.

    Returns
    -------
    Prepared
        Callable as ``prepared(input, residual=None, out=None)``; input has the shape given here and the dtype
        ``numpy.result_type(weight, bias)``.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> weight, x = np.ones((4, 3, 3, 3)), np.ones((1, 3, 8, 8))
    >>> layer = fastconv.prepare(weight, x.shape, padding=1, activation="relu")
    >>> np.array_equal(layer(x), fastconv.conv2d(x, weight, padding=1))
    True
    """
    w = arrays.operand(weight, "weight")
    rank = arguments.rank_of(w.shape)
    size = arguments.shape(input_shape, "input_shape")
    last = layout is not None and arguments.channels_last(layout, rank)
    form = Form(len(size) != rank + 1, last)
    walk = arguments.walk(rank, stride, padding, dilation, groups, "nhwc" if last else "nchw", padding_mode)
    b = None if bias is None else arrays.operand(bias, "bias")
    dtype = arrays.common(w) if b is None else arrays.common(w, b)
    code = convolve.activation_code(activation, dtype)
    p = plan.find(
        "forward", form.taken_shape(size), w.shape, dtype, walk, algorithm, workspace, prepared=True
    )
    if b is not None:
        convolve.check_bias(b, p)
    return Prepared(p, w, b, code, form)
