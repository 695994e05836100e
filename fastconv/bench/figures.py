"""What a run has measured, drawn by matplotlib: one function a figure, None where the run has no data for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fastconv.bench.corpus import SWEEP
from fastconv.bench.results import ALLOWED, COMPARISONS, Results, Row, geomean
from fastconv.problem import Direction

COLOURS = ("#2f6db5", "#d9722b", "#3a9a5c", "#b0417a", "#7d6bb8", "#8a8a3c", "#5aa9b8", "#8c5a3c")
ALGORITHMS = ("direct", "im2col", "winograd", "fft")
TITLES = {d: str(d).replace("_", " ").replace("grad", "gradient") for d in Direction}
GREY, DARK = "#8a9099", "#2a2f36"


def figures(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return the figures there is data for, by file name, each with a sentence on how to read it."""
    drawn = {name: (text, draw(results)) for name, (text, draw) in FIGURES.items()}
    return {name: (text, figure) for name, (text, figure) in drawn.items() if figure}


def speedup(results: Results) -> Figure | None:
    """Draw others' time over ours by category, a panel a direction."""
    directions = [d for d in results.directions if any(_ratios(_layers(results, d)))]
    if not directions:
        return None
    names = [c for c in results.categories if not c.startswith(SWEEP)]
    figure, panels = _panels(len(directions), 0.36 * len(names) + 1.9, shared=True)
    for panel, direction in zip(panels, directions, strict=True):
        shown = [c for c in COMPARISONS if any(r.ratio(c) for r in _layers(results, direction))]
        for i, comparison in enumerate(COMPARISONS):
            if comparison not in shown:
                continue
            offset = (shown.index(comparison) - (len(shown) - 1) / 2) * 0.8 / len(shown)
            for at, name in enumerate([*names, "all"]):
                rows = [r for r in _layers(results, direction) if name in (r.category, "all")]
                if ratio := geomean(r.ratio(comparison) for r in rows):
                    label = comparison.title if at == len(names) or name == names[0] else None
                    handles = panel.get_legend_handles_labels()[1]
                    panel.plot(
                        [1, ratio], [at + offset] * 2, color=COLOURS[i % len(COLOURS)], lw=4 if name == "all" else 2.4,
                        solid_capstyle="round", label=None if label in handles else label,
                    )  # fmt: skip
        panel.axvline(1, color=DARK, lw=1)
        _logarithmic(panel, "x", "{:g}")
        panel.set(title=TITLES[Direction(direction)], xlabel="their time / ours")
        panel.set_yticks(range(len(names) + 1), [*names, "all layers"])
        panel.set_ylim(len(names) + 0.6, -0.6)
        panel.axhline(len(names) - 0.5, color=GREY, lw=0.6)
    _legend(figure, panels)
    return figure


def _ratios(rows: Sequence[Row]) -> list[float]:
    return [ratio for row in rows for c in COMPARISONS if (ratio := row.ratio(c))]


def roofline(results: Results) -> Figure | None:
    """Draw every layer between the roofs of multiply-adds and of copying."""
    rows = [row for row in results.rows if row.best("fastconv") and not row.category.startswith(SWEEP)]
    if not rows:
        return None
    figure, (panel,) = _panels(1, 5.2)
    categories = [c for c in results.categories if not c.startswith(SWEEP)]
    markers = {"forward": "o", "input_grad": "^", "weight_grad": "s"}
    for row in rows:
        colour = _spectrum(categories.index(row.category) / max(1, len(categories) - 1))
        panel.plot(
            row.flops / row.bytes, row.flops / (row.best("fastconv") or 1) / 1e9, markers[row.direction],
            color=colour, ms=5, alpha=0.8, mec="white", mew=0.4,
        )  # fmt: skip
    peak, copy = results.machine["peak"] / 1e9, results.machine["bandwidth"] / 1e9
    intensity = np.geomspace(
        min(r.flops / r.bytes for r in rows) / 1.5, max(r.flops / r.bytes for r in rows) * 1.5, 200
    )
    panel.plot(intensity, np.minimum(peak, copy * intensity), color=DARK, lw=1.6)
    over = {"size": 9, "color": DARK, "bbox": {"color": "white", "alpha": 0.8, "pad": 1}}  # legible over dots
    panel.text(intensity[-1], peak * 1.12, f"{peak:.0f} GFLOP/s, measured", ha="right", va="bottom", **over)
    if copy * intensity[0] < peak / 2:
        panel.text(intensity[0], copy * intensity[0] * 1.7, f"copying, {copy:.0f} GB/s", ha="left", **over)
    for i, name in enumerate(categories):
        panel.plot([], [], "o", color=_spectrum(i / max(1, len(categories) - 1)), label=name)
    for direction, marker in markers.items():
        if direction in results.directions:
            panel.plot([], [], marker, color=GREY, label=TITLES[Direction(direction)])
    _logarithmic(panel, "x", "{:g}")
    _logarithmic(panel, "y", "{:g}")
    panel.set(xlabel="operations of the definition for each byte of operands and result", ylabel="GFLOP/s")
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return figure


def algorithms(results: Results) -> Figure | None:
    """Draw the time of each algorithm over the best one's, layer by layer."""
    rows = [row for row in results.rows if row.regret() and not row.category.startswith(SWEEP)]
    directions = list(dict.fromkeys(row.direction for row in rows))
    if not rows:
        return None
    lines = list(dict.fromkeys(row.line for row in rows))
    figure, panels = _panels(len(directions), 0.24 * len(lines) + 1.6, shared=True)
    for panel, direction in zip(panels, directions, strict=True):
        for row in (r for r in rows if r.direction == direction):
            at = lines.index(row.line)
            times = {a: row.best(f"fastconv:{a}") for a in ALGORITHMS}
            best = min(t for t in times.values() if t)
            shown = [(i, name, t) for i, (name, t) in enumerate(times.items()) if t]
            for place, (i, name, seconds) in enumerate(shown):
                y, speed = at + (place - (len(shown) - 1) / 2) * 0.2, best / seconds
                panel.barh(y, speed, 0.16, color=COLOURS[i])
                if name == row.algorithm.partition(":")[0]:
                    panel.plot(speed + 0.03, y, "<", color=DARK, ms=4.5, mec="none")
        panel.set(title=TITLES[Direction(direction)], xlabel="speed, best = 1", xlim=(0, 1.08))
        panel.set_yticks(range(len(lines)), lines, size=7.5)
        panel.set_ylim(len(lines) - 0.4, -0.6)
    for i, name in enumerate(ALGORITHMS):
        panels[0].bar(0, 0, color=COLOURS[i], label=name)
    panels[0].plot([], [], "<", color=DARK, ms=5, mec="none", label="chosen")
    _legend(figure, panels)
    return figure


def regret(results: Results) -> Figure | None:
    """Draw the distribution of t(auto) / t(best)."""
    if not any(row.regret() for row in results.rows):
        return None
    figure, (panel,) = _panels(1, 3.6)
    for i, direction in enumerate(results.directions):
        values = sorted(r for row in results.select(direction) if (r := row.regret()))
        if values:
            share = (np.arange(len(values)) + 1) / len(values)
            label = f"{TITLES[Direction(direction)]}, {len(values)} layers"
            panel.step(values, 100 * share, where="post", color=COLOURS[i], lw=2, label=label)
    for value, percent in ((ALLOWED.median, 50), (ALLOWED.at95, 95), (ALLOWED.most, 100)):
        panel.plot(value, percent, "v", color=DARK, ms=8, zorder=3)
    panel.plot([], [], "v", color=DARK, label="allowed: the curve passes on the left")
    panel.set(xlabel="t(auto) / t(best algorithm)", ylabel="% of layers", ylim=(0, 104))
    panel.legend(frameon=False, loc="lower right")
    return figure


def errors(results: Results) -> Figure | None:
    """Draw the error of every contestant against float64."""
    found: dict[str, list[float]] = {}
    for row in results.rows:
        for name, error in row.errors.items():
            if name not in ("fastconv", "prepared") and 0 < error < 1:
                found.setdefault(name.removeprefix("fastconv:"), []).append(error)
    return _strips(found, "largest error / root mean square of the result")


def memory(results: Results) -> Figure | None:
    """Draw the peak memory of a call over the size of its result."""
    found: dict[str, list[float]] = {}
    for row in results.rows:
        p = row.problem
        shape = {"forward": p.output_shape, "input_grad": p.input_shape}.get(row.direction, p.weight_shape)
        size = p.itemsize * int(np.prod(shape))
        for name, taken in row.memory.items():
            if size >= 2**20:  # pages and allocators hide smaller ones
                found.setdefault(name.removeprefix("fastconv:"), []).append(max(taken / size, 0.01))
    return _strips(found, "peak memory of a call / size of its result")


def _strips(found: dict[str, list[float]], label: str) -> Figure | None:
    if not found:
        return None
    figure, (panel,) = _panels(1, 0.34 * len(found) + 1.2)
    random = np.random.default_rng(0)
    for at, (name, values) in enumerate(found.items()):
        scatter = at + random.uniform(-0.22, 0.22, len(values))
        colour = COLOURS[0] if name in (*ALGORITHMS, "fastconv", "prepared") else GREY
        panel.plot(values, scatter, "o", ms=3.5, color=colour, alpha=0.55, mec="none")
        panel.plot([float(np.median(values))] * 2, [at - 0.36, at + 0.36], color=DARK, lw=2)
    panel.set_yticks(range(len(found)), list(found))
    panel.set_ylim(len(found) - 0.5, -0.5)
    panel.set_xlabel(label)
    _logarithmic(panel, "x", "{:g}")
    return figure


GROWING: dict[str, tuple[str, Callable[[Row], float]]] = {
    "channels": ("channels in and out", lambda row: row.problem.c),
    "map": ("pixels of a side", lambda row: row.problem.axes[0].size),
    "kernel": ("taps of a side", lambda row: row.problem.axes[0].kernel),
    "batch": ("images", lambda row: row.problem.n),
}


def growth(results: Results) -> Figure | None:
    """Draw how the time grows when one number of a layer does, and with the number of threads."""
    sweeps = [
        (name, rows)
        for name in GROWING
        if (rows := results.select("forward", lambda row, name=name: row.category == SWEEP + name))  # type: ignore[misc]
    ]
    scaling = results.special.get("scaling", {})
    threads = scaling["seconds"] if scaling.get("threads", 1) > 1 else None
    if not sweeps:
        return None
    figure, panels = _panels(len(sweeps) + bool(threads), 3.4, columns=3)
    for panel, (name, rows) in zip(panels, sweeps, strict=False):
        title, number = GROWING[name]
        contestants = dict.fromkeys(n for row in rows for n in row.samples)
        ours = [n for n in contestants if n.removeprefix("fastconv:") in ALGORITHMS]
        for contestant in [*sorted(ours), *(n for n in contestants if n.startswith("torch")), "fastconv"]:
            points = [(number(row), t * 1e3) for row in rows if (t := row.best(contestant))]
            style = _style(contestant)
            panel.plot(*zip(*points, strict=True), label=contestant.removeprefix("fastconv:"), **style)
        _logarithmic(panel, "x", "{:g}", sorted({number(row) for row in rows}))
        _logarithmic(panel, "y", "{:g}")
        panel.set(xlabel=title, ylabel="ms")
    if threads:
        for times in threads.values():
            counts = [int(n) for n in times]
            panels[-1].plot(
                counts, [times["1"] / t for t in times.values()], "o-", color=COLOURS[0], alpha=0.4
            )
        panels[-1].plot(counts, counts, color=DARK, lw=1, ls="--")
        panels[-1].set(xlabel="threads", ylabel="times as fast as one", xticks=counts)
    _legend(figure, panels)
    return figure


def _style(contestant: str) -> dict[str, Any]:
    if contestant == "fastconv":
        return {"color": DARK, "lw": 3.2, "alpha": 0.45, "zorder": 1}
    name = contestant.removeprefix("fastconv:")
    if name in ALGORITHMS:
        return {"color": COLOURS[ALGORITHMS.index(name)], "marker": "o", "ms": 3.5, "lw": 1.4}
    return {"color": GREY, "lw": 1.2, "ls": "--" if name == "torch_nchw" else ":"}


FIGURES: dict[str, tuple[str, Callable[[Results], Figure | None]]] = {
    "speedup": ("Others' time over ours, geometric means; bars to the right of 1: we are faster.", speedup),
    "roofline": (
        "Every layer under the machine's roofs, in operations of the definition: Winograd and FFT do fewer.",
        roofline,
    ),
    "algorithms": ("How near each algorithm comes to the fastest, layer by layer, and which one is chosen.", algorithms),
    "regret": ("How much longer the automatic choice takes than the best algorithm.", regret),
    "errors": ("Errors against float64; a line marks the median. Ours in blue.", errors),
    "memory": (
        "Memory of a call and its result (of 1 MiB and more; 0.01 and less: in memory kept); a line marks the median.",
        memory,
    ),
    "growth": ("How cost grows with one number of a layer.", growth),
}  # fmt: skip


def _layers(results: Results, direction: str) -> list[Row]:
    return results.select(direction, lambda row: not row.category.startswith(SWEEP))


def _panels(
    count: int, height: float, *, columns: int | None = None, shared: bool = False
) -> tuple[Figure, list[Any]]:
    across = min(columns or count, count)
    down = ceil(count / across)
    figure = Figure(figsize=(max(7.5, 4.1 * across), max(2.6, height) * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=shared).ravel()
    for panel in axes[count:]:
        panel.set_visible(False)
    for panel in axes[:count]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e3e6ea", lw=0.6)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=9)
    return figure, list(axes[:count])


def _legend(figure: Figure, panels: Sequence[Any]) -> None:
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            handles.values(),
            handles,
            loc="outside upper center",
            ncols=min(5, len(handles)),
            frameon=False,
            fontsize=9,
        )


def _logarithmic(panel: Any, which: str, form: str, ticks: Sequence[float] = ()) -> None:
    getattr(panel, f"set_{which}scale")("log")
    axis = getattr(panel, f"{which}axis")
    axis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))
    low, high = getattr(panel, f"get_{which}lim")()
    if ticks:
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_minor_locator(NullLocator())
    elif high / low < 200:
        steps = [m * 10.0**e for e in range(-9, 9) for m in (1, 2, 5)]
        axis.set_major_locator(FixedLocator([s for s in steps if low / 1.01 <= s <= high * 1.01]))
        axis.set_minor_locator(NullLocator())


def _spectrum(share: float) -> Any:
    from matplotlib import colormaps

    return colormaps["turbo"](0.06 + 0.88 * share)
