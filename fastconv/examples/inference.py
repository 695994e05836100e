"""``python -m fastconv.examples.inference``: the convolutions of a real network, forward, with ready weights.

At inference the weights of a network never change, so each layer is prepared once (packed, or transformed for
Winograd or FFT), and bias and ReLU act on results while they are in cache.  Every layer that the network
has is timed as often as it occurs, beside PyTorch in both of its memory layouts and ONNX Runtime where they
are installed; all take turns on the same operands and threads, and each has its own fusion of the ReLU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import numpy as np

import fastconv
from fastconv.bench import corpus
from fastconv.bench.measure import race
from fastconv.bench.peers import arguments, onnx_model
from fastconv.problem import ConvProblem
from fastconv.typing import Array

NETWORKS = {"resnet50": "ResNet-50", "vgg19": "VGG-19", "mobilenet": "MobileNet v1"}

Call = Callable[[], Any]


def ours(problem: ConvProblem, x: Array, w: Array, b: Array) -> Call:
    """Return a prepared layer."""
    layer = fastconv.prepare(w, x.shape, b, activation="relu", **arguments(problem))
    return lambda: layer(x)


def torchs(problem: ConvProblem, x: Array, w: Array, b: Array, torch: Any, channels_last: bool) -> Call:
    """Return the layer in PyTorch, its ReLU in place."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    image, weight = (torch.from_numpy(a).contiguous(memory_format=layout) for a in (x, w))
    bias, walk = torch.from_numpy(b), arguments(problem).values()
    return lambda: torch.relu_(torch.nn.functional.conv2d(image, weight, bias, *walk))


def onnx_runtimes(problem: ConvProblem, x: Array, w: Array, b: Array, threads: int) -> Call:
    """Return the layer as a model of two nodes, which ONNX Runtime makes one of."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        onnx_model(onnx, problem, w, b), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": x})[0]


def contestants(problem: ConvProblem, threads: int) -> dict[str, Call]:
    """Return the layer by everybody who is installed, on the same normal numbers."""
    rng = np.random.default_rng(0)
    shapes = (problem.input_shape, problem.weight_shape, (problem.k,))
    x, w, b = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    calls = {"fastconv": ours(problem, x, w, b)}
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        calls["torch NCHW"] = torchs(problem, x, w, b, torch, False)
        calls["torch channels_last"] = torchs(problem, x, w, b, torch, True)
    with suppress(ImportError):
        calls["onnxruntime"] = onnx_runtimes(problem, x, w, b, threads)
    return calls


def check(calls: dict[str, Call], problem: ConvProblem) -> None:
    """Raise if somebody's result is another's, beyond the rounding of sums of this length."""
    results = {name: np.asarray(call()) for name, call in calls.items()}
    mine = results.pop("fastconv")
    bound = 1e-5 * problem.reduction**0.5 * max(1.0, float(np.abs(mine).max()))
    for name, theirs in results.items():
        if not (error := float(np.abs(mine - theirs).max())) <= bound:
            raise ArithmeticError(
                f"{problem}: fastconv and {name} differ by {error:.2e}, more than {bound:.2e}"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Time the layers, a line for each as it is done, and add them up."""
    parser = argparse.ArgumentParser(
        prog="fastconv.examples.inference", description="Run a network's convolutions, weights prepared."
    )
    parser.add_argument("network", nargs="?", default="resnet50", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of all (default: 2)")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each layer (default: 0.3)")
    options = parser.parse_args(argv)
    layers = corpus.load(options.network)
    with ExitStack() as stack:
        stack.enter_context(fastconv.config(threads=options.threads))
        try:
            import torch
        except ImportError:
            print("PyTorch is not installed: left out")
        else:
            torch.set_num_threads(options.threads)
            stack.enter_context(torch.inference_mode())
        print(
            f"{NETWORKS[options.network]}, batch {options.batch}, {options.threads} threads: ms for each layer"
        )
        total: dict[str, float] = {}
        for layer in layers:
            problem = replace(layer.problem, n=options.batch)
            calls = contestants(problem, options.threads)
            check(calls, problem)
            if not total:
                print(f"{'layer':44}{'times':>6}" + "".join(f"{name:>21}" for name in calls))
            best = {name: 1e3 * s.best for name, s in race(calls, options.seconds).items()}
            print(f"{problem!s:44}{layer.times:6}" + "".join(f"{t:21.3f}" for t in best.values()), flush=True)
            for name, milliseconds in best.items():
                total[name] = total.get(name, 0.0) + layer.times * milliseconds
        print(f"{'all layers':50}" + "".join(f"{t:21.2f}" for t in total.values()))
        print(f"{'over fastconv':50}" + "".join(f"{t / total['fastconv']:21.2f}" for t in total.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
