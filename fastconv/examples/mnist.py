"""``python -m fastconv.examples.mnist``: train a network on real digits, and draw how that went.

The loop in `train` is all there is to training: a batch forward, the loss, its gradient back through the layers, a step
of the optimizer.  A LeNet or a small ResNet tells the ten digits apart; ``--architecture unet-like`` finds the
pixels of a digit among pieces of other digits.  The test images are looked at once, at the end of each epoch, and
choose nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastconv
from fastconv import nn
from fastconv.examples import digits
from fastconv.examples.models import ARCHITECTURES
from fastconv.typing import Array

EPOCHS = {"lenet": 24, "resnet": 20, "unet-like": 8}
BATCH = 64
Score = Callable[[Array, Array], float]


@dataclass
class History:
    """What training measured: the loss of every step, and the score on both sets after every epoch."""

    losses: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    seconds: float = 0.0  # of training, tests left out


@dataclass
class Task:
    """What is learned: samples anew for every epoch, a loss, and a score between 0 and 1."""

    epoch: Callable[[], tuple[Array, Array]]
    test: tuple[Array, Array]
    loss: nn.Loss
    score: Score
    name: str


def accuracy(outputs: Array, classes: Array) -> float:
    """Return the share of images whose largest output is that of their class."""
    return float((outputs.argmax(axis=1) == classes).mean())


def overlap(outputs: Array, target: Array) -> float:
    """Return pixels found and right over pixels found or right: intersection over union."""
    found, right = outputs > 0, target > 0.5
    return float((found & right).sum() / max((found | right).sum(), 1))


def task_of(architecture: str, data: digits.Digits, rng: np.random.Generator) -> Task:
    """Return the task that an architecture is for."""
    if architecture == "unet-like":
        test = digits.scenes(data.test_images, np.random.default_rng(1))
        return Task(
            lambda: digits.scenes(data.images, rng), test, nn.BCEWithLogitsLoss(), overlap, "IoU"
        )  # fmt: skip
    return Task(
        lambda: (digits.shifted(data.images, 2, rng), data.classes), (data.test_images, data.test_classes),
        nn.CrossEntropyLoss(), accuracy, "accuracy",
    )  # fmt: skip


def outputs_of(model: nn.Module, images: Array, batch: int = 250) -> Array:
    """Return a network's outputs in inference."""
    model.eval()
    outputs = np.concatenate([model(images[i : i + batch]) for i in range(0, len(images), batch)])
    model.train()
    return outputs


def train(model: nn.Module, task: Task, epochs: int, rng: np.random.Generator, lr: float = 3e-3) -> History:
    """Train, and show the loss, the score and images per second on the way."""
    history = History()
    optimizer = nn.AdamW(model.parameters(), lr)
    steps = -(-len(task.epoch()[0]) // BATCH)
    schedule = nn.SequentialLR(
        optimizer,
        [
            nn.LinearLR(optimizer, 0.01, total_iters=steps // 2),
            nn.CosineAnnealingLR(optimizer, epochs * steps),
        ],
        milestones=[steps // 2],
    )
    with _progress(epochs * steps) as show:
        for _ in range(epochs):
            scores = []
            for x, target in nn.batches(*task.epoch(), BATCH, rng):
                start = time.perf_counter()
                outputs = model(x)
                history.losses.append(task.loss(outputs, target))
                optimizer.zero_grad()
                model.backward(task.loss.backward())
                optimizer.step()
                schedule.step()
                seconds = time.perf_counter() - start
                history.seconds += seconds
                scores.append(task.score(outputs, target))
                recent = np.mean(history.losses[-20:])
                show(
                    f"loss {recent:.3f}  {task.name} {np.mean(scores[-20:]):.3f}  {len(x) / seconds:,.0f} images/s"
                )
            history.train.append(float(np.mean(scores)))
            history.test.append(task.score(outputs_of(model, task.test[0]), task.test[1]))
    return history


class _progress:
    """A progress bar by rich on a terminal; elsewhere a line every tenth of the way."""

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0
        self.bar: Any = None

    def __enter__(self) -> Callable[[str], None]:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                MofNCompleteColumn(),
                BarColumn(30),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task("", total=self.count)
        return self.show

    def show(self, text: str) -> None:
        """Count a step and show ``text``."""
        self.done += 1
        if self.bar is not None:
            self.bar.update(self.task, advance=1, description=text)
        elif self.done % max(self.count // 10, 1) == 0:
            print(f"step {self.done}/{self.count}  {text}", file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the result and write the report; 2 where something needed is not installed."""
    parser = argparse.ArgumentParser(
        prog="fastconv.examples.mnist", description="Train on 4,000 real digits."
    )
    parser.add_argument("--architecture", choices=tuple(ARCHITECTURES), default="lenet")
    parser.add_argument("--epochs", type=int, help="passes over the training images (default: enough)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", metavar="PNG", help="where to draw (default: mnist_ARCHITECTURE.png)")
    parser.add_argument("--save", metavar="NPZ", help="where to write the trained weights")
    options = parser.parse_args(argv)
    architecture, start = options.architecture, time.perf_counter()
    try:
        data = digits.load()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    rng = np.random.default_rng(options.seed)
    model = ARCHITECTURES[architecture](rng)
    task = task_of(architecture, data, rng)
    with fastconv.config(reuse=True):
        history = train(model, task, options.epochs or EPOCHS[architecture], rng)
    images = len(data.images) * len(history.test)
    print(
        f"{architecture}: {sum(p.data.size for p in model.parameters()):,} parameters, test {task.name} "
        f"{history.test[-1]:.3f}, {images / history.seconds:,.0f} images/s, {time.perf_counter() - start:.1f} s in all"
    )
    if options.save:
        model.save(options.save)
    try:
        from fastconv.examples import report
    except ImportError as error:
        print(f"no report: {error}; pip install 'fastconv[examples]'", file=sys.stderr)
        return 2
    path = options.report or f"mnist_{architecture}.png"
    report.draw(path, architecture, model, task, history, outputs_of(model, task.test[0]))
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
