"""What this CPU is, as data: vector width, tile sizes, cores and caches; how fast it is, `roofline` tells.

Everything is taken from the CPU that Numba compiles for, so ``NUMBA_CPU_NAME`` and
``NUMBA_CPU_FEATURES`` select it too.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from numba.core import config as numba_config


@dataclass(frozen=True, slots=True)
class Simd:
    """A vector unit: its width, how many registers it has, and the shape of the GEMM tile."""

    name: str
    bits: int
    registers: int
    mr: int  # rows of a tile: scalars of A, broadcast
    nr: int  # columns of a tile, in vectors


# mr * nr accumulators + nr vectors of B + one broadcast must fit the registers, and
# mr * nr >= latency * FMA units (4 * 2) keeps the units busy.
AVX512 = Simd("avx512", 512, 32, 9, 3)  # 27 + 3 + 1 of 32: 27 FMAs on 12 loads
AVX2 = Simd("avx2", 256, 16, 6, 2)  #     12 + 2 + 1 of 16, as BLIS on Haswell
SSE = Simd("128-bit", 128, 16, 6, 2)  #    12 + 2 + 1 of 16; no FMA before AVX2: multiply, add
NEON = Simd("neon", 128, 32, 8, 3)


@dataclass(frozen=True, slots=True)
class Tile:
    """The micro-kernel of one dtype: MR x NR vectors of VL lanes."""

    vl: int
    mr: int
    nr: int


@functools.cache
def cpu() -> tuple[str, str, str]:
    """Architecture, name and features of the CPU that Numba compiles for."""
    import llvmlite.binding as llvm
    from numba.core import config
    from numba.core.codegen import get_host_cpu_features  # without AVX where Numba is told to do without

    features = config.CPU_FEATURES
    if features is None:
        features = get_host_cpu_features()  # type: ignore[no-untyped-call]
    return llvm.get_process_triple().split("-")[0], config.CPU_NAME or llvm.get_host_cpu_name(), features


@functools.cache
def simd() -> Simd:
    """Return the widest vector unit of the target CPU."""
    architecture, _, features = cpu()
    enabled = {f[1:] for f in features.split(",") if f.startswith("+")}
    if architecture in ("aarch64", "arm64"):
        return NEON
    if {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= enabled:
        return AVX512
    if {"avx2", "fma"} <= enabled:
        return AVX2
    return SSE


@functools.cache
def tile(itemsize: int) -> Tile:
    """Return the GEMM tile for elements of ``itemsize`` bytes."""
    unit = simd()
    return Tile(unit.bits // (8 * itemsize), unit.mr, unit.nr)


@dataclass(frozen=True, slots=True)
class Machine:
    """Sizes that blocks are computed from; the rates of costs are in `roofline`."""

    cores: int  # as many as Numba may start threads, where those are more: each has scratch of its own
    l1: int
    l2: int
    l3: int


def _cache_sizes() -> dict[int, int]:
    """Read cache sizes in bytes by level; empty where the system does not tell."""
    sizes: dict[int, int] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            level = int((index / "level").read_text())
            text = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and text[:-1].isdigit():
            sizes[level] = int(text[:-1]) * {"K": 2**10, "M": 2**20}.get(text[-1], 1)
    return sizes


def cpus() -> int:
    """Return how many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def machine() -> Machine:
    """Describe this computer."""
    caches = _cache_sizes()
    return Machine(
        cores=max(cpus(), numba_config.NUMBA_NUM_THREADS),
        l1=caches.get(1, 32 * 2**10),
        l2=caches.get(2, 2**19),
        l3=caches.get(3, 8 * 2**20),
    )
