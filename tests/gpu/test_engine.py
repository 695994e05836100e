"""The CUDA engine without a GPU: kernels in Numba's simulator, and machine code for real GPUs read back."""

import importlib
import re
from itertools import product

import numpy as np
import pytest

from fastconv.algorithms import on_gpu
from fastconv.problem import ConvProblem, Direction
from fastconv.select import select

pytest.importorskip("numba_cuda")
from machine_code import TARGETS, loops, usage
from numba import cuda
from started import simulate

from fastconv.algorithms.im2col import cuda_weight
from fastconv.algorithms.im2col.cuda import SMALL_LAST, gemm_kernel
from fastconv.algorithms.im2col.implicit.geometry import Traits
from fastconv.algorithms.im2col.implicit.weight import Way
from fastconv.config import Settings
from fastconv.cuda import compiler
from fastconv.cuda.compiler import Kernel
from fastconv.gemm.cuda import TILES

TINY = [
    "n2 c4 k2 i4x3 f2x3 p1:0x1 g2 nhwc",
    "n1 c2 k3 i3x2x2 f2x1x2 p1 s2 nhwc",
    "n1 c3 k4 i5x6 f3x3 p1",
    "n2 c2 k4 i7x5 f3x2 s2x3 p2:0x1:2 d2x1 g2",
    "n1 c3 k3 i6x6 f3x3 s2 p-1:1 g3",
    "n2 c2 k3 i9 f4 s2 p2 d2 float64",
    "n1 c2 k2 i3x4x3 f2x2x2 p1",
    "n1 c1 k2 i2x2 f2x2 s5 p3",
]
MORE = {  # what kernels of one algorithm have branches for
    "direct": [
        "n2 c3 k3 i8x8 f3x3 p1 g3",  # whole vectors of pixels and of results, rows written out
        "n1 c2 k4 i9x7 f5x3 s2 p2 g2",  # phases of different lengths, two channels of a group
        "n1 c2 k2 i5x4 f3x3 s1x3 p1:2 d3x2 g2",  # a thread's rows apart, no tap in a phase
        "n1 c2 k2 i2x26 f2x20 p1x9 g2",  # a row of taps in pieces
        "n1 c2 k2 i2x24 f2x16 p0x7 g2",  # which begin on 16 bytes
        "n1 c1 k9 i2x6 f1x1",  # nine channels of a thread that owns eight
        "n1 c2 k2 i1x31 f1x3 p0x1 d1x15 g2",  # taps too far apart for one segment
        "n1 c2 k2 i9x3 f7x1 p3x0 d2x1 g2",  # seven rows of dilated taps
        "n12 c2 k2 i9x9 f2x2 g2 nhwc",  # splits
        "n2 c4 k4 i5x6 f3x3 p1 g4 nhwc",  # channels last: four of their own
        "n1 c4 k4 i5x6 f3x3 p1 s2x3 g4 nhwc",  # in phases
        "n1 c2 k8 i4x5 f2x7 p1x4 d1x2 g2 nhwc",  # four of one group, a row of taps in pieces
        "n1 c3 k6 i4x4 f3x3 p1 g3 nhwc",  # two of one group
    ],
    "im2col": [
        "n1 c2 k2 i2x34 f1x31 p0x2",  # more taps than have bits
        "n1 c1 k2 i6x5 f2x31 p1x15 s2",  # along one axis of two, and in phases
        "n1 c4 k4 i2x34 f1x31 p0x2 nhwc",
        "n5 c2 k3 i3x3 f2x2",  # images of fewer positions than a stage
        "n2 c16 k5 i4x3 f3x3 p1",  # stages of one tap, and two splits of them
        "n3 c8 k3 i2x6 f1x1",  # one tap: whole vectors of pixels
        "n3 c11 k2 i3x3 f1x1",  # and not
        "n1 c8 k2 i5x4 f2x3 s2 p1",  # phases, stages of one tap
        "n5 c2 k3 i10x9 f2x2",  # two splits of pixels, whole vectors of columns
        "n2 c16 k4 i4x3 f3x2 p1 nhwc",  # four channels at once, splits of them
        "n1 c16 k8 i5x4 f2x3 s2 p1 g2 nhwc",  # and of phases and groups
    ],
}


def test_an_import_does_not_bring_the_simulators_arrays():
    """A tool that imports every module, as doctests do, goes on to compile kernels."""
    arrays = cuda.shared, cuda.local
    importlib.reload(importlib.import_module("fastconv.cuda.imitation"))
    assert (cuda.shared, cuda.local) == arrays


@pytest.mark.parametrize(
    "name", [*sorted(name for name, a in on_gpu().items() if a.exact), "im2col:explicit", "pooling"]
)
def test_simulated(name):
    """Every direction is exact on integers, through the public functions; an index out of bounds raises."""
    lines = TINY[2:6] if ":" in name else [*TINY, *MORE.get(name, [])]
    simulate("simulated.py", name, *lines)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("direction", list(Direction), ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_machine_code_of_the_reference(target, direction, dtype, tmp_path):
    from fastconv.algorithms.reference.cuda import kernel

    (registers, stack, local), code = usage(kernel(direction, dtype, "none").cubin(target), tmp_path)
    assert registers <= 128
    assert stack == local == 0
    assert not re.search(r"\b(LDL|STL)\b", code), "spills"
    assert ("FFMA" if dtype == "float32" else "DFMA") in code


# Problems of one tap, of stages of one tap, the same for phases, any other, and of more taps than have bits.
VARIANTS = {
    "dense": Traits(True, True, True, True, True),
    "even": Traits(True, True, False, True, True),
    "phases": Traits(True, True, False, False, False),
    "any": Traits(True, False, False, True, True),
    "many taps": Traits(False, False, False, True, True),
    "channels last": Traits(True, True, True, True, True, True),
    "channels last, phases": Traits(True, True, True, False, True, True),
}
WAYS = {
    "pairs": Way(True, True, 2, False),
    "even": Way(True, True, 1, False),
    "any": Way(True, True, 0, False),
    "many taps": Way(True, False, 2, False),
    "many taps, any": Way(True, False, 0, False),
    "many positions": Way(False, True, 2, False),
    "many positions, any": Way(False, True, 0, False),
    "channels last": Way(True, True, 0, True),
}
LARGE, *SMALL = TILES["float32"]

SHARE = 0.859  # of FFMA in a main loop, the least
# Less where 32 rows share what an element costs: a copy, its address and a test, which is two instructions of a tap's number.
FORWARD_SHARES = {("many taps", 32): 0.84}
WEIGHT_SHARES = {
    ("even", 32): 0.85, ("any", 32): 0.845, ("many positions, any", 32): 0.84,
    ("many taps", 32): 0.84, ("many taps, any", 32): 0.825,
}  # fmt: skip


def check_main_loop(kernel, tile, share, tmp_path):
    """Read the machine code of a GEMM: nothing spilled, wide loads alone from shared memory, FFMA; return the code for sm_90."""
    for target in TARGETS:
        (registers, stack, local), code = usage(kernel.cubin(target), tmp_path)
        assert registers * tile.threads * tile.blocks <= 65536, tile
        assert stack == local == 0, tile
        assert not re.search(r"\b(LDL|STL)\b", code), f"{tile} spills"
        main = max(loops(code), key=lambda loop: sum("FFMA" in i for i in loop))
        narrow = [i for i in main if i.startswith("LDS") and "LDS.128" not in i and "RZ, [RZ]" not in i]
        assert not narrow, "narrow loads"
        assert any("LDGSTS" in i for i in main), "copies past the registers"
        assert sum("FFMA" in i for i in main) >= share * len(main), f"{tile}: {len(main)} instructions"
    return code


@pytest.mark.parametrize(
    ("variant", "tile", "name"),
    [
        *((variant, LARGE, "relu") for variant in ("dense", "even", "any", "channels last")),
        *(("any", tile, "relu") for tile in SMALL[2:]),
        ("phases", LARGE, "gelu"),  # the largest of activations, pixel by pixel
        pytest.param("many taps", LARGE, "relu", marks=pytest.mark.slow),
        pytest.param("channels last, phases", LARGE, "gelu", marks=pytest.mark.slow),
        *(pytest.param(variant, tile, "gelu", marks=pytest.mark.slow)
          for variant in VARIANTS for tile in SMALL if variant != "any" or tile in SMALL[:2]),
    ],
    ids=str,
)  # fmt: skip
def test_machine_code_of_the_implicit_gemm(variant, tile, name, tmp_path):
    traits = VARIANTS[variant]
    if traits.last and tile == SMALL[-1]:
        tile = SMALL_LAST
    kernel = gemm_kernel("float32", tile, traits, name)
    code = check_main_loop(kernel, tile, FORWARD_SHARES.get((variant, tile.bm), SHARE), tmp_path)
    assert "LDGSTS.E.BYPASS.128" in code, "weights"
    assert ("LDG.E.128" in code) >= (traits.last and traits.dense), "pixels"
    assert ("STG.E.128" in code) == traits.vector


def test_weight_gradients_of_too_many_rows_are_refused():
    """Whose tables of positions would have more than 256 MB; forward has none."""
    problem, im2col = ConvProblem.parse(f"n1 c1 k1 i{2**24}x1 f1x1"), on_gpu()["im2col"]
    assert "2**24 rows" in im2col.reject(problem, Direction.WEIGHT_GRAD)
    assert not im2col.reject(problem, Direction.FORWARD)
    assert not im2col.reject(ConvProblem.parse(f"n1 c1 k1 i{2**24}x2 f2x2"), Direction.WEIGHT_GRAD)


WEIGHT_TILES = [(way, tile) for way in WAYS for tile in cuda_weight.TILES["float32"]]


@pytest.mark.parametrize(
    ("way", "tile"),
    [
        pytest.param(way, tile, marks=() if large or few else pytest.mark.slow)
        for way, tile in WEIGHT_TILES
        for large in [way != "many taps" and tile.bm == tile.bn == 128]
        for few in [way == "pairs" and tile.bm * tile.bn <= 64 * 64]
    ],
    ids=str,
)
def test_machine_code_of_the_implicit_weight_gradient(way, tile, tmp_path):
    linked = WAYS[way].linked
    kernel = cuda_weight.kernel("float32", tile, WAYS[way], not linked)
    code = check_main_loop(kernel, tile, WEIGHT_SHARES.get((way, tile.bm), SHARE), tmp_path)
    assert ("LDGSTS.E.BYPASS.128" if linked else "STG.E.128") in code


@pytest.mark.parametrize(
    "tile", [pytest.param(TILES["float64"][0], marks=pytest.mark.slow), TILES["float64"][1]], ids=str
)
def test_machine_code_in_double_precision(tile, tmp_path):
    kernels = (
        gemm_kernel("float64", tile, VARIANTS["even"], "relu"),
        cuda_weight.kernel("float64", tile, WAYS["pairs"], True),
    )
    for kernel, target in product(kernels, TARGETS):
        (registers, stack, local), code = usage(kernel.cubin(target), tmp_path)
        assert registers * tile.threads * tile.blocks <= 65536
        assert stack == local == 0
        assert not re.search(r"\b(LDL|STL)\b", code)
        assert re.search(r"LDGSTS.E(.LTC\w+)?.64", code), "pixels of eight bytes"


# Instructions that a result may cost where memory is to be the limit: at 3 TB/s, 132 processors at 1.75 GHz issue 77 for
# the 8 bytes of a result of stride 1, and 192 for the 20 of stride 2; and FFMA over all where arithmetic is.
DIRECT = {
    "n8 c64 k64 i56x56 f3x3 p1 g64": (Direction.FORWARD, 60, 0.18),
    "n8 c64 k64 i56x56 f3x3 p1 s2 g64": (Direction.INPUT_GRAD, 40, 0.1),
    "n8 c4 k16 i28x28 f3x3 p1": (Direction.FORWARD, None, 0.1),
    "n8 c4 k16 i28x27 f3x3 p1": (Direction.FORWARD, None, 0.01),  # pixel by pixel
    "n32 c4 k4 i224x224 f1x1": (Direction.FORWARD, None, 0.05),
}


@pytest.fixture
def without_driver(monkeypatch):
    """Make executions as on a GPU of 132 processors, which is not there."""
    from fastconv.cuda import driver

    for name, fake in (
        ("bindings", lambda: None),
        ("processors", lambda: 132),
        ("Buffer", lambda content: None),
    ):
        monkeypatch.setattr(driver, name, fake)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("line", DIRECT)
def test_machine_code_of_direct(target, line, without_driver, tmp_path):
    from fastconv.algorithms.direct.cuda.forward import Rows, rows_kernel

    direction, most, share = DIRECT[line]
    run = Rows(ConvProblem.parse(line), direction)
    kernel = rows_kernel("float32", run.row, *run.constants, "none" if run.row.whole else "gelu")
    (registers, stack, local), code = usage(kernel.cubin(target), tmp_path)
    assert registers * kernel.threads * kernel.blocks <= 65536
    assert stack == local == 0
    assert not re.search(r"\b(LDL|STL)\b", code), "spills"
    assert "LDG.E.128" in code
    assert ("STG.E.128" in code) == run.row.whole
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z0-9_.]+)", code)
    assert instructions.count("FFMA") >= share * len(instructions)
    if most:  # no loop is gone through twice: every instruction runs once
        results = run.tiling.tm * run.tiling.ty * 4 * len(run.row.phases)
        assert len(instructions) / results <= most


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_machine_code_of_direct_channels_last(target, without_driver, tmp_path):
    from fastconv.algorithms.direct.cuda import forward_pixels, weight

    problem = ConvProblem.parse("n8 c64 k64 i56x56 f3x3 p1 g64 nhwc")
    run = forward_pixels.Pixels(problem, Direction.FORWARD)
    kernel = forward_pixels.pixels_kernel("float32", run.walk, "none")
    (registers, stack, local), code = usage(kernel.cubin(target), tmp_path)
    assert registers <= 96
    assert stack == local == 0
    assert not re.search(r"\b(LDL|STL)\b", code), "spills"
    main = min(loops(code), key=lambda loop: len(loop) if any("FFMA" in i for i in loop) else 10**9)
    assert sum("LDG.E.128" in i for i in main) == sum("LDG" in i for i in main) == 9  # six pixels, three taps
    assert "STG.E.128" in code
    assert 3 * len(main) / 16 <= 40, (
        "instructions of a result in its three rows, of the 77 that 8 bytes leave time for"
    )

    run = weight.WeightRows(problem, weight.plan(problem, 2**30))
    (registers, stack, local), code = usage(weight.kernel("float32", run.taps).cubin(target), tmp_path)
    assert registers <= 64
    assert stack == local == 0
    assert not re.search(r"\b(LDL|STL)\b", code), "spills"


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_machine_code_of_the_direct_weight_gradient(target, without_driver, tmp_path):
    from fastconv.algorithms.direct.cuda import weight

    problem = ConvProblem.parse("n8 c64 k64 i56x56 f3x3 p1 g64")
    run = weight.WeightRows(problem, weight.plan(problem, 2**30))
    kernel = weight.kernel("float32", run.taps)
    (registers, stack, local), code = usage(kernel.cubin(target), tmp_path)
    assert registers * kernel.threads * weight.RESIDENT <= 65536
    assert stack == local == 0
    assert not re.search(r"\b(LDL|STL)\b", code), "spills"
    main = max(loops(code), key=lambda loop: sum("FFMA" in i for i in loop))
    assert sum("LDG.E.128" in i for i in main) >= 4  # of gy, and of each of three rows
    assert len(main) / 4 <= 60, "instructions of an output, whose 8 bytes take the time of 77"


@pytest.mark.parametrize(
    "size", [(512, 1568, 4608), (256, 6272, 2304), (64, 576, 100352), (4096, 4096, 4096)], ids=str
)
def test_work_is_shared_out(size, without_driver):
    """As layers of 7 x 7 to 56 x 56 and a weight gradient: of 132 processors none waits long for the busiest."""
    from fastconv.gemm.cuda_share import CLOCK, FFMA, shared_out

    m, n, steps = size
    tile, splits, seconds = shared_out(TILES["float32"], 1, m, n, steps, 1024, 4)
    assert seconds < 2 * m * n * steps / (132 * FFMA * CLOCK)
    blocks = -(-m // tile.bm) * -(-n // tile.bn) * splits
    assert blocks > 0.9 * 132 * -(-blocks // 132)


@pytest.mark.parametrize("direction", list(Direction), ids=str)
def test_few_channels_go_to_direct_and_many_do_not(direction, without_driver):
    def chosen(line):
        return select(ConvProblem.parse(line), direction, Settings(), "cuda").algorithm

    assert chosen("n32 c256 k256 i28x28 f3x3 p1 g256") == "direct"
    assert chosen("n32 c64 k64 i56x56 f5x5 p2 s2 g64") == "direct"
    assert chosen("n32 c4 k4 i224x224 f1x1") == "direct" or direction is Direction.WEIGHT_GRAD
    assert chosen("n32 c256 k256 i28x28 f3x3 p1") != "direct"


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("mean", [False, True])
def test_machine_code_of_pooling(target, mean, tmp_path):
    from fastconv.pooling import cuda

    for make, wide in product((cuda.pool_kernel, cuda.give_kernel), (False, True)):
        (registers, stack, local), code = usage(make("float32", mean, wide).cubin(target), tmp_path)
        assert registers <= (96 if wide else 64)
        assert wide == bool(re.search("(div|rem)_[us]64", code)), "divisions in 64 bits"
        assert stack == local == 0
        assert not re.search(r"\b(LDL|STL)\b", code), "spills"


def test_machine_code_of_what_only_moves_or_adds(tmp_path):
    from fastconv.algorithms.im2col import cuda, explicit, splits
    from fastconv.cuda import copy, reduce
    from fastconv.pooling import cuda_norms, cuda_patches

    kernels = [
        cuda_patches.scatter_kernel("float32"), copy.kernel("float32"), reduce.kernel("float32"),
        cuda.pack_kernel("float32"), splits.sum_kernel("float32", "gelu", 1), splits.sum_kernel("float32", "gelu", 8),
        explicit.unfold_kernel("float32"), explicit.fold_kernel("float32", "gelu"),
    ]  # fmt: skip
    for exponent in (2.0, 1 / 3):
        constants = "float32", exponent, False
        kernels.append(
            Kernel(cuda_norms.mapping, constants, ("float32",) * 2, cuda_norms.Geometry, "int64", 128)
        )
    for kernel, target in product(kernels, TARGETS):
        (registers, stack, local), _ = usage(kernel.cubin(target), tmp_path)
        assert registers <= 64, kernel
        assert stack == local == 0, kernel


def test_numpy_without_row_stack_is_given_it(monkeypatch):
    """NumPy 2.5 has none, and numba-cuda 0.30 asks for it when it first compiles."""
    from fastconv.cuda.reduce import kernel

    monkeypatch.delattr(np, "row_stack", raising=False)
    compiler._for_all.cache_clear()
    compiler._compiled(kernel("float32"), (9, 0))
    assert np.row_stack is np.vstack  # noqa: NPY201
