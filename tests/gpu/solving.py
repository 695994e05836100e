"""A problem through the public functions, on arrays of any kind."""

import fastconv
from fastconv.problem import Direction


def solve(problem, direction, first, second, algorithm, bias=None, **added):
    """Compute; what is added goes to forward."""
    rank = len(problem.axes)
    walk = {
        "stride": tuple(a.stride for a in problem.axes),
        "padding": tuple((a.lo, a.hi) for a in problem.axes),
        "dilation": tuple(a.dilation for a in problem.axes),
        "groups": problem.groups,
        "algorithm": algorithm,
    }
    if direction is Direction.FORWARD:
        return getattr(fastconv, f"conv{rank}d")(first, second, bias, **added, **walk)
    if direction is Direction.INPUT_GRAD:
        return getattr(fastconv, f"conv{rank}d_input")(problem.input_shape, second, first, **walk)
    return getattr(fastconv, f"conv{rank}d_weight")(first, problem.weight_shape, second, **walk)
