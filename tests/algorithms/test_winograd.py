"""What is special to Winograd: exact matrices, variants, two ways through the work with the same bits."""

import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from fastconv import activations, testing
from fastconv.algorithms.winograd import CHOICES, GROWTH, STRIDED_CHOICES, Winograd
from fastconv.algorithms.winograd.correlation import Correlation, correlation, reached
from fastconv.algorithms.winograd.folding import added, fold, spare
from fastconv.algorithms.winograd.phases import share, tile_axes
from fastconv.algorithms.winograd.strips import Strips, row_of_tiles
from fastconv.algorithms.winograd.transforms import POINTS, matrices
from fastconv.algorithms.winograd.weight_grad import WeightGrad
from fastconv.borders import edges as edges_of
from fastconv.problem import ConvProblem, Direction

F4 = ((4, 3), (4, 3))


def laid(problem, images):
    """Return them in the problem's layout."""
    last = problem.layout == "nhwc"
    return np.moveaxis(np.moveaxis(images, 1, -1).copy(), -1, 1) if last else images


def run(execution, problem, direction, draw=testing.normals):
    first, second, result = testing.shapes(problem, direction)
    out = laid(problem, np.full(result, np.nan, problem.dtype))
    operands = laid(problem, draw(first, problem.dtype, 1)), draw(second, problem.dtype, 2)
    execution.run(*operands, out, np.empty(0, problem.dtype), activations.NONE, np.empty(0, problem.dtype))
    return *operands, out


@pytest.mark.parametrize(("m", "r"), sorted({*GROWTH, *(f[::-1] for f in GROWTH)}))
def test_matrices_are_an_exact_correlation(m, r):
    a, g, b = matrices(m, r)
    d = [Fraction(3 * i * i - 7 * i + 2, i + 1) for i in range(m + r - 1)]
    w = [Fraction(5 - 2 * i, i + 3) for i in range(r)]

    def dot(x, y):
        return sum(p * q for p, q in zip(x, y, strict=True))

    products = [dot(row, w) * dot(other, d) for row, other in zip(g, b, strict=True)]
    assert [dot(row, products) for row in a] == [dot(d[i : i + r], w) for i in range(m)]


@pytest.mark.parametrize("alpha", POINTS)
def test_tile_transforms_are_exact_in_binary(alpha):
    a, _, b = matrices(alpha, 1)
    for value in (v for row in (*a, *b) for v in row):
        assert value.denominator & (value.denominator - 1) == 0


@pytest.mark.parametrize("direction", list(Direction), ids=str)
def test_f2_is_exact_on_small_integers(direction):
    problem = ConvProblem.parse("n2 c5 k9 i13x37 f3x3 p1")
    execution = Winograd().variant("F(2,3)").build(problem, direction, 2**30)
    testing.assert_exact(problem, direction, *run(execution, problem, direction, testing.integers))


@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRAD], ids=str)
@pytest.mark.parametrize("mode", ["", " replicate"])
def test_every_way_has_the_same_bits(direction, mode):
    problem = ConvProblem.parse(f"n3 c34 k42 i27x29 f3x3 p1:2x0:1 g2{mode}")
    ways = [Correlation(problem, direction, F4, *way) for way in (
        (True, 3, 2**19), (False, 6, 2**19), (True, 1, 0), (False, 1, 0), (False, 2, 10**5),
    )]  # fmt: skip
    results = [run(execution, problem, direction) for execution in ways]
    testing.assert_right(problem, direction, *results[0], growth=3)
    for _, _, out in results[1:]:
        np.testing.assert_array_equal(out, results[0][2])


@pytest.mark.parametrize("width", [1, 2, 5, 7, 8, 11, 16, 28, 32, 33, 40, 63, 75, 125, 131])
@pytest.mark.parametrize("rest", ["f3x3 p1", "f3x3 p2:1x0:3", "f3x3 p1 reflect"])
def test_strips_of_rows_of_any_length(width, rest):
    problem = ConvProblem.parse(f"n7 c3 k5 i{9 - width % 5}x{width} {rest}")
    execution = Winograd().variant("F(2,3)").build(problem, Direction.FORWARD, 2**30)
    testing.assert_exact(
        problem, Direction.FORWARD, *run(execution, problem, Direction.FORWARD, testing.integers)
    )
    back = Winograd().variant("F(2,3)").build(problem, Direction.INPUT_GRAD, 2**30)
    testing.assert_exact(
        problem, Direction.INPUT_GRAD, *run(back, problem, Direction.INPUT_GRAD, testing.integers)
    )


PADDINGS = {"reflect": ("1", "0:1x1:0", "1x0"), "replicate": ("1", "2:1x0:2", "2")}


@pytest.mark.parametrize("mode", PADDINGS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["F(2,3)", "F(4,3)"])
def test_tiles_fold_what_is_around_the_image(name, layout, mode):
    """Maps of all lengths; those whose tiles cannot fold have a frame."""
    winograd, d, folded = Winograd().variant(name), Direction.INPUT_GRAD, set()
    sizes = ["8x6", "9x10", "7x29", "31x12", "4x3", "2x5", "3x40"]
    for size, padding in ((size, padding) for size in sizes for padding in PADDINGS[mode]):
        problem = ConvProblem.parse(f"n3 c18 k7 i{size} f3x3 p{padding} {mode} {layout}")
        folded.add(bool(fold(problem, d, winograd.tiles(problem, d))))
        execution = winograd.build(problem, d, 2**30)
        exact = name == "F(2,3)"
        operands = run(execution, problem, d, testing.integers if exact else testing.normals)
        if exact:
            testing.assert_exact(problem, d, *operands)
        else:
            testing.assert_right(problem, d, *operands, growth=winograd.error_growth(problem, d))
    assert folded == {False, True}


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("i56x56 f3x3 p1 reflect", 2),
        ("i57x56 f3x3 p1 reflect", 0),  # the last row of tiles lacks the row that is repeated
        ("i57x56 f3x3 p1 replicate", 1),
        ("i57x56 f3x3 p1:0x1 reflect", 2),
        ("i56x4 f3x3 p1 replicate", 0),  # one tile would be both the first and the last
        ("i56x56 f3x3 p2 reflect", 2),
        ("i56x56 f5x5 p2 reflect", 2),
        ("i56x56 f3x3 p3 replicate", 0),  # grad_output begins before the tiles
        ("i56x56 f5x5 p2 replicate", 1),
        ("i56x56 f3x1 p1 replicate", 0),
        ("i56x56 f3x1 p1x0 reflect", 2),
        ("i56 f3 p1 reflect", 2),
        ("i56x56 f3x3 p1 circular", 0),
        ("i56x56 f3x3 p1", 0),
        ("i56x56 f3x3 s2 p1 replicate", 0),
    ],
)
def test_what_tiles_can_fold(line, step):
    problem = ConvProblem.parse(f"n1 c8 k8 {line}")
    tiles = Winograd().tiles(problem, Direction.INPUT_GRAD)
    found = fold(problem, Direction.INPUT_GRAD, tiles)
    assert found.step == step
    assert not fold(problem, Direction.FORWARD, tiles)
    edges = tuple(edges_of(a, problem.padding_mode) for a in problem.axes)
    for layout in ("nchw", "nhwc") if step else ():
        bordered = replace(problem, layout=layout)
        zeros = replace(bordered, padding_mode="zeros")
        costs = [Winograd().cost(p, Direction.INPUT_GRAD) for p in (bordered, zeros)]
        assert (costs[0] == costs[1]) == (added(problem, found) == edges)  # or there is a frame, too


@pytest.mark.parametrize("size", ["8x6", "10x29", "6x12", "9x10"])
@pytest.mark.parametrize("padding", ["2", "2:1x0:2", "4x3:2", "0x3", "1x2"])
@pytest.mark.parametrize("name", ["F(2,5)", "F(4,5)"])
def test_a_frame_moves_what_tiles_have_folded_elsewhere(name, size, padding):
    problem, d = ConvProblem.parse(f"n3 c18 k7 i{size} f5x5 p{padding} reflect"), Direction.INPUT_GRAD
    winograd = Winograd().variant(name)
    execution = winograd.build(problem, d, 2**30)
    testing.assert_right(problem, d, *run(execution, problem, d), growth=winograd.error_growth(problem, d))


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize(
    ("line", "around"),
    [
        ("n2 c3 k8 i56x56 f7x7 p3 s2", ((2, 2), (2, 2))),  # 30 positions of a phase, in tiles of three
        ("n2 c3 k8 i25x19 f7x7 p3 s2", ((2, 3), (2, 3))),
        ("n1 c5 k6 i13x17 f5x5 p2:1x0:2 s2", ((2, 1), (0, 2))),
        ("n2 c19 k6 i57x13 f3x3 p1", ((1, 1), (1, 1))),
        ("n1 c4 k4 i27 f7 p3 s2", ((1, 2),)),
        ("n1 c4 k4 i56x56 f3x3 p1 s2", ()),  # no room
    ],
)
def test_tiles_hold_what_finds_room_around_the_image(line, around, mode):
    problem, d = ConvProblem.parse(f"{line} {mode}"), Direction.INPUT_GRAD
    winograd = Winograd()
    tiles = winograd.tiles(problem, d)
    assert spare(problem, tiles) == around
    assert not fold(problem, d, tiles) or mode == "replicate"
    operands = run(winograd.build(problem, d, 2**30), problem, d)
    testing.assert_right(problem, d, *operands, growth=winograd.error_growth(problem, d))


@pytest.mark.parametrize("line", ["f3x3 p1 reflect", "f5x3 p2x1 replicate", "f3x3 p2x1 circular"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_folded_results_are_finished_once(line, layout):
    problem, d = ConvProblem.parse(f"n2 c19 k4 i14x15 {line} {layout}"), Direction.INPUT_GRAD
    execution = Winograd().build(problem, d, 2**30)
    gy, w, plain = run(execution, problem, d)
    bias, residual = testing.normals((19,), "float32", 3), testing.normals(plain.shape, "float32", 4)
    out = np.full_like(plain, np.nan)
    execution.run(gy, w, out, bias, activations.RELU, laid(problem, residual))
    expected = np.maximum(plain + bias.reshape(-1, 1, 1) + residual, 0)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_strips_of_a_long_row_repeat_themselves_soon():
    longest = max(Strips.of(row_of_tiles(tiles, 16), 16).rows.shape[0] for tiles in range(1, 4000, 7))
    assert longest <= 4000 / 16
    assert all(tiles <= row_of_tiles(tiles, 16) <= tiles * 33 / 32 for tiles in range(4000))


@pytest.mark.parametrize(
    "line", ["n1 c6 k11 i50x45 f3x3 p1", "n40 c130 k20 i6x7 f3x3 p1", "n3 c9 k70 i21x34 f3x3 p0:2"]
)
def test_weight_gradient_in_blocks_of_any_size(line):
    problem = ConvProblem.parse(line)
    blocks = set()
    for cache in (2**20, 2**16, 2**13):
        execution = WeightGrad(problem, F4, cache)
        testing.assert_right(
            problem, Direction.WEIGHT_GRAD, *run(execution, problem, Direction.WEIGHT_GRAD), growth=4
        )
        blocks.add(execution.geometry)
    assert len(blocks) > 1


def test_blocks_shrink_to_the_limit():
    problem = ConvProblem.parse("n4 c64 k64 i56x56 f3x3 p1")
    sizes = [correlation(problem, Direction.FORWARD, F4, limit).workspace for limit in (2**30, 2**20, 0)]
    assert sizes[0] > sizes[1] >= sizes[2]
    assert sizes[1] <= 2**20


def test_variants():
    problem = ConvProblem.parse("n1 c8 k8 i26x26 f3x3 p1")
    assert Winograd().variant("F(6,3)").tiles(problem, Direction.FORWARD) == ((6, 3), (6, 3))
    assert "kernels of 5 taps" in Winograd().variant("F(2,5)").reject(problem, Direction.FORWARD)
    for name in ("F(9,3)", "fast", "F(1,1)"):
        with pytest.raises(ValueError, match=r"variants F\("):
            Winograd().variant(name)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("n1 c1 i8x8x8 f3x3x3", "two axes"),
        ("n1 c1 i8x8 f3x3 s3", "stride 1 or 2"),
        ("n1 c1 i8x8 f3x3 d2 nhwc", "dilation 1"),
        ("n1 c1 i8x8 f3x3 s2x1 d2", "dilation 1"),
        ("n1 c1 i8x8 f8x8", "7 taps"),
        ("n1 c1 i28x28 f15x15 s2", "8x8 in a phase"),
        ("n1 c1 i8x8 f1x1", "one tap"),
        ("n1 c1 i8x8 f2x2 s2", "one tap in a phase"),
        ("n1 c1 i8x8 f3x3 s2 nhwc", "stride 1"),
    ],
)
def test_reasons(line, word):
    assert word in Winograd().reject(ConvProblem.parse(line), Direction.FORWARD)
    assert Winograd().reject(ConvProblem.parse(line), Direction.WEIGHT_GRAD)


@pytest.mark.parametrize(
    "line",
    [
        "n2 c5 k9 i13x37 f5x5 s2 p1",
        "n1 c40 k10 i12x20 f6x5 s2 p2:1x0:3",
        "n2 c4 k6 i9x40 f5x5 s2 p2 g2 reflect",
        "n1 c9 k7 i21x11 f3x3 s2 d2 p1",  # odd pixels alone are read, and get a gradient
        "n2 c6 k5 i14x9 f5x3 s2x1 p1",
        "n1 c3 k2 i1x9 f5x5 s2 p2",  # fewer rows than phases: some taps reach none
        "n3 c2 k9 i40 f6 s2 p2:3",
    ],
)
@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRAD], ids=str)
def test_stride_two_is_exact_on_small_integers(direction, line):
    """Phases of the source or the result, by tiles and by outputs, of both kinds of vectors."""
    problem, winograd = ConvProblem.parse(line), Winograd().variant("F(2,3)")
    assert winograd.reject(problem, direction) is None
    for limit in (2**30, 0):
        execution = winograd.build(problem, direction, limit)
        first, second, out = run(execution, problem, direction, testing.integers)
        testing.assert_exact(problem, direction, first, second, out)
        prepared, nothing = execution.prepare(second), np.empty(0, problem.dtype)
        execution.run_prepared(
            first, prepared, again := np.empty_like(out), nothing, activations.NONE, nothing
        )
        np.testing.assert_array_equal(again, out)


@pytest.mark.parametrize(
    "rest",
    [
        "f3x3 s2 p1",
        "f3x3 s2",
        "f5x5 s2 p2",
        "f4x6 s2 p1",
        "f4x6 s2",
        "f5x3 s2x1 p1",
        "f3x3 s2 d2 p1",
        "f3x3 p1",
    ],
)
@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRAD], ids=str)
def test_products_that_are_left_out_are_counted(direction, rest):
    problem = ConvProblem.parse(f"n1 c1 k1 i40x41 {rest}")
    rows, columns = tile_axes(problem, direction)
    tiles = tuple((3, axis.taps) for axis in (rows, columns))
    bits = reached(problem, direction, tiles)
    phases = sum(rows.filled) * sum(columns.filled)
    assert sum(int(b).bit_count() for b in bits) == pytest.approx(share(problem, tiles) * len(bits) * phases)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["n1 c33 k34 i23x41 f3x3 s2 p1", "n1 c33 k34 i23x81 f5x5 s2 p1", "n1 c33 k34 i46x45 f7x7 s2 p3"]
)
@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRAD], ids=str)
def test_error_of_phases_stays_within_the_growth(direction, line):
    problem, winograd = ConvProblem.parse(line), Winograd()
    result = run(winograd.build(problem, direction, 2**30), problem, direction)
    testing.assert_right(problem, direction, *result, growth=winograd.error_growth(problem, direction))


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"F({m},{r})" for m, r in GROWTH if r > 1])
@pytest.mark.parametrize("direction", list(Direction), ids=str)
def test_error_stays_within_the_growth_of_the_variant(name, direction):
    r = int(name[-2])
    winograd = Winograd().variant(name)
    for kernel, pad in ((f"{r}x{r}", "1"), (f"1x{r}", "0x1"), (f"{r}x1", "1x0")):
        problem = ConvProblem.parse(f"n1 c33 k34 i23x41 f{kernel} p{pad}")
        execution = winograd.build(problem, direction, 2**30)
        growth = winograd.error_growth(problem, direction)
        testing.assert_right(problem, direction, *run(execution, problem, direction), growth=growth)


def test_choices_have_a_measured_growth():
    for table in (CHOICES, *STRIDED_CHOICES.values()):
        assert {(m, r) for r, choices in table.items() for m in choices} <= set(GROWTH)


NARROW = """
import numpy as np
from fastconv import activations, testing
from fastconv.algorithms.winograd import Winograd
from fastconv.problem import ConvProblem, Direction

for dtype, mode in (("float32", "zeros"), ("float64", "reflect")):
    problem = ConvProblem.parse(f"n2 c7 k13 i11x39 f3x3 p1 {dtype} {mode}")
    for direction in Direction:
        first, second, result = testing.shapes(problem, direction)
        x, w, y = testing.normals(first, dtype, 1), testing.normals(second, dtype, 2), np.empty(result, dtype)
        winograd = Winograd().variant("F(4,3)")
        winograd.build(problem, direction, 2**30).run(x, w, y, np.empty(0, dtype), activations.NONE, np.empty(0, dtype))
        testing.assert_right(problem, direction, x, w, y, winograd.error_growth(problem, direction))
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpu", "features"),
    [("haswell", "+avx,+avx2,+fma,+sse4.2,+f16c,+bmi,+bmi2"), ("nehalem", "+sse4.2")],
)
def test_narrow_vectors(cpu, features, tmp_path):
    environment = os.environ | {
        "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path),
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", NARROW], check=False, capture_output=True, text=True, env=environment
    )
    assert result.stdout.strip() == "done", result.stderr[-2000:]


@pytest.mark.parametrize("direction", list(Direction), ids=str)
@pytest.mark.parametrize("mode", ["", " circular"])
@pytest.mark.parametrize(
    "line",
    [
        "n2 c20 k18 i13x11 f3x3 d2 p2",
        "n1 c3 k4 i16x19 f3x3 d4x3 p4:3x1:0",
        "n1 c4 k6 i7x8 f3x3 d6 p6 g2",  # more images than pixels along an axis
        "n2 c4 k6 i6x40 f3x3 d1x2 p1x2",
        "n2 c4 k6 i60 f3 d9 p18",
    ],
)
def test_every_dth_pixel_is_an_image(line, mode, direction):
    problem = ConvProblem.parse(line + mode)
    winograd = Winograd()
    operands = run(winograd.build(problem, direction, 2**30), problem, direction)
    testing.assert_right(problem, direction, *operands, growth=winograd.error_growth(problem, direction))


@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRAD], ids=str)
def test_images_put_together_are_finished(direction):
    problem = ConvProblem.parse("n1 c3 k4 i11x12 f3x3 d3 p3")
    execution = Winograd().build(problem, direction, 2**30)
    first, second, plain = run(execution, problem, direction)
    bias = np.arange(plain.shape[1], dtype=np.float32) - 1
    residual = testing.normals(plain.shape, problem.dtype, 3)
    out = np.empty_like(plain)
    execution.run(first, second, out, bias, activations.RELU, residual)
    np.testing.assert_allclose(out, np.maximum(plain + bias[:, None, None] + residual, 0), atol=1e-5)


@pytest.mark.parametrize(
    "line",
    [
        "n2 c3 k4 i25x26 f3x3 p2 d2 reflect",
        "n2 c3 k4 i25x26 f3x3 p2 d2 replicate",
        "n1 c3 k2 i25x26 f3x3 p2:1x1:2 d2 replicate",
        "n1 c2 k3 i26 f3 p1:2 d2 circular",
    ],
)
def test_a_wider_image_is_folded_as_it_is_put_together(line):
    problem, d, winograd = ConvProblem.parse(line), Direction.INPUT_GRAD, Winograd()
    assert winograd.holding(problem, d) is not problem
    execution = winograd.build(problem, d, 2**30)
    testing.assert_right(problem, d, *run(execution, problem, d), growth=winograd.error_growth(problem, d))
