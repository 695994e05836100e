"""Race the CUDA engine against cuDNN through PyTorch: ``python -m fastconv.bench.gpu [SUITE] [-o FILE]``.

Strict float32 on both sides (no TF32), cudnn.benchmark on, random data, CUDA events, the median of many calls,
in turns.  cuDNN runs channels first and channels last, forward also with bias and ReLU, which PyTorch computes
in kernels of their own.  Every result is compared with cuDNN's before it is timed.  Takes under eight minutes;
needs PyTorch with CUDA and numba-cuda.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

import fastconv
from fastconv.bench import corpus
from fastconv.problem import ConvProblem, Direction

ROUNDS = 15
SECONDS = 420.0  # after which no further layer is begun
LARGEST = 2**31  # bytes of a layer's arrays
TOLERANCE = 1e-4  # of the largest element: both sum in float32, in different orders


def contestants(problem: ConvProblem, direction: Direction, fused: bool, device: str) -> dict[str, Any]:
    """Return by name what computes one layer in one direction, on operands of its own layout."""
    import torch

    rank, spatial = len(problem.axes), tuple(range(2, 2 + len(problem.axes)))
    stride = tuple(a.stride for a in problem.axes)
    dilation = tuple(a.dilation for a in problem.axes)
    pads = tuple(a.lo for a in problem.axes)
    if any(a.lo != a.hi for a in problem.axes):
        raise ValueError(f"cuDNN pads both sides alike, got {problem}")
    torch.manual_seed(0)
    x, w, gy = (
        torch.randn(shape, device=device)
        for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)
    )
    b = torch.randn(problem.k, device=device) if fused else None
    walk: dict[str, Any] = {
        "stride": stride,
        "padding": pads,
        "dilation": dilation,
        "groups": problem.groups,
    }
    mask = [direction is Direction.INPUT_GRAD, direction is Direction.WEIGHT_GRAD, False]

    def theirs(x: Any, w: Any, gy: Any) -> Any:
        if direction is Direction.FORWARD:
            y = getattr(torch.nn.functional, f"conv{rank}d")(x, w, b, **walk)
            return torch.relu_(y) if fused else y
        grads = torch.ops.aten.convolution_backward(
            gy, x, w, None, stride, pads, dilation, False, [0] * rank, problem.groups, mask
        )
        return grads[0] if mask[0] else grads[1]

    def ours() -> Any:
        if direction is Direction.FORWARD:
            activation: Any = "relu" if fused else None
            return getattr(fastconv, f"conv{rank}d")(x, w, b, activation=activation, **walk)
        if direction is Direction.INPUT_GRAD:
            return getattr(fastconv, f"conv{rank}d_input")(problem.input_shape, w, gy, **walk)
        return getattr(fastconv, f"conv{rank}d_weight")(x, problem.weight_shape, gy, **walk)

    found = {"fastconv": ours, "cuDNN NCHW": lambda: theirs(x, w, gy)}
    if len(spatial) == 2:
        last = [a.contiguous(memory_format=torch.channels_last) for a in (x, w, gy)]
        found["cuDNN NHWC"] = lambda: theirs(*last)
    return found


def check(found: dict[str, Callable[[], Any]]) -> float:
    """Return the difference from cuDNN's result, over its largest element."""
    import torch

    ours, theirs = torch.as_tensor(found["fastconv"]()), found["cuDNN NCHW"]()
    return float((ours.to(theirs.device) - theirs).abs().max() / theirs.abs().max())


def on_device(call: Callable[[], Any]) -> float:
    """Return the seconds of one call between two CUDA events."""
    import torch

    cuda: Any = torch.cuda
    begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def race(
    found: dict[str, Callable[[], Any]], timer: Callable[[Callable[[], Any]], float]
) -> dict[str, float]:
    """Return the median seconds of each contestant; all run in turns, warm."""
    for call in found.values():
        for _ in range(3):
            call()
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        for name, call in found.items():
            times[name].append(timer(call))
    return {name: median(seconds) for name, seconds in times.items()}


def row(layer: corpus.Layer, direction: Direction, fused: bool, device: str, timer: Any) -> dict[str, Any]:
    """Measure one layer in one direction."""
    found = contestants(layer.problem, direction, fused, device)
    difference = check(found)
    return {
        "problem": str(layer.problem),
        "category": layer.category,
        "direction": str(direction) + (" bias relu" if fused else ""),
        "difference": difference,
        "right": difference <= TOLERANCE,
        "seconds": race(found, timer),
        "flops": layer.problem.flops,
    }


def launch_cost(device: str) -> float:
    """Return the seconds that a call of a tiny layer keeps the CPU, kernels running behind."""
    import torch

    x, w = torch.randn(1, 8, 8, 8, device=device), torch.randn(8, 8, 3, 3, device=device)
    for _ in range(10):
        fastconv.conv2d(x, w, padding=1)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(200):
        fastconv.conv2d(x, w, padding=1)
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return spent / 200


def summary(rows: list[dict[str, Any]]) -> str:
    """Return geometric means of cuDNN's time over ours, by direction, as a table."""
    lines = [f"{'direction':20} {'layers':>6} {'NCHW':>6} {'better layout':>14} {'TFLOP/s, best':>14}"]
    for direction in dict.fromkeys(r["direction"] for r in rows):
        of = [r for r in rows if r["direction"] == direction and r["right"]]
        if not of:
            continue
        first, best = [], []
        for r in of:
            ours, *peers = r["seconds"].values()
            first.append(log(peers[0] / ours))
            best.append(log(min(peers) / ours))
        peak = max(r["flops"] / r["seconds"]["fastconv"] for r in of) / 1e12
        means = [exp(sum(v) / len(v)) for v in (first, best)]
        lines.append(f"{direction:20} {len(of):6} {means[0]:6.2f} {means[1]:14.2f} {peak:14.1f}")
    lines += [
        f"WRONG by {r['difference']:.2g}: {r['direction']} {r['problem']}" for r in rows if not r["right"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure a suite, print a table and write a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", nargs="?", default="core")
    parser.add_argument("-o", "--output", default=f"gpu-{date.today()}.json")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no GPU that PyTorch can use")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    until, rows = time.monotonic() + SECONDS, []
    variants = [(d, False) for d in Direction] + [(Direction.FORWARD, True)]
    for layer in corpus.load(options.suite):
        symmetric = all(a.lo == a.hi for a in layer.problem.axes)
        if time.monotonic() > until:
            print("out of time: the layers after this were left out")
            break
        if symmetric and layer.problem.bytes <= LARGEST and layer.problem.dtype == "float32":
            for direction, fused in variants:
                rows.append(row(layer, direction, fused, "cuda", on_device))
            print(layer.problem, {n: f"{s * 1e6:.0f} us" for n, s in rows[-4]["seconds"].items()}, flush=True)
    launch = launch_cost("cuda")
    print(summary(rows), f"\nlaunch {launch * 1e6:.1f} us on {torch.cuda.get_device_name()}")
    cudnn: Any = torch.backends.cudnn
    versions = {"torch": torch.__version__, "cudnn": cudnn.version()}
    record = {"gpu": torch.cuda.get_device_name(), "launch": launch, "versions": versions, "rows": rows}
    Path(options.output).write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
