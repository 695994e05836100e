"""The parts of a cost, against what the kernels' own tables say."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fastconv import database, machine, roofline
from fastconv.algorithms import on_gpu, registry
from fastconv.algorithms.passes import axis_pass, pass_of
from fastconv.algorithms.winograd.phases import TileAxis, count
from fastconv.bench import corpus
from fastconv.config import current
from fastconv.cuda.ahead import elsewhere
from fastconv.problem import Axis, ConvProblem, Direction
from fastconv.roofline import multiply, sizes
from fastconv.select import ranked
from fastconv.taps import met

LAYERS = [layer.problem for layer in corpus.load("core")]
BOTH = [Direction.FORWARD, Direction.INPUT_GRAD]


@pytest.mark.parametrize("direction", BOTH)
def test_sizes_are_those_of_the_pass(direction):
    for problem in LAYERS:
        s, p = sizes(problem, direction), pass_of(problem, direction)
        assert (s.n, s.groups, s.c, s.m, s.phases) == (p.n, p.groups, p.channels, p.m, p.phases)
        assert s.n * s.p * s.q == p.columns
        assert s.n * s.groups * s.m * s.lines * s.width == p.results
        reach = [a.offsets[-1] - a.offsets[0] for a in p.axes if a.offsets]
        assert abs(s.reach_w - reach[-1]) <= 1  # rounded up where phases read different pixels


@pytest.mark.parametrize("backward", [False, True])
def test_taps_of_tiles_are_counted_as_listed(backward):
    direction = Direction.INPUT_GRAD if backward else Direction.FORWARD
    for size, kernel, stride, lo in product((1, 2, 7, 12), range(1, 8), (1, 2), (0, 1, 3)):
        for dilation in {1, stride}:
            axis = Axis(size, kernel, stride, dilation, lo, 14)
            listed = TileAxis.of(axis_pass(axis, direction))
            counted = count(axis, axis.output, backward)
            assert counted == (listed.taps, sum(listed.filled), listed.outputs), axis


@given(
    st.integers(1, 40), st.integers(1, 31), st.integers(-3, 20), st.integers(-3, 20),
    st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (2, 4), (6, 2), (1, 24)]),
)  # fmt: skip
def test_outputs_and_taps_that_meet_the_image_are_counted_as_listed(size, kernel, lo, hi, steps):
    stride, dilation = steps
    axis = Axis(size, kernel, stride, dilation, lo, hi)
    assume(lo + size + hi >= axis.extent)
    pairs = product(range(axis.output), range(axis.kernel))
    assert met(axis) == sum(0 <= p * stride + r * dilation - lo < size for p, r in pairs)


def test_a_product_takes_its_multiplications_and_its_loads():
    t, units = machine.tile(4), roofline.rates().units
    whole = multiply(t.mr, t.nr, 100, 4)
    assert whole >= 100 * t.mr * t.nr / units
    assert multiply(10 * t.mr, 4 * t.nr, 100, 4) == 40 * whole
    assert multiply(1, t.nr, 100, 4) > whole / t.mr  # a row alone loads as much


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("name", [name for name in registry() if name != "reference"])
def test_costs_are_seconds_for_every_layer(name, direction):
    for problem in LAYERS:
        algorithm = registry()[name]
        if algorithm.reject(problem, direction) is None:
            assert 1e-7 < algorithm.cost(problem, direction) < 100


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("suite", corpus.names())
def test_nobody_is_passed_over_who_costs_the_least(suite, direction):
    """Floors decide who is asked for a cost at all."""
    for layer in corpus.load(suite):
        for layout in ("nchw", "nhwc"):
            check_order(replace(layer.problem, layout=layout), direction, "cpu")


@pytest.mark.parametrize("direction", Direction)
def test_nor_on_a_gpu(direction):
    with elsewhere(132):
        for problem in LAYERS:
            check_order(problem, direction, "cuda")


def check_order(problem, direction, device):
    problem, names = ranked(problem, direction, current(), device)
    asked = registry() if device == "cpu" else on_gpu()
    right = [a for a in asked.values() if not a.reject(problem, direction)]
    costs = {a.name: a.cost(problem, direction) for a in right}
    assert list(names) == sorted(costs, key=costs.__getitem__), (str(problem), costs)


@pytest.mark.parametrize("name", registry())
def test_preparing_is_a_part_of_the_cost(name):
    algorithm = registry()[name]
    for problem in LAYERS:
        if algorithm.reject(problem, Direction.FORWARD) is None:
            assert 0 <= algorithm.preparing(problem) < algorithm.cost(problem, Direction.FORWARD)


def test_costs_know_the_vector_width():
    layer = ConvProblem.parse("n8 c64 k64 i56x56 f3x3 p1")
    wide = ConvProblem.parse("n8 c64 k64 i56x56 f3x3 p1 float64")
    for algorithm in registry().values():
        assert algorithm.cost(layer, Direction.FORWARD) <= algorithm.cost(wide, Direction.FORWARD)


@pytest.mark.parametrize(
    ("simd", "name", "features", "units"),
    [
        (machine.AVX512, "sapphirerapids", "+avx512f,+avx512fp16,+amx-tile", 2),
        (machine.AVX512, "cascadelake", "+avx512f", 2),
        (machine.AVX512, "znver4", "+avx512f,+avx512bf16", 1),
        (machine.AVX2, "haswell", "+avx2,+fma", 2),
        (machine.SSE, "nehalem", "+sse4.2", 1),
        (machine.NEON, "neoverse-n1", "+neon", 2),
    ],
)
def test_typical_rates(monkeypatch, simd, name, features, units):
    monkeypatch.setattr(machine, "cpu", lambda: ("any", name, features))
    monkeypatch.setattr(machine, "simd", lambda: simd)
    monkeypatch.setattr(machine, "tile", machine.tile.__wrapped__)  # kept, it would be every later kernel's
    rates = roofline.typical()
    assert rates.units == units
    assert 1e9 < rates.flops() / (2 * units * machine.tile(4).vl) < 6e9


def test_measured_rates_are_taken_for_typical_ones(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_TUNE_FOLDER", str(tmp_path))
    assert database.rates() is None
    measured = {"clock": 2e9, "units": 2, "bandwidth": 3e10, "launch": 4e-6}
    database.write(database.machine_key(), measured)
    assert database.rates() == roofline.Rates(**measured)
    database.write(database.machine_key(), {"clock": 2e9})
    assert database.rates() is None
