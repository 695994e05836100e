"""What a caller may write for sizes, strides and paddings, read into integers; strings die here.

``padding`` is zeros added around the input: an integer, one for each axis, or ``(lo, hi)`` for each axis
(negative crops, in this form only), or the name of a rule.  With e = dilation * (kernel - 1):

    'valid'        none
    'full'         e on each side: every position that touches a pixel
    'same'         output = ceil(size / stride), by  total = max((output - 1) * stride + e + 1 - size, 0),
                   an odd pixel at the end, as in PyTorch, TensorFlow and ONNX's SAME_UPPER
    'same_lower'   the same with an odd pixel at the start, as in scipy.ndimage and numpy.correlate
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias

from fastconv.problem import PADDING_MODES, Axis, ConvProblem

PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]
PaddingRule: TypeAlias = Literal["valid", "same", "same_lower", "full"]
Padding: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]] | PaddingRule
PerAxis: TypeAlias = int | Sequence[int]
Activation: TypeAlias = (
    Literal["relu", "leaky_relu", "sigmoid", "tanh", "silu", "gelu"] | Callable[[Any], Any] | None
)
TransposedPadding: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]]
Pairs: TypeAlias = tuple[tuple[int, int], ...]

RULES = ("valid", "same", "same_lower", "full")
LETTERS = {1: "L", 2: "HW", 3: "DHW"}  # spatial axes in messages
LAYOUTS = {1: ("NCL", "NLC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}
WIDEST = 2**20  # pixels of a border that repeats the image: each has a line in tables
HUGE = 2**48  # pixels along a padded axis; below it no product with an array's size leaves 64 bits


class Walk(NamedTuple):
    """How the kernel walks over the input; hashable, part of a plan's key."""

    rank: int
    stride: int | tuple[int, ...]
    padding: int | Pairs | str
    dilation: int | tuple[int, ...]
    groups: int
    layout: str = "nchw"  # and the order in which memory holds the pixels it walks over
    padding_mode: str = "zeros"


def walk(
    rank: int,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    layout: str = "nchw",
    mode: Any = "zeros",
) -> Walk:
    """Read the arguments that all functions share.

    Integers and tuples of them pass as they are, and are checked when a `problem` is made of them: a call
    with a known plan saves that.  (1.0, True) may not pass, since it equals (1, 1) and would find its plan.
    """
    if not named(mode, PADDING_MODES):
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {_shown(mode)}")
    if whole(stride, padding, dilation, groups):
        return Walk(rank, stride, padding, dilation, groups, layout, mode)
    return Walk(
        rank,
        per_axis(stride, rank, "stride"),
        padding_pairs(padding, rank),
        per_axis(dilation, rank, "dilation"),
        integer(groups, "groups", 1),
        layout,
        mode,
    )


def whole(stride: Any, padding: Any, dilation: Any, groups: Any) -> bool:
    """Return whether all are integers, names or tuples of them: no look-up can take one for another."""
    if type(stride) is type(padding) is type(dilation) is type(groups) is int:
        return True
    return type(groups) is int and _plain(stride) and _plain(padding) and _plain(dilation)


def _plain(value: Any) -> bool:
    kind = type(value)
    if kind is not tuple:
        return kind is int or kind is str
    for part in value:  # all() takes three times as long
        if type(part) is not int and not _plain(part):
            return False
    return bool(value)


def integer(value: Any, name: str, least: int) -> int:
    """Return an integer not below ``least``; floats, booleans and text are refused."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {_shown(value)}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def per_axis(value: Any, rank: int, name: str, least: int = 1) -> tuple[int, ...]:
    """Return an integer not below ``least`` for each axis."""
    if type(value) is int and value >= least:
        return (value,) * rank
    if _is_sequence(value):
        numbers = tuple(integer(v, f"each of {name}", least) for v in value)
        if len(numbers) not in (1, rank):
            raise ValueError(f"{name} must be an integer or {rank} of them, got {_shown(value)}")
        return numbers * (rank // len(numbers))
    return (integer(value, name, least),) * rank


def named(value: Any, names: Collection[str]) -> bool:
    """Return whether a value is one of the names; an array, which compares element by element, is none."""
    return isinstance(value, str) and value in names


def channels_last(layout: Any, rank: int) -> bool:
    """Read the name of a layout."""
    names = LAYOUTS[rank]
    if not named(layout, names):
        raise ValueError(f"layout must be {' or '.join(map(repr, names))}, got {_shown(layout)}")
    return bool(layout == names[1])


def shape(value: Any, name: str) -> tuple[int, ...]:
    """Return a shape as a tuple; whether its sizes make sense, the problem tells."""
    if type(value) is tuple and {*map(type, value)} == {int}:
        return value
    if not _is_sequence(value):
        raise TypeError(f"{name} must be a sequence of integers, got {_shown(value)}")
    return tuple(integer(v, f"each of {name}", 0) for v in value)


def rank_of(weight_shape: tuple[int, ...]) -> int:
    """Return the number of spatial axes that a weight has."""
    rank = len(weight_shape) - 2
    if rank not in LETTERS:
        raise ValueError(
            "weight must be (K, C/groups, L), (K, C/groups, H, W) or (K, C/groups, D, H, W), "
            f"got {len(weight_shape)} dimensions: {weight_shape}"
        )
    return rank


def padding_pairs(value: Any, rank: int) -> Pairs | str:
    """Return ``((lo, hi), ...)``, or the name of a rule that needs the sizes."""
    if type(value) is int and value >= 0:
        return ((value, value),) * rank
    if isinstance(value, str):
        if value not in RULES:
            raise ValueError(f"padding must be one of {', '.join(map(repr, RULES))}, got {value!r}")
        return value
    if not _is_sequence(value):
        number = _not_negative(value, value)
        return ((number, number),) * rank
    sides = [_is_sequence(v) for v in value]
    if sides and all(sides):
        if len(value) != rank or any(len(v) != 2 for v in value):
            raise ValueError(f"padding must be (lo, hi) for each of {rank} axes, got {_shown(value)}")
        return tuple((integer(lo, "padding", -HUGE), integer(hi, "padding", -HUGE)) for lo, hi in value)
    if rank > 1 and len(value) == 2 * rank and not any(sides):
        raise ValueError(_two_readings(value, rank))
    if len(value) not in (1, rank) or any(sides):
        raise ValueError(
            f"padding must be an integer, {rank} of them, {rank} pairs (lo, hi), or one of "
            f"{', '.join(map(repr, RULES))}, got {_shown(value)}"
        )
    numbers = [_not_negative(v, value) for v in value] * (rank // len(value))
    return tuple((v, v) for v in numbers)


def problem(
    input_shape: tuple[int, ...], weight_shape: tuple[int, ...], dtype: str, walk: Walk
) -> ConvProblem:
    """Return the problem, or raise ValueError with the rule that is broken and its numbers."""
    rank = walk.rank
    stride = per_axis(walk.stride, rank, "stride")
    padding = padding_pairs(walk.padding, rank)
    dilation = per_axis(walk.dilation, rank, "dilation")
    groups = integer(walk.groups, "groups", 1)
    _check_ranks(input_shape, weight_shape, rank)
    n, c, *sizes = input_shape
    k, per_group, *kernels = weight_shape
    if c % groups == 0 and c and c // groups != per_group:
        raise ValueError(
            f"weight expects {per_group} input channels per group, "
            f"input has {c} channels / {groups} groups = {c // groups}"
        )
    axes = []
    for i, (size, kernel, s, d) in enumerate(zip(sizes, kernels, stride, dilation, strict=True)):
        d = d if kernel > 1 else 1  # a single tap has no gaps
        lo, hi = _resolved(padding, size, kernel, s, d) if isinstance(padding, str) else padding[i]
        padded = lo + size + hi
        if padded >= HUGE:
            raise ValueError(
                f"problem too large: spatial axis {i} has {lo} + {size} + {hi} pixels when padded"
            )
        if walk.padding_mode != "zeros" and max(lo, hi) > WIDEST:
            raise ValueError(
                f"padding must be at most {WIDEST} where padding_mode is {walk.padding_mode!r}, got ({lo}, {hi}) "
                f"on spatial axis {i}"
            )
        axes.append(
            Axis(size, kernel, min(s, max(padded, 1)), d, lo, hi)
        )  # further than all pixels is as far
    p = ConvProblem(n, c, k, tuple(axes), groups, dtype, walk.padding_mode, walk.layout).checked()
    near = p.axes if p.padding_mode != "zeros" else tuple([a.near for a in p.axes])
    return p if near == p.axes else replace(p, axes=near)


def _resolved(rule: str, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return (lo, hi) of a padding rule."""
    reach = dilation * (kernel - 1)
    if rule == "valid":
        return 0, 0
    if rule == "full":
        return reach, reach
    total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
    less, more = total // 2, total - total // 2
    return (less, more) if rule == "same" else (more, less)


def _check_ranks(input_shape: tuple[int, ...], weight_shape: tuple[int, ...], rank: int) -> None:
    letters = ", ".join(LETTERS[rank])
    if len(input_shape) != rank + 2:
        hint = ""
        if len(input_shape) == rank:
            hint = "; for one image with one channel pass input[None, None]"
        raise ValueError(
            f"input must be (N, C, {letters}) or (C, {letters}), "
            f"got {len(input_shape)} dimensions: {input_shape}{hint}"
        )
    if len(weight_shape) != rank + 2:
        hint = "; for one kernel pass weight[None, None]" if len(weight_shape) == rank else ""
        raise ValueError(
            f"weight must be (K, C/groups, {letters}), "
            f"got {len(weight_shape)} dimensions: {weight_shape}{hint}"
        )


def _two_readings(value: Sequence[int], rank: int) -> str:
    in_pairs = [tuple(value[2 * i : 2 * i + 2]) for i in range(rank)]
    starts_first = tuple(zip(value[:rank], value[rank:], strict=True))
    return (
        f"padding {_shown(value)} has two readings: {tuple(in_pairs[::-1])} in torch.nn.functional.pad's order "
        f"(last axis first), {starts_first} in ONNX's order (all starts, then all ends); "
        f"write the pairs (lo, hi) of each axis"
    )


def _not_negative(value: Any, padding: Any) -> int:
    number = integer(value, "padding", -HUGE)
    if number < 0:
        raise ValueError(
            f"padding must be at least 0, got {_shown(padding)}; to crop, write (lo, hi) for each axis"
        )
    return number


def _is_sequence(value: Any) -> bool:
    """Whether a value holds one number an axis; a 1-D array does, a 0-D one is a number."""
    if isinstance(value, str | bytes):
        return False
    return isinstance(value, Sequence) or getattr(value, "ndim", 0) > 0


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
