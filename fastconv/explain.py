"""What would be chosen, and why: nothing is computed."""

from __future__ import annotations

from numpy.typing import ArrayLike

from fastconv import arguments, arrays
from fastconv.algorithms import registry
from fastconv.arguments import Padding, PaddingMode, PerAxis
from fastconv.config import current, override
from fastconv.problem import Direction
from fastconv.select import Selection
from fastconv.tune import explained


def algorithms() -> tuple[str, ...]:
    """Return the names that ``algorithm=`` takes, besides "auto".

    Examples
    --------
    >>> import fastconv
    >>> "reference" in fastconv.algorithms()
    True
    """
    return tuple(registry())


def explain(
    input: ArrayLike,
    weight: ArrayLike,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    direction: str = "forward",
    algorithm: str = "auto",
    workspace: int | None = None,
    layout: str | None = None,
) -> Selection:
    """Return the choice of algorithm for a convolution; printed, a table of all candidates.

    Parameters
    ----------
    input : (N, C, L), (N, C, H, W) or (N, C, D, H, W) array
        Only shape, dtype and whether its channels are neighbours in memory matter; N may be left out.
    weight : (K, C/groups, S), (K, C/groups, R, S) or (K, C/groups, T, R, S) array
    stride, padding, dilation, groups, padding_mode, algorithm, workspace
        As for `conv2d`.
    layout : str, optional
        "NHWC" (or "NLC", "NDHWC") if the channels are the input's last axis.
    direction : {"forward", "input_grad", "weight_grad"}
        Which of the three convolutions of training.

    Returns
    -------
    Selection
        With the winner as ``algorithm`` and every algorithm's predicted seconds and bytes of workspace, or
        its reason against, in ``candidates``; with measured seconds too, if `fastconv.config` has been told
        to ``tune`` such a problem.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastconv
    >>> selection = fastconv.explain(np.ones((1, 3, 8, 8)), np.ones((8, 3, 3, 3)), algorithm="reference")
    >>> print(str(selection).splitlines()[0])
    forward n1 c3 k8 i8x8 f3x3 float64
    """
    if not arguments.named(direction, tuple(Direction)):
        raise ValueError(f"direction must be one of {', '.join(Direction)}, got {direction!r}")
    x, w = arrays.operand(input, "input"), arrays.operand(weight, "weight")
    rank = arguments.rank_of(w.shape)
    form = arrays.Form(x.ndim != rank + 1, layout is not None and arguments.channels_last(layout, rank))
    x = form.taken(x)
    walk = arguments.walk(
        rank,
        stride,
        padding,
        dilation,
        groups,
        arrays.order(x, arrays.common(x, w), form.layout),
        padding_mode,
    )
    problem = arguments.problem(x.shape, w.shape, arrays.common(x, w).name, walk)
    return explained(problem, Direction(direction), override(current(), algorithm, workspace))
