"""Two-dimensional real transforms of VL tiles at once: rows, then columns.

Of a real tile of ah x aw pixels only columns 0 .. aw/2 of the row spectra are needed.  Columns 0 and
aw/2 are real, so they too have half a spectrum: ``2 (ah/2 + 1) + (aw/2 - 1) ah`` frequencies in all, numbered in
this order.  A tile of one row is its row spectrum.

Scratch of a worker: one row of vectors (aw, and VL more that edges may read), then the row spectra,
each column's real parts followed by its imaginary parts, and a vector between columns against
collisions in the cache.
"""

from __future__ import annotations

from fastconv import jit
from fastconv.algorithms.fft.codelets import (
    COMPLEX,
    COMPLEX_SUM,
    INVERSE_COMPLEX_GAUSS,
    INVERSE_COMPLEX_TIMES,
    INVERSE_REAL,
    INVERSE_REAL_GAUSS,
    INVERSE_REAL_TIMES,
    REAL,
    REAL_SUM,
    transform,
)
from fastconv.algorithms.fft.lanes import (
    CHANNELS,
    each_move,
    load_row,
    move_more,
    scatter,
    store_pixels,
    store_zero,
)


def frequencies(ah: int, aw: int) -> int:
    """Complex numbers in the spectrum of a tile."""
    return aw // 2 + 1 if ah == 1 else ah * (aw // 2 - 1) + 2 * (ah // 2 + 1)


def scratch_size(ah: int, aw: int, lanes: int) -> int:
    """Elements of scratch for one tile of vectors."""
    return lanes * (aw + lanes + (aw // 2 + 1) * (2 * ah + 1))


@jit.inner
def columns(ah, aw):
    """Return the columns of a spectrum; of a tile of one row, that row."""
    return aw // 2 + 1 if ah > 1 else 1


@jit.inner
def column_bins(q, ah, aw):
    """Return the number of the first frequency of a column, and how many it has."""
    half = (ah if ah > 1 else aw) // 2 + 1
    if q == 0:
        return 0, half
    return (half, half) if q == aw // 2 else (2 * half + (q - 1) * ah, ah)


@jit.inner
def row_spectra(x, x0, maps, table, ah, aw, lanes, scratch):
    """Transform the rows of one tile of every lane; load that of a tile of one row."""
    start, column, half = (aw + lanes) * lanes, (2 * ah + 1) * lanes, ah * lanes
    for row in range(ah):
        if table[0] <= row < table[1] or ah == 1:
            load_row(scratch, x, x0, maps, table, row, aw, lanes)
            if ah > 1:
                at = start + row * lanes
                transform(REAL, aw, scratch, 0, lanes, 0, scratch, 0, 0, 0, scratch, at, column, half)
        else:  # no tile has this row
            for q in range(aw // 2 + 1):
                at = start + q * column + row * lanes
                store_zero(scratch, at)
                store_zero(scratch, at + half)


def _forward(real, complex_):
    @jit.inner
    def spectrum_of_column(scratch, q, ah, aw, lanes, v, v0, step, gap):
        """Transform a column of row spectra: frequency f of a plane goes to ``v0 + f*step + plane*gap``."""
        start, half = (aw + lanes) * lanes + q * (2 * ah + 1) * lanes, ah * lanes
        if 0 < q < aw // 2:
            transform(complex_, ah, scratch, start, lanes, half, scratch, 0, 0, 0, v, v0, step, gap)
        else:
            first, length = (start, ah) if ah > 1 else (0, aw)
            transform(real, length, scratch, first, lanes, 0, scratch, 0, 0, 0, v, v0, step, gap)

    @jit.inner
    def spectrum(x, x0, maps, table, ah, aw, lanes, scratch, v, v0, step, gap):
        """Transform one tile of every lane."""
        row_spectra(x, x0, maps, table, ah, aw, lanes, scratch)
        for q in range(columns(ah, aw)):
            first, _ = column_bins(q, ah, aw)
            spectrum_of_column(scratch, q, ah, aw, lanes, v, v0 + first * step, step, gap)

    return spectrum_of_column, spectrum


_, spectrum = _forward(REAL, COMPLEX)
column_spectrum_sum, spectrum_sum = _forward(REAL_SUM, COMPLEX_SUM)


def _inverse(real, complex_):
    @jit.inner
    def samples_of_column(v, v0, step, gap, u, u0, u_step, u_gap, q, ah, aw, lanes, scratch):
        """Bring the spectrum of a column back."""
        start, half = (aw + lanes) * lanes + q * (2 * ah + 1) * lanes, ah * lanes
        if 0 < q < aw // 2:
            transform(complex_, ah, v, v0, step, gap, u, u0, u_step, u_gap, scratch, start, lanes, half)
        else:
            first, length = (start, ah) if ah > 1 else (0, aw)
            transform(real, length, v, v0, step, gap, u, u0, u_step, u_gap, scratch, first, lanes, 0)

    @jit.inner
    def samples(v, v0, step, gap, u, u0, u_step, u_gap, ah, aw, lanes, scratch):
        """Bring the spectrum of a tile to its row spectra, or, if it has one row, to that row."""
        for q in range(columns(ah, aw)):
            f, _ = column_bins(q, ah, aw)
            samples_of_column(
                v, v0 + f * step, step, gap, u, u0 + f * u_step, u_step, u_gap, q, ah, aw, lanes, scratch
            )

    return samples_of_column, samples


column_samples_gauss, samples_gauss = _inverse(INVERSE_REAL_GAUSS, INVERSE_COMPLEX_GAUSS)
_, samples_times = _inverse(INVERSE_REAL_TIMES, INVERSE_COMPLEX_TIMES)


@jit.inner
def fold_rows(table, ah, aw, lanes, scratch, skip):
    """Add the row spectra of rows that ``table`` moves, counted from row ``skip`` on."""
    start, column, gap = (aw + lanes) * lanes, (2 * ah + 1) * lanes, ah * lanes
    for end in each_move(table):
        to, at = start + (skip + table[end]) * lanes, start + (skip + table[end + 1]) * lanes
        for _ in range(aw // 2 + 1):
            move_more(scratch, to, at, table[end + 2])
            move_more(scratch, to + gap, at + gap, table[end + 2])
            to, at = to + column, at + column


@jit.inner
def write(y, y0, maps, table, ah, aw, lanes, scratch, skip, mw):
    """Transform the row spectra, fold columns and store rows and columns of the tiles from ``skip`` on.

    Where channels are last the maps tell all that.
    """
    start, column, gap = (aw + lanes) * lanes, (2 * ah + 1) * lanes, ah * lanes
    for row in range(table[0], table[1]):
        if ah > 1:
            at = start + (skip[0] + row) * lanes
            transform(INVERSE_REAL, aw, scratch, at, column, gap, scratch, 0, 0, 0, scratch, 0, lanes, 0)
        if table[CHANNELS]:
            store_pixels(y, maps, table, row, aw, scratch, lanes)
            continue
        for end in each_move(table):
            move_more(
                scratch, (skip[1] + table[end]) * lanes, (skip[1] + table[end + 1]) * lanes, table[end + 2]
            )
        for chunk in range((mw + lanes - 1) // lanes):
            src = (skip[1] + chunk * lanes) * lanes
            scatter(y, y0, maps, table, row, chunk, scratch, src)
