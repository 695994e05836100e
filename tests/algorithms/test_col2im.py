"""The input gradient of few channels: taps are rows of a product, whose lines are added where they belong."""

from dataclasses import replace

import numpy as np
import pytest
from every_result import check

from fastconv import machine, testing
from fastconv.algorithms import find
from fastconv.algorithms.im2col.col2im import Col2im
from fastconv.algorithms.im2col.cost import adds
from fastconv.config import config
from fastconv.problem import INPUT_GRAD, LAYOUTS, ConvProblem

LINES = [
    "n2 c3 k7 i11x11 f3x3 p1",
    "n3 c2 k20 i15x17 f7x7 p3 s2",
    "n2 c4 k6 i9x8 f5x3 p2:1x0:3 s2x1 g2",
    "n1 c2 k3 i9x9 f2x2 p3x2 d3x2 s3",
    "n1 c2 k2 i2x3 f3x2 p4:1x5:2",  # padding wider than the image
    "n1 c3 k300 i20x33 f3x3 p1",  # chunks
    "n1 c1 k5 i3x4 f2x2 s5x4 p2",  # pixels of no tap
    "n2 c3 k4 i40 f9 p4:2 s3 float64",
    "n1 c2 k3 i4x5x6 f3x2x3 p1:2x1:0x1 s1x2x2",
    "n1 c11 k9 i13x12 f3x3 p1",  # more rows than few
]


CASES = ["n2 c3 k5 i12x15 f5x3 p-1:4x4:-1"]  # cropped
CASES += [f"{line} {mode}" for line in LINES for mode in ("", "reflect", "replicate", "circular")]


@pytest.mark.parametrize("line", CASES)
@pytest.mark.parametrize("cache", [2**14, None])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_result(line, layout, cache):
    p = replace(ConvProblem.parse(line), layout=layout)
    check(Col2im(p, cache or machine.machine().l2), p, INPUT_GRAD)


def test_bits_do_not_depend_on_the_number_of_workers():
    p = ConvProblem.parse("n3 c3 k32 i40x40 f7x7 p3 s2 reflect")
    first, second, shape = testing.shapes(p, INPUT_GRAD)
    first, second = testing.normals(first, p.dtype), testing.normals(second, p.dtype, 1)
    execution, nothing, found = Col2im(p, machine.machine().l2), np.empty(0, p.dtype), []
    for threads in (1, 2):
        found.append(np.full(shape, np.nan, p.dtype))
        with config(threads=threads):
            execution.run(first, second, found[-1], nothing, 0, nothing)
    np.testing.assert_array_equal(*found)


def test_chosen_where_results_have_few_channels():
    few, many = (ConvProblem.parse(f"n1 c{c} k64 i56x56 f7x7 p3 s2 reflect") for c in (3, 64))
    assert isinstance(find("im2col").build(few, INPUT_GRAD, 1 << 30), Col2im)
    assert adds(few, INPUT_GRAD)
    assert not adds(many, INPUT_GRAD)
