"""Transformed tiles on a GPU, without one: stages in the simulator, and their machine code read back."""

import re

import pytest

pytest.importorskip("numba_cuda")
from machine_code import TARGETS, loops, usage
from started import simulate

from fastconv.algorithms import find
from fastconv.algorithms.fft.cuda import Spectra
from fastconv.algorithms.fft.cuda_depthwise import Pair, correlating, filtering
from fastconv.algorithms.fft.cuda_tile import THREADS
from fastconv.algorithms.fft.fourier import Fourier
from fastconv.algorithms.winograd import cuda_fused
from fastconv.algorithms.winograd.cuda import Points
from fastconv.config import Settings
from fastconv.cuda import driver
from fastconv.cuda.compiler import Kernel
from fastconv.gemm import batched
from fastconv.problem import ConvProblem, Direction
from fastconv.select import select

CASES = {
    "winograd": [
        "winograd:F(4,3) n1 c3 k2 i5x9 f3x3 p2:0x-1:2 nhwc",
        "winograd:F(2,3) n20 c2 k3 i9 f3 p1 tight",  # blocks of tiles
        "winograd:F(2,3) n1 c5 k66 i4x5 f3x3 p1",  # fused, two blocks of channels
        "winograd:F(2,3) n1 c4 k2 i5x5 f3x3 p2:0x-1:2 g2 nhwc",
        "winograd:F(2,3) n1 c3 k2 i5x4 f3x1 p1x0 float64",
    ],
    "fft": [
        "fft n1 c2 k3 i9 f3 d2 p2:0 nhwc",
        "fft n3 c2 k2 i5x9 f3x2 p1:0 g2 nhwc",  # depthwise
        "fft n2 c3 k3 i7 f3 p1 d2 g3",
    ],
}
SLOW = {
    "fft": [
        "fft n1 c2 k2 i10x18 f9x5 p4:3x2 d1x2",
        "fft n1 c4 k2 i12 f3 d2 p2:0 g2 nhwc",
        "fft n1 c1 k2 i40 f20 p3",
    ],
    "winograd": ["winograd n1 c3 k2 i9x8 f5x4 p2", "winograd:F(4,3) n17 c2 k3 i8x8 f3x3 p1 tight"],
}


@pytest.mark.parametrize("name", CASES)
def test_simulated(name):
    """Right in every direction within the declared error; what is read before it is written would be NaN."""
    simulate("staged.py", *CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_larger_tiles_simulated(name):
    simulate("staged.py", *SLOW[name])


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_machine_code_of_the_batched_gemm(target, tmp_path):
    for tile in batched.tiles("float32"):
        (registers, stack, local), code = usage(batched.kernel("float32", tile).cubin(target), tmp_path)
        assert registers * tile.threads * tile.blocks <= 65536, tile
        assert stack == local == 0, tile
        assert not re.search(r"\b(LDL|STL)\b", code), f"{tile} spills"
        main = max(loops(code), key=lambda loop: sum("FFMA" in i for i in loop))
        found = [i for i in main if re.match("LD|ST", i) and not re.match("LDGDEPBAR|LDS RZ", i)]
        assert not [i for i in found if not re.match(r"LDS\.128|LDGSTS\.E\.BYPASS\.128", i)], "narrow copies"
        assert "STG.E.128" in code
        assert sum("FFMA" in i for i in main) >= 0.875 * len(main), f"{tile}: {len(main)} instructions"


@pytest.mark.parametrize(("target", "near"), [(target, near) for near in (False, True) for target in TARGETS])
def test_machine_code_of_the_fused_kernel(target, near, tmp_path):
    kernel = cuda_fused.kernel("gelu", near)
    (registers, stack, local), code = usage(kernel.cubin(target), tmp_path)
    assert registers * kernel.threads <= 65536
    assert stack == local == 0
    assert not re.search(r"\b(LDL|STL)\b", code)
    main = max(loops(code), key=lambda loop: sum("FFMA" in i for i in loop))
    assert sum("FFMA" in i for i in main) == 512, "four channels at two points, 64 sums of each"
    narrow = [i for i in main if i.startswith("LDS") and "LDS.128" not in i and "RZ, [RZ]" not in i]
    assert not narrow
    assert sum("LDGSTS.E.BYPASS.128" in i for i in main) == 8, "weights"
    # half of the warps copy weights, the others load, transform and store a tile: 16 loads, 32 additions, 16 stores
    tiles = sum(bool(re.match(r"LDG\.E|FADD|STS", i)) for i in main)
    assert tiles == 64
    of_weights, of_tiles = len(main) - tiles, len(main) - 8
    assert of_weights * (0.76 if near else 0.8) <= 512
    assert of_tiles * (0.7 if near else 0.73) <= 512


@pytest.mark.parametrize(
    ("target", "direction", "m"),
    [
        ((9, 0), Direction.FORWARD, 2),
        ((9, 0), Direction.FORWARD, 4),
        ((9, 0), Direction.WEIGHT_GRAD, 4),
        ((8, 0), Direction.FORWARD, 4),
        ((8, 0), Direction.WEIGHT_GRAD, 4),
    ],
)
def test_machine_code_of_winograds_transforms(target, direction, m, tmp_path):
    """A tile stays in registers, sixteen warps of them fit a multiprocessor, and no number is multiplied needlessly."""
    points = Points(((m, 3), (m, 3)), "float32", direction)
    forward = direction is Direction.FORWARD
    kernels = {
        "source": points.enter("source", False, 1 if forward else 8),
        "weights": points.enter("weights" if forward else "gradient", False, 8),
        "result": points.leave("result", False, 1, "gelu" if forward else "none", m == 4 and forward),
    }
    for role, kernel in kernels.items():
        (registers, stack, local), code = usage(kernel.cubin(target), tmp_path)
        assert registers <= 128, role
        assert stack == local == 0, role
        assert not re.search(r"\b(LDL|STL)\b", code), role
        if role == "source":
            assert ("FFMA" in code) == ("FMUL" in code) == (m == 4), "F(2, 3) only adds"
        if role == "result":
            assert ("STG.E.128" in code) == (m == 4 and forward)


@pytest.mark.parametrize("t", [pytest.param(16, marks=pytest.mark.slow), 32])
def test_machine_code_of_the_fourier_transforms(t, tmp_path):
    """Columns of complex numbers stay in registers; the straight-line code multiplies by no zeros and ones."""
    spectra = Spectra(t, t, (t - 4, t - 4), (1, 1), "float32")
    kernels = {
        "source": spectra.enter("source", False, 1),
        "gradient": spectra.enter("gradient", False, 4),
        "result": spectra.leave("result", True, 4, "gelu", False),
    }
    for maker, arrays, constants in (
        (filtering, 5, (t, t, False, 1, "gelu")),
        (filtering, 5, (t, t, True, THREADS // t, "none")),
        (correlating, 3, (t, t, False, 1)),
    ):
        key = f"{maker.__name__} {constants}"
        kernels[key] = Kernel(maker, ("float32", *constants), ("float32",) * arrays, Pair, "int64", THREADS)
    for role, kernel in kernels.items():
        for target in TARGETS:
            (registers, stack, local), code = usage(kernel.cubin(target), tmp_path)
            assert registers * THREADS * 2 <= 65536, role
            assert stack == local == 0, role
            assert not re.search(r"\b(LDL|STL)\b", code), role
    # what a real row and a complex column of 16 or 32 take, radix 2 with fused multiplications
    transforms = Fourier(counted := Counted())
    transforms.real([0] * t)
    transforms.complex([(0, 0)] * t)
    (_, _, _), code = usage(kernels["source"].cubin((9, 0)), tmp_path)
    found = sum(len(re.findall(rf"\b{name}\b", code)) for name in ("FADD", "FFMA", "FMUL"))
    assert found <= counted.operations + t, "the third plane adds one for each frequency"


class Counted:
    """An arithmetic that counts."""

    zero, operations = 0, 0

    def operation(self, *_):
        self.operations += 1
        return 0

    add = sub = negated = scaled = multiply_add = operation


@pytest.fixture
def without_driver(monkeypatch):
    """Make executions as on a GPU of 132 processors, which is not there."""
    for name, fake in (
        ("bindings", lambda: None),
        ("processors", lambda: 132),
        ("Buffer", lambda content: None),
    ):
        monkeypatch.setattr(driver, name, fake)


@pytest.mark.parametrize("direction", list(Direction), ids=str)
def test_the_choice_and_its_blocks(direction, without_driver):
    """Large layers go to the algorithm that multiplies least, and blocks of tiles keep any workspace limit."""
    for line, best in (("n32 c256 k256 i28x28 f3x3 p1", "winograd"), ("n32 c64 k64 i56x56 f9x9 p4", "fft")):
        assert select(ConvProblem.parse(line), direction, Settings(), "cuda").algorithm == best
    for line, name in (
        ("n32 c64 k64 i56x56 f3x3 p1", "winograd:F(4,3)"),
        ("n32 c64 k64 i56x56 f5x5 p2", "fft"),
        ("n32 c512 k512 i7x7 f3x3 p1", "winograd:F(4,3)"),
    ):
        problem, algorithm, took = ConvProblem.parse(line), find(name, "cuda"), []
        for limit in (2**24, 2**26, 2**30):
            took.append(algorithm.workspace(problem, direction, limit))
            assert algorithm.build(problem, direction, limit).workspace == took[-1]
            assert took[-1] <= limit or took[-1] == algorithm.workspace(problem, direction, 0)
        assert took == sorted(took)
        assert took[1] > 2**25 or took[1] == took[2], "half of the limit is left unused"
