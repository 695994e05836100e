"""Who runs in a race: this package, and other libraries where they are installed.

Each takes the same operands in the form it likes best, converted before the clock runs, allocates its
result in every call as users do, and gives it back in the layout of its operands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

import fastconv
from fastconv.arrays import to_last, to_second
from fastconv.problem import DTYPES, FLOATS, LAYOUTS, PADDING_MODES, ConvProblem, Direction
from fastconv.typing import Array

Call = Callable[[], Any]


class Operands(NamedTuple):
    """Input, weight and gradient by the output; the same for every contestant."""

    x: Array
    w: Array
    gy: Array

    @classmethod
    def normal(cls, problem: ConvProblem, seed: int = 0) -> Operands:
        """Draw normal numbers."""
        random, dtype = np.random.default_rng(seed), _dtype(problem.dtype)
        shapes = (problem.input_shape, problem.weight_shape, problem.output_shape)
        x, w, gy = (random.standard_normal(shape).astype(dtype) for shape in shapes)
        if dtype.kind == "c":
            x, w, gy = (a + 1j * random.standard_normal(a.shape).astype(a.real.dtype) for a in (x, w, gy))
        elif dtype.kind == "i":  # what is rounded to zero shows nothing
            x, w, gy = (random.integers(-9, 10, shape) for shape in shapes)
        if problem.layout == "nhwc":
            x, gy = (to_second(np.ascontiguousarray(to_last(a))) for a in (x, gy))
        return cls(x, w, gy)

    def doubled(self) -> Operands:
        """Return the same numbers in float64, or in complex128."""
        wide = "complex128" if self.x.dtype.kind == "c" else "float64"
        return Operands(*(a.astype(wide) for a in self))


def _dtype(name: str) -> np.dtype[Any]:
    """Return a dtype; bfloat16 is not one of NumPy's own."""
    if name == "bfloat16":
        try:
            import ml_dtypes  # noqa: F401  # tells NumPy its name
        except ImportError:
            raise ValueError("bfloat16 needs the package ml_dtypes") from None
    return np.dtype(name)


def arguments(problem: ConvProblem) -> dict[str, Any]:
    """Return stride, padding, dilation and groups as users write them, and the padding's mode if it is not zeros."""
    symmetric = all(a.lo == a.hi >= 0 for a in problem.axes)
    return {
        "stride": tuple(a.stride for a in problem.axes),
        "padding": tuple(a.lo if symmetric else (a.lo, a.hi) for a in problem.axes),
        "dilation": tuple(a.dilation for a in problem.axes),
        "groups": problem.groups,
    } | ({} if problem.padding_mode == "zeros" else {"padding_mode": problem.padding_mode})


class Peer(ABC):
    """A contestant."""

    name: str
    settle: float = 12e-3  # seconds for which its threads go on spinning after a call
    prepared: bool = False  # whether it has the weights in a form of its own before the clock runs
    dtypes: tuple[str, ...] = FLOATS
    padding_modes: tuple[str, ...] = ("zeros",)
    layouts: tuple[str, ...] = ("nchw",)  # of the operands it takes; of others it would have to reorder them

    def takes(self, problem: ConvProblem, direction: Direction) -> bool:
        """Return whether it takes part."""
        return (
            problem.dtype in self.dtypes
            and problem.padding_mode in self.padding_modes
            and problem.layout in self.layouts
            and self.applies(problem, direction)
        )

    def applies(self, problem: ConvProblem, direction: Direction) -> bool:
        """Return whether it computes such a geometry at all."""
        return True

    @abstractmethod
    def make(self, problem: ConvProblem, direction: Direction, operands: Operands) -> Call:
        """Return a function without arguments that computes the result."""

    def array(self, result: Any, problem: ConvProblem, direction: Direction) -> Array:
        """Return a result as an array with our axes in our order."""
        return np.asarray(result)

    def mode(self) -> AbstractContextManager[Any]:
        """Return the context that all of its calls run in."""
        return nullcontext()


class Ours(Peer):
    """Our package, by one algorithm or by the one it chooses."""

    dtypes, padding_modes = DTYPES, PADDING_MODES
    layouts: tuple[str, ...] = LAYOUTS

    def __init__(self, algorithm: str = "auto") -> None:
        self.algorithm = algorithm
        self.name = "fastconv" if algorithm == "auto" else f"fastconv:{algorithm}"

    def make(self, problem: ConvProblem, direction: Direction, operands: Operands) -> Call:
        x, w, gy = operands.x, operands.w, operands.gy
        options = arguments(problem) | {"algorithm": self.algorithm}
        suffix = {
            Direction.FORWARD: "",
            Direction.INPUT_GRAD: "_input",
            Direction.WEIGHT_GRAD: "_weight",
        }[direction]
        compute = getattr(fastconv, f"conv{len(problem.axes)}d{suffix}")
        first, second, *rest = {
            Direction.FORWARD: (x, w),
            Direction.INPUT_GRAD: (x.shape, w, gy),
            Direction.WEIGHT_GRAD: (x, w.shape, gy),
        }[direction]
        return lambda: compute(first, second, *rest, **options)


class OursPrepared(Ours):
    """Our package with weights packed or transformed before."""

    prepared = True
    layouts = ("nchw",)  # results of the other would have their axes in its order

    def __init__(self) -> None:
        super().__init__()
        self.name = "prepared"

    def applies(self, problem: ConvProblem, direction: Direction) -> bool:
        return direction is Direction.FORWARD

    def make(self, problem: ConvProblem, direction: Direction, operands: Operands) -> Call:
        x = operands.x
        layer = fastconv.prepare(operands.w, x.shape, **arguments(problem))
        return lambda: layer(x)


class Torch(Peer):
    """PyTorch, eager, in one of its two layouts."""

    dtypes = DTYPES

    def __init__(self, threads: int, channels_last: bool) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch, self.channels_last = torch, channels_last
        self.name = "torch_channels_last" if channels_last else "torch_nchw"
        self.layouts = LAYOUTS if channels_last else ("nchw",)

    def applies(self, problem: ConvProblem, direction: Direction) -> bool:
        return all(a.lo == a.hi >= 0 for a in problem.axes)

    def make(self, problem: ConvProblem, direction: Direction, operands: Operands) -> Call:
        torch, rank = self.torch, len(problem.axes)
        last = torch.channels_last_3d if rank == 3 else torch.channels_last
        layout = last if self.channels_last else torch.contiguous_format
        tensors = [self.tensor(a) for a in operands]
        stride, padding, dilation, groups = arguments(problem).values()
        if rank == 1 and self.channels_last:  # a signal has that layout as an image of one row
            rank, tensors = 2, [t.unsqueeze(2) for t in tensors]
            stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
        x, w, gy = (t.contiguous(memory_format=layout) for t in tensors)
        if direction is Direction.FORWARD:
            compute = getattr(torch.nn.functional, f"conv{rank}d")
            return lambda: compute(x, w, None, stride, padding, dilation, groups)
        backward, which = torch.ops.aten.convolution_backward, int(direction is Direction.WEIGHT_GRAD)
        wanted, none = [which == 0, which == 1, False], [0] * rank
        return lambda: backward(
            gy, x, w, None, stride, padding, dilation, False, none, groups, wanted
        )[which]  # fmt: skip

    def tensor(self, array: Array) -> Any:
        if array.dtype.name == "bfloat16":
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def array(self, result: Any, problem: ConvProblem, direction: Direction) -> Array:
        image_of_one_row = result.ndim > len(problem.axes) + 2
        result = result.squeeze(2) if image_of_one_row else result
        return np.asarray(result.float() if problem.dtype == "bfloat16" else result)

    def mode(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.torch.inference_mode()
        return context


class OnnxRuntime(Peer):
    """A model of one Conv node, whose weights ONNX Runtime packs when it is loaded."""

    name = "onnxruntime"
    settle = 45e-3  # its pool spins longer
    prepared = True
    dtypes = ("float32",)

    def __init__(self, threads: int, spinning: bool) -> None:
        import onnx
        import onnxruntime

        self.onnx, self.runtime, self.options = onnx, onnxruntime, onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))

    def applies(self, problem: ConvProblem, direction: Direction) -> bool:
        padded = all(min(a.lo, a.hi) >= 0 for a in problem.axes)
        return direction is Direction.FORWARD and padded

    def make(self, problem: ConvProblem, direction: Direction, operands: Operands) -> Call:
        session = self.runtime.InferenceSession(
            onnx_model(self.onnx, problem, operands.w), self.options, providers=["CPUExecutionProvider"]
        )
        feed = {"x": operands.x}
        return lambda: session.run(None, feed)[0]


def onnx_model(onnx: Any, problem: ConvProblem, weight: Array, bias: Array | None = None) -> bytes:
    """Return a model that is one Conv node with this weight; with a bias, it adds that and a ReLU follows."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    constants = {"w": weight} if bias is None else {"w": weight, "b": bias}
    node = helper.make_node(
        "Conv", ["x", *constants], ["y" if bias is None else "z"],
        kernel_shape=problem.kernel,
        strides=[a.stride for a in problem.axes],
        dilations=[a.dilation for a in problem.axes],
        pads=[a.lo for a in problem.axes] + [a.hi for a in problem.axes],
        group=problem.groups,
    )  # fmt: skip
    graph = helper.make_graph(
        [node] if bias is None else [node, helper.make_node("Relu", ["z"], ["y"])], "layer",
        [helper.make_tensor_value_info("x", kind, problem.input_shape)],
        [helper.make_tensor_value_info("y", kind, problem.output_shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


PEERS = ("torch", "onnxruntime", "openvino", "jax", "scipy", "opencv")


def installed(wanted: str, threads: int, prepared: bool, spinning: bool) -> tuple[list[Peer], list[str]]:
    """Return the peers that are asked for and installed, and a note on each that is not.

    ``wanted`` is "all", "none" or names out of `PEERS` with commas between them.  Those that have prepared
    weights take part only if ours are prepared too.
    """
    from fastconv.bench import others

    makers: dict[str, list[Callable[[], Peer]]] = {
        "torch": [lambda: Torch(threads, False), lambda: Torch(threads, True)],
        "onnxruntime": [lambda: OnnxRuntime(threads, spinning)],
        "openvino": [lambda: others.OpenVino(threads)],
        "jax": [lambda: others.Jax(threads)],
        "scipy": [others.ScipySignal, others.ScipyNdimage],
        "opencv": [lambda: others.OpenCv(threads), lambda: others.OpenCvDnn(threads)],
    }
    names = {"all": list(PEERS), "none": []}.get(wanted, wanted.split(","))
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"peers must be all, none or out of {', '.join(PEERS)}, got {', '.join(unknown)}")
    peers: list[Peer] = []
    notes = []
    for name in names:
        for make in makers[name]:
            try:
                peer = make()
            except ImportError as error:
                notes.append(f"{name} left out: {error}")
                continue
            if prepared or not peer.prepared:
                peers.append(peer)
    return peers, list(dict.fromkeys(notes))


def versions() -> dict[str, str]:
    """Return the versions of what may take part."""
    found = {"fastconv": fastconv.__version__}
    for name in ("numba", "llvmlite", "numpy", "torch", "onnxruntime", "openvino", "jax", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    for name in ("opencv-python-headless", "opencv-python"):
        with suppress(PackageNotFoundError):
            found.setdefault("opencv", version(name))
    return found
