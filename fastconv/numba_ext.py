"""`fastconv.conv1d`, `conv2d` and `conv3d` inside a user's jitted function.

What is known of a call when that is compiled, its types and the texts among its arguments, is a `Call`; the sizes that it
meets when it runs are a row of a table.  A row tells where the machine code of its plan is (`fastconv.compiled`), which
then runs without the interpreter, on the thread that calls.  Of sizes that are new the interpreter makes the row: it checks
the arguments, chooses the algorithm and compiles the plan.  What it cannot compile it computes itself, at each call.

Numba imports this module by its entry point, before it compiles or loads a first function.  A user's function on disk
has no address of this process, but the name of the table, and the version for which it was compiled in its `Call`.
"""

from __future__ import annotations

import ast
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import objmode
from numba.core import types
from numba.core.errors import TypingError
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import intrinsic, overload, register_jitable

import fastconv
from fastconv import arguments, convolve, plan
from fastconv.activations import CODES
from fastconv.arrays import Form
from fastconv.config import config
from fastconv.typing import Array
from fastconv.workspace import ALIGNMENT

# Words of a row: a hash of those up to CODE, which are the call and its integers, shapes first; then what the plan is: its
# machine code, or 0, bytes of scratch, and sizes of the result.
HASH, CALL, GIVEN, CODE, SCRATCH, SIZES, WIDTH = 0, 1, 2, 34, 35, 36, 40
ROWS = 1024  # half of them are used at the most, so that a search is short
ACTIVATIONS = (None, *CODES)  # their places are their codes
I64 = ir.IntType(64)

_table = np.zeros((ROWS, WIDTH), np.int64)
_kept: list[Any] = []  # what the machine code of each row reads
_lock, _written = threading.Lock(), threading.Lock()
binding.add_symbol("fastconv_table", _table.ctypes.data)


class Call(NamedTuple):
    """What is known of a call when it is compiled."""

    version: str
    rank: int
    dtype: str
    padding_mode: str
    activation: str | None
    algorithm: str
    # of the other arguments: 0 where an integer stands, a shape's too, in tuples; or text, or None
    forms: tuple[Any, ...]

    @classmethod
    def read(cls, text: str) -> Call:
        """Return what `repr` wrote of a call's fields."""
        call = cls(*ast.literal_eval(text))
        if call.version != fastconv.__version__:
            raise RuntimeError(
                f"a cached function was compiled for fastconv {call.version}, this is {fastconv.__version__}: "
                "have Numba compile it anew"
            )
        return call

    def arguments(self, row: Array) -> tuple[Any, ...]:
        """Return input, weight, bias, residual, stride, padding, dilation and groups; shapes in the place of arrays."""
        given: tuple[Any, ...] = _filled(self.forms, iter(row[GIVEN:CODE].tolist()))
        return given


def _filled(form: Any, numbers: Iterator[int]) -> Any:
    if isinstance(form, tuple):
        return tuple([_filled(f, numbers) for f in form])
    return next(numbers) if form == 0 else form


def _apart(function: Callable[..., None], text: str, *arguments: Any) -> None:
    """Call a function on this thread alone, by the environment's settings: whose call is the first decides nothing."""

    def run() -> None:
        with config(threads=1):
            function(Call.read(text), *arguments)

    Context().run(run)


def complete(text: str, row: Array) -> None:
    """Write the rest of a row, and the row to the table; or raise what the call from Python raises."""
    _apart(_complete, text, row)


def _complete(call: Call, row: Array) -> None:
    x, w, bias, residual, *walk = call.arguments(row)
    batched = len(x) == call.rank + 2
    walk = arguments.walk(call.rank, *walk, mode=call.padding_mode)
    p = plan.find("forward", x if batched else (1, *x), w, np.dtype(call.dtype), walk, call.algorithm, None)
    form = Form(batched, False)
    if bias is not None:
        convolve.check_bias(_of_shape(bias), p)
    if residual is not None:
        convolve.check_residual(_of_shape(residual), form, p.shape)
    row[CODE], row[SIZES : SIZES + call.rank] = 0, p.shape[2:]
    with _lock:
        if len(_kept) == ROWS // 2 or p.problem.layout != "nchw":
            return
        from fastconv import compiled

        code = compiled.function(
            p, ACTIVATIONS.index(call.activation), bias is not None, residual is not None
        )
        if code:
            row[CODE], row[SCRATCH] = code.address, code.scratch + ALIGNMENT
        i = int(row[HASH]) % ROWS
        while _table[i, HASH]:
            if (_table[i, :CODE] == row[:CODE]).all():  # another thread has written it
                return
            i = (i + 1) % ROWS
        _kept.append(code)
        with _written:
            _table[i, CALL:] = row[CALL:]
        with _written:  # by now all of it can be seen, and is found by the hash
            _table[i, HASH] = row[HASH]


def _of_shape(shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(np.float32(0), shape)


def compute(text: str, row: Array, x: Array, w: Array, bias: Any, residual: Any, out: Array) -> None:
    """Have the interpreter compute a call."""
    _apart(_compute, text, row, x, w, bias, residual, out)


def _compute(call: Call, row: Array, x: Array, w: Array, bias: Any, residual: Any, out: Array) -> None:
    layout = arguments.LAYOUTS[call.rank][0]
    convolve.forward(
        call.rank, x, w, bias, *call.arguments(row)[4:], call.activation, residual, call.algorithm, None, out, layout,
        call.padding_mode,
    )  # fmt: skip


@intrinsic
def _describe(typing, row, x, w, bias, residual, stride, padding, dilation, groups):
    """Write shapes and integers to a row, in this order."""

    def codegen(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data

        def integers(kind, value):
            if isinstance(kind, types.Array):
                shape = context.make_array(kind)(context, builder, value).shape
                yield from (builder.extract_value(shape, i) for i in range(kind.ndim))
            elif isinstance(kind, types.BaseTuple):
                for i, part in enumerate(kind):
                    yield from integers(part, builder.extract_value(value, i))
            elif isinstance(kind, types.Omitted) and isinstance(kind.value, int):
                yield I64(kind.value)
            elif isinstance(kind, types.Integer):
                yield context.cast(builder, value, kind, types.int64)

        place = GIVEN
        for kind, value in zip(signature.args[1:], values[1:], strict=True):
            for integer in integers(kind, value):
                builder.store(integer, builder.gep(data, [I64(place)]))
                place += 1
        return context.get_dummy_value()

    return types.none(row, x, w, bias, residual, stride, padding, dilation, groups), codegen


@intrinsic
def _word(typing, i):
    """Return a word of the table; what was written before it is seen."""

    def codegen(context, builder, signature, values):
        table = context.get_c_value(builder, I64, "fastconv_table")
        return builder.load_atomic(builder.gep(table, values), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _run(typing, code, x, w, out, bias, residual, scratch):
    """Call the machine code of a plan."""

    def codegen(context, builder, signature, values):
        byte = ir.IntType(8).as_pointer()

        def pointer(kind, value):
            if not isinstance(kind, types.Array):
                return ir.Constant(byte, None)
            return builder.bitcast(context.make_array(kind)(context, builder, value).data, byte)

        pointers = [pointer(*pair) for pair in zip(signature.args[1:], values[1:], strict=True)]
        start = builder.ptrtoint(pointers[-1], I64)
        start = builder.and_(builder.add(start, I64(ALIGNMENT - 1)), I64(-ALIGNMENT))
        pointers[-1] = builder.inttoptr(start, byte)
        kind = ir.FunctionType(ir.VoidType(), [byte] * len(pointers)).as_pointer()
        builder.call(builder.inttoptr(values[0], kind), pointers)
        return context.get_dummy_value()

    return types.none(types.int64, x, w, out, bias, residual, scratch), codegen


@register_jitable
def _found(row):
    """Look a row up in the table, and copy from there what its plan is."""
    mixed = row[CALL]
    for i in range(GIVEN, CODE):
        mixed = (mixed ^ row[i]) * 0x2545F4914F6CDD1D
        mixed ^= mixed >> 29
    row[HASH] = mixed | 1
    at = row[HASH] % ROWS
    while _word(at * WIDTH) != 0:
        same = True
        for i in range(CODE):
            same &= _word(at * WIDTH + i) == row[i]
        if same:
            for i in range(CODE, WIDTH):
                row[i] = _word(at * WIDTH + i)
            return True
        at = (at + 1) % ROWS
    return False


@register_jitable
def _ask(text, row):  # Numba takes one such block a function
    with objmode():
        complete(text, row)


@register_jitable
def _leave(text, row, x, w, bias, residual, out):
    with objmode():
        compute(text, row, x, w, bias, residual, out)


def _typed(rank: int, function: Any) -> None:
    """Tell Numba how to compile the calls of a function."""

    def typed(
        input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros", activation=None,
        residual=None, algorithm="auto", workspace=None, layout=None, out=None,
    ):  # fmt: skip
        _refuse(rank, workspace=workspace, layout=layout, out=out)
        text = _text(
            rank,
            {"input": input, "weight": weight, "bias": bias, "residual": residual},
            {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
            {"padding_mode": padding_mode, "activation": activation, "algorithm": algorithm},
        )
        call = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
        ready_x, ready_w, ready_b, ready_r = map(_ready, (input, weight, bias, residual))
        first = input.ndim - rank

        def convolve(
            input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros", activation=None,
            residual=None, algorithm="auto", workspace=None, layout=None, out=None,
        ):  # fmt: skip
            row = np.zeros(WIDTH, np.int64)
            row[CALL] = call
            _describe(row, input, weight, bias, residual, stride, padding, dilation, groups)
            if not _found(row):
                _ask(text, row)
            shape = tuple_setitem(input.shape, first - 1, weight.shape[0])
            for i in range(rank):
                shape = tuple_setitem(shape, first + i, row[SIZES + i])
            y = np.empty(shape, input.dtype)
            x, w, b, r = ready_x(input), ready_w(weight), ready_b(bias), ready_r(residual)
            if row[CODE] != 0:
                _run(row[CODE], x, w, y, b, r, np.empty(row[SCRATCH], np.uint8))
            else:
                _leave(text, row, x, w, b, r, y)
            return y

        return convolve

    overload(function, prefer_literal=True)(typed)


def _text(rank: int, arrays: dict[str, Any], integers: dict[str, Any], named: dict[str, Any]) -> str:
    """Return what `Call.read` reads, or raise what is wrong with the types of a call."""
    letters = ", ".join(arguments.LETTERS[rank])
    images = f"(N, C, {letters}) or (C, {letters})", (rank + 1, rank + 2)
    shapes = {"input": images, "weight": (f"(K, C/groups, {letters})", (rank + 2,)), "bias": ("(K,)", (1,))}
    dtype = getattr(arrays["input"], "dtype", None)
    forms: list[Any] = []
    for name, kind in arrays.items():
        if (
            name in ("bias", "residual")
            and not isinstance(kind, types.Array)
            and _constant(name, kind) is None
        ):
            forms.append(None)
            continue
        if (
            not isinstance(kind, types.Array)
            or str(kind.dtype) not in ("float32", "float64")
            or kind.dtype != dtype
        ):
            raise TypingError(
                f"{name} must be an array of float32 or float64, of one dtype with the others, where jitted code calls "
                f"fastconv; got {kind}"
            )
        shape, ndims = shapes.get(name, ("like the result", (forms and len(forms[0]),)))
        if kind.ndim not in ndims:
            raise TypingError(f"{name} must be {shape}, got {kind.ndim} dimensions")
        forms.append((0,) * kind.ndim)
    forms += [_form(name, kind) for name, kind in integers.items()]
    if _count(forms) > CODE - GIVEN:
        raise TypingError(
            "stride, padding and dilation must have no more integers than there are axes, or sides"
        )
    mode, activation, algorithm = (_constant(name, kind) for name, kind in named.items())
    if activation not in ACTIVATIONS:
        raise TypingError(
            f"activation must be None or one of {', '.join(ACTIVATIONS[1:])} where jitted code calls fastconv, "
            f"got {activation!r}"
        )
    return repr((fastconv.__version__, rank, str(dtype), mode, activation, algorithm, tuple(forms)))


def _refuse(rank: int, **others: Any) -> None:
    for name, kind in others.items():
        if _constant(name, kind) not in (None, arguments.LAYOUTS[rank][0]):
            raise TypingError(f"{name} is not served where jitted code calls fastconv")


def _constant(name: str, kind: Any) -> Any:
    """Return the value of an argument that is known when a function is compiled."""
    if isinstance(kind, types.Omitted):
        return kind.value
    if isinstance(kind, types.StringLiteral):
        return kind.literal_value
    if isinstance(kind, types.NoneType):
        return None
    if isinstance(kind, types.Type):
        raise TypingError(
            f"{name} must be written out where jitted code calls fastconv, as text or None; got {kind}"
        )
    return kind


def _form(name: str, kind: Any) -> Any:
    """Return the form of an argument that is made of integers, or its text."""
    if isinstance(kind, types.BaseTuple):
        return tuple(_form(name, part) for part in kind)
    if isinstance(kind, types.Integer) or isinstance(getattr(kind, "value", kind), int):
        return 0
    if name == "padding" and isinstance(kind, types.StringLiteral):
        return kind.literal_value
    raise TypingError(
        f"{name} must be an integer or a tuple of them where jitted code calls fastconv; got {kind}"
    )


def _count(form: Any) -> int:
    return sum(map(_count, form)) if isinstance(form, list | tuple) else int(form == 0)


@register_jitable
def _as_it_is(array):
    return array


@register_jitable
def _copied(array):
    return np.ascontiguousarray(array)


def _ready(kind: Any) -> Any:
    return _copied if isinstance(kind, types.Array) and kind.layout != "C" else _as_it_is


for _rank, _function in enumerate((fastconv.conv1d, fastconv.conv2d, fastconv.conv3d), 1):
    _typed(_rank, _function)


def init() -> None:
    """Do nothing: the entry point is for the import of this module."""
