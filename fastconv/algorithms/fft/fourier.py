"""The Fourier transform of short signals as straight-line code, over an arithmetic of `straight`.

Radix 2, decimation in time, on real and complex signals.  A butterfly ``E +- w O`` with ``w = c (1 + i t)``
takes six fused operations (Linzer and Feig): ``s = O (1 + i t)`` in two, ``E +- c s`` in four; ``|t| <= 1`` by taking
the cosine or the sine for c.  A real signal of length a has a/2 + 1 frequencies.  Inverses are not divided by the length.
"""

from __future__ import annotations

from math import cos, pi, sin
from typing import Any

Complex = tuple[Any, Any]


class Fourier:
    """Transforms of lists of values."""

    def __init__(self, on: Any) -> None:
        self.on = on

    def turn(self, z: Complex, t: float, upright: bool) -> Complex:
        """Return z (1 + i t), or z (t + i) if upright."""
        re, im = z
        if upright:
            return self.on.multiply_add(t, re, self.on.negated(im)), self.on.multiply_add(t, im, re)
        return self.on.multiply_add(-t, im, re), self.on.multiply_add(t, re, im)

    def butterfly(self, even: Complex, odd: Complex, k: int, n: int) -> tuple[Complex, Complex]:
        """Return ``even + w odd`` and ``even - w odd`` for ``w = exp(-2 pi i k / n)``."""
        (er, ei), (zr, zi) = even, odd
        if k == 0:
            return (self.on.add(er, zr), self.on.add(ei, zi)), (self.on.sub(er, zr), self.on.sub(ei, zi))
        if 4 * k == n:
            return (self.on.add(er, zi), self.on.sub(ei, zr)), (self.on.sub(er, zi), self.on.add(ei, zr))
        c, t, upright = _polar(-k, n)
        sr, si = self.turn(odd, t, upright)
        plus = self.on.multiply_add(c, sr, er), self.on.multiply_add(c, si, ei)
        minus = self.on.multiply_add(-c, sr, er), self.on.multiply_add(-c, si, ei)
        return plus, minus

    def complex(self, z: list[Complex]) -> list[Complex]:
        """Transform a complex signal."""
        n = len(z)
        if n == 1:
            return z
        even, odd = self.complex(z[::2]), self.complex(z[1::2])
        pairs = [self.butterfly(even[k], odd[k], k, n) for k in range(n // 2)]
        return [p[0] for p in pairs] + [p[1] for p in pairs]

    def real(self, x: list[Any]) -> list[Complex]:
        """Transform a real signal to its half spectrum: X[n - k] is the conjugate of X[k]."""
        n = len(x)
        if n == 1:
            return [(x[0], self.on.zero)]
        even, odd = self.real(x[::2]), self.real(x[1::2])
        half = n // 2
        spectrum: list[Any] = [None] * (half + 1)
        spectrum[0] = (self.on.add(even[0][0], odd[0][0]), self.on.zero)
        spectrum[half] = (self.on.sub(even[0][0], odd[0][0]), self.on.zero)
        for k in range(1, (half + 1) // 2):
            spectrum[k], (re, im) = self.butterfly(even[k], odd[k], k, n)
            spectrum[half - k] = (re, self.on.negated(im))
        if half >= 2:
            spectrum[half // 2] = (even[half // 2][0], self.on.negated(odd[half // 2][0]))
        return spectrum

    def inverse_real(self, spectrum: list[Complex]) -> list[Any]:
        """Undo `real`, times n: even samples from X[k] + X[k + n/2], odd ones from the difference."""
        half = len(spectrum) - 1
        n = 2 * half
        if half == 0:
            return [spectrum[0][0]]
        first, middle = spectrum[0][0], spectrum[half][0]
        even = [(self.on.add(first, middle), self.on.zero)]
        odd = [(self.on.sub(first, middle), self.on.zero)]
        for k in range(1, (half + 1) // 2):
            (ar, ai), (br, bi) = spectrum[k], spectrum[half - k]
            even.append((self.on.add(ar, br), self.on.sub(ai, bi)))
            c, t, upright = _polar(k, n)
            re, im = self.turn((self.on.sub(ar, br), self.on.add(ai, bi)), t, upright)
            odd.append((self.on.scaled(re, c), self.on.scaled(im, c)))
        if half >= 2:
            re, im = spectrum[half // 2]
            even.append((self.on.add(re, re), self.on.zero))
            odd.append((self.on.scaled(im, -2.0), self.on.zero))
        samples: list[Any] = [None] * n
        samples[::2], samples[1::2] = self.inverse_real(even), self.inverse_real(odd)
        return samples

    def inverse_complex(self, z: list[Complex]) -> list[Complex]:
        """Undo `complex`, times n: the transform with real and imaginary parts exchanged."""
        return [(re, im) for im, re in self.complex([(im, re) for re, im in z])]


def _polar(k: int, n: int) -> tuple[float, float, bool]:
    """Return c, t and upright of ``exp(2 pi i k / n)`` = c (1 + i t), or c (t + i) if upright."""
    re, im = cos(2 * pi * k / n), sin(2 * pi * k / n)
    return (re, im / re, False) if abs(re) >= abs(im) else (im, re / im, True)
