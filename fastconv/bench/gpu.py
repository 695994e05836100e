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
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from itertools import product
from math import exp, log, prod
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import fastconv
from fastconv.algorithms import find
from fastconv.bench import corpus
from fastconv.config import current
from fastconv.problem import ConvProblem, Direction
from fastconv.select import admitted, select

ROUNDS = 15
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


class Job(NamedTuple):
    """What is to be compiled: a layer's kernels in one direction, by one algorithm, for a GPU and its multiprocessors."""

    line: str
    direction: Direction
    fused: bool
    last: bool
    algorithm: str
    capability: tuple[int, int]
    processors: int


def jobs(layers: Iterable[corpus.Layer], capability: tuple[int, int], processors: int) -> list[Job]:
    """Return what the race will need."""
    ways = [(d, False, "auto") for d in Direction] + [(Direction.FORWARD, True, "auto")]
    ways += [(d, False, name) for name in NAMED for d in Direction]
    return [
        Job(str(layer.problem), direction, fused, last, name, capability, processors)
        for layer, (direction, fused, name) in product(layers, ways)
        if worth(layer.problem)
        and (name == "auto" or admitted(find(name, "cuda"), layer.problem, direction, current()))
        for last in ((False, True) if len(layer.problem.axes) == 2 else (False,))
    ]


def compile_ahead(job: Job) -> None:
    """Put a job's kernels into the disk cache; needs no GPU."""
    from fastconv.cuda.ahead import Array, elsewhere

    problem = ConvProblem.parse(job.line)

    def array(shape: tuple[int, ...]) -> Any:
        _, c, *pixels = shape
        strides = (c * prod(pixels), 1, *(c * prod(pixels[i + 1 :]) for i in range(len(pixels))))
        return Array(shape, strides if job.last else None)

    x, w, gy = map(array, (problem.input_shape, problem.weight_shape, problem.output_shape))
    b = Array((problem.k,)) if job.fused else None
    told_by_the_race = contextlib.suppress(Exception)
    with (
        told_by_the_race,
        elsewhere(job.capability, job.processors),
        fastconv.config(algorithm=job.algorithm),
    ):
        call(problem, job.direction, x, w, gy, b)


def compile_all(wanted: list[Job]) -> None:
    """Do so in as many processes as there are cores."""
    processes = multiprocessing.get_context(
        "spawn"
    )  # children of a process that uses a GPU must not be forks
    with ProcessPoolExecutor(os.cpu_count(), mp_context=processes) as pool:
        for done, _ in enumerate(pool.map(compile_ahead, wanted, chunksize=4), 1):
            print(f"compiled for {done} of {len(wanted)} calls", end="\r", flush=True)
    print()


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
    """Return more memory than the second-level cache holds, which takes 100 us to write."""
    import torch

    return torch.empty(2**28, dtype=torch.uint8, device="cuda")


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
    choice = select(layer.problem, direction, current(), device)
    chosen = next(c for c in choice.candidates if c.name == choice.algorithm)
    return {
        "algorithm": chosen.name,
        "workspace": chosen.workspace,
        "problem": str(layer.problem),
        "category": layer.category,
        "direction": str(direction) + (" bias relu" if fused else ""),
        "difference": difference,
        "right": difference <= TOLERANCE,
        "seconds": race(found, timer),
        "flops": layer.problem.flops,
    }


def by_name(
    layers: Iterable[corpus.Layer], device: str, timer: Any, until: float
) -> Iterator[dict[str, Any]]:
    """Measure what algorithms reach that the choice may have passed over; their name is part of the direction."""
    for layer, name, direction in product(layers, NAMED, Direction):
        if time.monotonic() > until or not worth(layer.problem):
            continue
        if admitted(find(name, device), layer.problem, direction, current()):
            with fastconv.config(algorithm=name):
                measured = row(layer, direction, False, device, timer)
            yield measured | {"direction": f"{direction} {name}"}


def worth(problem: ConvProblem) -> bool:
    """Return whether cuDNN serves a problem and the GPU holds it."""
    symmetric = all(a.lo == a.hi for a in problem.axes)
    return symmetric and problem.bytes <= LARGEST and problem.dtype == "float32"


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
    lines += [
        f"WRONG by {r['difference']:.2g}: {r['direction']} {r['problem']}" for r in rows if not r["right"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure a suite, print a table and write a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", nargs="?", default="core")
    folder = Path("bench/results")
    parser.add_argument(
        "-o", "--output", default=(folder if folder.is_dir() else Path()) / f"gpu-{date.today()}.json"
    )
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no GPU that PyTorch can use")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    until, rows = time.monotonic() + SECONDS, []
    properties: Any = torch.cuda.get_device_properties(0)
    capability = properties.major, properties.minor
    compile_all(jobs(corpus.load(options.suite), capability, properties.multi_processor_count))
    variants = [(d, False) for d in Direction] + [(Direction.FORWARD, True)]
    for layer in corpus.load(options.suite):
        if time.monotonic() > until:
            print("out of time: the layers after this were left out")
            break
        if worth(layer.problem):
            for direction, fused in variants:
                rows.append(row(layer, direction, fused, "cuda", on_device))
            times = {name: f"{s * 1e6:.0f} us" for name, s in rows[-4]["seconds"].items()}
            print(layer.problem, rows[-4]["algorithm"], f"{rows[-4]['workspace']} bytes", times, flush=True)
    launch = launch_cost("cuda")
    rows += by_name(corpus.load(options.suite), "cuda", on_device, until + SECONDS_BY_NAME)
    print(summary(rows), f"\nlaunch {launch * 1e6:.1f} us on {torch.cuda.get_device_name()}")
    cudnn: Any = torch.backends.cudnn
    versions = {"torch": torch.__version__, "cudnn": cudnn.version()}
    record = {"gpu": torch.cuda.get_device_name(), "launch": launch, "versions": versions, "rows": rows}
    Path(options.output).write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
