"""The micro-kernel: ``C[mr, nr] (+)= A[T, mr] * B[T, nr]``, a tile of C held in vector registers.

LLVM's loop vectoriser does not find this tile, so it is emitted as vector IR.  For each t, a row of
``nr`` vectors of B is loaded and each of ``mr`` scalars of A is broadcast against it:

    ======== =====================================================================================
    A        packed panel: element (t, m) at ``a0 + t*mr + m``
    B        row t at ``b0 + t*ldb``
    C        row m at ``c0 + m*ldc``; whole vectors are stored, so columns are padded to vectors
    mr, nr   any 1..MR and 1..NR: each pair is its own branch of one switch, so edges cost no padding
    ======== =====================================================================================

`tile_indexed` takes the rows from a table instead: step t multiplies row ``steps[2*t]`` of A with the row
of B at ``b0 + steps[2*t + 1]``.  `tile_result` (`result.py`) does so too, may read A where the weights are, and
finishes what it writes.

At 9 x 3 vectors a step is 27 FMAs on 3 loads and 9 broadcasts: bound by the FMA units as long as the rows
of B are in L1, or near each other in L2, and A's panels stream from L2 at 3 bytes a cycle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import machine

I64 = ir.IntType(64)
T = TypeVar("T")


def element(array: types.Array) -> ir.Type:
    """Return the LLVM type of an array's elements."""
    return ir.FloatType() if array.dtype == types.float32 else ir.DoubleType()


def data(context: Any, builder: Any, array: types.Array, value: Any, index: Any) -> Any:
    """Return a pointer to ``array[index]`` of a flat array, or of what a pointer points at."""
    if not isinstance(array, types.CPointer):
        value = context.make_array(array)(context, builder, value).data
    return builder.gep(value, [index])


def splat(builder: Any, scalar: Any, vector: ir.VectorType) -> Any:
    """Broadcast a scalar to every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return shuffled(builder, first, undefined, [0] * vector.count)


def shuffled(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    """Return a vector of lanes of two; those of the second are numbered after those of the first."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return ``a * b + c`` in one rounding where the CPU can, in two where it cannot."""
    vector = c.type
    letter = "f32" if isinstance(vector.element, ir.FloatType) else "f64"
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(vector, [vector] * 3),
        f"llvm.fmuladd.v{vector.count}{letter}",
    )
    return builder.call(function, [a, b, c])


def load(builder: Any, pointer: Any, offset: int, vector: ir.VectorType, itemsize: int) -> Any:
    """Load an unaligned vector ``offset`` elements after the pointer."""
    address = builder.gep(pointer, [I64(offset)])
    return builder.load(builder.bitcast(address, vector.as_pointer()), align=itemsize)


def store(builder: Any, value: Any, pointer: Any, offset: int, itemsize: int) -> None:
    """Store an unaligned vector ``offset`` elements after the pointer."""
    address = builder.gep(pointer, [I64(offset)])
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=itemsize)


def prefetch(builder: Any, pointer: Any, write: bool = False) -> None:
    """Ask for the cache line of an element, which need not be there, to read or to write it."""
    address, number = builder.bitcast(pointer, ir.IntType(8).as_pointer()), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [address, number(int(write)), number(3), number(1)])  # into L1, data


def in_turn(builder: Any, value: Any) -> Any:
    """Return the value, computed before what follows reads memory: an empty line of assembly takes it.

    In a loop that stores as well, LLVM loads all scalars first, which with sums and columns are more than the registers.
    """
    register = "w" if machine.simd() is machine.NEON else "v"
    kind = ir.FunctionType(value.type, [value.type])
    return builder.asm(kind, "", f"={register},0,~{{memory}}", [value], True)


def emit_sums(
    builder: Any, operands: Any, length: Any, start: list[Any], shape: tuple[int, int], itemsize: int
) -> list[list[Any]]:
    """Emit the loop over t for one (mr, nr), from ``start`` [mr] on; return the sums.

    ``operands(t, mr)`` gives the address of A's scalar m, of B's row, and where to copy that, or None.
    """
    mr, nr = shape
    vector = start[0].type
    before, loop = builder.block, builder.append_basic_block(f"tile_{mr}x{nr}")
    after = builder.append_basic_block(f"tile_{mr}x{nr}_done")
    builder.cbranch(builder.icmp_signed(">", length, I64(0)), loop, after)

    builder.position_at_end(loop)
    t = builder.phi(I64)
    t.add_incoming(I64(0), before)
    sums = [[builder.phi(vector) for _ in range(nr)] for _ in range(mr)]
    scalar_at, b, copy = operands(t, mr)
    columns = [load(builder, b, j * vector.count, vector, itemsize) for j in range(nr)]
    for j, column in enumerate(columns if copy else []):
        store(builder, column, copy, j * vector.count, itemsize)
    new = []
    for m in range(mr):
        scalar = splat(builder, builder.load(scalar_at(m)), vector)
        row = [fma(builder, scalar, columns[j], sums[m][j]) for j in range(nr)]
        new.append([in_turn(builder, value) for value in row] if copy else row)
    following = builder.add(t, I64(1))
    t.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, length), loop, after)

    builder.position_at_end(after)
    results = [[builder.phi(vector) for _ in range(nr)] for _ in range(mr)]
    for m in range(mr):
        for j in range(nr):
            for phi in (sums[m][j], results[m][j]):
                phi.add_incoming(start[m], before)
                phi.add_incoming(new[m][j], loop)
    return results


def emit_added(
    builder: Any, rows: list[Any], results: list[list[Any]], when: Any, itemsize: int
) -> list[list[Any]]:
    """Emit the addition of what stands in ``rows`` already, ``when`` that is asked for."""
    vector, before = results[0][0].type, builder.block
    with builder.if_then(when):
        new = [
            [
                builder.fadd(load(builder, row, j * vector.count, vector, itemsize), value)
                for j, value in enumerate(values)
            ]
            for row, values in zip(rows, results, strict=False)
        ]
        adding = builder.block
    added = []
    for values, new_values in zip(results, new, strict=True):
        added.append([builder.phi(vector) for _ in values])
        for phi, value, new_value in zip(added[-1], values, new_values, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(new_value, adding)
    return added


def cases(builder: Any, value: Any, of: dict[int, T], name: str) -> Iterator[T]:
    """Yield what stands for each number, in a block of its own of a switch over ``value``; to be gone through whole."""
    done = builder.append_basic_block(f"{name}_end")
    switch = builder.switch(value, done)
    for number, item in of.items():
        block = builder.append_basic_block(f"{name}_{number}")
        switch.add_case(I64(number), block)
        builder.position_at_end(block)
        yield item
        builder.branch(done)
    builder.position_at_end(done)


def emit_family(builder: Any, mr: Any, nr: Any, shape: machine.Tile, emit: Any, least: int = 1) -> None:
    """Emit a switch with one tile for each (mr, nr), nr from ``least`` on: ``emit(mr, nr)``."""
    each = {  # mr * NR + nr: unique for nr in 1..NR
        m * shape.nr + j: (m, j) for m in range(1, shape.mr + 1) for j in range(least, shape.nr + 1)
    }
    for m, j in cases(builder, builder.add(builder.mul(mr, I64(shape.nr)), nr), each, "tile"):
        emit(m, j)


def rows_at(builder: Any, first: Any, apart: Any, count: int) -> list[Any]:
    """Return pointers to rows that are ``apart`` elements apart."""
    return [builder.gep(first, [builder.mul(apart, I64(m))]) for m in range(count)]


def scalars(builder: Any, row: Any, apart: Any, mr: int) -> Any:
    """Return the function of m that finds the scalars of a row, ``apart`` from each other (None: neighbours).

    Every third has an address of its own, from which the next two are reached: few registers, no spills.
    """
    if apart is None:
        return lambda m: builder.gep(row, [I64(m)])
    one, two, three = (builder.mul(apart, I64(i)) for i in (1, 2, 3))
    firsts = [row]
    for _ in range((mr - 1) // 3):
        firsts.append(builder.gep(firsts[-1], [three]))
    return lambda m: builder.gep(firsts[m // 3], [(I64(0), one, two)[m % 3]])


def by_steps(
    builder: Any, a: Any, b: Any, steps: Any, apart: Any = None, scale: Any = None
) -> Any:  # fmt: skip
    """Return the function of (t, mr) that finds the scalars of A and the row of B in a table.

    Row ``steps[2*t]`` of A begins that many times ``scale`` (mr) elements after ``a``.
    """

    def operands(t: Any, mr: int) -> tuple[Any, Any, None]:
        entry = builder.gep(steps, [builder.shl(t, I64(1))])
        a_row, b_offset = builder.load(entry), builder.load(builder.gep(entry, [I64(1)]))
        row = builder.gep(a, [builder.mul(a_row, I64(mr) if scale is None else scale)])
        return scalars(builder, row, apart, mr), builder.gep(b, [b_offset]), None

    return operands


def _by_rows(builder: Any, a: Any, b: Any, ldb: Any) -> Any:
    """Return the function of (t, mr) that finds the scalars of row t of A, and row t of B."""

    def operands(t: Any, mr: int) -> tuple[Any, Any, None]:
        row = builder.gep(a, [builder.mul(t, I64(mr))])
        return scalars(builder, row, None, mr), builder.gep(b, [builder.mul(t, ldb)]), None

    return operands


def _emit_product(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit the tiles that write, or add to, whole vectors of C."""
    c_type, _, _, a_type, _, b_type, _, stepping_type, *_ = signature.args
    c, c0, ldc, a, a0, b, b0, stepping, *begin, length, mr, nr, accumulate = arguments
    itemsize = c_type.dtype.bitwidth // 8
    shape = machine.tile(itemsize)
    vector = ir.VectorType(element(c_type), shape.vl)
    zero = ir.Constant(vector, [0.0] * shape.vl)
    pointers = data(context, builder, a_type, a, a0), data(context, builder, b_type, b, b0)
    if begin:
        operands = by_steps(builder, *pointers, data(context, builder, stepping_type, stepping, begin[0]))
    else:
        operands = _by_rows(builder, *pointers, stepping)
    rows = rows_at(builder, data(context, builder, c_type, c, c0), ldc, shape.mr)

    def emit(m: int, j: int) -> None:
        sums = emit_sums(builder, operands, length, [zero] * m, (m, j), itemsize)
        for row, values in zip(rows, emit_added(builder, rows, sums, accumulate, itemsize), strict=False):
            for column, value in enumerate(values):
                store(builder, value, row, column * shape.vl, itemsize)

    emit_family(builder, mr, nr, shape, emit)
    return context.get_dummy_value()


@intrinsic
def tile(typing: Any, c: Any, c0: Any, ldc: Any, a: Any, a0: Any, b: Any, b0: Any, ldb: Any,
         length: Any, mr: Any, nr: Any, accumulate: Any) -> Any:  # fmt: skip
    """Multiply with B's rows ``ldb`` apart."""
    i = types.int64
    return types.void(c, i, i, a, i, b, i, i, i, i, i, types.boolean), _emit_product


@intrinsic
def tile_indexed(typing: Any, c: Any, c0: Any, ldc: Any, a: Any, a0: Any, b: Any, b0: Any,
                 steps: Any, begin: Any, length: Any, mr: Any, nr: Any, accumulate: Any) -> Any:  # fmt: skip
    """Multiply by the table that begins at ``steps[begin]``, of int64."""
    i = types.int64
    return types.void(c, i, i, a, i, b, i, steps, i, i, i, i, types.boolean), _emit_product
