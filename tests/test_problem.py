"""ConvProblem: sizes, its printed line, and what it refuses."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv.problem import Axis, ConvProblem, Direction, told


@pytest.mark.parametrize(
    ("axis", "output"),
    [
        (Axis(5, 3), 3),
        (Axis(5, 3, stride=2), 2),
        (Axis(6, 3, stride=2), 2),
        (Axis(5, 3, lo=1, hi=1), 5),
        (Axis(5, 3, dilation=2), 1),
        (Axis(5, 3, lo=-1, hi=0), 2),
        (Axis(1, 1, lo=4, hi=4), 9),
        (Axis(1, 5, lo=2, hi=2), 1),
    ],
)
def test_output_size(axis, output):
    positions = range(-axis.lo, axis.size + axis.hi - axis.extent + 1, axis.stride)
    assert axis.output == output == len(positions)


def meets(axis):
    """Return which pixel each tap meets at each position."""
    at = [
        p * axis.stride - axis.lo + r * axis.dilation for p in range(axis.output) for r in range(axis.kernel)
    ]
    return axis.output, [pixel if 0 <= pixel < axis.size else None for pixel in at]


@given(
    st.builds(
        Axis, st.integers(1, 6), st.integers(1, 4), st.integers(1, 99), st.integers(1, 4),
        st.integers(-1, 200), st.integers(-1, 200),
    )
)  # fmt: skip
def test_near(axis):
    near = axis.near
    assert near.stride == min(axis.stride, axis.size + axis.extent)
    if axis.output > 0:
        assert meets(near) == meets(axis)
        assert near.lo + near.size + near.hi <= max(
            axis.lo + axis.size + axis.hi, (near.output + 1) * near.stride
        )


def test_derived_sizes():
    p = ConvProblem.parse("n2 c4 k6 i5x7 f3x2 s2x1 p1:0x0:2 g2 float64")
    assert p.input_shape == (2, 4, 5, 7)
    assert p.weight_shape == (6, 2, 3, 2)
    assert p.output_shape == (2, 6, 2, 8)
    assert p.reduction == 2 * 6
    assert p.flops == 2 * (2 * 6 * 2 * 8) * 12
    assert p.bytes == 8 * (2 * 4 * 35 + 6 * 2 * 6 + 2 * 6 * 16)
    assert not p.unit_stride
    assert p.undilated
    assert not p.plain
    assert not p.is_depthwise
    assert ConvProblem.parse("c4 i9 f3 g4").is_depthwise


def test_defaults_of_a_line():
    assert ConvProblem.parse("c4 i9x9 f3x3 p1") == ConvProblem(
        1, 4, 4, (Axis(9, 3, lo=1, hi=1), Axis(9, 3, lo=1, hi=1))
    )
    assert str(ConvProblem.parse("c4 i9x9 f3 d1 s1 p0 g1 float32")) == "n1 c4 k4 i9x9 f3x3"


axes = st.builds(
    Axis, st.integers(30, 50), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3),
    st.integers(-9, 9), st.integers(-9, 9),
)  # fmt: skip
problems = st.builds(
    lambda n, c, k, axes, groups, dtype: ConvProblem(n, c * groups, k * groups, axes, groups, dtype).checked(),
    st.integers(0, 9), st.integers(1, 9), st.integers(1, 9), st.lists(axes, min_size=1, max_size=3).map(tuple),
    st.integers(1, 4), st.sampled_from(["float32", "float64"]),
)  # fmt: skip


@given(problems)
def test_line_is_read_back(problem):
    assert ConvProblem.parse(str(problem)) == problem


@given(problems)
def test_is_a_value(problem):
    assert pickle.loads(pickle.dumps(problem)) == problem
    assert hash(pickle.loads(pickle.dumps(problem))) == hash(problem)
    with pytest.raises(AttributeError):
        problem.n = 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "c, i, f missing"),
        ("n1 i5 f3", "c missing"),
        ("c3 i5 f3 q7", "cannot read 'q7'"),
        ("c3 i5 f3 float80", "cannot read 'float80'"),
        ("c3 i5 f3 c4", "cannot read 'c4'"),
        ("c3 i5 f3 p1:2:3", "cannot read 'p1:2:3'"),
        ("c3 i5 f3 s-1", "cannot read 's-1'"),
        ("c3 i5 f3 sx", "cannot read 'sx'"),
        ("c3x3 i5 f3", "cannot read 'c3x3'"),
        ("c3 i5x5 f3x3x3", "f has 3 values for 2 axes"),
        ("c3 i5 f3 s0", "stride must be at least 1, got 0 on spatial axis 0"),
        ("c3 i5x5 f3x0", "kernel size must be at least 1, got 0 on spatial axis 1"),
        ("c3 i5 f3 d0", "dilation must be at least 1"),
        ("c3 i0 f1 p5", "input size must be at least 1"),
        ("c0 i5 f3", "input channels must be at least 1"),
        ("c3 k0 i5 f3", "output channels must be at least 1"),
        ("c3 i5 f3 g0", "groups must be at least 1"),
        ("c4 k4 i5 f3 g3", "4 % 3 != 0"),
        ("c6 k4 i5 f3 g3", "output channels must be divisible by groups: 4 % 3"),
        ("c3 i5 f7", r"spans 1 \* \(7 - 1\) \+ 1 = 7 pixels, the input has 0 \+ 5 \+ 0 = 5"),
        ("c3 i5 f1 p-6:9", "crops more than the 5 pixels"),
        ("c3 i5 f1 p-3:-3", "does not fit"),
        ("n999999999999 c999999999 i5 f1", "too large"),
    ],
)
def test_bad_lines(line, message):
    with pytest.raises(ValueError, match=message):
        ConvProblem.parse(line)


def test_directions_are_their_names():
    assert [str(d) for d in Direction] == ["forward", "input_grad", "weight_grad"]


def test_travels_without_what_another_process_hashes_otherwise():
    problem = ConvProblem.parse("n8 c64 k64 i56x56 f3x3 p1")
    assert hash(problem) == problem._hash
    copy = pickle.loads(pickle.dumps(problem))
    assert "_hash" not in vars(copy)
    assert copy == problem
    assert hash(copy) == hash(problem)


def test_what_was_told_is_kept_by_direction():
    asked = []

    @told
    def answer(problem, direction):
        asked.append(direction)
        return len(asked)

    problem, other = ConvProblem.parse("n1 c1 i5 f3"), ConvProblem.parse("n1 c1 i5 f3")
    assert [answer(problem, d) for d in (*Direction, *Direction)] == [1, 2, 3, 1, 2, 3]
    assert answer(other, Direction.FORWARD) == 4
    assert problem == other
