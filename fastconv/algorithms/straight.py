"""Arithmetic that transforms are written over, so that one text makes straight-line code wherever it is wanted.

A transform is a function of an arithmetic and a list of values.  The values are LLVM vectors while a CPU's
kernel is compiled, LLVM scalars for a GPU, and steps on a tape that the simulator replays.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastconv.gemm.tile import fma


class Vectors:
    """LLVM vectors, emitted in place."""

    def __init__(self, builder: Any, kind: Any) -> None:
        self.builder, self.kind = builder, kind
        self.zero = self.constant(0.0)

    def constant(self, value: float) -> Any:
        return ir.Constant(self.kind, [value] * self.kind.count)

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b)

    def sub(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b)

    def negated(self, a: Any) -> Any:
        return self.builder.fneg(a)

    def scaled(self, a: Any, factor: float) -> Any:
        return self.builder.fmul(self.constant(factor), a)

    def multiply_add(self, factor: float, a: Any, b: Any) -> Any:
        """Return ``factor * a + b``."""
        return fma(self.builder, self.constant(factor), a, b)


class Scalars(Vectors):
    """LLVM numbers."""

    def constant(self, value: float) -> Any:
        return ir.Constant(self.kind, value)

    def negated(self, a: Any) -> Any:
        return self.builder.fsub(self.constant(-0.0), a)  # NVVM reads the LLVM of 2018, without fneg

    def multiply_add(self, factor: float, a: Any, b: Any) -> Any:
        return self.builder.fma(self.constant(factor), a, b)


class Tape:
    """Values are numbered, and operations on them written down as ``factor * a + b``."""

    def __init__(self, count: int) -> None:
        self.zero, self.count = count, count + 1  # after the inputs
        self.steps: list[tuple[float, int, int]] = []

    def replay(self, values: list[Any]) -> list[Any]:
        """Return all values for given inputs."""
        values = [*values, type(values[0])(0)]
        for factor, a, b in self.steps:
            values.append(factor * values[a] + values[b])
        return values

    def multiply_add(self, factor: float, a: int, b: int) -> int:
        self.steps.append((factor, a, b))
        self.count += 1
        return self.count - 1

    def add(self, a: int, b: int) -> int:
        return self.multiply_add(1.0, a, b)

    def sub(self, a: int, b: int) -> int:
        return self.multiply_add(-1.0, b, a)

    def negated(self, a: int) -> int:
        return self.multiply_add(-1.0, a, self.zero)

    def scaled(self, a: int, factor: float) -> int:
        return self.multiply_add(factor, a, self.zero)
