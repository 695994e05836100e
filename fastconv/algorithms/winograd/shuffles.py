"""Between lines of pixels and vectors of tiles, whose lane i is of tile i: shuffles.

Pixels of neighbouring tiles are m apart: m vectors of a line become the m pixels of each tile.
"""

from __future__ import annotations

from typing import Any

from fastconv.gemm.tile import shuffled


def split(builder: Any, parts: list[Any]) -> list[Any]:
    """Return phase j = elements j, j + m, j + 2m, ... of the m parts of one long vector."""
    m, lanes = len(parts), parts[0].type.count
    if m == 1:
        return parts
    if m % 2 == 0:  # halve: all even elements, all odd elements
        even, odd = (
            [
                shuffled(builder, parts[i], parts[i + 1], list(range(first, 2 * lanes, 2)))
                for i in range(0, m, 2)
            ]
            for first in (0, 1)
        )
        pairs = zip(split(builder, even), split(builder, odd), strict=True)
        return [phase for pair in pairs for phase in pair]
    return [_collect(builder, parts, [divmod(e * m + j, lanes) for e in range(lanes)]) for j in range(m)]


def merge(builder: Any, phases: list[Any]) -> list[Any]:
    """Invert `split`."""
    m, lanes = len(phases), phases[0].type.count
    if m == 1:
        return phases
    if m % 2 == 0:
        zips = ([i // 2 + (i % 2) * lanes + half for i in range(lanes)] for half in (0, lanes // 2))
        zips = list(zips)
        even, odd = merge(builder, phases[::2]), merge(builder, phases[1::2])
        return [shuffled(builder, e, o, z) for e, o in zip(even, odd, strict=True) for z in zips]
    return [
        _collect(builder, phases, [divmod(part * lanes + e, m)[::-1] for e in range(lanes)])
        for part in range(m)
    ]


def of_tiles(builder: Any, parts: list[Any], beside: list[Any], ends: Any) -> list[Any]:
    """Return the pixels of every tile, a vector of each: m of its own, which make up a line, and the next tile's first.

    A tile at the ``ends`` of a row has none next to it: its last pixels are ``beside``.
    """
    m, lanes = len(parts), parts[0].type.count
    pixels = split(builder, parts)
    for value in beside:
        following = pixels[len(pixels) - m]
        following = shuffled(builder, following, following, [*range(1, lanes), 0])
        pixels.append(builder.select(ends, value, following))
    return pixels


def _collect(builder: Any, sources: list[Any], wanted: list[tuple[int, int]]) -> Any:
    """Return a vector whose lane i is element ``wanted[i][1]`` of source ``wanted[i][0]``."""
    lanes = sources[0].type.count
    result = None
    for number, source in enumerate(sources):
        if not any(s == number for s, _ in wanted):
            continue
        if result is None:
            picks = [e if s == number else 0 for s, e in wanted]
            result = shuffled(builder, source, source, picks)
        else:
            picks = [lanes + e if s == number else i for i, (s, e) in enumerate(wanted)]
            result = shuffled(builder, result, source, picks)
    return result
