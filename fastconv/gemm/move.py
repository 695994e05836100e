"""Moving rows, also past the caches, and transposition."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import jit, machine
from fastconv.gemm.tile import I64, cases, data, element, load, shuffled, splat, store

SLACK = 16  # elements: the widest vector
I1, I32 = ir.IntType(1), ir.IntType(32)
BLOCK = 8  # transposition works on 8 x 8 elements,
TAPS = 9  # but rows of so few go through registers whole


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
def turn_taps(typing, dst, d, dst_step, apart, src, s, src_step, count, rows, taps):
    """Set ``dst[d + c*dst_step + j*apart + i] = src[s + c*src_step + i*taps + j]`` for c < count, i < rows, j < taps.

    Up to MR rows and TAPS taps; nothing else of dst changes.  All rows of a c are neighbours in memory, so they pass
    through registers as they stand: 9 rows of 2 taps are two loads, two permutations and two stores.
    """

    def codegen(context, builder, signature, arguments):
        dst_type, _, _, _, src_type, *_ = signature.args
        itemsize = src_type.dtype.bitwidth // 8
        mr = machine.tile(itemsize).mr
        wide = 1 << (mr - 1).bit_length()  # lanes of the vectors that hold as many rows
        vector, lanes = ir.VectorType(element(src_type), wide), list(range(wide))
        dst, d, dst_step, apart, src, s, src_step, count, rows, taps = arguments
        to, source = data(context, builder, dst_type, dst, d), data(context, builder, src_type, src, s)
        for t in cases(builder, taps, {t: t for t in range(1, TAPS + 1)}, "turn"):
            high = lanes_between(builder, I64(0), I64(0), rows, lanes)
            starts = [I64(v) for v in range(0, mr * t, wide)]
            masks = [lanes_between(builder, v, I64(0), builder.mul(rows, I64(t)), lanes) for v in starts]
            with cgutils.for_range(builder, count, intp=I64) as loop:
                at = builder.gep(source, [builder.mul(loop.index, src_step)])
                place = builder.gep(to, [builder.mul(loop.index, dst_step)])
                loaded = [
                    masked_load(builder, builder.gep(at, [v]), mask, vector, itemsize)
                    for v, mask in zip(starts, masks, strict=True)
                ]
                for j in range(t):
                    places = [min(i, mr - 1) * t + j for i in lanes]
                    value = shuffled(builder, loaded[0], loaded[0], [i % wide for i in places])
                    for v, part in enumerate(loaded[1:], 1):
                        picks = [wide + p % wide if p // wide == v else i for i, p in enumerate(places)]
                        value = shuffled(builder, value, part, picks)
                    masked_store(
                        builder, value, builder.gep(place, [builder.mul(apart, I64(j))]), high, itemsize
                    )
        return context.get_dummy_value()

    i = types.int64
    return types.void(dst, i, i, i, src, i, i, i, i, i), codegen


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


@intrinsic
def _transpose_block(typing, dst, d, ldd, src, s, lds):
    """Write the transpose of an 8 x 8 block."""

    def codegen(context, builder, signature, arguments):
        dst_type, _, _, src_type, *_ = signature.args
        itemsize = src_type.dtype.bitwidth // 8
        vector = ir.VectorType(element(src_type), BLOCK)
        dst, d, ldd, src, s, lds = arguments
        to = data(context, builder, dst_type, dst, d)
        source = data(context, builder, src_type, src, s)
        lines = [
            load(builder, builder.gep(source, [builder.mul(lds, I64(i))]), 0, vector, itemsize)
            for i in range(BLOCK)
        ]
        for j, value in enumerate(transposed(builder, lines)):
            store(builder, value, builder.gep(to, [builder.mul(ldd, I64(j))]), 0, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(dst, i, i, src, i, i), codegen


@intrinsic
def _transpose_corner(typing, dst, d, ldd, src, s, lds, rows, columns):
    """Write the transpose of a block of 1 to 8 rows and columns."""

    def codegen(context, builder, signature, arguments):
        dst_type, _, _, src_type, *_ = signature.args
        itemsize = src_type.dtype.bitwidth // 8
        vector = ir.VectorType(element(src_type), BLOCK)
        dst, d, ldd, src, s, lds, rows, columns = arguments
        to = data(context, builder, dst_type, dst, d)
        source = data(context, builder, src_type, src, s)
        wide, high = (
            lanes_between(builder, I64(0), I64(0), count, list(range(BLOCK))) for count in (columns, rows)
        )
        last = builder.sub(rows, I64(1))
        lines = []
        for i in range(BLOCK):
            row = builder.select(builder.icmp_signed("<", I64(i), rows), I64(i), last)
            line = builder.gep(source, [builder.mul(lds, row)])
            lines.append(masked_load(builder, line, wide, vector, itemsize))
        for j, value in enumerate(transposed(builder, lines)):
            with builder.if_then(builder.icmp_signed("<", I64(j), columns)):
                masked_store(builder, value, builder.gep(to, [builder.mul(ldd, I64(j))]), high, itemsize)
        return context.get_dummy_value()

    i = types.int64
    return types.void(dst, i, i, src, i, i, i, i), codegen


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of square blocks side by side, in vectors: butterflies of shuffles, three for 8 x 8."""
    size, lanes = len(rows), rows[0].type.count
    half = size // 2
    while half:
        new = list(rows)
        for i in range(size):
            if i & half:
                continue
            low = [j if not j & half else lanes + j - half for j in range(lanes)]
            high = [j + half if not j & half else lanes + j for j in range(lanes)]
            for target, picks in ((i, low), (i + half, high)):
                new[target] = shuffled(builder, rows[i], rows[i + half], picks)
        rows = new
        half //= 2
    return rows


@jit.inner
def transpose(dst, d, ldd, src, s, lds, rows, columns):
    """Set ``dst[d + j*ldd + i] = src[s + i*lds + j]`` for i < rows, j < columns; nothing else of dst changes.

    The last blocks overlap those before them: what that moves twice costs less than masks.
    """
    if rows == 1 and ldd == 1:
        write_row(dst, d, src, s, columns)
        return
    if rows < BLOCK or columns < BLOCK:
        _transpose_narrow(dst, d, ldd, src, s, lds, rows, columns)
        return
    for block in range(0, rows, BLOCK):
        i = min(block, rows - BLOCK)
        for j in range(0, columns - BLOCK + 1, BLOCK):
            _transpose_block(dst, d + j * ldd + i, ldd, src, s + i * lds + j, lds)
        if columns % BLOCK:
            j = columns - BLOCK
            _transpose_block(dst, d + j * ldd + i, ldd, src, s + i * lds + j, lds)


@jit.inner
def _transpose_narrow(dst, d, ldd, src, s, lds, rows, columns):
    for i in range(0, rows, BLOCK):
        high = min(BLOCK, rows - i)
        for j in range(0, columns, BLOCK):
            wide = min(BLOCK, columns - j)
            to, at = d + j * ldd + i, s + i * lds + j
            if high * wide > BLOCK:
                _transpose_corner(dst, to, ldd, src, at, lds, high, wide)
            else:
                for k in range(high):
                    for e in range(wide):
                        dst[to + e * ldd + k] = src[at + k * lds + e]
