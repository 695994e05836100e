"""Moving rows of numbers: under masks where they are no whole vectors, and past the caches."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.gemm.tile import I64, data, element, load, shuffled, splat, store

SLACK = 16  # elements: the widest vector
I1, I32 = ir.IntType(1), ir.IntType(32)


def masked_load(
    builder: Any, pointer: Any, mask: Any, vector: ir.VectorType, itemsize: int, others: Any = None
) -> Any:  # fmt: skip
    """Load the lanes under the mask, zeros or ``others`` elsewhere; masked lanes are not touched in memory."""
    letter = f"v{vector.count}f{8 * itemsize}"
    address = builder.bitcast(pointer, vector.as_pointer())
    kind = ir.FunctionType(vector, [address.type, I32, mask.type, vector])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.{letter}.p0")
    zeros = ir.Constant(vector, [0.0] * vector.count)
    return builder.call(function, [address, I32(itemsize), mask, zeros if others is None else others])


def masked_gather(
    builder: Any, pointer: Any, apart: Any, mask: Any, vector: ir.VectorType, itemsize: int
) -> Any:  # fmt: skip
    """Load elements that are ``apart``, which is within 2**26, into the lanes under the mask; zeros elsewhere."""
    pointers = splat(builder, pointer, ir.VectorType(ir.PointerType(), vector.count))
    numbers = ir.VectorType(I32, vector.count)
    steps = ir.Constant(numbers, list(range(vector.count)))
    steps = builder.mul(steps, splat(builder, builder.trunc(apart, I32), numbers))
    places = builder.gep(pointers, [steps], source_etype=vector.element)
    letter = f"v{vector.count}f{8 * itemsize}"
    kind = ir.FunctionType(vector, [places.type, I32, mask.type, vector])
    function = cgutils.get_or_insert_function(
        builder.module, kind, f"llvm.masked.gather.{letter}.v{vector.count}p0"
    )
    zeros = ir.Constant(vector, [0.0] * vector.count)
    return builder.call(function, [places, I32(itemsize), mask, zeros])


def masked_store(builder: Any, value: Any, pointer: Any, mask: Any, itemsize: int) -> None:
    """Store the lanes under the mask."""
    vector = value.type
    letter = f"v{vector.count}f{8 * itemsize}"
    address = builder.bitcast(pointer, vector.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [vector, address.type, I32, mask.type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.{letter}.p0")
    builder.call(function, [value, address, I32(itemsize), mask])


def store_past(builder: Any, value: Any, pointer: Any, itemsize: int) -> None:
    """Store a whole vector past the caches, to a boundary of memory."""
    vector = value.type
    address = builder.bitcast(pointer, vector.as_pointer())
    past_caches = builder.module.add_metadata([I32(1)])
    builder.store(value, address, align=vector.count * itemsize).set_metadata("nontemporal", past_caches)


def lanes_between(builder: Any, first: Any, lo: Any, hi: Any, lanes: list[int]) -> Any:
    """Return the mask of lanes with ``lo <= first + lane < hi``; the bounds are within 2**31."""
    count = len(lanes)
    numbers = ir.Constant(ir.VectorType(I32, count), lanes)
    below = builder.trunc(builder.sub(lo, first), I32)
    above = builder.trunc(builder.sub(hi, first), I32)
    return builder.and_(
        builder.icmp_signed(">=", numbers, splat(builder, below, numbers.type)),
        builder.icmp_signed("<", numbers, splat(builder, above, numbers.type)),
    )


def _ends(
    context: Any, builder: Any, signature: Any, arguments: Any
) -> tuple[Any, Any, Any, ir.VectorType, int]:
    """Return where a row goes to and comes from, its count, the vectors it moves by, and bytes of an element."""
    dst_type, _, src_type, *_ = signature.args
    dst, d, src, s, count = arguments
    itemsize = src_type.dtype.bitwidth // 8
    vector = ir.VectorType(element(src_type), machine.tile(itemsize).vl)
    to, source = data(context, builder, dst_type, dst, d), data(context, builder, src_type, src, s)
    return to, source, count, vector, itemsize


def _moving(operation: str) -> Any:
    @intrinsic
    def row(typing, dst, d, src, s, count):
        """Set ``dst[d + j] = src[s + j]``, or add or subtract it, for j < count and touch nothing else of dst.

        A compiler's loop takes the last elements one by one, up to 31 of a row of 56.
        """

        def codegen(context, builder, signature, arguments):
            to, source, count, vector, itemsize = _ends(context, builder, signature, arguments)
            vl = vector.count
            with cgutils.for_range_slice(builder, I64(0), count, I64(vl), I64) as (v, _):
                out = builder.gep(to, [v])
                at = builder.gep(source, [v])
                whole = builder.icmp_signed("<=", builder.add(v, I64(vl)), count)
                with builder.if_else(whole) as (all_lanes, tail):
                    with all_lanes:
                        value = load(builder, at, 0, vector, itemsize)
                        if operation:
                            value = getattr(builder, operation)(
                                load(builder, out, 0, vector, itemsize), value
                            )
                        store(builder, value, out, 0, itemsize)
                    with tail:
                        mask = lanes_between(builder, v, I64(0), count, list(range(vl)))
                        value = masked_load(builder, at, mask, vector, itemsize)
                        if operation:
                            old = masked_load(builder, out, mask, vector, itemsize)
                            value = getattr(builder, operation)(old, value)
                        masked_store(builder, value, out, mask, itemsize)
            return context.get_dummy_value()

        i = types.int64
        return types.void(dst, i, src, i, i), codegen

    return row


write_row, add_row, subtract_row = map(_moving, ("", "fadd", "fsub"))


@intrinsic
def add_seconds(typing, dst, d, src, s, count):
    """Add ``src[s + j]`` to ``dst[d + 2*j]`` for j < count; nothing behind the last is touched."""

    def codegen(context, builder, signature, arguments):
        to, source, count, vector, itemsize = _ends(context, builder, signature, arguments)
        vl = vector.count
        zeros, end = ir.Constant(vector, [0.0] * vl), builder.sub(builder.shl(count, I64(1)), I64(1))
        with cgutils.for_range_slice(builder, I64(0), count, I64(vl), I64) as (v, _):
            mask = lanes_between(builder, v, I64(0), count, list(range(vl)))
            value = masked_load(builder, builder.gep(source, [v]), mask, vector, itemsize)
            for half in range(2):
                picks = [half * vl // 2 + i // 2 if i % 2 == 0 else vl for i in range(vl)]
                first = builder.add(builder.shl(v, I64(1)), I64(half * vl))
                mask = lanes_between(builder, first, I64(0), end, list(range(vl)))
                out = builder.gep(to, [first])
                old = masked_load(builder, out, mask, vector, itemsize)
                new = builder.fadd(old, shuffled(builder, value, zeros, picks))
                masked_store(builder, new, out, mask, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(dst, i, src, i, i), codegen


@intrinsic
def add_rows(typing, dst, d, ldd, src, s, lds, rows, first, last):
    """Add ``src[s + i*lds + j]`` to ``dst[d + i*ldd + j]`` for i < rows, first <= j < last.

    For narrow rows: one mask serves a vector of all of them.  Vectors of dst are written whole, and always the same ones,
    wherever a row begins: what is read soon after need not wait for them to reach the cache.
    """

    def codegen(context, builder, signature, arguments):
        dst_type, _, _, src_type, *_ = signature.args
        itemsize = src_type.dtype.bitwidth // 8
        vl = machine.tile(itemsize).vl
        vector = ir.VectorType(element(src_type), vl)
        dst, d, ldd, src, s, lds, rows, first, last = arguments
        to, source = data(context, builder, dst_type, dst, d), data(context, builder, src_type, src, s)
        begin = builder.and_(first, I64(-vl))
        with cgutils.for_range_slice(builder, begin, last, I64(vl), I64) as (v, _):
            mask = lanes_between(builder, v, first, last, list(range(vl)))
            out, at = builder.gep(to, [v]), builder.gep(source, [v])
            with cgutils.for_range(builder, rows, intp=I64) as loop:
                place = builder.gep(out, [builder.mul(loop.index, ldd)])
                row = builder.gep(at, [builder.mul(loop.index, lds)])
                value = masked_load(builder, row, mask, vector, itemsize)
                store(
                    builder,
                    builder.fadd(load(builder, place, 0, vector, itemsize), value),
                    place,
                    0,
                    itemsize,
                )
        return context.get_dummy_value()

    i = types.int64
    return types.void(dst, i, i, src, i, i, i, i, i), codegen


@intrinsic
def to_boundary(typing, array, i):
    """Return how many elements after ``array[i]`` the next vector boundary of memory is."""

    def codegen(context, builder, signature, arguments):
        kind = signature.args[0]
        itemsize = kind.dtype.bitwidth // 8
        size = machine.tile(itemsize).vl * itemsize
        address = builder.ptrtoint(data(context, builder, kind, *arguments), I64)
        past = builder.and_(builder.neg(address), I64(size - 1))
        return builder.udiv(past, I64(itemsize))

    return types.int64(array, types.int64), codegen


@intrinsic
def _stream_vectors(typing, dst, d, src, s, count):
    """Copy whole vectors past the caches to a boundary of memory."""

    def codegen(context, builder, signature, arguments):
        to, source, count, vector, itemsize = _ends(context, builder, signature, arguments)
        with cgutils.for_range_slice(builder, I64(0), count, I64(vector.count), I64) as (v, _):
            value = load(builder, builder.gep(source, [v]), 0, vector, itemsize)
            store_past(builder, value, builder.gep(to, [v]), itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(dst, i, src, i, i), codegen


@jit.inner
def stream_row(dst, d, src, s, count):
    """Do as `write_row`, past the caches: a result larger than they are is not read into them first."""
    head = min(to_boundary(dst, d), count)
    body = (count - head) // lanes(dst) * lanes(dst)
    write_row(dst, d, src, s, head)
    _stream_vectors(dst, d + head, src, s + head, body)
    write_row(dst, d + head + body, src, s + head + body, count - head - body)


@jit.inner
def write_lines(dst, d, src, s, count, opens, closes):
    """Write ``src[s : s + count]`` to ``dst[d:]`` as far as that fills vectors of memory, past the caches.

    What is left waits before s for the next call, which goes on where this one ends; unless the row ``opens`` here,
    or ``closes``.
    """
    vl = lanes(dst)
    before = 0 if opens else -to_boundary(dst, d) % vl
    after = 0 if closes else -to_boundary(dst, d + count) % vl
    stream_row(dst, d - before, src, s - before, before + count - after)
    write_row(src, s - vl, src, s + count - vl, vl)


@intrinsic
def lanes(typing, array):
    """Return the elements of a vector, a constant."""

    def codegen(context, builder, signature, arguments):
        return I64(machine.tile(signature.args[0].dtype.bitwidth // 8).vl)

    return types.int64(array), codegen
