"""Race the CUDA engine against cuDNN through PyTorch: ``python -m fastconv.bench.gpu [SUITE] [-o FILE]``.

Strict float32 on both sides (no TF32), cudnn.benchmark on, random data, CUDA events, the median of many calls,
in turns, each after writing more memory than the second-level cache holds, which also lets the launches be ready
when they are timed.  Both run channels first and channels last, forward also with bias and ReLU, which PyTorch computes
in kernels of their own.  Every result is compared with cuDNN's before it is timed, and the algorithm chosen and its
workspace are kept; then Winograd and FFT run by name.  Kernels are compiled first, on all cores.  Takes under eight
minutes; needs PyTorch with CUDA and numba-cuda, and leaves a dated file, in bench/results where there is that folder.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from itertools import product
from math import exp, log, prod
from pathlib import Path
from statistics import median
from typing import Any

import fastconv
from fastconv.algorithms import find
from fastconv.bench import corpus
from fastconv.config import current
from fastconv.cuda import backend
from fastconv.cuda.ahead import Array, compile_all, elsewhere
from fastconv.cuda.compiler import Kernel
from fastconv.problem import ConvProblem, Direction
from fastconv.select import admitted, select

ROUNDS = 15
CALLS, REPEATS = 200, 5  # of tiny layers: fewer launches than a GPU takes before the CPU has to wait
SECONDS = 420.0  # after which no further layer is begun
SECONDS_BY_NAME = 40.0  # more for algorithms by name
NAMED = ("winograd:F(2,3)", "winograd:F(4,3)", "fft")
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

    def ours(x: Any, w: Any, gy: Any) -> Any:
        return call(problem, direction, x, w, gy, b)

    found = {"fastconv NCHW": lambda: ours(x, w, gy), "cuDNN NCHW": lambda: theirs(x, w, gy)}
    if len(spatial) == 2:
        last = [a.contiguous(memory_format=torch.channels_last) for a in (x, w, gy)]
        found |= {"fastconv NHWC": lambda: ours(*last), "cuDNN NHWC": lambda: theirs(*last)}
    return found


def call(problem: ConvProblem, direction: Direction, x: Any, w: Any, gy: Any, b: Any = None) -> Any:
    """Compute one direction with fastconv; with a bias also ReLU."""
    name, axes = f"conv{len(problem.axes)}d", problem.axes
    walk: dict[str, Any] = {
        "stride": tuple(a.stride for a in axes), "padding": tuple(a.lo for a in axes),
        "dilation": tuple(a.dilation for a in axes), "groups": problem.groups,
    }  # fmt: skip
    if direction is Direction.FORWARD:
        return getattr(fastconv, name)(x, w, b, activation=None if b is None else "relu", **walk)
    if direction is Direction.INPUT_GRAD:
        return getattr(fastconv, f"{name}_input")(problem.input_shape, w, gy, **walk)
    return getattr(fastconv, f"{name}_weight")(x, problem.weight_shape, gy, **walk)


def kernels_of(layers: Iterable[corpus.Layer], processors: int) -> list[Kernel]:
    """Return what the race will start on a GPU of so many multiprocessors; needs none."""
    with elsewhere(processors) as gpu:
        for start in tiny(*map(Array, TINY)).values():
            start()
        for named, layer in product((False, True), layers):  # in the order of the race
            problem = layer.problem
            shapes = problem.input_shape, problem.weight_shape, problem.output_shape
            layouts = (False, True) if len(problem.axes) == 2 else (False,)
            for (direction, fused, name), last in product(ways(layer, named, "cuda"), layouts):
                told_by_the_race = contextlib.suppress(Exception)
                with told_by_the_race, fastconv.config(algorithm=name or "auto"):
                    x, w, gy = (absent(shape, last) for shape in shapes)
                    call(problem, direction, x, w, gy, absent((problem.k,), False) if fused else None)
    return list(gpu.kernels)


def absent(shape: tuple[int, ...], last: bool) -> Array:
    """Return an array on a GPU that is not here, with its channels last or first."""
    if not last:
        return Array(shape)
    _, c, *pixels = shape
    return Array(shape, (c * prod(pixels), 1, *(c * prod(pixels[i + 1 :]) for i in range(len(pixels)))))


def check(found: dict[str, Callable[[], Any]]) -> float:
    """Return the largest difference of our results from cuDNN's, over its largest element."""
    import torch

    theirs = found["cuDNN NCHW"]()
    differences = [
        float((torch.as_tensor(call()).to(theirs.device) - theirs).abs().max() / theirs.abs().max())
        for name, call in found.items()
        if name.startswith("fastconv")
    ]
    return max(differences)


def on_device(call: Callable[[], Any]) -> float:
    """Return the seconds of one call between two CUDA events."""
    import torch

    cuda: Any = torch.cuda
    much().zero_()
    begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


@functools.cache
def much() -> Any:
    """Return more memory than the second-level cache holds, which takes 100 to 200 us to write."""
    import torch

    return torch.empty(2**29, dtype=torch.uint8, device="cuda")


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


def titled(direction: Direction, fused: bool = False, name: str = "") -> str:
    """Return what the table calls a direction."""
    return str(direction) + (" bias relu" if fused else "") + (f" {name}" if name else "")


def row(layer: corpus.Layer, direction: Direction, fused: bool, device: str, timer: Any) -> dict[str, Any]:
    """Measure one layer in one direction."""
    found = contestants(layer.problem, direction, fused, device)
    difference = check(found)
    choice = select(layer.problem, direction, current(), device)
    chosen = next(c for c in choice.candidates if c.name == choice.algorithm)
    return {
        "algorithm": chosen.name,
        "workspace": chosen.workspace,
        "problem": str(layer.problem),
        "category": layer.category,
        "direction": titled(direction, fused),
        "difference": difference,
        "right": difference <= TOLERANCE,
        "seconds": race(found, timer),
        "flops": layer.problem.flops,
    }


def ways(layer: corpus.Layer, named: bool, device: str) -> Iterator[tuple[Direction, bool, str]]:
    """Return directions, whether bias and ReLU are added, and algorithms that race by name or "" for the choice."""
    if not worth(layer.problem):
        return
    if not named:
        yield from [(d, False, "") for d in Direction] + [(Direction.FORWARD, True, "")]
        return
    for name, direction in product(NAMED, Direction):
        if admitted(find(name, device), layer.problem, direction, current()):
            yield direction, False, name


def worth(problem: ConvProblem) -> bool:
    """Return whether cuDNN serves a problem and the GPU holds it."""
    symmetric = all(a.lo == a.hi for a in problem.axes)
    return symmetric and problem.bytes <= LARGEST and problem.dtype == "float32"


TINY = (1, 8, 8, 8), (8, 8, 3, 3), (8,), (1, 8, 8, 8)  # images, weights, bias, residual


def tiny(x: Any, w: Any, b: Any, r: Any) -> dict[str, Callable[[], Any]]:
    """Return calls whose kernels take less than their start."""
    walk: dict[str, Any] = {"padding": 1, "algorithm": "direct"}
    return {
        "one launch": lambda: fastconv.conv2d(x, w, **walk),
        "bias, ReLU, residual": lambda: fastconv.conv2d(x, w, b, activation="relu", residual=r, **walk),
        "four launches": lambda: fastconv.conv2d(x, w, padding=1, algorithm="winograd:F(4,3)"),
        "pooling": lambda: fastconv.max_pool2d(x, 2),
    }


def launch_costs(device: str) -> dict[str, float]:
    """Return the seconds that calls keep the CPU, kernels running behind."""
    import torch

    x, w, *rest = (torch.randn(shape, device=device) for shape in TINY)
    calls = tiny(x, w, *rest) | {"PyTorch": lambda: torch.nn.functional.conv2d(x, w, padding=1)}
    return {name: min(_kept(call) for _ in range(REPEATS)) for name, call in calls.items()}


def _kept(call: Callable[[], Any]) -> float:
    import torch

    call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return spent / CALLS


def summary(rows: list[dict[str, Any]]) -> str:
    """Return geometric means of cuDNN's time over ours, by direction and of both layouts' better times, as a table."""
    lines = [f"{'direction':28} {'layers':>6} {'NCHW':>6} {'NHWC':>6} {'better':>7} {'TFLOP/s, best':>14}"]
    for direction in dict.fromkeys(r["direction"] for r in rows):
        of = [r for r in rows if r["direction"] == direction and r["right"]]
        if not of:
            continue
        means = []
        for layouts in (("NCHW",), ("NHWC",), ("NCHW", "NHWC")):
            times = [
                [min((r["seconds"][f"{who} {lay}"] for lay in layouts if f"{who} {lay}" in r["seconds"]), default=0.0)
                 for who in ("cuDNN", "fastconv")]
                for r in of
            ]  # fmt: skip
            ratios = [log(theirs / ours) for theirs, ours in times if theirs]
            means.append(exp(sum(ratios) / len(ratios)) if ratios else float("nan"))
        peak = max(
            r["flops"] / min(t for n, t in r["seconds"].items() if n.startswith("fastconv")) for r in of
        )
        shown = " ".join(f"{mean:{width}.2f}" for mean, width in zip(means, (6, 6, 7), strict=True))
        lines.append(f"{direction:28} {len(of):6} {shown} {peak / 1e12:14.1f}")
    lines += [told(r) for r in rows if not r["right"]]
    return "\n".join(lines)


def spread(layers: list[corpus.Layer], step: int = 7) -> list[corpus.Layer]:
    """Return layers in an order in which the first ones are of all categories."""
    return [layer for begin in range(step) for layer in layers[begin::step]]


class Record:
    """Rows, and the file that has them after each: what is lost by an interruption is one row."""

    def __init__(self, path: Path, head: dict[str, Any], rows: list[dict[str, Any]], count: int = 0) -> None:
        self.path, self.head, self.rows, self.count = path, head, rows, count  # of all rows there are to be

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows.append(row)
        self.save()

    def save(self) -> None:
        """Write the file anew."""
        new = self.path.with_suffix(".part")
        new.write_text(json.dumps(self.head | {"rows": self.rows}, indent=1))
        new.replace(self.path)

    def has(self, layer: corpus.Layer, title: str) -> bool:
        """Return whether a layer was measured before."""
        return any(r["problem"] == str(layer.problem) and r["direction"] == title for r in self.rows)


def measure(
    layers: Iterable[corpus.Layer], named: bool, device: str, timer: Any, until: float, record: Record
) -> None:
    """Measure layers while time and GPU last, and tell of each; what fails is told, too."""
    for layer in layers:
        for direction, fused, name in ways(layer, named, device):
            title = titled(direction, fused, name)
            if record.has(layer, title):
                continue
            if time.monotonic() > until:
                return
            try:
                with fastconv.config(algorithm=name or "auto"):
                    found = row(layer, direction, fused, device, timer) | {"direction": title}
            except Exception as error:
                found = {
                    "problem": str(layer.problem),
                    "direction": title,
                    "right": False,
                    "error": repr(error),
                }
            record.add(found)
            left = max(0.0, until - time.monotonic())
            print(f"{len(record.rows)}/{record.count} ({left:.0f} s left) {told(found)}", flush=True)
            if "error" in found and not alive(device):
                return


def told(row: dict[str, Any]) -> str:
    """Return a line on a row."""
    if "error" in row:
        return f"FAILED {row['direction']} {row['problem']}: {row['error']}"
    times = " ".join(f"{name} {s * 1e6:.0f}" for name, s in row["seconds"].items())
    rate = row["flops"] / min(s for n, s in row["seconds"].items() if n.startswith("fastconv")) / 1e12
    wrong = "" if row["right"] else f" WRONG by {row['difference']:.2g}"
    by = f"{row['algorithm']} in {row['workspace']} B of workspace"
    return f"{row['problem']} {row['direction']}: {by}, {rate:.1f} TFLOP/s, us: {times}{wrong}"


def alive(device: str) -> bool:
    """Return whether the GPU still computes: after an address that is none it does not, in this process."""
    import torch

    try:
        return bool(torch.ones(2, device=device).sum() == 2)
    except Exception:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a suite, print a table and write a file; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", nargs="?", default="core")
    folder = Path("bench/results")
    default = (folder if folder.is_dir() else Path()) / f"gpu-{datetime.now():%Y-%m-%d-%H%M}.json"
    parser.add_argument(
        "-o", "--output", type=Path, default=default, help="a file that is there is gone on with"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="after which no further layer is begun"
    )
    options = parser.parse_args(argv)
    until = time.monotonic() + options.seconds
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no GPU that PyTorch can use")
    try:
        backend()
    except fastconv.DeviceError as error:
        raise SystemExit(str(error)) from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # with a table of what there is
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    properties: Any = torch.cuda.get_device_properties(0)
    cudnn: Any = torch.backends.cudnn
    versions = {"torch": torch.__version__, "cudnn": cudnn.version()}
    versions |= {name: version(name) for name in ("numpy", "numba", "numba-cuda", "cuda-core")}
    head = {"gpu": torch.cuda.get_device_name(), "versions": versions}
    print(head, f"results go to {options.output}", flush=True)
    before = json.loads(options.output.read_text())["rows"] if options.output.is_file() else []
    layers = spread(corpus.load(options.suite))
    count = sum(len(list(ways(layer, named, "cuda"))) for layer, named in product(layers, (False, True)))
    record = Record(options.output, head, before, count)
    capability = properties.major, properties.minor
    record.save()
    compile_all(kernels_of(layers, properties.multi_processor_count), capability, options.seconds / 2)
    try:
        head["launch"] = launch_costs("cuda")
        print("us of a call:", *(f"{name} {s * 1e6:.1f}" for name, s in head["launch"].items()), flush=True)
        for named, more in ((False, 0.0), (True, SECONDS_BY_NAME)):
            if alive("cuda"):
                measure(layers, named, "cuda", on_device, until + more, record)
    finally:
        head["table"] = summary(record.rows).splitlines()
        record.save()
        print(*head["table"], sep="\n", flush=True)
        if len(record.rows) < count:
            print(f"{count - len(record.rows)} of {count} rows left: go on with -o {options.output}")
    if not alive("cuda"):  # another process can go on
        print("the GPU's context is lost: starting anew", flush=True)
        left = str(until - time.monotonic())
        again = [options.suite, "-o", str(options.output), "--seconds", left]
        os.execv(sys.executable, [sys.executable, "-m", "fastconv.bench.gpu", *again])
    print("the GPU computes on: done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
