"""``python -m fastconv.examples.step_time``: one training step of each network, ours beside PyTorch's.

Both start from the same weights and take the same batch forward, compute the loss and all gradients, and step by the same
optimizer.  PyTorch runs in both of its memory layouts, with its fused optimizer; the faster one counts.  All
take turns in one process on the same number of threads.  A turn is a few steps, as they follow each other in training,
and the best turn is shown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fastconv
from fastconv import nn
from fastconv.bench.measure import race
from fastconv.examples.models import ARCHITECTURES
from fastconv.typing import Array

Step = Callable[[], float]
TURN = 5  # steps


def ours(model: nn.Module, loss: nn.Loss, x: Array, target: Array) -> Step:
    """Return a step of our training loop."""
    optimizer = nn.AdamW(model.parameters())

    def step() -> float:
        value = loss(model(x), target)
        optimizer.zero_grad()
        model.backward(loss.backward())
        optimizer.step()
        return value

    return step


def theirs(model: nn.Module, loss: nn.Loss, x: Array, target: Array, channels_last: bool) -> Step:
    """Return a step of PyTorch's on the same network, with copies of its weights."""
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    copy = translated(model, torch).to(memory_format=layout)
    copy.load_state_dict({n: torch.from_numpy(a) for n, a in model.state_dict().items()}, strict=False)
    criterion = getattr(torch.nn, type(loss).__name__)()
    optimizer = torch.optim.AdamW(copy.parameters(), fused=True)
    batch = torch.from_numpy(x.copy()).contiguous(memory_format=layout)
    answers = torch.from_numpy(target)

    def step() -> float:
        value = criterion(copy(batch), answers)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return float(value.detach())

    return step


def translated(layer: nn.Module, torch: Any) -> Any:
    """Return the PyTorch module of a layer: names and parameters are the same, so most is a look-up."""
    make: Any = getattr(torch.nn, type(layer).__name__, None)  # PyTorch has no Residual and no Concat
    activation = getattr(layer, "activation_name", None)
    if activation and make:  # in place: PyTorch's fastest
        make = _activated(make, getattr(torch, f"{activation}_"))
    if isinstance(layer, nn.Sequential):
        return make(*(translated(child, torch) for child in layer.layers))
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
        shape, transposed = layer.weight.data.shape, isinstance(layer, nn.ConvTranspose2d)
        groups = layer.arguments["groups"]
        channels = (shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0])
        return make(*channels, shape[2:], bias=layer.bias is not None, **layer.arguments)
    if isinstance(layer, nn.Linear):
        return make(*layer.weight.data.shape[::-1], bias=layer.bias is not None)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return make(len(layer.running_mean), layer.eps, layer.momentum)
    if isinstance(layer, nn.MaxPool2d):
        return make(*layer.window[:4], False, layer.window[4])
    if isinstance(layer, nn.AvgPool2d):
        return make(*layer.window)
    if isinstance(layer, nn.Softmax):
        return make(layer.dim)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return make(layer.output_size)
    if isinstance(layer, nn.Residual | nn.Concat):
        return _joined(layer, torch)
    return make()


def _activated(base: Any, activate: Callable[[Any], Any]) -> Any:
    """Return a class of PyTorch's layers that ends with an activation."""
    return type(base.__name__, (base,), {"forward": lambda self, x: activate(base.forward(self, x))})


def _joined(layer: nn.Residual | nn.Concat, torch: Any) -> Any:
    class Joined(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = translated(layer.body, torch)
            other = getattr(layer, "shortcut", None)
            self.shortcut = None if other is None else translated(other, torch)

        def forward(self, x: Any) -> Any:
            if isinstance(layer, nn.Concat):
                return torch.cat([x, self.body(x)], 1)
            y = self.body(x) + (x if self.shortcut is None else self.shortcut(x))
            return torch.relu_(y) if layer.activation_name else y

    return Joined()


def turn(step: Step) -> Callable[[], None]:
    """Return what takes a few steps."""

    def steps() -> None:
        for _ in range(TURN):
            step()

    return steps


def batch_for(architecture: str, size: int, rng: np.random.Generator) -> tuple[nn.Loss, Array, Array]:
    """Return the loss, inputs and targets of a step: normal numbers, of the digits' shapes."""
    if architecture == "unet-like":
        x = rng.standard_normal((size, 1, 48, 48), dtype="float32")
        return nn.BCEWithLogitsLoss(), x, rng.integers(0, 2, x.shape).astype("float32")
    x = rng.standard_normal((size, 1, 28, 28), dtype="float32")
    return nn.CrossEntropyLoss(), x, rng.integers(0, 10, size)


def main(argv: Sequence[str] | None = None) -> int:
    """Time the steps and print a line for each network; 2 without PyTorch."""
    parser = argparse.ArgumentParser(prog="fastconv.examples.step_time", description="Time a training step.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="of both (default: 2)")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each network (default: 6)")
    options = parser.parse_args(argv)
    try:
        import torch
    except ImportError as error:
        print(f"{error}; pip install torch", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    print(f"one training step, batch {options.batch}, {options.threads} threads; best of many turns, in ms")
    print(f"{'network':12}{'fastconv':>10}{'torch NCHW':>12}{'torch channels_last':>21}{'ratio':>8}")
    with fastconv.config(threads=options.threads, reuse=True):
        for name, make in ARCHITECTURES.items():
            rng = np.random.default_rng(0)
            model = make(rng)
            case = batch_for(name, options.batch, rng)
            contestants = {
                "nchw": theirs(model, *case, False), "last": theirs(model, *case, True), "ours": ours(model, *case)
            }  # fmt: skip
            turns = {name: turn(step) for name, step in contestants.items()}
            best = {k: 1e3 * s.best / TURN for k, s in race(turns, options.seconds).items()}
            ratio = min(best["nchw"], best["last"]) / best["ours"]
            print(
                f"{name:12}{best['ours']:10.2f}{best['nchw']:12.2f}{best['last']:21.2f}{ratio:8.2f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
