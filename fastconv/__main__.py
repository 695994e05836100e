"""``python -m fastconv explain | tune | warmup | bench | report``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module

from fastconv import database
from fastconv.config import config, current
from fastconv.problem import ConvProblem, Direction
from fastconv.tune import choose, explained
from fastconv.warmup import warmup


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return the exit status: 2 for a wrong argument."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["bench"] and arguments[1:2] in (["pooling"], ["gpu"]):
        return int(import_module(f"fastconv.bench.{arguments[1]}").main(arguments[2:]))
    if arguments[:1] == ["bench"]:  # has options of its own
        return int(import_module("fastconv.bench.driver").main(arguments[1:]))
    if arguments[:1] == ["report"]:
        return int(import_module("fastconv.bench.page").main(arguments[1:]))
    options = _parser().parse_args(arguments)
    try:
        return {"explain": _explain, "tune": _tune, "warmup": _warmup}[options.command](options)
    except (ValueError, TypeError) as error:
        print(f"fastconv {options.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastconv", description="Convolution for NumPy arrays.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    explain = commands.add_parser("explain", help="show which algorithm is chosen for a problem, and why")
    explain.add_argument("problem", nargs="+", help="its line, as in: n8 c64 k64 i56x56 f3x3 p1")
    explain.add_argument("--direction", choices=[*map(str, Direction), "all"], default="all")
    explain.add_argument("--algorithm", default="auto", help="ask for this one")
    explain.add_argument("--workspace", type=int, help="bytes of scratch allowed")
    explain.add_argument("--precision", choices=("fast", "strict"), help="strict: as exact as plain sums")

    warm = commands.add_parser("warmup", help="compile kernels ahead of first use")
    warm.add_argument("problem", nargs="*", help="lines in quotation marks; by default all kinds")

    tune = commands.add_parser("tune", help="time the likeliest algorithms of each layer, and keep the times")
    tune.add_argument("suite", nargs="?", help="of fastconv bench: a name, or a text file of problem lines")
    tune.add_argument(
        "--machine", action="store_true", help="measure the rates that times are predicted from"
    )
    tune.add_argument("--directions", choices=[*map(str, Direction), "all"], default="all")
    tune.add_argument("--force", action="store_true", help="time again what has been timed")

    commands.add_parser("report", help="draw what bench has measured; see report --help", add_help=False)
    commands.add_parser("bench", help="measure and check layers; see bench --help", add_help=False)
    return parser


def _explain(options: argparse.Namespace) -> int:
    problem = ConvProblem.parse(" ".join(options.problem))
    directions = list(Direction) if options.direction == "all" else [Direction(options.direction)]
    changes = {name: getattr(options, name) for name in ("algorithm", "workspace", "precision")}
    with config(**{name: value for name, value in changes.items() if value not in (None, "auto")}):
        tables = [str(explained(problem, direction, current())) for direction in directions]
    print("\n\n".join(tables))
    return 0


def _tune(options: argparse.Namespace) -> int:
    from fastconv.bench import corpus
    from fastconv.bench.progress import progress

    if options.machine:
        _tune_machine()
    if not options.suite:
        if options.machine:
            return 0
        raise ValueError(f"name a suite: {', '.join(corpus.names())}, or a file; or ask for --machine")
    directions = list(Direction) if options.directions == "all" else [Direction(options.directions)]
    jobs = [(layer.problem, direction) for layer in corpus.load(options.suite) for direction in directions]
    changed = 0
    with config(tune="force" if options.force else "on"), progress(len(jobs)) as shown:
        for problem, direction in jobs:
            shown.begin(f"{direction} {problem}")
            tuned = choose(problem, direction, current())
            with config(tune="off"):
                changed += choose(problem, direction, current()).algorithm != tuned.algorithm
            shown.end(tuned.algorithm)
    print(f"{len(jobs)} tuned, {changed} otherwise than predicted; kept in {database.folder()}")
    return 0


def _tune_machine() -> None:
    """Measure the machine's rates and keep them for later processes, and for the rest of this one."""
    from fastconv import roofline
    from fastconv.bench import peak

    measured = peak.rates()
    database.write(database.machine_key(), asdict(measured))
    roofline.rates.cache_clear()
    print(
        f"{measured.units} FMAs a cycle at {measured.clock / 1e9:.2f} GHz, copying {measured.bandwidth / 1e9:.1f} GB/s, "
        f"{measured.launch * 1e6:.1f} us to start threads"
    )


def _warmup(options: argparse.Namespace) -> int:
    print(f"{warmup(options.problem or None)} combinations ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
