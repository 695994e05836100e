"""The CUDA engine without a GPU: kernels in Numba's simulator, and machine code for real GPUs read back."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv
from fastconv.algorithms import on_gpu
from fastconv.problem import Direction

pytest.importorskip("numba_cuda")

TINY = [
    "n1 c3 k4 i5x6 f3x3 p1",
    "n2 c2 k4 i7x5 f3x2 s2x3 p2:0x1:2 d2x1 g2",
    "n1 c3 k3 i6x6 f3x3 s2 p-1:1 g3",
    "n2 c2 k3 i9 f4 s2 p2 d2 float64",
    "n1 c2 k2 i3x4x3 f2x2x2 p1",
    "n1 c1 k2 i2x2 f2x2 s5 p3",
]
TARGETS = [(8, 0), (9, 0)]


@pytest.mark.parametrize("name", sorted(on_gpu()))
def test_simulated(name):
    """Every direction is exact on integers, through the public functions; an index out of bounds raises."""
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("simulated.py")), name, *TINY],
        check=False, capture_output=True, text=True, timeout=300, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
    )  # fmt: skip
    assert result.stdout.endswith("done\n"), result.stdout[-500:] + result.stderr[-3000:]


def usage(cubin, tmp_path):
    """Return registers, stack and local memory of the kernel, and its machine code."""
    pathfinder = pytest.importorskip("cuda.pathfinder")
    tools = [pathfinder.find_nvidia_binary_utility(name) for name in ("cuobjdump", "nvdisasm")]
    if not all(tools):
        pytest.skip("needs nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm")
    file = tmp_path / "kernel.cubin"
    file.write_bytes(cubin)
    told, code = (
        subprocess.run([tool, option, str(file)], check=True, capture_output=True, text=True).stdout
        for tool, option in zip(tools, ("-res-usage", "-c"), strict=True)
    )
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", told)
    return [int(number) for number in found.groups()], code


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


class Foreign:
    """What a library shows of an array on a GPU."""

    def __init__(self, shape):
        self.shape = shape

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "typestr": "<f4", "data": (0, False), "version": 3}


def test_without_a_driver_the_error_says_so():
    from fastconv.cuda import driver

    try:
        driver.bindings()
    except fastconv.DeviceError:
        pass
    else:
        pytest.skip("there is a GPU")
    with pytest.raises(fastconv.DeviceError, match=r"driver|GPU"):
        fastconv.conv2d(Foreign((1, 2, 4, 4)), Foreign((2, 2, 3, 3)))


def test_parameters_are_packed_as_the_kernel_declares_them():
    import ctypes

    from fastconv.algorithms.reference.cuda import Geometry, kernel
    from fastconv.cuda.driver import packed
    from fastconv.cuda.memory import Memory

    geometry = Geometry(*range(100, 100 + len(Geometry._fields)))
    pointers = [Memory(None, 2**40 + i, (1,), "float32", True) for i in range(4)]
    pointers[2] = None
    addresses, _ = packed(kernel(Direction.FORWARD, "float32", "none"), (*pointers, geometry))
    read = [ctypes.c_int64.from_address(address).value for address in addresses]
    assert read == [2**40, 2**40 + 1, 0, 2**40 + 3, *geometry]
