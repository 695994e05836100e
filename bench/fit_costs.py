"""Fit the cycles of `fastconv.roofline` to measured times, and tell the regret that the choice would have.

    python -m fastconv bench core --algorithms all --peers none --threads 1 -o one.json      (and with all threads)
    python bench/fit_costs.py one.json all.json
    python bench/fit_costs.py one.json all.json --write

Of each part of an algorithm's work the cycles are sought, none negative, for which the squares of
``predicted / measured - 1`` over all layers add up to the least, with a pull towards the cycles there are.  Tiles are
chosen by the cycles themselves, so it is done a few times over.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import median

import numpy as np
from scipy.optimize import nnls

from fastconv import machine, roofline
from fastconv.algorithms import registry
from fastconv.bench.results import Regret, Results, Row
from fastconv.problem import ConvProblem, Direction

TELLING = ("direct.cost", "direct.depthwise", "im2col.cost", "winograd", "fft.cut", "fft.signal")  # modules
ROUNDS = 3
WORST = 12  # choices that are listed
PULL = 1.0  # towards the cycles there are: where layers do not tell two parts apart, each stays what it was


class Told(float):
    """Seconds that know what they are the sum of."""

    kind: str
    parts: dict[str, float]  # seconds of each, were its cycles 1


def tell(kind: str, problem: ConvProblem, parts: dict[str, float]) -> Told:
    """Stand in for `roofline.seconds`."""
    told = Told(seconds(kind, problem, parts))
    units = dict.fromkeys((*parts, "launches", "memory"), 0.0)
    kept = roofline.CYCLES[kind]
    for name in units:
        roofline.CYCLES[kind] = dict.fromkeys(units, 0.0) | {name: 1.0}
        units[name] = seconds(kind, problem, parts)
    roofline.CYCLES[kind] = kept
    told.kind, told.parts = kind, units
    return told


seconds = roofline.seconds


def measured(results: Results) -> Iterator[tuple[Row, dict[str, float]]]:
    """Yield each row with the seconds of each algorithm that was timed by its name."""
    for row in results.rows:
        times = {n.partition(":")[2]: s.best for n, s in row.samples.items() if n.startswith("fastconv:")}
        if times and not row.failure:
            yield row, times


def predictions(runs: list[Results]) -> Iterator[tuple[Row, dict[str, float], dict[str, float]]]:
    """Yield each row with measured and predicted seconds by algorithm."""
    here = machine.machine()
    for results in runs:
        there = replace(here, cores=results.machine["threads"])
        machine.machine = functools.partial(lambda m: m, there)  # type: ignore[assignment]
        for row, times in measured(results):
            direction = Direction(row.direction)
            yield row, times, {name: registry()[name].cost(row.problem, direction) for name in times}
    machine.machine = lambda: here  # type: ignore[assignment]


def fit(runs: list[Results]) -> None:
    """Put fitted cycles in the place of those in `roofline.CYCLES`."""
    rows = defaultdict(list)
    for _, times, costs in predictions(runs):
        for name, told in costs.items():
            if isinstance(told, Told):
                rows[told.kind].append((told.parts, times[name]))
    for kind, told in rows.items():
        before = roofline.CYCLES[kind]
        names = [n for n in before if n != "launches" and before[n]]
        given = before["launches"]  # too small in these layers to be told from them
        amounts = np.array([[parts.get(n, 0.0) * before[n] / t for n in names] for parts, t in told])
        rest = np.array([1 - given * parts["launches"] / t for parts, t in told])
        near = np.full(len(told), True)
        for _ in range(2):  # the second time without layers that the counts miss by more than twice
            matrix = np.vstack((amounts[near], PULL * np.eye(len(names))))
            times, _ = nnls(matrix, np.concatenate((rest[near], np.full(len(names), PULL))))
            near = np.abs(np.log2(np.maximum(amounts @ times + 1 - rest, 1e-9))) < 1
        fitted = {n: float(f"{before[n] * t:.3g}") for n, t in zip(names, times, strict=True)}
        roofline.CYCLES[kind] = before | fitted


def report(runs: list[Results]) -> None:
    """Print how far predictions are off, the regret, and the worst choices."""
    off, choices = defaultdict(list), []
    for row, times, costs in predictions(runs):
        for name, told in costs.items():
            off[getattr(told, "kind", name)].append(told / times[name])
        chosen = min(costs, key=costs.__getitem__)
        best = min(times, key=times.__getitem__)
        told = ", ".join(f"{n} {costs[n] * 1e3:.3g}/{times[n] * 1e3:.3g}" for n in times)
        choices.append((times[chosen] / times[best], f"{chosen} instead of {best}", row, told))
    for kind, ratios in off.items():
        q = np.quantile(ratios, (0.05, 0.5, 0.95))
        print(f"{kind:26} {len(ratios):4} layers, predicted / measured {q[0]:.2f} {q[1]:.2f} {q[2]:.2f}")
    regrets = sorted(c[0] for c in choices)
    print("regret:", Regret(median(regrets), regrets[int(0.95 * (len(regrets) - 1))], regrets[-1]))
    for regret, what, row, told in sorted(choices, key=lambda c: -c[0])[:WORST]:
        print(f"  {regret:.2f}  {what}: {row.direction} {row.line}\n        predicted/measured ms: {told}")


def write() -> None:
    """Write the cycles into `roofline`'s source."""
    path = Path(roofline.__file__)
    before, _, rest = path.read_text().partition("CYCLES: dict[str, dict[str, float]] = {")
    after = rest[rest.index("\n}\n") + 3 :]
    lines = []
    for kind, cycles in sorted(roofline.CYCLES.items()):
        lines.append(f'    "{kind}": {{')
        lines += [f'        "{name}": {value:g},' for name, value in cycles.items()]
        lines.append("    },")
    path.write_text(before + "CYCLES: dict[str, dict[str, float]] = {\n" + "\n".join(lines) + "\n}\n" + after)


def main() -> int:
    """Fit, report, and write if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", help="JSON of fastconv bench --algorithms all")
    parser.add_argument(
        "--write", action="store_true", help="put the fitted cycles into fastconv/roofline.py"
    )
    parser.add_argument(
        "--keep", action="store_true", help="fit nothing: tell what the present cycles are worth"
    )
    options = parser.parse_args()
    runs = [Results.load(path) for path in options.results]
    for name in TELLING:
        import_module(f"fastconv.algorithms.{name}").seconds = tell  # type: ignore[attr-defined]
    for _ in range(0 if options.keep else ROUNDS):
        fit(runs)
    report(runs)
    if options.write:
        write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
