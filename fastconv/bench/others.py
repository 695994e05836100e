"""Further peers: OpenVINO, JAX, SciPy and OpenCV, each for what it computes in one call of its own.

As for every peer, operands are converted, padded and laid out before the clock runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.bench.peers import Call, Operands, Peer, onnx_model
from fastconv.machine import cpus
from fastconv.problem import ConvProblem, Direction
from fastconv.typing import Array

MOST_CALLS = 4096  # of a library that takes one channel a call: more would measure Python's loop


class OpenVino(Peer):
    """A compiled model of one Conv node, in float32 arithmetic (its default may be bfloat16)."""

    name = "openvino"
    prepared = True
    dtypes = ("float32",)

    def __init__(self, threads: int) -> None:
        import onnx
        import openvino

        self.onnx, self.openvino = onnx, openvino
        self.options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }

    def applies(self, problem: ConvProblem, direction: Direction) -> bool:
        padded = all(min(a.lo, a.hi) >= 0 for a in problem.axes)
        return direction is Direction.FORWARD and padded

    def make(self, problem: ConvProblem, direction: Direction, operands: Operands) -> Call:
        core = self.openvino.Core()
        model = core.read_model(onnx_model(self.onnx, problem, operands.w))
        request = core.compile_model(model, "CPU", self.options).create_infer_request()
        x = operands.x
        return lambda: request.infer([x], share_inputs=True, share_outputs=True)[0]


class Jax(Peer):
    """``lax.conv_general_dilated`` under jit, channels last, and its transposes by ``vjp``.

    XLA takes its threads from the CPUs the process may run on, so it races only with all of them.
    """

    name = "jax"
    settle = 1e-3  # its pool sleeps

    def __init__(self, threads: int) -> None:
        if threads != cpus():
            raise ImportError(f"it computes on all {cpus()} CPUs, {threads} threads are asked for")
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax

        jax.config.update("jax_enable_x64", True)
        self.jax = jax

    def make(self, problem: ConvProblem, direction: Direction, operands: Operands) -> Call:
        jax, rank = self.jax, len(problem.axes)
        letters = "DHW"[-rank:]
        last, front = (0, *range(2, rank + 2), 1), (*range(2, rank + 2), 1, 0)  # NHWC, HWIO
        x, gy = (
            jax.numpy.asarray(np.ascontiguousarray(a.transpose(last))) for a in (operands.x, operands.gy)
        )
        w = jax.numpy.asarray(np.ascontiguousarray(operands.w.transpose(front)))

        def forward(x: Any, w: Any) -> Any:
            return jax.lax.conv_general_dilated(
                x, w, [a.stride for a in problem.axes], [(a.lo, a.hi) for a in problem.axes],
                rhs_dilation=[a.dilation for a in problem.axes], feature_group_count=problem.groups,
                dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            )  # fmt: skip

        compute, first, second = {
            Direction.FORWARD: (forward, x, w),
            Direction.INPUT_GRAD: (lambda gy, w: jax.vjp(lambda x: forward(x, w), x)[1](gy)[0], gy, w),
            Direction.WEIGHT_GRAD: (lambda x, gy: jax.vjp(lambda w: forward(x, w), w)[1](gy)[0], x, gy),
        }[direction]
        compiled = jax.jit(compute).lower(first, second).compile()
        return lambda: compiled(first, second).block_until_ready()

    def array(self, result: Any, problem: ConvProblem, direction: Direction) -> Array:
        values = np.asarray(result)
        if direction is Direction.WEIGHT_GRAD:
            return values.transpose(values.ndim - 1, values.ndim - 2, *range(values.ndim - 2))
        return values.transpose(0, values.ndim - 1, *range(1, values.ndim - 1))


class OneChannel(Peer):
    """A library whose convolutions have one channel in and one out: depthwise layers, a call a channel."""

    def applies(self, problem: ConvProblem, direction: Direction) -> bool:
        one = problem.groups == problem.c == problem.k
        few = problem.n * problem.c <= MOST_CALLS
        padded = all(min(a.lo, a.hi) >= 0 for a in problem.axes)
        plain = problem.unit_stride and problem.undilated and padded
        return direction is Direction.FORWARD and one and plain and few

    def correlate(self, problem: ConvProblem) -> Callable[[Array, Array], Array]:
        """Return a function of a padded image and a kernel that gives the positions inside."""
        raise NotImplementedError

    def make(self, problem: ConvProblem, direction: Direction, operands: Operands) -> Call:
        pads = [(0, 0), (0, 0), *((a.lo, a.hi) for a in problem.axes)]
        padded, w, compute = np.pad(operands.x, pads), operands.w[:, 0], self.correlate(problem)
        n, c, shape, dtype = problem.n, problem.c, problem.output_shape, problem.dtype

        def call() -> Array:
            y = np.empty(shape, dtype)
            for i in range(n):
                for j in range(c):
                    y[i, j] = compute(padded[i, j], w[j])
            return y

        return call


class ScipySignal(OneChannel):
    """``scipy.signal.correlate``, by the method it estimates to be the faster."""

    name = "scipy_signal"

    def __init__(self) -> None:
        import scipy.signal

        self.signal = scipy.signal

    def correlate(self, problem: ConvProblem) -> Callable[[Array, Array], Array]:
        x = np.empty([a.lo + a.size + a.hi for a in problem.axes], problem.dtype)
        method = self.signal.choose_conv_method(x, np.empty(problem.kernel, problem.dtype), mode="valid")
        correlate = self.signal.correlate
        return lambda image, kernel: correlate(image, kernel, mode="valid", method=method)


class ScipyNdimage(OneChannel):
    """``scipy.ndimage.correlate``, which gives every position of the padded image."""

    name = "scipy_ndimage"

    def __init__(self) -> None:
        import scipy.ndimage

        self.correlate_image = scipy.ndimage.correlate

    def correlate(self, problem: ConvProblem) -> Callable[[Array, Array], Array]:
        correlate = self.correlate_image
        inside = tuple(slice(a.kernel // 2, a.kernel // 2 + a.output) for a in problem.axes)
        return lambda image, kernel: correlate(image, kernel, mode="constant")[inside]


class OpenCv(OneChannel):
    """``cv2.filter2D``: correlation of images, by Fourier transforms where the kernel is large."""

    name = "opencv"

    def __init__(self, threads: int) -> None:
        import cv2

        cv2.setNumThreads(threads)
        self.cv2 = cv2

    def applies(self, problem: ConvProblem, direction: Direction) -> bool:
        return len(problem.axes) == 2 and super().applies(problem, direction)

    def correlate(self, problem: ConvProblem) -> Callable[[Array, Array], Array]:
        compute, border = self.cv2.filter2D, self.cv2.BORDER_CONSTANT
        inside = tuple(slice(a.kernel // 2, a.kernel // 2 + a.output) for a in problem.axes)
        return lambda image, kernel: compute(image, -1, kernel, borderType=border)[inside]


class OpenCvDnn(Peer):
    """OpenCV's networks: a model of one Conv node."""

    name = "opencv_dnn"
    prepared = True
    dtypes = ("float32",)

    def __init__(self, threads: int) -> None:
        import cv2
        import onnx

        cv2.setNumThreads(threads)
        self.cv2, self.onnx = cv2, onnx

    def applies(self, problem: ConvProblem, direction: Direction) -> bool:
        symmetric = all(a.lo == a.hi >= 0 for a in problem.axes)
        return direction is Direction.FORWARD and symmetric and len(problem.axes) == 2

    def make(self, problem: ConvProblem, direction: Direction, operands: Operands) -> Call:
        model = onnx_model(self.onnx, problem, operands.w)
        net = self.cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
        x = operands.x

        def call() -> Any:
            net.setInput(x)
            return net.forward()

        return call
