"""What the route of small tiles costs, by kind of work: vectors that are transformed, and products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastconv import machine
from fastconv.roofline import multiply

if TYPE_CHECKING:
    from fastconv.algorithms.fft.cut import Cut

LEVEL = 0.22  # of a transform: what it costs beside loading, transposing and storing
SHORTEST = 1 + 3 * LEVEL  # of the smallest tile


def of_tile(ah: int, aw: int) -> float:
    """Vectors to load, transpose, take through all levels and store for one vector of tiles."""
    return ah * aw * (1 + LEVEL * ((ah * aw).bit_length() - 1))


def busy(units: int) -> float:
    """By how much the busiest core has more than its share of the units."""
    cores = machine.machine().cores
    return -(-units // cores) * cores / units


def per_channel(g: Cut, grad: bool) -> tuple[str, dict[str, float]]:
    """Return the kind of tiles of single channels, and its work."""
    vectors, transform = -(-g.groups * g.k // g.lanes), of_tile(*g.size)
    size = "transform" if g.scratch * g.itemsize <= machine.machine().l1 else "transform beyond L1"
    if grad:
        transforms = vectors * (2 * g.tiles + 1) * busy(vectors)
        return "fft depthwise weight_grad", {size: transforms * transform}
    transforms = 2 * vectors * g.tiles * busy(vectors * g.tiles) + vectors
    return "fft depthwise", {size: transforms * transform}


def dense(g: Cut) -> dict[str, float]:
    """Return the work of dense tiles, channels first."""
    units = -(-g.tiles // (g.vectors * g.lanes))
    blocks, transform = g.groups * units * busy(units), of_tile(*g.size)
    return {
        "products": blocks * g.bins * 3 * multiply(g.k, g.vectors, g.c, g.itemsize),
        "transform": blocks * g.vectors * (g.c + g.k) * transform,
        "filters": g.groups * -(-g.k // g.lanes) * g.c * transform,
    }


def pixels(g: Cut) -> dict[str, float]:
    """Return that of channels last."""
    transform = of_tile(*g.size)
    wide, vectors = -(-g.c // g.lanes), -(-g.k // g.lanes)
    return {
        "products": g.groups * g.bins * 3 * multiply(g.tiles, vectors, g.c, g.itemsize),
        "transform": g.groups * g.tiles * (wide + vectors) * transform,
        "filters": g.groups * vectors * g.c * transform,
    }


def gradient(g: Cut) -> dict[str, float]:
    """Return that of a dense weight gradient."""
    vectors, transform = -(-g.c // g.lanes), of_tile(*g.size)
    transforms = g.tiles * (vectors + 1.5 * -(-g.k // g.lanes)) + g.k * vectors
    return {
        "products": g.groups * g.bins * 3 * multiply(g.k, vectors, g.tiles, g.itemsize),
        "transform": g.groups * transforms * transform,
    }
