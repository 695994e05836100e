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
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastconv.bench import corpus, report
from fastconv.bench.contest import compute_dtype, measured
from fastconv.bench.corpus import Layer
from fastconv.bench.peers import PEERS, Peer, installed, versions
from fastconv.bench.progress import progress
from fastconv.bench.results import ALLOWED, Regret, Results, regressions
from fastconv.config import config
from fastconv.machine import cpus
from fastconv.problem import DTYPES, Direction


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
    add(
        "--algorithms",
        default="",
        help="time these too, or 'all' that apply, or those that are 'likely'; tells the regret of auto",
    )
    add("--prepared", action="store_true", help="time prepared weights, beside libraries that prepare theirs")
    add("--peers", default="torch,onnxruntime", help=f"all, none, or names with commas: {', '.join(PEERS)}")
    add("--threads", type=int, default=cpus(), help="for every contestant (default: all cores)")
    add("--passive", action="store_true", help="idle threads sleep, not spin: on a machine others use too")
    add("--budget", type=float, default=0.6, help="seconds of timing a layer and direction (default: 0.6)")
    add("--minutes", type=float, help="for all of it, about: each layer's budget follows from the time left")
    add("--dtype", choices=DTYPES, help="instead of each layer's own")
    add(
        "--layout",
        choices=("NCHW", "NHWC"),
        help="of the images, instead of each layer's own; NHWC beside channels_last alone",
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
    results = Results({}, versions(), vars(options), notes=notes)
    with ExitStack() as stack:
        stack.enter_context(config(threads=options.threads))
        for peer in peers:
            stack.enter_context(peer.mode())
        results.machine = _machine(options)
        jobs = [(layer, direction) for layer in layers for direction in directions]
        try:
            clock = Clock(options, len(jobs))
            with progress(len(jobs)) as shown:
                for layer, direction in jobs:
                    shown.begin(f"{direction} {layer.problem}")
                    with clock.budget() as budget:
                        results.rows.append(measured(layer, direction, peers, options, budget))
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
    judged = options.algorithms in ("all", "likely")
    return 1 if results.failures or (judged and _regrets(results)) else 0


class Clock:
    """What each layer may take of the minutes for all, of which checks and preparations take their part."""

    def __init__(self, options: argparse.Namespace, jobs: int) -> None:
        self.given, self.left, self.besides = options.budget, jobs, 0.0
        self.end = time.monotonic() + 60 * options.minutes if options.minutes else None

    @contextmanager
    def budget(self) -> Iterator[float]:
        """Yield the seconds for timing the next layer."""
        start, budget = time.monotonic(), self.given
        if self.end is not None:
            budget = max(0.0, (self.end - start) / max(1, self.left) - self.besides)
        yield budget
        besides = time.monotonic() - start - budget
        self.besides = besides if not self.besides else 0.8 * self.besides + 0.2 * besides
        self.left -= 1


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
            given = {
                "n": options.batch,
                "dtype": options.dtype,
                "layout": options.layout and options.layout.lower(),
            }
            changes = {name: value for name, value in given.items() if value is not None}
            yield replace(layer, problem=replace(layer.problem, **changes).checked())


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

    multiply, flops = peak.multiply(compute_dtype(options.dtype or "float32"))
    return {
        "cpu": _cpu_name(),
        "cores": cpus(),
        "threads": options.threads,
        "simd": machine.simd().name,
        "python": platform.python_version(),
        "system": platform.platform(),
        "peak": flops / race({"peak": multiply}, budget=0.3)["peak"].best,
        "bandwidth": peak.bandwidth(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
