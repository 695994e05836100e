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
of B at ``b0 + steps[2*t + 1]``.

At 8 x 3 vectors a step is 24 FMAs on 3 loads and 8 broadcasts: bound by the FMA units as long as
A's panel is in L1 and B streams from L2 at 8 bytes a cycle.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import machine

I64 = ir.IntType(64)


def element(array: types.Array) -> ir.Type:
    """Return the LLVM type of an array's elements."""
    return ir.FloatType() if array.dtype == types.float32 else ir.DoubleType()


def data(context: Any, builder: Any, array: types.Array, value: Any, index: Any) -> Any:
    """Return a pointer to ``array[index]`` of a flat array."""
    pointer = context.make_array(array)(context, builder, value).data
    return builder.gep(pointer, [index])


def splat(builder: Any, scalar: Any, vector: ir.VectorType) -> Any:
    """Broadcast a scalar to every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, undefined, zeros)


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


def _emit_tile(
    builder: Any, rows: Any, operands: Any, length: Any, accumulate: Any,
    shape: tuple[int, int], vector: ir.VectorType, itemsize: int,
) -> None:  # fmt: skip
    """Emit the loop over t for one (mr, nr), then the stores."""
    mr, nr = shape
    zero = ir.Constant(vector, [0.0] * vector.count)
    before, loop = builder.block, builder.append_basic_block(f"tile_{mr}x{nr}")
    after = builder.append_basic_block(f"tile_{mr}x{nr}_done")
    builder.cbranch(builder.icmp_signed(">", length, I64(0)), loop, after)

    builder.position_at_end(loop)
    t = builder.phi(I64)
    t.add_incoming(I64(0), before)
    sums = [[builder.phi(vector) for _ in range(nr)] for _ in range(mr)]
    a_row, b = operands(t, mr)
    columns = [load(builder, b, j * vector.count, vector, itemsize) for j in range(nr)]
    new = []
    for m in range(mr):
        scalar = splat(builder, builder.load(builder.gep(a_row, [I64(m)])), vector)
        new.append([fma(builder, scalar, columns[j], sums[m][j]) for j in range(nr)])
    following = builder.add(t, I64(1))
    t.add_incoming(following, loop)
    for row, new_row in zip(sums, new, strict=True):
        for phi, value in zip(row, new_row, strict=True):
            phi.add_incoming(zero, before)
            phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, length), loop, after)

    builder.position_at_end(after)
    results = []
    for new_row in new:
        results.append([builder.phi(vector) for _ in range(nr)])
        for phi, value in zip(results[-1], new_row, strict=True):
            phi.add_incoming(zero, before)
            phi.add_incoming(value, loop)
    with builder.if_else(accumulate) as (add, overwrite):
        for branch, adding in ((add, True), (overwrite, False)):
            with branch:
                for m in range(mr):
                    for j in range(nr):
                        value = results[m][j]
                        at = j * vector.count
                        if adding:
                            old = load(builder, rows[m], at, vector, itemsize)
                            value = builder.fadd(old, value)
                        store(builder, value, rows[m], at, itemsize)


def _emit_family(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit a switch with one tile for each (mr, nr)."""
    c_type, _, _, a_type, _, b_type, _, stepping_type, *_ = signature.args
    c, c0, ldc, a, a0, b, b0, stepping, *begin, length, mr, nr, accumulate = arguments
    scalar = element(c_type)
    itemsize = c_type.dtype.bitwidth // 8
    shape = machine.tile(itemsize)
    vector = ir.VectorType(scalar, shape.vl)
    c_pointer = data(context, builder, c_type, c, c0)
    a_pointer = data(context, builder, a_type, a, a0)
    b_pointer = data(context, builder, b_type, b, b0)
    steps = data(context, builder, stepping_type, stepping, begin[0]) if begin else None

    def operands(t: Any, mr: int) -> tuple[Any, Any]:
        """Return where step t finds its rows of A and of B."""
        if steps is None:
            a_row, b_offset = t, builder.mul(t, stepping)
        else:
            entry = builder.gep(steps, [builder.shl(t, I64(1))])
            a_row, b_offset = builder.load(entry), builder.load(builder.gep(entry, [I64(1)]))
        return builder.gep(a_pointer, [builder.mul(a_row, I64(mr))]), builder.gep(b_pointer, [b_offset])

    rows = [builder.gep(c_pointer, [builder.mul(ldc, I64(m))]) for m in range(shape.mr)]
    done = builder.append_basic_block("tile_end")
    which = builder.add(builder.mul(mr, I64(shape.nr)), nr)  # mr * NR + nr: unique for nr in 1..NR
    switch = builder.switch(which, done)
    for m in range(1, shape.mr + 1):
        for j in range(1, shape.nr + 1):
            block = builder.append_basic_block(f"case_{m}x{j}")
            switch.add_case(I64(m * shape.nr + j), block)
            builder.position_at_end(block)
            _emit_tile(builder, rows, operands, length, accumulate, (m, j), vector, itemsize)
            builder.branch(done)
    builder.position_at_end(done)
    return context.get_dummy_value()


@intrinsic
def tile(typing: Any, c: Any, c0: Any, ldc: Any, a: Any, a0: Any, b: Any, b0: Any, ldb: Any,
         length: Any, mr: Any, nr: Any, accumulate: Any) -> Any:  # fmt: skip
    """Multiply with B's rows ``ldb`` apart."""
    i = types.int64
    return types.void(c, i, i, a, i, b, i, i, i, i, i, types.boolean), _emit_family


@intrinsic
def tile_indexed(typing: Any, c: Any, c0: Any, ldc: Any, a: Any, a0: Any, b: Any, b0: Any,
                 steps: Any, begin: Any, length: Any, mr: Any, nr: Any, accumulate: Any) -> Any:  # fmt: skip
    """Multiply by the table that begins at ``steps[begin]``, of int64."""
    i = types.int64
    return types.void(c, i, i, a, i, b, i, steps, i, i, i, i, types.boolean), _emit_family
