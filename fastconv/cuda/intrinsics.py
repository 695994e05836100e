"""Instructions that Numba's CUDA dialect lacks or would take several for, as LLVM IR and PTX."""

from __future__ import annotations

from llvmlite import ir
from numba import cuda
from numba import uint32 as U
from numba.core import types
from numba.cuda.extending import intrinsic

inline = cuda.jit(device=True, forceinline=True)
GLOBAL, SHARED = 1, 3  # kinds of memory, to the compiler


@inline
def barrier():
    """Wait for all threads of the block."""
    cuda.syncthreads()


@intrinsic
def block_anew(_):
    """Return the block's number as if it had not been known: what follows from it is computed again, not kept."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.call(ir.InlineAsm(kind, "mov.u32 $0, %ctaid.x;", "=r", side_effect=True), [])

    return U(), codegen


def _pointer(context, builder, kind, array, index):
    """Return a pointer to an element of an array, or that much further than a pointer; it knows its kind of memory."""
    if isinstance(kind, types.CPointer):
        array = builder.addrspacecast(array, array.type.pointee.as_pointer(kind.addrspace or GLOBAL))
    else:
        array = context.make_array(kind)(context, builder, array).data
    return builder.gep(array, [index])


def _vector(context, builder, kind, array, index):
    """Return a pointer to a vector of four elements, and their type."""
    pointer = _pointer(context, builder, kind, array, index)
    vector = ir.VectorType(pointer.type.pointee, 4)
    return builder.bitcast(pointer, vector.as_pointer(pointer.type.addrspace)), vector


@intrinsic
def load4(_, array, index):
    """Return four elements from a 16-byte boundary: one instruction in float32, two in float64."""

    def codegen(context, builder, signature, arguments):
        at = context.cast(builder, arguments[1], signature.args[1], types.int64)
        pointer, _ = _vector(context, builder, signature.args[0], arguments[0], at)
        loaded = builder.load(pointer)
        loaded.align = 16
        values = [builder.extract_element(loaded, ir.IntType(32)(i)) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(array.dtype, 4)(array, index), codegen


@intrinsic
def store4(_, array, index, a, b, c, d):
    """Write four elements to a 16-byte boundary."""
    item = array.dtype

    def codegen(context, builder, signature, arguments):
        at = context.cast(builder, arguments[1], signature.args[1], types.int64)
        pointer, vector = _vector(context, builder, signature.args[0], arguments[0], at)
        value = ir.Constant(vector, ir.Undefined)
        for i in range(4):
            value = builder.insert_element(value, arguments[2 + i], ir.IntType(32)(i))
        builder.store(value, pointer).align = 16
        return context.get_dummy_value()

    return types.void(array, index, item, item, item, item), codegen


@intrinsic
def add_to(_, pointer, index, value):
    """Add to an element of global memory by an atomic instruction: in whichever order threads come."""
    item = pointer.dtype

    def codegen(context, builder, signature, arguments):
        at = builder.gep(arguments[0], [context.cast(builder, arguments[1], signature.args[1], types.int64)])
        kinds = ir.FunctionType(ir.VoidType(), [ir.IntType(64), arguments[2].type])
        text = f"red.global.add.f{item.bitwidth} [$0], $1;"
        asm = ir.InlineAsm(kinds, text, f"l,{'f' if item.bitwidth == 32 else 'd'}", side_effect=True)
        builder.call(asm, [builder.ptrtoint(at, ir.IntType(64)), arguments[2]])
        return context.get_dummy_value()

    return types.void(pointer, index, item), codegen


def _away(builder, pointer, number, scale, signed=False):
    """Return a pointer a 32-bit number times ``scale`` bytes further on: one instruction if the product is not always the same.

    Which the assembler makes of a product and a sum, where of a mad.wide it makes two or three.
    """
    wide, narrow = ir.IntType(64), ir.IntType(32)
    text = f"mul.wide.{'s' if signed else 'u'}32 $0, $1, $2; add.u64 $0, $0, $3;"
    asm = ir.InlineAsm(ir.FunctionType(wide, [narrow, narrow, wide]), text, "=&l,r,r,l")
    address = builder.call(asm, [number, scale, builder.ptrtoint(pointer, wide)])
    return builder.inttoptr(address, pointer.type)


def _further(context, builder, pointer, number, kind):
    if isinstance(kind, types.IntegerLiteral) or kind.bitwidth == 64:
        return builder.gep(pointer, [context.cast(builder, number, kind, types.int64)])
    item = context.get_abi_sizeof(pointer.type.pointee)
    return _away(builder, pointer, number, ir.IntType(32)(item), kind.signed)


@intrinsic
def further(_, pointer, number):
    """Return a pointer so many elements further on."""

    def codegen(context, builder, signature, arguments):
        return _further(context, builder, *arguments, signature.args[1])

    return pointer(pointer, number), codegen


@intrinsic
def load(_, pointer):
    """Return an element."""

    def codegen(context, builder, signature, arguments):
        (at,) = arguments
        return builder.load(builder.addrspacecast(at, at.type.pointee.as_pointer(1)))

    return pointer.dtype(pointer), codegen


@intrinsic
def spaced(_, pointer, number, size):
    """Return a pointer a number of times ``size`` bytes further on, both unsigned and of 32 bits."""

    def codegen(context, builder, signature, arguments):
        number, size = (
            context.cast(builder, value, kind, types.uint32)
            for value, kind in zip(arguments[1:], signature.args[1:], strict=True)
        )
        return _away(builder, arguments[0], number, size)

    return pointer(pointer, number, size), codegen


@intrinsic
def spot(_, shared, index):
    """Return where an element of shared memory lies, in bytes."""

    def codegen(context, builder, signature, arguments):
        at = context.cast(builder, arguments[1], signature.args[1], types.int64)
        pointer = _pointer(context, builder, signature.args[0], arguments[0], at)
        pointer = builder.addrspacecast(pointer, pointer.type.pointee.as_pointer(SHARED))
        return builder.ptrtoint(pointer, ir.IntType(32))

    return U(shared, index), codegen


@intrinsic
def pointed(_, shared, spot):
    """Return the pointer to where an element of shared memory lies."""
    kind = types.CPointer(shared.dtype, SHARED)

    def codegen(context, builder, signature, arguments):
        item = context.get_data_type(kind.dtype)
        pointer = builder.inttoptr(arguments[1], item.as_pointer(SHARED))
        return builder.addrspacecast(pointer, item.as_pointer())

    return kind(shared, spot), codegen


@intrinsic
def store(_, pointer, index, value):
    """Write an element."""

    def codegen(context, builder, signature, arguments):
        at = context.cast(builder, arguments[1], signature.args[1], types.int64)
        to = _pointer(context, builder, signature.args[0], arguments[0], at)
        builder.store(context.cast(builder, arguments[2], signature.args[2], pointer.dtype), to)
        return context.get_dummy_value()

    return types.void(pointer, index, value), codegen


def _copying(count):
    """Return the intrinsic that copies elements, all from a boundary of as many bytes as they have, at most 16."""

    def codegen(context, builder, signature, arguments):
        kind = signature.args[0]
        shared, to, pointer, offset, wanted = arguments
        item = context.get_abi_sizeof(context.get_data_type(kind.dtype))
        width = min(16, count * item)
        to = context.cast(builder, to, signature.args[1], types.int64)
        target = _pointer(context, builder, kind, shared, to)
        target = builder.addrspacecast(target, target.type.pointee.as_pointer(SHARED))
        target = builder.ptrtoint(target, ir.IntType(32))
        pointer = builder.ptrtoint(
            _further(context, builder, pointer, offset, signature.args[3]), ir.IntType(64)
        )
        size = builder.select(wanted, ir.IntType(32)(width), ir.IntType(32)(0))
        way = "cg" if width == 16 else "ca"
        kinds = ir.FunctionType(ir.VoidType(), [target.type, pointer.type, size.type])
        for begin in range(0, count * item, width):
            text = f"cp.async.{way}.shared.global [$0 + {begin}], [$1 + {begin}], {width}, $2;"
            asm = ir.InlineAsm(kinds, text, "r,l,r,~{memory}", side_effect=True)
            builder.call(asm, [target, pointer, size])
        return context.get_dummy_value()

    return codegen


@intrinsic
def copy(_, shared, to, source, offset, wanted):
    """Copy one element, or write zero."""
    return types.void(shared, to, source, offset, wanted), _copying(1)


@intrinsic
def copy4(_, shared, to, source, offset, wanted):
    """Copy four elements from and to 16-byte boundaries, or write zeros."""
    return types.void(shared, to, source, offset, wanted), _copying(4)


@intrinsic
def _copied(_):
    """Wait for this thread's copies."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(ir.InlineAsm(kind, "cp.async.wait_all;", "~{memory}", side_effect=True), [])
        return context.get_dummy_value()

    return types.void(), codegen


@inline
def arrived():
    """Wait for all copies of the block."""
    _copied()
    cuda.syncthreads()


def outer(rows):
    """Return the device function that adds the products of ``rows`` numbers with eight: ``acc`` [i, j] += a [i] * b [j]."""

    @inline
    def add(a, b, acc):
        for i in range(rows):
            for j in range(8):
                acc[i, j] += a[i] * b[j]

    return add
