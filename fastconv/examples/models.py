"""Three networks, small enough to train in seconds and built as their large relatives are."""

from __future__ import annotations

import numpy as np

from fastconv import nn


def lenet(rng: np.random.Generator) -> nn.Module:
    """Return LeNet-5 with the parts and the width of today: convolve, rectify, pool; then connect everything.

    Y. LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 86, 1998.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2, activation="relu", input_grad=False, rng=rng), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, activation="relu", rng=rng), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 120, activation="relu", rng=rng),
        nn.Linear(120, 84, activation="relu", rng=rng), nn.Linear(84, 10, rng=rng),
    )  # fmt: skip


def resnet(rng: np.random.Generator) -> nn.Module:
    """Return a residual network of three stages, each of half the pixels and twice the channels.

    K. He et al., Deep residual learning for image recognition, arXiv:1512.03385.
    """
    return nn.Sequential(
        _convolved(1, 16, rng, input_grad=False),
        _block(16, 16, 1, rng), _block(16, 32, 2, rng), _block(32, 64, 2, rng),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10, rng=rng),
    )  # fmt: skip


def _block(before: int, channels: int, stride: int, rng: np.random.Generator) -> nn.Module:
    body = nn.Sequential(
        _convolved(before, channels, rng, stride=stride),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False, rng=rng), nn.BatchNorm2d(channels),
    )  # fmt: skip
    shortcut = None
    if stride > 1:
        shortcut = nn.Sequential(
            nn.Conv2d(before, channels, 1, stride, bias=False, rng=rng), nn.BatchNorm2d(channels)
        )
    return nn.Residual(body, shortcut, activation="relu")


def _convolved(
    before: int, channels: int, rng: np.random.Generator, input_grad: bool = True, stride: int = 1
) -> nn.Module:
    """Return the part that both are made of: convolve, normalise, rectify."""
    return nn.Sequential(
        nn.Conv2d(before, channels, 3, stride, 1, bias=False, input_grad=input_grad, rng=rng),
        nn.BatchNorm2d(channels, activation="relu"),
    )


def unet(rng: np.random.Generator) -> nn.Module:
    """Return a U-Net: down to few pixels that see much, up again, each level joined to its own copy from before.

    One number a pixel comes out, positive where it belongs to the digit (O. Ronneberger et al., arXiv:1505.04597).
    """
    return nn.Sequential(_level(1, 16, 2, rng, input_grad=False), nn.Conv2d(16, 1, 1, rng=rng))


def _level(
    before: int, channels: int, deeper: int, rng: np.random.Generator, input_grad: bool = True
) -> nn.Module:
    """Return a level with all those below it, which see half the pixels."""
    first = _convolved(before, channels, rng, input_grad)
    if not deeper:
        return first
    below = nn.Sequential(
        nn.MaxPool2d(2), _level(channels, 2 * channels, deeper - 1, rng),
        nn.ConvTranspose2d(2 * channels, channels, 2, 2, rng=rng),
    )  # fmt: skip
    return nn.Sequential(first, nn.Concat(below), _convolved(2 * channels, channels, rng))


ARCHITECTURES = {"lenet": lenet, "resnet": resnet, "unet-like": unet}
