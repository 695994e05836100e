"""Layer x algorithm x direction under pytest-benchmark: ``python -m pytest bench --benchmark-group-by=param:layer``.

One layer of each category, or those of the suite that BENCH_SUITE names.  Each is compared with the definition
once before it is timed; ``extra_info`` holds operations, bytes and what the choice would have been.
"""

import os

import pytest

import fastconv
from fastconv.bench import corpus
from fastconv.bench.check import truth
from fastconv.bench.peers import Operands, Ours, arguments
from fastconv.problem import Direction

LAYERS = corpus.load(os.environ.get("BENCH_SUITE", "quick"))
ALGORITHMS = [name for name in fastconv.algorithms() if name != "reference"]


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@pytest.mark.parametrize("direction", list(Direction), ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer.problem))
def bench_layer(benchmark, layer, direction, algorithm):
    """Time one algorithm."""
    p = layer.problem
    operands = Operands.normal(p)
    selection = fastconv.explain(operands.x, operands.w, **arguments(p), direction=str(direction))
    against = {c.name: c.reason for c in selection.candidates}.get(algorithm)
    if against:
        pytest.skip(against)
    call = Ours(algorithm).make(p, direction, operands)
    right = truth(p, direction, operands, check_all=False)
    if right is not None:
        assert right.error(call()) <= right.bound
    benchmark.extra_info.update(
        flops=p.flops, bytes=p.bytes, category=layer.category, times=layer.times,
        algorithm=selection.algorithm if algorithm == "auto" else algorithm, chosen=selection.algorithm,
    )  # fmt: skip
    benchmark(call)
