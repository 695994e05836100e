"""Single products of depthwise images held pixel by pixel: what columns of the border add to a row of results.

    out[target, c] += sum over rows and products of  x[row + pixel, c] * w[row + tap, c]

A few results of a row receive a few products for each row of taps, so each is a sum of its own: loaded, completed and
stored, for ``VECTORS`` vectors of channels at a time, whose sums are independent.

    ======== ===============================================================================
    rows     ``count`` pairs: where a row of x lies, from ``x0`` on, and its weights
    products from ``at`` on ``targets`` times (result, from ``o0`` on; how many products; where they are), and pairs
             (pixel, tap), within a row
    ======== ===============================================================================
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.gemm.move import lanes_between, masked_load, masked_store
from fastconv.gemm.tile import I64, data, element, fma, load, store

VECTORS = 4  # of channels: latency of an addition


@intrinsic
def add_products(typing: Any, out: Any, o0: Any, x: Any, x0: Any, w: Any, c0: Any, c1: Any, rows: Any, count: Any,
                 products: Any, at: Any, targets: Any) -> Any:  # fmt: skip
    """Complete channels c0 to c1 of some results of a row."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        out, o0, x, x0, w, c0, c1, rows, count, products, at, targets = arguments
        itemsize = kinds[0].dtype.bitwidth // 8
        vector = ir.VectorType(element(kinds[0]), machine.tile(itemsize).vl)
        result, image = data(context, builder, kinds[0], out, o0), data(context, builder, kinds[2], x, x0)
        weights, row_list, table = (
            data(context, builder, kinds[i], a, I64(0)) for i, a in ((4, w), (7, rows), (9, products))
        )

        def numbers(pointer: Any, first: Any, many: int) -> list[Any]:
            entry = builder.gep(pointer, [first])
            return [builder.load(builder.gep(entry, [I64(i)])) for i in range(many)]

        def emit(c: Any, vectors: int, mask: Any) -> None:
            def read(pointer: Any, i: int) -> Any:
                if mask is None:
                    return load(builder, pointer, i * vector.count, vector, itemsize)
                return masked_load(builder, pointer, mask, vector, itemsize)

            sums = [cgutils.alloca_once(builder, vector) for _ in range(vectors)]
            with cgutils.for_range(builder, targets) as target:
                number, many, first = numbers(table, builder.add(at, builder.mul(target.index, I64(3))), 3)
                place = builder.gep(result, [builder.add(number, c)])
                for i, total in enumerate(sums):
                    builder.store(read(place, i), total)
                with cgutils.for_range(builder, count) as row:
                    x_row, w_row = numbers(row_list, builder.shl(row.index, I64(1)), 2)
                    pixels = builder.gep(image, [builder.add(x_row, c)])
                    taps = builder.gep(weights, [builder.add(w_row, c)])
                    with cgutils.for_range(builder, many) as product:
                        pixel, tap = numbers(table, builder.add(first, builder.shl(product.index, I64(1))), 2)
                        pixel, tap = builder.gep(pixels, [pixel]), builder.gep(taps, [tap])
                        for i, total in enumerate(sums):
                            new = fma(builder, read(pixel, i), read(tap, i), builder.load(total))
                            builder.store(new, total)
                for i, total in enumerate(sums):
                    value = builder.load(total)
                    if mask is None:
                        store(builder, value, place, i * vector.count, itemsize)
                    else:
                        masked_store(builder, value, place, mask, itemsize)

        size = VECTORS * vector.count
        whole = builder.add(c0, builder.mul(builder.sdiv(builder.sub(c1, c0), I64(size)), I64(size)))
        with cgutils.for_range_slice(builder, c0, whole, I64(size), I64) as (c, _):
            emit(c, VECTORS, None)
        with cgutils.for_range_slice(builder, whole, c1, I64(vector.count), I64) as (c, _):
            emit(c, 1, lanes_between(builder, c, c, c1, list(range(vector.count))))
        return context.get_dummy_value()

    i = types.int64
    return types.void(out, i, x, i, w, i, i, rows, i, products, i, i), codegen
