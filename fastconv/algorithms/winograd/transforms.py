"""F(m, r): m outputs of an r-tap correlation by alpha = m + r - 1 products instead of m * r.

A tile of alpha pixels d and a kernel g give m outputs

    y = A [ (G g) * (B d) ]        A: m x alpha,   G: alpha x r,   B: alpha x alpha

after Cook and Toom: polynomials are evaluated at alpha - 1 points and infinity, multiplied there, and the
transposed interpolation leads back.  With points p_i, N_i = prod of (p_i - p_j) over j != i,

    A[k, i] = p_i ** k           G[i, k] = p_i ** k / N_i           B[i] = coefficients of prod of (t - p_j)

and for infinity A[m-1] = G[r-1] = 1, B = prod over all j.  B depends on alpha alone: F(m, r) and
F(r, m) share it.  All fractions are exact, and all divisions are in G.

The matrices become straight-line code (`apply`): points come as +p and -p, so that two rows, or two
columns, differ in the signs of every second element, and share the sums of the even and of the odd ones.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any

Matrix = tuple[tuple[Fraction, ...], ...]
Tiles = tuple[tuple[int, int], tuple[int, int]]  # (m, r) of the rows, (m, r) of the columns

ROWS = 8  # filters unpacked side by side,
LANES = 2 * ROWS  #  of two channels, or twice as many, at a time

F = Fraction
# By alpha; chosen among small fractions for the least error in float32.  A and B of these are dyadic
# (exact in binary) up to alpha = 8.
POINTS: dict[int, tuple[Fraction, ...]] = {
    1: (),
    3: (F(0), F(1)),
    4: (F(0), F(1), F(-1)),
    5: (F(0), F(3, 2), F(-3, 2), F(1, 2)),
    6: (F(0), F(5, 8), F(-5, 8), F(3, 2), F(-3, 2)),
    8: (F(0), F(1), F(-1), F(1, 2), F(-1, 2), F(2), F(-2)),
}


def _times(p: list[Fraction], q: list[Fraction]) -> list[Fraction]:
    """Multiply polynomials."""
    result = [F(0)] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            result[i + j] += a * b
    return result


@functools.cache
def matrices(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """Return (A, G, B) of F(m, r).

    Two sums of three pixels by four products instead of six:

    >>> import numpy as np
    >>> a, g, b = (np.array(matrix, float) for matrix in matrices(2, 3))
    >>> a @ ((g @ [1, 1, 1]) * (b @ [1, 2, 3, 4]))
    array([6., 9.])
    """
    alpha = m + r - 1
    points = POINTS[alpha]
    a = [[p**k for p in points] + [F(int(k == m - 1))] for k in range(m)]
    g, b = [], []
    for i, p in enumerate(points):
        scale, polynomial = F(1), [F(1)]
        for q in points[:i] + points[i + 1 :]:
            scale *= p - q
            polynomial = _times(polynomial, [-q, F(1)])
        g.append([p**k / scale for k in range(r)])
        b.append([*polynomial, F(0)])
    g.append([F(int(k == r - 1)) for k in range(r)])
    polynomial = [F(1)]
    for q in points:
        polynomial = _times(polynomial, [-q, F(1)])
    b.append(polynomial)
    return tuple(map(tuple, a)), tuple(map(tuple, g)), tuple(map(tuple, b))


def apply(on: Any, matrix: Matrix, inputs: list[Any]) -> list[Any]:
    """Return ``matrix @ inputs`` by the operations of an arithmetic of `fastconv.algorithms.straight`."""
    matrix, inputs = _fold_columns(on, matrix, list(inputs))
    outputs: list[Any] = [None] * len(matrix)
    for i, row in enumerate(matrix):
        if outputs[i] is not None:
            continue
        for j in range(i + 1, len(matrix)):
            even = [(a + b) / 2 for a, b in zip(row, matrix[j], strict=True)]
            odd = [(a - b) / 2 for a, b in zip(row, matrix[j], strict=True)]
            terms = sum(map(bool, even)) + sum(map(bool, odd))
            if any(even) and any(odd) and terms < sum(map(bool, row)) + sum(map(bool, matrix[j])):
                e, o = _sum(on, even, inputs), _sum(on, odd, inputs)
                outputs[i], outputs[j] = on.add(e, o), on.sub(e, o)
                break
        else:
            outputs[i] = _sum(on, row, inputs)
    return outputs


def _fold_columns(on: Any, matrix: Matrix, inputs: list[Any]) -> tuple[Matrix, list[Any]]:
    """Replace pairs of columns that differ in signs by the sum and the difference of their inputs."""
    columns = [list(c) for c in zip(*matrix, strict=True)]
    for i in range(len(columns)):
        for j in range(i + 1, len(columns)):
            same = [a if a == b else F(0) for a, b in zip(columns[i], columns[j], strict=True)]
            opposite = [a if a == -b else F(0) for a, b in zip(columns[i], columns[j], strict=True)]
            covered = all(abs(a) == abs(b) for a, b in zip(columns[i], columns[j], strict=True))
            if covered and any(same) and any(opposite):
                columns[i], columns[j] = same, opposite
                x, y = inputs[i], inputs[j]
                inputs[i], inputs[j] = on.add(x, y), on.sub(x, y)
                break
    return tuple(zip(*columns, strict=True)), inputs


def _sum(on: Any, row: Any, inputs: list[Any]) -> Any:
    """Return the sum of coefficient * input; terms of coefficient 1 first, so that they cost one addition."""
    terms = sorted(
        ((c, x) for c, x in zip(row, inputs, strict=True) if c),
        key=lambda term: (abs(term[0]) != 1, term[0] < 0),
    )
    total = None
    for c, x in terms:
        if total is None:
            total = x if c == 1 else on.scaled(x, float(c))
        elif c == 1:
            total = on.add(total, x)
        elif c == -1:
            total = on.sub(total, x)
        else:
            total = on.multiply_add(float(c), x, total)
    return on.zero if total is None else total
