"""Callers' arrays: which are accepted, and the form that kernels take them in.

Kernels take aligned, native arrays whose type says writeable (one machine-code version serves all), images
C-contiguous as (n, c, h, w) or, in the layout ``nhwc``, as (n, h, w, c); whatever else a caller holds is
copied once, or viewed, never altered.  Inside the package an image is viewed as (n, c, h, w) in any layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from fastconv import reuse
from fastconv.config import current
from fastconv.typing import Array

P = ParamSpec("P")
R = TypeVar("R")

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
FLOATS = frozenset((FLOAT32, FLOAT64))
LIBRARIES = ("torch", "cupy", "numba")  # whose arrays on a GPU are known by their class
CUDA = (2, 13)  # DLPack's device types of a GPU's memory and of memory shared with it
TURNED = 4096, 8  # elements, and channels, of images in the other layout that are worth a kernel
INTEGER = "int64"  # of every result of integers and booleans


def operand(value: Any, name: str) -> Array:
    """View a value as an array of a dtype that fastconv computes with, or raise TypeError."""
    if type(value) is np.ndarray and value.dtype in FLOATS:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: masks are not honoured; pass {name}.filled(0)")
    if value is None or isinstance(value, str | bytes):
        raise TypeError(f"{name} must be an array, got {type(value).__name__}")
    if on_gpu(value):
        raise TypeError(
            f"{name} is on a GPU, got {type(value).__name__}: convolutions and pooling run there, with all operands"
        )
    try:
        array = np.asarray(value)
    except Exception as error:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}: {error}") from None
    if array.dtype.newbyteorder("=") not in FLOATS and not _served(array.dtype):
        raise TypeError(
            f"{name} must be float16, bfloat16, float32, float64, complex64, complex128, bool or an integer, "
            f"got {array.dtype}; convert it with {name}.astype(numpy.float32)"
        )
    return array


def floats(value: Any, name: str) -> Array:
    """View a value as an array of float32 or float64, or raise TypeError."""
    array = operand(value, name)
    if array.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(
            f"{name} must be float32 or float64, got {array.dtype}; convert it with {name}.astype(numpy.float32)"
        )
    return array


def ready(a: Any, b: Any) -> bool:
    """Return whether kernels take both operands as they are: plain arrays of one dtype, in memory's order."""
    return (
        type(a) is type(b) is np.ndarray
        and (a.dtype is FLOAT32 or a.dtype is FLOAT64)
        and a.dtype is b.dtype
        and a.flags.carray
        and b.flags.carray
    )


def _served(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biu" or dtype.name in ("float16", "bfloat16", "complex64", "complex128")


def common(a: Array, *others: Array) -> np.dtype[Any]:
    """Return the dtype that the result of these operands has: `numpy.result_type`, or int64 for integers."""
    dtype = a.dtype
    if dtype.kind in "biu" and all(b.dtype.kind in "biu" for b in others):
        return np.dtype(INTEGER)
    for b in others:
        if b.dtype is not dtype:
            dtype = np.result_type(dtype, b.dtype)
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def contiguous(array: Array, dtype: np.dtype[Any], layout: str = "nchw") -> Array:
    """Return the array as kernels take it, copied where its memory is not already so.

    Integers stay of their own type, which `fastconv.dtypes` converts when it has seen how large they are.
    """
    last = layout == "nhwc"
    held = to_last(array) if last else array
    if (held.dtype is dtype and held.flags.carray) or dtype.kind == "i":
        return array
    worth = array.ndim > 2 and array.size >= TURNED[0] and array.shape[1] >= TURNED[1]
    if (
        worth
        and array.dtype is dtype
        and dtype in FLOATS
        and (array if last else to_last(array)).flags.carray
    ):
        from fastconv.reorder import turned  # imports Numba

        return turned(array, last)
    held = np.require(held, dtype, ("C_CONTIGUOUS", "ALIGNED"))
    held = held if held.flags.writeable else np.asarray(_Unlocked(held))
    return to_second(held) if last else held


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], layout: str = "nchw") -> Array:
    """Return new memory for an array of shape (n, c, h, w) in either layout."""
    if layout == "nhwc":
        return to_second(reuse.empty((shape[0], *shape[2:], shape[1]), dtype))
    return reuse.empty(shape, dtype)


def to_last(array: Array) -> Array:
    """View (n, c, h, w) as (n, h, w, c)."""
    return array.transpose((0, *range(2, array.ndim), 1))


def to_second(array: Array) -> Array:
    """View (n, h, w, c) as (n, c, h, w)."""
    return array.transpose((0, array.ndim - 1, *range(1, array.ndim - 1)))


def order(array: Array, dtype: np.dtype[Any], either: str = "nchw") -> str:
    """Return in which layout memory holds (n, c, h, w): 'nhwc' if a pixel's channels are neighbours.

    Images of one channel or of one pixel are in both, and ``either`` decides.  What is converted for the
    algorithms, to ``dtype``'s carrier, is laid out as they like it best.
    """
    if array.ndim < 3 or dtype not in FLOATS:
        return "nchw"
    if array.flags.c_contiguous:
        return either if either == "nhwc" and to_last(array).flags.c_contiguous else "nchw"
    neighbours = array.shape[1] > 1 and array.strides[1] == array.itemsize
    return "nhwc" if neighbours and array.strides[-1] != array.itemsize else "nchw"


class Form(NamedTuple):
    """How a caller holds images: with a batch or without, channels before the pixels or after them."""

    batched: bool = True
    last: bool = False

    @property
    def layout(self) -> str:
        """The layout of images that are in both."""
        return "nhwc" if self.last else "nchw"

    def taken(self, array: Array) -> Array:
        """View an array of the caller's as (n, c, h, w)."""
        if not self.batched:
            array = array[None]
        return to_second(array) if self.last and array.ndim > 2 else array

    def given(self, array: Array) -> Array:
        """View (n, c, h, w) as the caller's."""
        if self.last:
            array = to_last(array)
        return array if self.batched else array[0]

    def taken_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that `taken` makes of one."""
        if not self.batched:
            shape = (1, *shape)
        return (shape[0], shape[-1], *shape[1:-1]) if self.last and len(shape) > 2 else shape

    def given_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that `given` makes of one."""
        if self.last:
            shape = (shape[0], *shape[2:], shape[1])
        return shape if self.batched else shape[1:]


AS_IS = Form()


class _Unlocked:
    """A view of a read-only array that says it is writeable, for kernels that only read it."""

    def __init__(self, array: Array) -> None:
        self.owner = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def result(
    out: Any,
    form: Form,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    layout: str,
    *operands: Array | None,
) -> Array:
    """Return memory for a result: of its own, or that of a checked ``out`` where kernels can write there."""
    if out is None:
        return empty(shape, dtype, layout)
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be an array, got {type(out).__name__}")
    if error := refusal(out, form.given_shape(shape), dtype, operands):
        raise error
    inside = form.taken(np.asarray(out))
    usable = (to_last(inside) if layout == "nhwc" else inside).flags.carray
    return inside if usable else empty(shape, dtype, layout)


def refusal(
    out: Array, expected: tuple[int, ...], dtype: np.dtype[Any], operands: Iterable[Array | None]
) -> Exception | None:
    """Return what is wrong with ``out``: a result does not fit there, or to write it would change an operand.

    Arrays may be a GPU's, of which nothing can be read, and a traceback would show them.
    """
    if out.shape != expected:
        return ValueError(f"out must have the result's shape {expected}, got {out.shape}")
    if out.dtype != dtype:
        return TypeError(f"out must have the result's dtype {dtype}, got {out.dtype}")
    if not out.flags.writeable:
        return ValueError("out must be writeable")
    if any(a is not None and _overlap(out, a) for a in operands):
        return ValueError("out must not share memory with an operand")
    if not out.flags.c_contiguous and _overlaps_itself(out):
        return ValueError(f"out must have memory of its own for each element, got strides {out.strides}")
    return None


def delivered(result: Array, form: Form, out: Array | None) -> Array:
    """Return what the caller gets: ``out``, filled, or the result."""
    if out is None:
        return form.given(result)
    if not np.may_share_memory(result, out):
        np.copyto(out, form.given(result))
    return out


def _overlap(a: Array, b: Array) -> bool:
    if not np.may_share_memory(a, b):
        return False
    try:  # exact for the usual views; undecided counts as overlapping
        return np.shares_memory(a, b, max_work=1000)  # type: ignore[arg-type]  # any count is taken
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(array: Array) -> bool:
    """Tell whether elements may share memory: whether some stride is shorter than what shorter ones span."""
    span = array.itemsize
    axes = sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1)
    for stride, size in axes if array.size else ():
        if stride < span:
            return True
        span += stride * (size - 1)
    return False


@lru_cache(256)
def package(kind: type) -> str:
    """Return the package that a class is from: one of LIBRARIES if a base is, as others make classes of tensors."""
    packages = [base.__module__.partition(".")[0] for base in kind.__mro__]
    return next((name for name in packages if name in LIBRARIES), packages[0])


def on_gpu(value: Any) -> bool:
    """Return whether an array lives on a GPU; nothing is imported to find out."""
    kind: Any = type(value)
    if kind is np.ndarray:
        return False
    if package(kind) == "torch":
        return bool(getattr(value, "is_cuda", False))
    # asked of the object: a class whose arrays may live on either side has the property, which then raises
    if hasattr(kind, "__cuda_ndarray__") or hasattr(value, "__cuda_array_interface__"):  # the first: Numba's
        return True
    try:
        return value.__dlpack_device__()[0] in CUDA
    except Exception:  # no DLPack, or none of this value
        return False


def goes_to_gpu(value: Any) -> bool:
    """Return whether a call with this operand is computed on a GPU."""
    return (type(value) is not np.ndarray and on_gpu(value)) or current().device == "cuda"


def or_on_gpu(first: int, twin: Callable[[Any], Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a call: with argument ``first`` on a GPU its twin serves it, which is asked for when it is first needed."""

    def decorate(on_cpu: Callable[P, R]) -> Callable[P, R]:
        on_gpu: Callable[..., R] | None = None

        @wraps(on_cpu)
        def call(*arguments: P.args, **named: P.kwargs) -> R:
            nonlocal on_gpu
            if not goes_to_gpu(arguments[first]):
                return on_cpu(*arguments, **named)
            if on_gpu is None:
                on_gpu = twin(on_cpu)
            return on_gpu(*arguments)

        return call

    return decorate
