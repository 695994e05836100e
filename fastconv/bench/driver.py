"""``python -m fastconv bench SUITE``: check every layer, time it beside others, and report.

Layer by layer and direction by direction: operands are drawn, each of our results is compared with one
computed in float64, then all contestants run in turns, one of them only multiplying and adding to know
the peak of just these seconds.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastconv
from fastconv.bench import corpus, memory, report
from fastconv.bench.check import truth
from fastconv.bench.corpus import Layer
from fastconv.bench.peers import PEERS, Operands, Ours, OursPrepared, Peer, arguments, installed, versions
from fastconv.bench.progress import progress
from fastconv.bench.results import ALLOWED, Regret, Results, Row, regressions
from fastconv.config import config
from fastconv.problem import DTYPES, Direction

LARGEST_OF_OTHERS = (
    1e-2  # error over the mean square: TF32 or bfloat16 would be other arithmetic, and be seen
)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 0 if all results are right, 1 if not, 2 for a wrong argument."""
    options = _parser().parse_args(list(argv))
    try:
        if options.render:
            report.render(Results.load(options.render), options.readme)
            return 0
        return _run(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"fastconv bench: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastconv bench", description="Check layers and time them beside other libraries."
    )
    add = parser.add_argument
    add(
        "suite",
        nargs="?",
        help=f"a text file of problems, or one of {', '.join(corpus.names())}; or 'pooling'",
    )
    add("--directions", default="all", help="all, or names with commas: forward, input_grad, weight_grad")
    add("--algorithms", default="", help="time these too, or 'all' that apply; tells the regret of auto")
    add("--prepared", action="store_true", help="time prepared weights, beside libraries that prepare theirs")
    add("--peers", default="torch,onnxruntime", help=f"all, none, or names with commas: {', '.join(PEERS)}")
    add("--threads", type=int, default=_cores(), help="for every contestant (default: all cores)")
    add("--passive", action="store_true", help="idle threads sleep, not spin: on a machine others use too")
    add("--budget", type=float, default=0.6, help="seconds a layer and direction (default: 0.6)")
    add("--dtype", choices=DTYPES, default="float32")
    add(
        "--layout",
        choices=("NCHW", "NHWC"),
        default="NCHW",
        help="of the images; NHWC beside channels_last alone",
    )
    add("--batch", type=int, help="instead of each layer's own")
    add("--only", default="", help="layers whose category, name or line contains this")
    add("--check-all", action="store_true", help="compare large layers in float64 too")
    add("--memory", action="store_true", help="measure the memory a call takes at its peak (Linux)")
    add("-o", "--output", metavar="JSON", help="write all that was measured")
    add("--baseline", metavar="JSON", help="list what became more than 10 %% slower since")
    add("--overhead", action="store_true", help="measure a very small call, and choosing")
    add("--startup", action="store_true", help="measure import and first calls in fresh processes")
    add("--scaling", action="store_true", help="measure all threads against one")
    add("--render", metavar="JSON", help="measure nothing; write the table of a run into --readme")
    add("--readme", default="README.md", metavar="FILE", help="the file that --render rewrites")
    return parser


def _run(options: argparse.Namespace) -> int:
    directions = _directions(options.directions)
    if not (options.suite or options.overhead or options.startup or options.scaling):
        raise ValueError(f"name a suite: {', '.join(corpus.names())}, or a file")
    layers = list(_layers(options)) if options.suite else []
    before = Results.load(options.baseline) if options.baseline else None
    if options.passive:
        os.environ["OMP_WAIT_POLICY"] = "passive"  # read when a threading layer is loaded: not yet
    peers, notes = installed(options.peers, options.threads, options.prepared, not options.passive)
    if options.layout == "NHWC":  # the others would have to reorder what they are given
        peers = [peer for peer in peers if peer.name == "torch_channels_last"]
    results = Results({}, versions(), vars(options), notes=notes)
    with ExitStack() as stack:
        stack.enter_context(config(threads=options.threads))
        for peer in peers:
            stack.enter_context(peer.mode())
        results.machine = _machine(options)
        jobs = [(layer, direction) for layer in layers for direction in directions]
        try:
            with progress(len(jobs)) as shown:
                for layer, direction in jobs:
                    shown.begin(f"{direction} {layer.problem}")
                    results.rows.append(_measure(layer, direction, peers, options))
                    shown.end(report.progress_line(results.rows[-1]))
                    if options.output:  # now too: what is done stays
                        results.save(options.output)
            _measure_special(results, peers, options)
        except KeyboardInterrupt:
            results.notes.append(f"interrupted after {len(results.rows)} of {len(jobs)}")
    if results.rows:
        results.machine["peak"] = max(results.machine["peak"], *(row.peak for row in results.rows))
    if options.output:
        results.save(options.output)
    report.show(results)
    if before:
        report.show_regressions(regressions(results, before), options.baseline)
    return 1 if results.failures or (options.algorithms == "all" and _regrets(results)) else 0


def _regrets(results: Results) -> bool:
    """Print the regret over all rows; return whether it is larger than allowed."""
    regret = Regret.of(results.rows)
    if regret is None:
        return False
    worse = any(value > most for value, most in zip(regret, ALLOWED, strict=True))
    print(f"t(auto) / t(best): {regret}; allowed {ALLOWED}" + (": FAILED" if worse else ""))
    return worse


def _directions(text: str) -> list[Direction]:
    known = list(Direction)
    names = list(map(str, known)) if text == "all" else text.split(",")
    if wrong := [name for name in names if name not in tuple(known)]:
        raise ValueError(f"directions are {', '.join(known)}, got {', '.join(wrong)}")
    return [Direction(name) for name in names]


def _layers(options: argparse.Namespace) -> Iterator[Layer]:
    for layer in corpus.load(options.suite):
        if any(options.only in text for text in (layer.category, layer.name, str(layer.problem))):
            n = layer.problem.n if options.batch is None else options.batch
            yield replace(
                layer,
                problem=replace(
                    layer.problem, n=n, dtype=options.dtype, layout=options.layout.lower()
                ).checked(),
            )


def _measure(layer: Layer, direction: Direction, peers: Sequence[Peer], options: argparse.Namespace) -> Row:
    """Check and time one layer; a failure is a row too."""
    p = layer.problem
    row = Row(str(p), layer.category, layer.name, layer.times, str(direction), p.flops, p.bytes)
    try:
        operands = Operands.normal(p)
        selection = fastconv.explain(operands.x, operands.w, **arguments(p), direction=str(direction))
        row.algorithm = selection.algorithm
        ours = _ours(selection, options)
        everyone = [peer for peer in (*ours, *peers) if peer.applies(p, direction)]
        calls = {peer.name: peer.make(p, direction, operands) for peer in everyone}
        wrong = _check(row, layer, direction, operands, everyone, calls, options)
        calls = {name: call for name, call in calls.items() if name not in wrong}
        if not row.failure:
            _time(row, calls, {peer.name: peer.settle for peer in everyone}, options)
            if options.memory:
                found = {name: memory.peak(call) for name, call in calls.items()}
                row.memory = {name: size for name, size in found.items() if size is not None}
    except Exception as error:
        row.failure = f"{type(error).__name__}: {error}".splitlines()[0]
    return row


def _ours(selection: fastconv.Selection, options: argparse.Namespace) -> list[Peer]:
    """Return our contestants: auto, the algorithms asked for that apply, and prepared weights."""
    admitted = {c.name for c in selection.candidates if c.reason is None} - {"reference"}
    asked = options.algorithms.split(",") if options.algorithms else []
    names = sorted(admitted) if asked == ["all"] else [name for name in asked if _admits(name, admitted)]
    prepared = [OursPrepared()] if options.prepared else []
    return [Ours(), *map(Ours, names), *prepared]


def _admits(name: str, admitted: set[str]) -> bool:
    base = name.partition(":")[0]
    if base not in fastconv.algorithms():
        raise ValueError(f"algorithms are {', '.join(fastconv.algorithms())}, got {name!r}")
    return base in admitted or base == "reference"


def _check(row: Row, layer: Layer, direction: Direction, operands: Operands, everyone: Sequence[Peer],
           calls: dict[str, Any], options: argparse.Namespace) -> list[str]:  # fmt: skip
    """Compare all first results; return who is wrong.

    One of ours that is wrong is a failure; another is left out of the race: what it computes is no match.
    """
    right = truth(layer.problem, direction, operands, options.check_all)
    for peer in everyone:
        start = time.perf_counter()
        result = calls[peer.name]()
        row.first[peer.name] = time.perf_counter() - start
        if right is not None:
            row.errors[peer.name] = right.error(peer.array(result, layer.problem, direction))
        del result
    if right is None:
        return []
    ours = {peer.name for peer in everyone if isinstance(peer, Ours)}
    row.error = max(e for name, e in row.errors.items() if name in ours)
    wrong = [
        name for name, e in row.errors.items() if e > (right.bound if name in ours else LARGEST_OF_OTHERS)
    ]
    if failed := [f"{name} by {row.errors[name]:.2g}" for name in wrong if name in ours]:
        row.failure = f"wrong, {right.bound:.0e} of the mean allowed: {', '.join(failed)}"
    return wrong


def _time(row: Row, calls: dict[str, Any], settle: dict[str, float], options: argparse.Namespace) -> None:
    from fastconv.bench import peak
    from fastconv.bench.measure import race

    multiply, flops = peak.multiply(options.dtype)
    samples = race({**calls, "peak": multiply}, options.budget, settle)
    row.peak = flops / samples.pop("peak").best
    row.samples = samples


def _measure_special(results: Results, peers: Sequence[Peer], options: argparse.Namespace) -> None:
    from fastconv.bench import special

    if options.overhead:
        results.special["decisions"] = special.decisions()
        results.special["overhead"] = special.overhead(peers)
    if options.startup:
        results.special["startup"] = special.startup()
    if options.scaling:
        results.special["scaling"] = special.scaling(options.threads, options.budget)


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    from fastconv import machine
    from fastconv.bench import peak
    from fastconv.bench.measure import race

    multiply, flops = peak.multiply(options.dtype)
    return {
        "cpu": _cpu_name(),
        "cores": _cores(),
        "threads": options.threads,
        "simd": machine.simd().name,
        "python": platform.python_version(),
        "system": platform.platform(),
        "peak": flops / race({"peak": multiply}, budget=0.3)["peak"].best,
        "bandwidth": peak.bandwidth(),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
