"""``python -m fastconv report RESULTS.json -o report.html``: one self-contained page of a run's figures.

Several files are put together, say a corpus with all algorithms and the sweep; machine and versions are
those of the first.  The figures are also written as PNG, for a README.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastconv.bench.report import number, special_tables
from fastconv.bench.results import COMPARISONS, Regret, Results, geomean

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #2a2f36; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.7rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin: 2.5rem 0 .2rem }
p { margin: .3rem 0 } .quiet { color: #6a717b; font-size: .9rem }
img { max-width: 100%; display: block; margin: .6rem 0 }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #e3e6ea; white-space: nowrap }
th:first-child, td:first-child { text-align: left } thead th { position: sticky; top: 0; background: white }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0 }
.card { border: 1px solid #e3e6ea; border-radius: .5rem; padding: .6rem 1rem }
.card b { display: block; font-size: 1.4rem }
.wide { overflow-x: auto; max-height: 40rem }
"""


def main(argv: Sequence[str]) -> int:
    """Write the page; 2 for a wrong argument or without matplotlib."""
    parser = argparse.ArgumentParser(prog="fastconv report", description="Draw what bench has measured.")
    parser.add_argument("results", nargs="+", metavar="JSON", help="written by fastconv bench -o")
    parser.add_argument("-o", "--output", default="report.html", metavar="HTML")
    parser.add_argument("--png", metavar="FOLDER", help="where to write the figures too")
    parser.add_argument("--figures", default="", help="names with commas, of those to write as PNG")
    options = parser.parse_args(list(argv))
    try:
        from fastconv.bench.figures import figures

        results = merged([Results.load(path) for path in options.results])
        drawn = figures(results)
        Path(options.output).write_text(page(results, drawn), encoding="utf-8")
        if options.png:
            _write_pngs(drawn, Path(options.png), options.figures)
    except (ValueError, OSError, ImportError) as error:
        print(f"fastconv report: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {len(drawn)} figures, {len(results.rows)} measurements")
    return 0


def merged(parts: Sequence[Results]) -> Results:
    """Return all rows under the first one's machine, versions and options."""
    first, *rest = parts
    for other in rest:
        first.rows += other.rows
        first.special |= other.special
        first.notes += other.notes
    return first


def page(results: Results, drawn: dict[str, tuple[str, Any]]) -> str:
    """Return the page."""
    m = results.machine
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>fastconv: measurements</title>",
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style><h1>fastconv: measurements</h1>",
        f"<p class=quiet>{escape(m['cpu'])} ({m['simd']}), {m['threads']} threads, measured peak "
        f"{m['peak'] / 1e9:.0f} GFLOP/s, copying {m['bandwidth'] / 1e9:.1f} GB/s &middot; "
        + escape(", ".join(f"{name} {version}" for name, version in results.versions.items())),
        f"<div class=cards>{''.join(_cards(results))}</div>",
    ]
    for name, (text, figure) in drawn.items():
        picture = io.BytesIO()
        figure.savefig(picture, format="svg")
        data = base64.b64encode(picture.getvalue()).decode()
        parts.append(
            f"<h2 id={name}>{name.capitalize()}</h2><p>{escape(text)}</p>"
            f"<img alt={name!r} src='data:image/svg+xml;base64,{data}'>"
        )
    for title, heads, lines in special_tables(results):
        parts.append(f"<h2>{escape(title.capitalize())}</h2>{_html(heads, lines)}")
    parts.append(f"<h2 id=layers>Layers</h2><div class=wide>{_table(results)}</div>")
    parts += [f"<p class=quiet>note: {escape(note)}</p>" for note in results.notes]
    return "\n".join(parts) + "\n</html>\n"


def _cards(results: Results) -> list[str]:
    cards = [(str(len(results.rows)), "measurements"), (str(len(results.failures)), "wrong results")]
    for direction in results.directions:
        for comparison in COMPARISONS[:2]:
            if ratio := geomean(row.ratio(comparison) for row in results.select(direction)):
                cards.append((f"{ratio:.2f}&times;", f"{direction.replace('_', ' ')}, {comparison.title}"))
    if regret := Regret.of(results.rows):
        cards.append((f"{regret.median:.2f}", f"regret: {regret}"))
    return [f"<div class=card><b>{value}</b>{escape(label)}</div>" for value, label in cards]


def _table(results: Results) -> str:
    heads = [
        "layer", "direction", "chosen", "ms", "spread %", "% of peak", "% of copying", "first call ms",
        "memory MiB", "error", *(c.title for c in COMPARISONS),
    ]  # fmt: skip
    lines = []
    for row in results.rows:
        sample, moved = row.samples.get("fastconv"), row.bandwidth()
        taken = row.memory.get("fastconv")
        lines.append([
            row.line, row.direction, row.algorithm, number(row.best("fastconv"), ".3f", 1e3),
            number(sample.spread if sample else None, ".0f", 100), number(row.share(), ".0f", 100),
            number(moved and moved / results.machine["bandwidth"], ".0f", 100),
            number(row.first.get("fastconv"), ".1f", 1e3), number(taken, ".1f", 2**-20), number(row.error, ".0e"),
            *(number(row.ratio(c)) for c in COMPARISONS),
        ])  # fmt: skip
    return _html(heads, lines)


def _html(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in lines)
    return f"<table><thead><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr></thead>{body}</table>"


def _write_pngs(drawn: dict[str, tuple[str, Any]], folder: Path, names: str) -> None:
    wanted = names.split(",") if names else list(drawn)
    if unknown := [name for name in wanted if name not in drawn]:
        raise ValueError(f"figures are {', '.join(drawn)}, got {', '.join(unknown)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        drawn[name][1].savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})
