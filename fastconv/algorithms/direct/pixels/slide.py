"""The micro-kernel of depthwise images held pixel by pixel: a row of results slides over rows of pixels.

    out[j, c] = start[c] + sum over steps and taps i of  x[step + j + i, c] * w[step + i, c]      j < size

Up to SIZE results of a vector of channels are summed in registers.  A step is up to TAPS taps of a kernel's row that
are as far apart as the pixels of neighbouring results: each of the ``size + taps - 1`` pixels under them is loaded
once and multiplied by every tap that meets it, 24 FMAs on 13 loads for 8 results by 3 taps.  A step at
the edge of the image reads for the pixels outside what a table says: others of the row, or zeros.

    ======== =====================================================================================
    x        pixel i of a step at ``x0 + steps.x + i*unit``; at the edge at ``x0 + steps.x + columns[steps.at + i*stride]*apart``,
             or zeros where that column is -1
    w        tap i at ``steps.w + i*tap``
    steps    ``count`` rows of STEP numbers: x, w, taps (negative at the edge of the image), at
    ======== =====================================================================================
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastconv import machine
from fastconv.gemm.move import lanes_between, masked_load, masked_store
from fastconv.gemm.tile import I64, cases, data, element, fma, load, store

SIZE = 8  # results: latency * FMA units, and with TAPS weights and a pixel 14 of 16 registers
TAPS = 5
STEP = 4  # numbers of a step


@intrinsic
def slide(typing: Any, out: Any, o0: Any, o_step: Any, x: Any, x0: Any, unit: Any, w: Any, tap: Any, start: Any,
          c0: Any, c1: Any, steps: Any, count: Any, columns: Any, stride: Any, apart: Any, size: Any, narrow: Any) -> Any:  # fmt: skip
    """Set ``size`` results ``o_step`` apart, channels c0 to c1: a vector at least, or fewer where ``narrow`` is not None.

    The last vector overlaps the one before.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        out, o0, o_step, x, x0, unit, w, tap, start, c0, c1, steps, count, columns, stride, apart, size, _ = (
            arguments
        )
        itemsize = kinds[0].dtype.bitwidth // 8
        vl = machine.tile(itemsize).vl
        vector = ir.VectorType(element(kinds[0]), vl)
        result, image = data(context, builder, kinds[0], out, o0), data(context, builder, kinds[3], x, x0)
        weights, first = (data(context, builder, kinds[i], a, I64(0)) for i, a in ((6, w), (8, start)))
        table = data(context, builder, kinds[11], steps, I64(0))
        row = data(context, builder, kinds[13], columns, I64(0))
        zeros = ir.Constant(ir.ArrayType(vector.element, vl), [0.0] * vl)
        zeros = builder.bitcast(cgutils.global_constant(builder, "outside", zeros), image.type)
        whole = isinstance(kinds[-1], types.NoneType)
        mask = None if whole else lanes_between(builder, c0, I64(0), c1, list(range(vl)))

        def read(pointer: Any) -> Any:
            if mask is None:
                return load(builder, pointer, 0, vector, itemsize)
            return masked_load(builder, pointer, mask, vector, itemsize)

        def write(value: Any, pointer: Any) -> None:
            if mask is None:
                store(builder, value, pointer, 0, itemsize)
            else:
                masked_store(builder, value, pointer, mask, itemsize)

        def emit_step(sums: list[Any], pixel: Any, weight: Any, taps: int, column: Any) -> None:
            factors = [read(builder.gep(weight, [builder.mul(tap, I64(i))])) for i in range(taps)]
            for i in range(len(sums) + taps - 1):
                if column is None:
                    at = builder.gep(pixel, [builder.mul(unit, I64(i))])
                else:
                    here = builder.load(builder.gep(row, [builder.add(column, builder.mul(stride, I64(i)))]))
                    inside = builder.icmp_signed(">=", here, I64(0))
                    at = builder.select(inside, builder.gep(pixel, [builder.mul(here, apart)]), zeros)
                value = read(at)
                for j in range(max(0, i - taps + 1), min(len(sums), i + 1)):
                    builder.store(fma(builder, value, factors[i - j], builder.load(sums[j])), sums[j])

        def emit_steps(sums: list[Any], channel: Any) -> None:
            with cgutils.for_range(builder, count) as step:
                entry = builder.gep(table, [builder.mul(step.index, I64(STEP))])
                x_at, w_at, taps, column = (builder.load(builder.gep(entry, [I64(i)])) for i in range(STEP))
                pixel = builder.gep(image, [builder.add(x_at, channel)])
                weight = builder.gep(weights, [builder.add(w_at, channel)])
                for number in cases(builder, taps, {i: i for i in range(-TAPS, TAPS + 1) if i}, "taps"):
                    emit_step(sums, pixel, weight, abs(number), column if number < 0 else None)

        held = [cgutils.alloca_once(builder, vector) for _ in range(SIZE)]
        last = builder.sub(c1, I64(vl)) if whole else c0
        for number in cases(builder, size, {i: i for i in range(1, SIZE + 1)}, "slide"):
            with cgutils.for_range_slice(builder, c0, c1, I64(vl), I64) as (c, _):
                channel = builder.select(builder.icmp_signed("<", c, last), c, last)
                begin = read(builder.gep(first, [channel]))
                for total in held[:number]:
                    builder.store(begin, total)
                emit_steps(held[:number], channel)
                for j, total in enumerate(held[:number]):
                    place = builder.add(channel, builder.mul(o_step, I64(j)))
                    write(builder.load(total), builder.gep(result, [place]))
        return context.get_dummy_value()

    i = types.int64
    return types.void(out, i, i, x, i, i, w, i, start, i, i, steps, i, columns, i, i, i, narrow), codegen
