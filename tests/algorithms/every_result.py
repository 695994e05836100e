"""Whether an execution gives every result exactly, as it is and with weights prepared and all that is done on the way."""

import numpy as np

from fastconv import testing


def held(problem, array):
    """Return images (n, c, ...) as the problem has them in memory."""
    if problem.layout == "nchw":
        return array
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def check(execution, problem, direction):
    """Run on integers: alone, and prepared, with bias, residual and ReLU."""
    p = problem
    first, second, shape = testing.shapes(p, direction)
    first, second = testing.integers(first, p.dtype), testing.integers(second, p.dtype, 1)
    first, nothing = held(p, first), np.empty(0, p.dtype)
    if p.layout == "nchw":
        out = testing.guarded(shape, p.dtype)
    else:
        out = np.moveaxis(testing.guarded((shape[0], *shape[2:], shape[1]), p.dtype), -1, 1)
    out[...] = np.nan
    execution.run(first, second, out, nothing, 0, nothing)
    testing.assert_exact(p, direction, first, second, out)
    bias, residual = testing.integers((shape[1],), p.dtype, 2), testing.integers(shape, p.dtype, 3)
    whole = testing.definition(p, direction, first, second) + bias.reshape(-1, *[1] * len(p.axes)) + residual
    execution.run_prepared(first, execution.prepare(second), out, bias, 1, held(p, residual))
    np.testing.assert_array_equal(out, np.maximum(whole, 0))
