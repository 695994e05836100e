"""``python -m fastconv bench pooling``: pooling and lowering beside PyTorch's, forward and gradient.

The layers are those of well-known networks.  Maxima and means are compared with windows cut out by NumPy, and everything
with PyTorch where it is installed, which also gives the times to beat: the better of its two memory layouts.
PyTorch's gradient of maxima is told where they stood; ours is timed both ways.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np

import fastconv
from fastconv.bench.measure import race
from fastconv.typing import Array

Call = Callable[[], Any]
TOLERANCE = 1e-5  # of the largest result; windows sum a few hundred numbers


@dataclass(frozen=True)
class Layer:
    """A call ``function(x, *arguments)``; unfolding and unpooling are timed in reverse, too."""

    function: str
    shape: tuple[int, ...]
    arguments: tuple[Any, ...]
    network: str = ""

    def __str__(self) -> str:
        return f"{self.function} {'x'.join(map(str, self.shape))} {', '.join(map(str, self.arguments))}"


LAYERS = (
    Layer("max_pool2d", (16, 64, 112, 112), (3, 2, 1), "ResNet"),
    Layer("max_pool2d", (8, 64, 224, 224), (2,), "VGG"),
    Layer("max_pool2d", (16, 480, 14, 14), (3, 1, 1), "GoogLeNet"),
    Layer("max_pool2d", (64, 16, 28, 28), (2,), "LeNet"),
    Layer("max_pool2d", (16, 512, 7, 7), (7,), "global"), Layer("avg_pool2d", (16, 64, 112, 112), (3, 2, 1)),
    Layer("avg_pool2d", (16, 128, 56, 56), (2,), "DenseNet"),
    Layer("avg_pool2d", (16, 480, 14, 14), (3, 1, 1), "Inception"),
    Layer("avg_pool2d", (16, 2048, 7, 7), (7,), "ResNet"),
    Layer("adaptive_avg_pool2d", (16, 512, 14, 14), (7,), "VGG"),
    Layer("adaptive_avg_pool2d", (64, 64, 7, 7), (1,), "ResNet"),
    Layer("adaptive_max_pool2d", (16, 256, 13, 13), (6,), "AlexNet"),
    Layer("lp_pool2d", (16, 64, 56, 56), (2.0, 2)), Layer("max_pool1d", (16, 128, 4096), (4,)),
    Layer("avg_pool3d", (2, 32, 16, 56, 56), (2,)), Layer("max_pool3d", (2, 32, 16, 56, 56), (2,)),
    Layer("unfold", (16, 64, 28, 28), (3, 1, 1)),
)  # fmt: skip


def ours(layer: Layer, x: Array, gy: Array) -> Iterator[tuple[str, Call]]:
    """Yield our calls by direction."""
    function, arguments = getattr(fastconv, layer.function), layer.arguments
    yield "forward", lambda: function(x, *arguments)
    if layer.function.startswith("max_pool"):
        backward = getattr(fastconv, f"{layer.function}_backward")
        y, places = function(x, *arguments, return_indices=True)
        yield "gradient", lambda: backward(x, gy, *arguments)
        yield "gradient, places", lambda: backward(x, gy, *arguments, indices=places)
        if arguments == (2,):
            unpool = getattr(fastconv, layer.function.replace("max_pool", "max_unpool"))
            yield "unpooling", lambda: unpool(y, places, 2)
    elif layer.function.startswith("avg_pool"):
        yield (
            "gradient",
            lambda: getattr(fastconv, f"{layer.function}_backward")(layer.shape, gy, *arguments),
        )
    elif layer.function == "adaptive_avg_pool2d":
        yield "gradient", lambda: fastconv.adaptive_avg_pool2d_backward(layer.shape, gy)
    elif layer.function == "unfold":
        yield "gradient", lambda: fastconv.fold(gy, layer.shape[2:], *arguments)


def theirs(layer: Layer, x: Array, gy: Array, torch: Any, last: bool) -> dict[str, Call]:
    """Return PyTorch's calls by direction."""

    def tensor(array: Array) -> Any:
        found = torch.from_numpy(array)
        return found.contiguous(memory_format=torch.channels_last) if last and array.ndim == 4 else found

    function = getattr(torch.nn.functional, layer.function)
    image, learned, gradient = tensor(x), tensor(x).detach().requires_grad_(), tensor(gy)
    y = function(learned, *layer.arguments)

    def backward() -> Any:
        return torch.autograd.grad(y, learned, gradient, retain_graph=True)[0]

    calls = {
        "forward": lambda: function(image, *layer.arguments),
        "gradient": backward,
        "gradient, places": backward,
    }
    if layer.function.startswith("max_pool") and layer.arguments == (2,):
        values, places = function(image, 2, return_indices=True)
        unpool = getattr(torch.nn.functional, layer.function.replace("max_pool", "max_unpool"))
        calls["unpooling"] = lambda: unpool(values, places, 2)
    return calls


def definition(layer: Layer, x: Array) -> Array | None:
    """Return the maxima or means of windows cut out by NumPy; None for other functions."""
    kind = layer.function.partition("_pool")[0]
    if kind not in ("max", "avg") or not layer.function.endswith("2d"):
        return None
    kernel, stride, pad = layer.arguments if len(layer.arguments) == 3 else (layer.arguments[0],) * 2 + (0,)
    border = -np.inf if kind == "max" else 0.0
    padded = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)], constant_values=border)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))[
        :, :, ::stride, ::stride
    ]
    result: Array = windows.max((4, 5)) if kind == "max" else windows.mean((4, 5))
    return result


def check(layer: Layer, who: str, mine: Array, right: Array) -> None:
    """Raise if a result is not another's."""
    error = float(np.abs(mine - right).max(initial=0.0)) if mine.shape == right.shape else float("inf")
    if not error <= TOLERANCE * max(1.0, float(np.abs(right).max(initial=0.0))):
        raise ArithmeticError(f"{layer}: {who} differs by {error:.2e}")


def main(argv: Sequence[str] | None = None) -> int:
    """Check and time all layers, a line for each direction as it is done."""
    parser = argparse.ArgumentParser(
        prog="fastconv bench pooling", description="Time pooling beside PyTorch."
    )
    parser.add_argument("--threads", type=int, default=2, help="of both (default: 2)")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each line (default: 0.3)")
    parser.add_argument("--only", default="", help="layers whose line contains this")
    options = parser.parse_args(argv)
    ratios = []
    with ExitStack() as stack:
        stack.enter_context(fastconv.config(threads=options.threads, reuse=True))
        try:
            import torch
        except ImportError:
            torch = None
            print("PyTorch is not installed: left out")
        else:
            torch.set_num_threads(options.threads)
        print(f"{'layer':58}{'direction':18}{'ms':>9}{'torch NCHW':>12}{'channels_last':>15}{'ratio':>8}")
        for layer in LAYERS:
            if options.only in str(layer):
                ratios += _measure(layer, torch, options.seconds)
    if ratios:
        print(f"{len(ratios)} lines, geometric mean {exp(sum(map(log, ratios)) / len(ratios)):.2f}")
    return 0


def _measure(layer: Layer, torch: Any, seconds: float) -> list[float]:
    """Time the directions of a layer; return PyTorch's time over ours for each."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(layer.shape, dtype=np.float32)
    y = getattr(fastconv, layer.function)(x, *layer.arguments)
    if (right := definition(layer, x)) is not None:
        check(layer, "NumPy", y, right)
    gy, ratios = rng.standard_normal(y.shape, dtype=np.float32), []
    others = {}
    if torch is not None:
        others["NCHW"] = theirs(layer, x, gy, torch, False)
        if len(layer.shape) == 4 and layer.function != "unfold":
            others["channels_last"] = theirs(layer, x, gy, torch, True)
    for direction, call in ours(layer, x, gy):
        calls = {"ours": call}
        for name, found in others.items():
            check(layer, f"PyTorch, {direction}", call(), found[direction]().detach().numpy())
            calls[name] = found[direction]
        best = {name: sample.best for name, sample in race(calls, seconds).items()}
        mine = best.pop("ours")
        line = f"{layer!s:58}{direction:18}{1e3 * mine:9.3f}"
        if best:
            ratios.append(min(best.values()) / mine)
            line += (
                f"{1e3 * best['NCHW']:12.3f}{1e3 * best.get('channels_last', np.nan):15.3f}{ratios[-1]:8.2f}"
            )
        print(line, flush=True)
    return ratios
