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
from fastconv.activations import finish
from fastconv.algorithms.fft.codelets import (
    complex_,
    complex_sum,
    inverse_complex,
    inverse_complex_gauss,
    inverse_complex_times,
    inverse_real,
    inverse_real_gauss,
    inverse_real_times,
    real,
    real_sum,
)
from fastconv.algorithms.fft.lanes import gather, scatter


def frequencies(ah: int, aw: int) -> int:
    """Complex numbers in the spectrum of a tile."""
    return aw // 2 + 1 if ah == 1 else ah * (aw // 2 - 1) + 2 * (ah // 2 + 1)


def scratch_size(ah: int, aw: int, lanes: int) -> int:
    """Elements of scratch for one tile of vectors."""
    return lanes * (aw + lanes + (aw // 2 + 1) * (2 * ah + 1))


@jit.inner
def _load_row(x, x0, pitch, table, row, aw, lanes, scratch):
    for chunk in range((aw + lanes - 1) // lanes):
        gather(scratch, chunk * lanes * lanes, x, x0, pitch, table, row, chunk)


@jit.inner
def _row_spectra(x, x0, pitch, table, ah, aw, lanes, scratch):
    """Transform the rows; those that no tile has are zeros."""
    start, step, gap = (aw + lanes) * lanes, (2 * ah + 1) * lanes, ah * lanes
    for row in range(ah):
        if table[0] <= row < table[1]:
            _load_row(x, x0, pitch, table, row, aw, lanes, scratch)
            at = start + row * lanes
            real(aw, scratch, 0, lanes, 0, scratch, 0, 0, 0, scratch, at, step, gap)
        else:
            for q in range(aw // 2 + 1):
                at = start + q * step + row * lanes
                for i in range(lanes):
                    scratch[at + i] = 0
                    scratch[at + gap + i] = 0


def _forward(planes: int):
    @jit.inner
    def spectrum(x, x0, pitch, table, ah, aw, lanes, scratch, v, v0, step, gap):
        """Transform one tile of every lane: frequency f of a plane goes to ``v0 + f*step + plane*gap``."""
        if ah == 1:
            _load_row(x, x0, pitch, table, 0, aw, lanes, scratch)
            if planes == 3:
                real_sum(aw, scratch, 0, lanes, 0, scratch, 0, 0, 0, v, v0, step, gap)
            else:
                real(aw, scratch, 0, lanes, 0, scratch, 0, 0, 0, v, v0, step, gap)
            return
        _row_spectra(x, x0, pitch, table, ah, aw, lanes, scratch)
        start, column, half = (aw + lanes) * lanes, (2 * ah + 1) * lanes, ah * lanes
        for end in range(2):
            at = start + end * (aw // 2) * column
            if planes == 3:
                real_sum(ah, scratch, at, lanes, 0, scratch, 0, 0, 0, v, v0, step, gap)
            else:
                real(ah, scratch, at, lanes, 0, scratch, 0, 0, 0, v, v0, step, gap)
            v0 += (ah // 2 + 1) * step
        for q in range(1, aw // 2):
            at = start + q * column
            if planes == 3:
                complex_sum(ah, scratch, at, lanes, half, scratch, 0, 0, 0, v, v0, step, gap)
            else:
                complex_(ah, scratch, at, lanes, half, scratch, 0, 0, 0, v, v0, step, gap)
            v0 += ah * step

    return spectrum


spectrum = _forward(2)
spectrum_sum = _forward(3)

PLAIN, GAUSS, TIMES = range(3)


def _inverse(source: int):
    @jit.inner
    def columns_real(n, v, v0, step, gap, u, u0, u_step, u_gap, dst, d0, lanes):
        if source == GAUSS:
            inverse_real_gauss(n, v, v0, step, gap, u, u0, u_step, u_gap, dst, d0, lanes, 0)
        elif source == TIMES:
            inverse_real_times(n, v, v0, step, gap, u, u0, u_step, u_gap, dst, d0, lanes, 0)
        else:
            inverse_real(n, v, v0, step, gap, u, u0, u_step, u_gap, dst, d0, lanes, 0)

    @jit.inner
    def columns_complex(n, v, v0, step, gap, u, u0, u_step, u_gap, dst, d0, lanes):
        if source == GAUSS:
            inverse_complex_gauss(n, v, v0, step, gap, u, u0, u_step, u_gap, dst, d0, lanes, n * lanes)
        elif source == TIMES:
            inverse_complex_times(n, v, v0, step, gap, u, u0, u_step, u_gap, dst, d0, lanes, n * lanes)
        else:
            inverse_complex(n, v, v0, step, gap, u, u0, u_step, u_gap, dst, d0, lanes, n * lanes)

    @jit.inner
    def samples(v, v0, step, gap, u, u0, u_step, u_gap, ah, aw, lanes, scratch):
        """Bring the spectrum of a tile to its row spectra, or, if it has one row, to that row."""
        if ah == 1:
            columns_real(aw, v, v0, step, gap, u, u0, u_step, u_gap, scratch, 0, lanes)
            return
        start, column = (aw + lanes) * lanes, (2 * ah + 1) * lanes
        for end in range(2):
            at = start + end * (aw // 2) * column
            columns_real(ah, v, v0, step, gap, u, u0, u_step, u_gap, scratch, at, lanes)
            v0 += (ah // 2 + 1) * step
            u0 += (ah // 2 + 1) * u_step
        for q in range(1, aw // 2):
            at = start + q * column
            columns_complex(ah, v, v0, step, gap, u, u0, u_step, u_gap, scratch, at, lanes)
            v0 += ah * step
            u0 += ah * u_step

    return samples


samples = _inverse(PLAIN)
samples_gauss = _inverse(GAUSS)
samples_times = _inverse(TIMES)


@jit.inner
def write(y, y0, pitch, table, ah, aw, lanes, scratch, skip, mw, bias, channel, activation):
    """Transform the row spectra and store rows and columns of the tiles from ``skip`` on."""
    start, column, gap = (aw + lanes) * lanes, (2 * ah + 1) * lanes, ah * lanes
    for row in range(table[0], table[1]):
        if ah > 1:
            at = start + (skip[0] + row) * lanes
            inverse_real(aw, scratch, at, column, gap, scratch, 0, 0, 0, scratch, 0, lanes, 0)
        finish(scratch, skip[1] * lanes, mw * lanes, bias, channel, activation)
        for chunk in range((mw + lanes - 1) // lanes):
            src = (skip[1] + chunk * lanes) * lanes
            scatter(y, y0, pitch, table, row, chunk, scratch, src)
