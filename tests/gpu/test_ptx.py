"""What the compiler makes of the kernels, run by `ptx`: right, and without a hazard that a GPU would hide."""

import numpy as np
import pytest

import fastconv
from fastconv import testing
from fastconv.algorithms import find
from fastconv.arguments import Activation
from fastconv.problem import ConvProblem, Direction

pytest.importorskip("numba_cuda")
import ptx
import test_engine
import test_staged
from emulated import MEMORY, Array, Launch, emulated, read
from solving import solve

from fastconv.algorithms.im2col import cuda as im2col
from fastconv.algorithms.im2col import cuda_weight
from fastconv.algorithms.im2col.splits import SumGeometry, add_up
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.operands import operand

CASES = [
    "reference n1 c2 k3 i3x2x2 f2x1x2 p1 s2 nhwc",
    "direct n1 c3 k6 i4x4 f3x3 p1 g3 nhwc",
    "im2col n2 c3 k20 i6x6 f3x3 p1",
    "im2col n2 c16 k4 i4x3 f3x2 p1 nhwc",
    "winograd:F(2,3) n1 c5 k66 i4x5 f3x3 p1",  # in one kernel
    "winograd:F(4,3) n1 c3 k2 i5x9 f3x3 p2:0x-1:2 nhwc",
    "fft n2 c3 k3 i7 f3 p1 d2 g3",
    "fft n1 c2 k3 i9 f3 d2 p2:0 nhwc",
]
MORE = [f"{name} {line}" for name, lines in test_engine.MORE.items() for line in lines]
MORE += [f"{name} {line}" for name in test_engine.MORE for line in test_engine.TINY]
MORE += [
    case.replace(" tight", "")
    for cases in (test_staged.CASES, test_staged.SLOW)
    for v in cases.values()
    for case in v
]


def check(case, shift=0, directions=Direction):
    """Solve in some directions, with arrays that begin ``shift`` bytes past a boundary of 256."""
    name, _, line = case.partition(" ")
    problem, algorithm = ConvProblem.parse(line), find(name, "cuda")
    last = problem.layout == "nhwc"
    for direction in directions:
        with emulated():
            if algorithm.reject(problem, direction):
                continue
            make = testing.integers if algorithm.exact else testing.normals
            shapes = testing.shapes(problem, direction)[:2]
            first, second = (make(shape, problem.dtype, i) for i, shape in enumerate(shapes))
            there = (
                Array.of(first, last, shift),
                Array.of(second, last and direction is Direction.WEIGHT_GRAD, shift),
            )
            result = solve(problem, direction, *there, name).numpy
        if algorithm.exact:
            testing.assert_exact(problem, direction, first, second, result)
        else:
            growth = algorithm.error_growth(problem, direction)
            testing.assert_right(problem, direction, first, second, result, growth)


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE if case not in CASES)]
)
def test_right_without_hazards(case):
    check(case)


@pytest.mark.parametrize(
    "line", ["n1 c8 k4 i4x4 f1x1", pytest.param("n1 c8 k4 i4x4 f3x3 p1 nhwc", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["im2col", pytest.param("direct", marks=pytest.mark.slow)])
def test_arrays_may_begin_anywhere(name, line):
    check(f"{name} {line}", 4)


@pytest.mark.parametrize(
    "line",
    [
        "n2 c3 k20 i6x5 f3x3 p1", "n2 c8 k4 i4x3 f3x2 p1 s2 nhwc", "n3 c2 k3 i3x3x3 f2 p1:0", "n3 c2 k3 i3x4 f3 p1",
        pytest.param("n3 c3 k2 i5x3 f3 p1 nhwc", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_more_positions_than_one_table_has(line, monkeypatch):
    monkeypatch.setattr(cuda_weight, "FLAT", 0)
    check(f"im2col {line}", directions=[Direction.WEIGHT_GRAD])


LINES = ("n2 c3 k20 i12x12 f3x3 p1", "n1 c16 k130 i12x12 f1x1", "n1 c16 k20 i12x12 f3x3 p1", "n1 c16 k20 i12x12 f3x3 p1 nhwc",
         "n1 c8 k20 i12x12 f3x3 s2 p1")  # fmt: skip


@pytest.mark.parametrize(
    ("line", "which"),
    [
        pytest.param(line, which, marks=() if line == LINES[0] and which == 0 else pytest.mark.slow)
        for line in LINES
        for which in range(5)
    ],
)
def test_every_tile(line, which, monkeypatch):
    """Which tiny problems do not choose; threads read operands in as few passes as can be."""
    tile, weights = im2col.tiles_of("float32", line.endswith("nhwc"))[which], cuda_weight.TILES["float32"]
    monkeypatch.setattr(im2col, "tiles_of", lambda *_: (tile,))
    monkeypatch.setitem(cuda_weight.TILES, "float32", (weights[which],))
    monkeypatch.setattr(Launch, "profiles", {})
    im2col.plan.cache_clear()
    cuda_weight.blocks.cache_clear()
    check(f"im2col {line}")
    im2col.plan.cache_clear()
    cuda_weight.blocks.cache_clear()
    for kernel, counts in Launch.profiles.items():
        loads = [
            at for at, what in counts if what == "shared" and read(kernel).texts[at].startswith("ld.shared")
        ]
        passes, runs = (sum(counts[at, what] for at in loads) for what in ("shared", "run"))
        assert passes == 2 * runs, kernel.maker


@pytest.mark.parametrize("splits", [3, 70])
def test_splits_are_added(splits):
    """By a thread for each result, or where there are many of them by several."""
    partial, bias = testing.integers((splits, 100), "float32", 0), testing.integers((4,), "float32", 1)
    with emulated():
        there = [operand(Array.of(value), "sums") for value in (partial, bias, np.empty(98, "float32"))]
        geometry = SumGeometry(98, 100, splits, pixels=25, channels=4, has_bias=1, has_residual=0)
        add_up(*there[:2], None, there[2], "relu", geometry)
    expected = np.maximum(partial.sum(0) + bias.repeat(25), 0)[:98]
    np.testing.assert_array_equal(there[2].owner.numpy, expected)


@pytest.mark.parametrize(
    "case",
    [
        "im2col n5 c2 k3 i10x9 f2x2",
        "direct n12 c2 k2 i9x9 f2x2 g2 nhwc",
        pytest.param("im2col n3 c4 k4 i12x11 f2x2 nhwc", marks=pytest.mark.slow),
        pytest.param("im2col n5 c2 k3 i10x9 f2x2 float64", marks=pytest.mark.slow),
    ],
)
def test_splits_add_to_the_result_where_that_is_asked_for(case, monkeypatch):
    """By atomic instructions, and without workspace; never by default."""
    monkeypatch.setattr(Launch, "profiles", {})
    name, _, line = case.partition(" ")
    problem, direction = ConvProblem.parse(line), Direction.WEIGHT_GRAD
    last = problem.layout == "nhwc"
    first, second, _ = (
        testing.integers(shape, problem.dtype, i)
        for i, shape in enumerate(testing.shapes(problem, direction))
    )
    for deterministic in (True, False):
        Launch.profiles.clear()
        with emulated(), fastconv.config(deterministic=deterministic):
            there = Array.of(first, last), Array.of(second, last)
            result = solve(problem, direction, *there, name).numpy
            needs = find(name, "cuda").workspace(problem, direction, 2**30)
        testing.assert_exact(problem, direction, first, second, result)
        adding = [k for k in Launch.profiles if any(t.startswith("red.") for t in read(k).texts)]
        assert len(adding) == (not deterministic)
        assert (needs > 0) == deterministic


@pytest.mark.parametrize("name", Activation.__args__[0].__args__)
def test_activations_pass_not_a_number_on(name):
    x = testing.normals((1, 1, 4, 4), "float32", 0)
    x[0, 0, 1, :3] = np.nan, np.inf, -np.inf
    w = np.ones((1, 1, 1, 1), "float32")
    with emulated():
        y = fastconv.conv2d(Array.of(x), Array.of(w), activation=name, algorithm="reference").numpy
    with np.errstate(all="ignore"):
        expected = fastconv.conv2d(x, w, activation=name, algorithm="reference")
    np.testing.assert_allclose(y, expected, 1e-5, 1e-6)


def flawed(flaw):
    """Make a kernel that turns 64 numbers around through shared memory, with a flaw."""
    from fastconv.cuda.language import U, arrived, copy, cuda, float32, further, int64, load4

    def turn(x, y, g):
        shared = cuda.shared.array(68, float32, alignment=16)
        tid = U(cuda.threadIdx.x)
        if flaw == "none" or flaw == "copy is under way":
            copy(shared, tid, x, int64(tid), True)
            if flaw == "none":
                arrived()
            else:
                cuda.syncthreads()
        else:
            shared[tid] = x[int64(tid)]
            if flaw == "a barrier of some":
                if tid < U(32):
                    cuda.syncthreads()
            elif flaw != "no barrier":
                cuda.syncthreads()
        place = U(U(63) - tid)
        value = shared[place]
        if flaw == "beside an array":
            value += x[int64(tid) + int64(1)]
        if flaw == "not on 16 bytes":
            a, b, c, d = load4(further(x, int64(1)), 0)
            value += a + b + c + d
        if flaw == "two threads write":
            tid = U(tid // U(2))
        y[int64(tid)] = value

    return turn


@pytest.mark.parametrize("flaw", ["none", "no barrier", "copy is under way", "a barrier of some", "beside an array", "not on 16 bytes", "two threads write"])  # fmt: skip
def test_flaws_are_found(flaw):
    kernel = Kernel(flawed, (flaw,), ("float32",) * 2, SumGeometry, "int64", 64)  # any integers
    x = np.arange(64, dtype="float32")
    there, out = Array.of(x), Array((64,))
    arguments = (range(1), 64, (there.block.pointer, out.block.pointer, *[0] * len(SumGeometry._fields)))
    if flaw == "none":
        read(kernel).run(*arguments, list(MEMORY.values()))
        np.testing.assert_array_equal(out.numpy, x[::-1])
        return
    words = {"no barrier": "no barrier since", "a barrier of some": "not all threads|barrier"}
    with pytest.raises(ptx.Hazard, match=words.get(flaw, flaw)):
        read(kernel).run(*arguments, list(MEMORY.values()))
