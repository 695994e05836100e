"""The picture of a training run: curves, what the first layer learned, and where the network is wrong."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fastconv import nn
from fastconv.examples.mnist import History, Task
from fastconv.typing import Array

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#718096",
}  # fmt: skip


def draw(path: str, name: str, model: nn.Module, task: Task, history: History, outputs: Array) -> None:
    """Write the report of a trained network as a PNG file."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 7.6), dpi=110, layout="constrained")
        figure.suptitle(
            f"{name}: test {task.name} {history.test[-1]:.3f} after {len(history.test)} epochs, "
            f"{history.seconds:.1f} s of training",
            fontsize=13, fontweight="bold", x=0.01, ha="left",
        )  # fmt: skip
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
        top, bottom = halves
        left, middle, right = top.subplots(1, 3, width_ratios=(1, 1, 1))
        _losses(left, history)
        _scores(middle, task, history)
        if outputs.ndim == 2:
            _confusion(right, outputs, task.test[1])
            filters, errors = bottom.subfigures(1, 2, width_ratios=(1, 1.4))
            _misread(errors, task, outputs)
        else:
            _by_scene(right, outputs, task.test[1])
            filters, errors = bottom.subfigures(1, 2, width_ratios=(1, 1.8))
            _found(errors, task, outputs)
        _filters(filters, model)
        figure.savefig(path)


def _losses(axes: Any, history: History) -> None:
    steps = len(history.losses)
    window = min(20, steps)
    smooth = np.convolve(history.losses, np.ones(window) / window, "valid")
    axes.plot(np.arange(1, steps + 1), history.losses, color=GREY, lw=0.6, label="each step")
    axes.plot(np.arange(window, steps + 1), smooth, color=BLUE, lw=1.8, label=f"mean of {window}")
    axes.set(title="Loss in training", xlabel="step", yscale="log")
    axes.legend(frameon=False)


def _scores(axes: Any, task: Task, history: History) -> None:
    epochs = np.arange(1, len(history.test) + 1)
    for values, color, label in ((history.train, GREY, "training"), (history.test, ORANGE, "test")):
        axes.plot(epochs, values, "o-", ms=3.5, color=color, lw=1.6, label=label)
    low = min(*history.test, *history.train)
    axes.set(title=f"{task.name.capitalize() if task.name.islower() else task.name}", xlabel="epoch")
    axes.set_ylim(max(0.0, low - 0.05 * (1 - low)), 1.0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.annotate(
        f"{history.test[-1]:.3f}", (epochs[-1], history.test[-1]), (0, -16), textcoords="offset points",
        ha="right", color=ORANGE, fontweight="bold",
    )  # fmt: skip
    axes.legend(frameon=False, loc="lower right")


def _confusion(axes: Any, outputs: Array, classes: Array) -> None:
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (classes, outputs.argmax(axis=1)), 1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    axes.imshow(wrong, cmap="Oranges", vmin=0, vmax=max(wrong.max(), 4))
    for row, column in np.argwhere(counts):
        diagonal = row == column
        axes.text(
            column, row, counts[row, column], ha="center", va="center", fontsize=8,
            color="#718096" if diagonal else "black", fontweight="normal" if diagonal else "bold",
        )  # fmt: skip
    axes.set(title=f"Test digits: {wrong.sum()} of {len(classes)} misread", xlabel="read as", ylabel="digit")
    axes.set_xticks(range(10))
    axes.set_yticks(range(10))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _by_scene(axes: Any, outputs: Array, target: Array) -> None:
    found, right = outputs > 0, target > 0.5
    both = (found & right).sum(axis=(1, 2, 3))
    values = 2 * both / np.maximum(found.sum(axis=(1, 2, 3)) + right.sum(axis=(1, 2, 3)), 1)
    axes.hist(values, bins=np.linspace(0, 1, 41), color=BLUE)
    axes.set(title=f"Dice of each test scene, median {np.median(values):.3f}", xlabel="Dice", ylabel="scenes")


def _filters(figure: Any, model: nn.Module) -> None:
    weight = next(p.data for _, p in model.named_parameters() if p.data.ndim == 4)
    count = min(len(weight), 16)
    figure.suptitle("Filters of the first layer", x=0.02, ha="left", fontsize=10, fontweight="bold")
    columns = 4
    grid = figure.subplots(-(-count // columns), columns, squeeze=False)
    limit = float(np.abs(weight).max())
    for i, axes in enumerate(grid.flat):
        axes.axis("off")
        if i < count:
            axes.imshow(weight[i, 0], cmap="RdBu_r", vmin=-limit, vmax=limit)


def _misread(figure: Any, task: Task, outputs: Array) -> None:
    images, classes = task.test
    read = outputs.argmax(axis=1)
    p = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    wrong = np.flatnonzero(read != classes)
    wrong = wrong[np.argsort(-p[wrong, read[wrong]])][:12]
    figure.suptitle("Misread digits, the surest first", x=0.02, ha="left", fontsize=10, fontweight="bold")
    for i, axes in enumerate(figure.subplots(2, 6).flat):
        axes.axis("off")
        if i < len(wrong):
            n = wrong[i]
            axes.imshow(images[n, 0], cmap="gray_r")
            axes.set_title(
                f"{classes[n]} read as {read[n]}\nat {p[n, read[n]]:.0%}", fontsize=8, fontweight="normal",
                loc="center",
            )  # fmt: skip


def _found(figure: Any, task: Task, outputs: Array) -> None:
    scenes, target = task.test
    figure.suptitle(
        "Test scenes; below, pixels found (blue), missed (orange), wrongly taken (red)", x=0.02, ha="left",
        fontsize=10, fontweight="bold",
    )  # fmt: skip
    grid = figure.subplots(2, 6)
    for n in range(min(6, len(scenes))):
        found, right = outputs[n, 0] > 0, target[n, 0] > 0.5
        picture = np.repeat(1 - 0.25 * scenes[n, 0][..., None], 3, axis=2)
        for mask, color in ((found & right, BLUE), (right & ~found, ORANGE), (found & ~right, "#e53e3e")):
            picture[mask] = matplotlib.colors.to_rgb(color)
        grid[0, n].imshow(scenes[n, 0], cmap="gray_r")
        grid[1, n].imshow(picture)
    for axes in grid.flat:
        axes.axis("off")
