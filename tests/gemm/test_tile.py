"""The tile's arithmetic for every shape, its machine code, and both again on narrower vector units."""

import os
import re
import subprocess
import sys

import numba
import numpy as np
import pytest

from fastconv import jit, machine, workspace
from fastconv.gemm.result import tile_result
from fastconv.gemm.tile import tile, tile_indexed

CPUS = {
    "avx2": ("haswell", "+avx,+avx2,+fma,+sse4.2,+f16c,+bmi,+bmi2"),
    "128-bit": ("nehalem", "+sse4.2"),
}


@numba.njit(**jit.OPTIONS)
def multiply(c, ldc, a, b, ldb, length, mr, nr, accumulate):
    tile(c, 0, ldc, a, 0, b, 0, ldb, length, mr, nr, accumulate)


@numba.njit(**jit.OPTIONS)
def multiply_indexed(c, ldc, a, b, steps, begin, length, mr, nr, accumulate):
    tile_indexed(c, 0, ldc, a, 0, b, 0, steps, begin, length, mr, nr, accumulate)


@numba.njit(**jit.OPTIONS)
def multiply_result(
    out, ldo, columns, past_caches, c, ldc, accumulate, bias, biased, floor, a, b, steps, length, mr, nr, lda, scale
):  # fmt: skip
    tile_result(
        out, 0, ldo, columns, past_caches, c, 0, ldc, accumulate, bias, 1, biased, floor, a, 0, b, 0, steps, 1,
        length, mr, nr, b, 0, 1, lda, scale, None, -1,
    )  # fmt: skip


@numba.njit(**jit.OPTIONS)
def multiply_copied(out, ldo, columns, bias, floor, a, b, steps, length, mr, nr, source, apart):
    tile_result(
        out, 0, ldo, columns, False, out, 0, ldo, False, bias, 0, False, floor, a, 0, b, 0, steps, 0,
        length, mr, nr, source, 0, apart, 1, mr, source, 0,
    )  # fmt: skip


def operands(mr, columns, length, dtype):
    rng = np.random.default_rng(mr)
    a = rng.integers(-4, 5, (length, mr)).astype(dtype)
    b = rng.integers(-4, 5, (length, columns + 3)).astype(dtype)
    return a, b


def check(dtype):
    """Every (mr, nr), several lengths, overwriting and adding, by rows and by steps."""
    shape = machine.tile(np.dtype(dtype).itemsize)
    for mr in range(1, shape.mr + 1):
        for nr in range(1, shape.nr + 1):
            columns = nr * shape.vl
            for length in (0, 1, 2, 7):
                a, b = operands(mr, columns, length, dtype)
                rng = np.random.default_rng(1)
                rows, order = rng.permutation(length), rng.permutation(length)
                steps = np.r_[-1, np.c_[rows, order * b.shape[1]].reshape(-1)]
                for accumulate in (False, True):
                    c = np.full((mr, columns + 5), 3, dtype)
                    expected = c.copy()
                    expected[:, :columns] = a.T @ b[:, :columns] + 3 * accumulate
                    multiply(c.reshape(-1), columns + 5, a.reshape(-1), b.reshape(-1), b.shape[1], length, mr, nr,
                             accumulate)  # fmt: skip
                    np.testing.assert_array_equal(c, expected, f"{mr} x {nr}, {length} steps")
                    c[:] = 3
                    expected[:, :columns] = a[rows].T @ b[order, :columns] + 3 * accumulate
                    multiply_indexed(c.reshape(-1), columns + 5, a.reshape(-1), b.reshape(-1), steps, 1, length,
                                     mr, nr, accumulate)  # fmt: skip
                    np.testing.assert_array_equal(c, expected, f"{mr} x {nr}, {length} steps, indexed")


def check_results(dtype):
    """Every (mr, nr): with bias, sums of before and a floor, or not; whole rows, edges and past the caches."""
    shape = machine.tile(np.dtype(dtype).itemsize)
    bias = np.arange(-1, shape.mr).astype(dtype)
    for mr in range(1, shape.mr + 1):
        for nr in range(1, shape.nr + 1):
            for length, columns in ((0, nr * shape.vl), (7, nr * shape.vl), (5, nr * shape.vl - 1)):
                a, b = operands(mr, nr * shape.vl, length, dtype)
                steps = np.r_[-1, np.c_[np.arange(length), np.arange(length) * b.shape[1]].reshape(-1)]
                partial = np.random.default_rng(2).integers(-9, 10, (mr, nr * shape.vl)).astype(dtype)
                for i in range(8):
                    biased, accumulate, floored = i % 2 > 0, i // 2 % 2 > 0, i // 4 > 0
                    expected = (
                        a.T @ b[:, : nr * shape.vl] + biased * bias[1 : mr + 1, None] + accumulate * partial
                    )[:, :columns]
                    expected = np.maximum(expected, 0 if floored else -np.inf)
                    panel = i != 2  # else A row by row, as weights come
                    for past_caches in (False, True)[: 1 + (columns % shape.vl == 0)]:
                        out = workspace.aligned(mr * (nr + 1) * shape.vl, dtype).reshape(mr, -1)
                        out[:] = 77
                        multiply_result(
                            out.reshape(-1), out.shape[1], columns, past_caches, partial.reshape(-1), nr * shape.vl,
                            accumulate, bias, biased, np.dtype(dtype).type(0 if floored else -np.inf),
                            (a if panel else a.T).flatten(), b.reshape(-1), steps, length, mr, nr,
                            *((1, mr) if panel else (length, 1)),
                        )  # fmt: skip
                        np.testing.assert_array_equal(
                            out[:, :columns], expected, f"{mr} x {nr}, {length} steps"
                        )
                        assert (out[:, columns:] == 77).all()


def check_copied(dtype):
    """B is copied from the source as its rows are read."""
    shape = machine.tile(np.dtype(dtype).itemsize)
    columns, length = shape.nr * shape.vl, 7
    steps = np.c_[np.arange(length), np.arange(length) * columns].reshape(-1)
    for mr in range(1, shape.mr + 1):
        a, source = operands(mr, columns, length, dtype)
        b, out = np.full((length, columns), 77, dtype), np.empty((mr, columns), dtype)
        multiply_copied(
            out.reshape(-1), columns, columns, a.reshape(-1), np.dtype(dtype).type(-np.inf), a.reshape(-1),
            b.reshape(-1), steps, length, mr, shape.nr, source.reshape(-1), source.shape[1],
        )  # fmt: skip
        np.testing.assert_array_equal(b, source[:, :columns])
        np.testing.assert_array_equal(out, a.T @ b)


def loops(assembly):
    """Return the innermost loops: stretches from a label to the first jump back to it, without others inside."""
    found, lines = [], assembly.splitlines()
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.L\w+:", line)}
    for i, line in enumerate(lines):
        if (jump := re.match(r"\s+(?:j\w+|b\.\w+|cbn?z\s+\w+,)\s+(\.L\w+)", line)) and labels.get(
            jump[1], i
        ) < i:
            body = lines[labels[jump[1]] + 1 : i]
            if not any(re.fullmatch(r"\.L\w+:", inner) for inner in body):
                found.append(body)
    return found


def check_machine_code(dtype):
    """The loop of the full tile is MR * NR multiply-adds on whole registers, and no vector is spilled.

    What it counts to may be on the stack: comparing with it there takes no instruction more.
    """
    unit = machine.simd()
    shape = machine.tile(np.dtype(dtype).itemsize)
    a, b = operands(shape.mr, shape.nr * shape.vl, 4, dtype)
    c = np.zeros((shape.mr, shape.nr * shape.vl), dtype)
    multiply(
        c.reshape(-1), c.shape[1], a.reshape(-1), b.reshape(-1), b.shape[1], 4, shape.mr, shape.nr, False
    )
    check_results(dtype)
    check_copied(dtype)
    register = {"avx512": "%zmm", "avx2": "%ymm", "128-bit": "%xmm", "neon": "v"}[unit.name]
    operation = {"128-bit": "v?mulp[sd]", "neon": "fmla"}.get(unit.name, r"vfmadd\d*p[sd]")
    # where products take a register before they are added, the tile that copies has none left
    copied = () if unit is machine.SSE else (multiply_copied,)
    for kernel in (multiply, multiply_result, *copied):
        signature = next(s for s in kernel.signatures if s[0].dtype.name == dtype)
        full = [
            body
            for body in loops(kernel.inspect_asm(signature))
            if sum(bool(re.search(rf"\s{operation}\s.*{register}", line)) for line in body)
            == shape.mr * shape.nr
        ]
        assert full, f"no loop of {shape.mr} x {shape.nr} {operation} on {register} registers"
        for body in full:
            spills = [line for line in body if re.search(r"%[re]sp|\[sp", line) and "cmp" not in line]
            assert not spills, "\n".join(spills)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_shape(dtype):
    check(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results(dtype):
    check_results(dtype)
    check_copied(dtype)


def test_results_keep_what_is_no_number():
    """Neither the floor nor a product with zero may turn it into a number."""
    shape = machine.tile(4)
    a, b = np.ones((2, 1), "f"), np.full((2, shape.vl), np.nan, "f")
    out, nothing = np.zeros((1, shape.vl), "f"), np.zeros(1, "f")
    steps = np.array([-1, 0, 0, 1, shape.vl])
    multiply_result(
        out.reshape(-1), shape.vl, shape.vl, False, nothing, 0, False, nothing, False, np.float32(0), a.reshape(-1),
        b.reshape(-1), steps, 2, 1, 1, 1, 1,
    )  # fmt: skip
    assert np.isnan(out).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_machine_code(dtype):
    check_machine_code(dtype)


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import test_tile
from fastconv import machine
assert machine.simd().name == sys.argv[2], machine.simd()
for dtype in ("float32", "float64"):
    test_tile.check(dtype)
    test_tile.check_machine_code(dtype)  # checks results too
"""


def features():
    try:
        with open("/proc/cpuinfo") as file:
            return set(next(line for line in file if line.startswith("flags")).split())
    except (OSError, StopIteration):
        return set()


@pytest.mark.skipif(not {"avx2", "fma"} <= features(), reason="needs a CPU with AVX2 to pretend on")
@pytest.mark.parametrize("unit", CPUS)
def test_narrower_vectors(unit):
    name, flags = CPUS[unit]
    environment = os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": flags}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, os.path.dirname(__file__), unit],
        check=False, capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
