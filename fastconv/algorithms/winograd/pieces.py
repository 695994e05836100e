"""Between memory and the vectors of a strip, whose lanes are of several rows, or images: piece by piece, as a table tells."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from fastconv.gemm.move import I1, masked_load, masked_store
from fastconv.gemm.tile import I64, load, store


def stack_table(builder: Any, kind: Any, count: int) -> Any:
    """Return a function that gives the address of an entry of a table on the stack."""
    table = cgutils.alloca_once(builder, ir.ArrayType(kind, count))
    return lambda i: builder.gep(table, [I64(0), i], inbounds=True)


class Reader:
    """Reads numbers of a table one after the other, in the order in which the code runs."""

    def __init__(self, builder: Any, table: Any) -> None:
        self.builder, self.place = builder, cgutils.alloca_once_value(builder, table)

    def next(self) -> Any:
        place = self.builder.load(self.place)
        self.builder.store(self.builder.gep(place, [I64(1)]), self.place)
        return self.builder.load(place)

    def mask(self, lanes: int) -> Any:
        """Return the next number's bits as a mask, and whether all are set."""
        bits = self.builder.trunc(self.next(), ir.IntType(lanes))
        whole = self.builder.icmp_unsigned("==", bits, bits.type(2**lanes - 1))
        return mask_of(self.builder, bits), whole

    def masks(self, lanes: int, count: int) -> list[Any]:
        """Return the next numbers' bits."""
        return [self.mask(lanes)[0] for _ in range(count)]


def mask_of(builder: Any, bits: Any) -> Any:
    """Return bits as a mask of lanes."""
    return builder.bitcast(bits, ir.VectorType(I1, bits.type.width))


@contextmanager
def each_row(builder: Any, plane: Any, image: Any, first: Any, tiles_h: Any, rows: Any, touched: Any) -> Any:
    """Loop over the rows of tiles of a strip: give each one's number, its image's plane, its place there, if it is there."""
    own, place = cgutils.alloca_once_value(builder, plane), cgutils.alloca_once_value(builder, first)
    with cgutils.for_range(builder, touched) as loop:
        i = builder.load(place)
        yield loop.index, builder.load(own), i, builder.icmp_signed("<", loop.index, rows)
        after = builder.add(i, I64(1))
        last = builder.icmp_signed("==", after, tiles_h)
        builder.store(builder.select(last, I64(0), after), place)
        builder.store(builder.gep(builder.load(own), [builder.select(last, image, I64(0))]), own)


def put_together(
    builder: Any, reader: Reader, count: Any, places: Any, high: int, vector: Any, itemsize: int, divide: Any
) -> list[Any]:  # fmt: skip
    """Emit the loop over the pieces of a vector; return it for each of the ``high`` lines of a tile.

    ``divide``, if any, is called with what a piece has filled.
    """
    held = [
        cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * vector.count)) for _ in range(high)
    ]
    with cgutils.for_range(builder, count):
        row, offset = reader.next(), reader.next()
        mask, whole = reader.mask(vector.count)
        addresses = [
            builder.gep(builder.load(places(builder.add(row, I64(h)))), [offset]) for h in range(high)
        ]
        with builder.if_else(whole) as (all_lanes, some):
            with all_lanes:
                for address, line in zip(addresses, held, strict=True):
                    builder.store(load(builder, address, 0, vector, itemsize), line)
            with some:
                for address, line in zip(addresses, held, strict=True):
                    others = builder.load(line)
                    builder.store(masked_load(builder, address, mask, vector, itemsize, others), line)
        if divide:
            divide(row, mask, held)
    return [builder.load(line) for line in held]


def take_apart(
    builder: Any, reader: Reader, value: Any, places: Any, counts: Any, number: Any, line: Any, itemsize: int
) -> None:  # fmt: skip
    """Emit the loop over the pieces of a vector that stores them to where they belong."""
    with cgutils.for_range(builder, reader.next()):
        row, offset = reader.next(), reader.next()
        mask, whole = reader.mask(value.type.count)
        with builder.if_then(builder.icmp_signed("<", number, builder.load(counts(row)))):
            place = builder.gep(builder.load(places(row)), [builder.add(line, offset)])
            with builder.if_else(whole) as (all_lanes, some):
                with all_lanes:
                    store(builder, value, place, 0, itemsize)
                with some:
                    masked_store(builder, value, place, mask, itemsize)
