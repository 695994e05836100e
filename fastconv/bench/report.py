"""Results as tables: on the terminal, by rich where it is installed, and in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastconv.bench.results import (
    BETTER,
    COMPARISONS,
    NCHW,
    PREPARED,
    Change,
    Regret,
    Results,
    Row,
    geomean,
    total,
)

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def number(value: float | None, form: str = ".2f", scale: float = 1.0) -> str:
    """Format a number that may be missing."""
    return "-" if value is None else format(value * scale, form)


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, numbers stand to the right."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(f"\n{title}\n{aligned(headers, rows)}")
        return
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for i, header in enumerate(headers):
        drawn.add_column(header, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    console = Console()
    wide = Console(width=1000).measure(drawn).maximum  # a narrow terminal wraps lines, and loses no column
    Console(width=max(console.width, wide)).print(drawn)


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in plain text."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]).rstrip()

    return "\n".join([line(headers), line(["-" * w for w in widths]), *map(line, rows)])


def show(results: Results) -> None:
    """Print everything."""
    for direction in results.directions:
        _layers(results, direction)
    for direction in results.directions:
        _groups(results, direction)
    _totals(results)
    for title, heads, lines in special_tables(results):
        table(title, heads, lines)
    m = results.machine
    print(
        f"\n{m['cpu']}: {m['threads']} threads, {m['simd']}, "
        f"peak {m['peak'] / 1e9:.0f} GFLOP/s, copying {m['bandwidth'] / 1e9:.1f} GB/s"
    )
    print(", ".join(f"{name} {v}" for name, v in results.versions.items()))
    for note in results.notes:
        print(f"note: {note}")
    for row in results.rows:
        for name, reason in row.left_out.items():
            print(f"note: {name} left out of {row.direction} {row.line}: {reason}")
    for row in results.failures:
        print(f"FAILED: {row.direction} {row.line}: {row.failure}")


def _layers(results: Results, direction: str) -> None:
    """Print what we take for each layer, and beside it what everybody takes."""
    rows, copying = results.select(direction), results.machine["bandwidth"]
    memory = any(row.memory for row in rows)
    headers = [
        "layer", "category", "algorithm", "ms", "spread %", "GFLOP/s", "% peak", "% copying", "first ms",
        *["MiB"] * memory, "error", "/NCHW", "/better",
    ]  # fmt: skip
    cells = []
    for row in rows:
        ours, sample, moved = row.best("fastconv"), row.samples.get("fastconv"), row.bandwidth()
        taken = number(row.memory.get("fastconv"), ".1f", 2**-20)
        cells.append([
            row.line, row.category, row.algorithm, number(ours, ".3f", 1e3),
            number(sample.spread if sample else None, ".0f", 100),
            number(row.flops / ours if ours else None, ".0f", 1e-9), number(row.share(), ".0f", 100),
            number(moved and moved / copying, ".0f", 100), number(row.first.get("fastconv"), ".1f", 1e3),
            *[taken] * memory, number(row.error, ".0e"), number(row.ratio(NCHW)), number(row.ratio(BETTER)),
        ])  # fmt: skip
    table(direction, headers, cells)
    everyone = list(dict.fromkeys(name for row in rows for name in row.samples))
    if len(everyone) > 1:
        cells = [[row.line, *(number(row.best(name), ".3f", 1e3) for name in everyone)] for row in rows]
        table(f"{direction}: ms", ["layer", *(n.removeprefix("fastconv:") for n in everyone)], cells)


def _groups(results: Results, direction: str) -> None:
    shown = [c for c in COMPARISONS if any(row.ratio(c) for row in results.select(direction))]
    headers = ["category", "layers", *(c.title for c in shown), "least", "% peak"]
    cells = []
    for name, rows in results.groups(direction):
        shares = [row.share() for row in rows]
        cells.append([
            name, str(len(rows)), *(number(geomean(row.ratio(c) for row in rows)) for c in shown),
            number(min((r for row in rows if (r := row.ratio(BETTER))), default=None)),
            number(geomean(shares), ".0f", 100),
        ])  # fmt: skip
    table(f"{direction}: their time / ours, geometric means", headers, cells)
    if regret := Regret.of(results.select(direction)):
        print(f"{direction}: t(auto) / t(best) {regret}")


def _totals(results: Results) -> None:
    """Print the time of the whole network, layers counted as often as they occur."""
    rows = {direction: results.select(direction) for direction in results.directions}
    names = [
        name
        for name in dict.fromkeys(name for row in results.rows for name in row.samples)
        if any(total(of, name) for of in rows.values())
    ]
    cells = [
        [direction, *(number(total(of, name), ".1f", 1e3) for name in names)]
        for direction, of in rows.items()
    ]
    if cells:
        table("all layers, each as often as it occurs: ms", ["direction", *names], cells)


def special_tables(results: Results) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield title, heads and rows of what is measured beside the layers."""
    special = results.special
    if calls := special.get("overhead"):
        rows = [[name, number(s, ".2f", 1e6), number(calls["fastconv"] / s)] for name, s in calls.items()]
        yield "a small call", ["", "us", "ours / theirs"], rows
    if steps := special.get("decisions"):
        rows = [[name, *(number(s, ".1f", 1e6) for s in of.values())] for name, of in steps.items()]
        yield "before the kernels, first time and later: us", ["", *next(iter(steps.values()))], rows
    if start := special.get("startup"):
        rows = [[state, *(number(v, ".3f") for v in times.values())] for state, times in start.items()]
        yield "a fresh process: seconds", ["", "import beyond Numba's", "first call", "whole process"], rows
    if scaling := special.get("scaling"):
        rows = [[name, number(s)] for name, s in scaling["speedups"].items()]
        rows.append(["geometric mean", number(geomean(scaling["speedups"].values()))])
        yield f"{scaling['threads']} threads over one", ["layer", "times as fast"], rows


def show_regressions(changes: Sequence[Change], before: str) -> None:
    """Print what became slower."""
    if not changes:
        print(f"\nno layer more than 10 % slower than in {before}")
        return
    rows = [[c.row.line, c.row.direction, c.row.algorithm, f"{c.slower:.2f}"] for c in changes]
    table(f"slower than in {before}", ["layer", "direction", "algorithm", "times"], rows)


def progress_line(row: Row) -> str:
    """Return what is shown as soon as a row is done."""
    if row.failure:
        return f"FAILED {row.failure}"
    ratio = row.ratio(BETTER)
    return f"{row.algorithm} {number(row.best('fastconv'), '.3f', 1e3)} ms" + (
        f", {ratio:.2f} times as fast as torch" if ratio else ""
    )


def markdown(results: Results) -> str:
    """Return the table of a README: for each category and direction, their time over ours."""
    shown = [
        (direction, comparison)
        for direction in results.directions
        for comparison in (NCHW, BETTER, PREPARED)
        if any(row.ratio(comparison) for row in results.select(direction))
    ]
    heads = ["category", "layers", *(f"{d.replace('_', ' ')}: {c.title}" for d, c in shown)]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for name in [*results.categories, "all"]:
        cells = []
        layers = 0
        for direction, comparison in shown:
            rows = dict(results.groups(direction)).get(name, [])
            layers = max(layers, len(rows))
            cells.append(number(geomean(row.ratio(comparison) for row in rows)))
        mark = "**" if name == "all" else ""
        lines.append(f"| {' | '.join(f'{mark}{c}{mark}' for c in (name, str(layers), *cells))} |")
    m, v = results.machine, results.versions
    lines += [
        "",
        f"Their time over ours, geometric means over the layers of suite `{results.options['suite']}`; "
        f"{', '.join(sorted({row.problem.dtype for row in results.rows}))}, {m['threads']} threads, {m['cpu']} ({m['simd']}), measured peak "
        f"{m['peak'] / 1e9:.0f} GFLOP/s; "
        + ", ".join(f"{name} {version}" for name, version in v.items())
        + ".",
    ]
    return "\n".join(lines)


def render(results: Results, readme: str | Path) -> None:
    """Rewrite the table between the markers of a Markdown file."""
    path = Path(readme)
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} must contain the lines {BEGIN} and {END}")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    path.write_text(
        pattern.sub(lambda _: f"{BEGIN}\n{markdown(results)}\n{END}", text, count=1), encoding="utf-8"
    )
