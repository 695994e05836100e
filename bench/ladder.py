"""A ladder for learners: the same convolution from seven nested loops to the package's kernel, one idea a step.

    python bench/ladder.py [--png ladder.png]

Every step is checked against the definition and timed.  Steps 1 to 6 compute, without padding,

    y[k, p, q] = sum over c, r, s of  x[c, p + r, q + s] * w[k, c, r, s]

for one image.  What limits each, and what the next one does about it, stands above it.
"""

import argparse
import time

import numba
import numpy as np

import fastconv
from fastconv import jit
from fastconv.algorithms.reference import forward as definition
from fastconv.gemm.tile import tile_indexed

LINE = "n1 c32 k32 i226x226 f3x3"
compiled = numba.njit(error_model="numpy", fastmath={"contract"})


# 1. The definition as it is written, in machine code.  (The seventh loop, over images, runs once.)
# The innermost loop adds to one number, and each addition waits four cycles for the last one.
@compiled
def seven_loops(x, w, y):
    """Sum each result where it stands."""
    for n in range(y.shape[0]):
        for k in range(y.shape[1]):
            for p in range(y.shape[2]):
                for q in range(y.shape[3]):
                    total = np.float32(0)
                    for c in range(x.shape[1]):
                        for r in range(w.shape[2]):
                            for s in range(w.shape[3]):
                                total += x[n, c, p + r, q + s] * w[k, c, r, s]
                    y[n, k, p, q] = total


# 2. Loop order: with q innermost, neighbours in memory follow each other and no sum waits for another:
# the compiler finds vectors.  Now every multiplication loads and stores a result.
@compiled
def loop_order(x, w, y):
    """Add rows, scaled by one weight at a time."""
    y[:] = 0
    for n in range(y.shape[0]):
        for k in range(y.shape[1]):
            for c in range(x.shape[1]):
                for r in range(w.shape[2]):
                    for s in range(w.shape[3]):
                        weight = w[k, c, r, s]
                        for p in range(y.shape[2]):
                            for q in range(y.shape[3]):
                                y[n, k, p, q] += x[n, c, p + r, q + s] * weight


# 3. Tiles: a map of results is larger than the L1 cache, and came from L2 for every tap. Now one row of it
# stays in L1 until all of its terms are added.
@compiled
def tiles(x, w, y):
    """Finish a row before the next."""
    row = np.empty(y.shape[3], x.dtype)
    for n in range(y.shape[0]):
        for k in range(y.shape[1]):
            for p in range(y.shape[2]):
                row[:] = 0
                for c in range(x.shape[1]):
                    for r in range(w.shape[2]):
                        line = x[n, c, p + r]
                        for s in range(w.shape[3]):
                            weight = w[k, c, r, s]
                            for q in range(len(row)):
                                row[q] += line[q + s] * weight
                y[n, k, p] = row


# 4. Registers: with the nine weights of a channel in registers, a result is loaded and stored once for nine
# multiplications instead of once for each. Each pixel is still loaded for every k.
@compiled
def registers(x, w, y):
    """Add all taps of a 3 x 3 kernel at once."""
    row = np.empty(y.shape[3], x.dtype)
    for n in range(y.shape[0]):
        for k in range(y.shape[1]):
            for p in range(y.shape[2]):
                row[:] = 0
                for c in range(x.shape[1]):
                    u, v, z, m = x[n, c, p], x[n, c, p + 1], x[n, c, p + 2], w[k, c]
                    a0, a1, a2 = m[0, 0], m[0, 1], m[0, 2]
                    b0, b1, b2 = m[1, 0], m[1, 1], m[1, 2]
                    d0, d1, d2 = m[2, 0], m[2, 1], m[2, 2]
                    for q in range(len(row)):
                        above = u[q] * a0 + u[q + 1] * a1 + u[q + 2] * a2
                        here = v[q] * b0 + v[q + 1] * b1 + v[q + 2] * b2
                        row[q] += above + here + z[q] * d0 + z[q + 1] * d1 + z[q + 2] * d2
                y[n, k, p] = row


# 5. Vectors and registers together: the package's tile, MR k x NR vectors of q, written as LLVM vector
# instructions since compilers do not find it from loops.  A table tells where each step's row of pixels
# begins: a shifted view of the image, nothing is copied.
@jit.kernel
def vectors(workers, x, w, y, row, steps, geometry):
    """Compute tiles of results, rows of the image shared out over the workers."""
    k, width, p_all, q_all, mr, nr, vl = geometry
    depth = len(steps) // 2
    for worker in numba.prange(workers):
        for p in range(p_all * worker // workers, p_all * (worker + 1) // workers):
            for k0 in range(0, k, mr):
                for q0 in range(0, q_all, nr * vl):
                    count = min(nr, -(-(q_all - q0) // vl))
                    at = worker * mr * nr * vl
                    tile_indexed(
                        row, at, nr * vl, w, k0 * depth, x, p * width + q0, steps, 0, depth, mr, count, False
                    )
                    for i in range(mr):
                        for q in range(q0, min(q0 + count * vl, q_all)):
                            y[((k0 + i) * p_all + p) * q_all + q] = row[at + i * nr * vl + q - q0]


def by_tiles(problem, x, w, y, workers):
    """Return a call of `vectors`: weights are packed as [panel][step][MR], once, before."""
    from fastconv import machine

    unit = machine.tile(4)
    (h, width), (p, q), c, k = (a.size for a in problem.axes), problem.output, problem.c, problem.k
    starts = [(ch * h + r) * width + s for ch in range(c) for r in range(3) for s in range(3)]
    depth, mr = len(starts), max(m for m in range(1, unit.mr + 1) if k % m == 0)
    steps = np.array([(t, start) for t, start in enumerate(starts)], np.int64).reshape(-1)
    packed = w.reshape(k // mr, mr, depth).transpose(0, 2, 1).reshape(-1).copy()
    padded = np.concatenate([x.reshape(-1), np.zeros(unit.nr * unit.vl, x.dtype)])  # the last tile reads on
    row = np.empty(workers * mr * unit.nr * unit.vl, x.dtype)
    geometry = (k, width, p, q, mr, unit.nr, unit.vl)
    run = vectors.serial if workers == 1 else vectors.parallel
    return lambda: run(workers, padded, packed, y.reshape(-1), row, steps, geometry)


def ladder(line=LINE):
    """Return the steps as (name, function without arguments), and the arrays."""
    problem = fastconv.ConvProblem.parse(line)
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(s).astype("float32") for s in (problem.input_shape, problem.weight_shape))
    y = np.empty(problem.output_shape, "float32")
    threads = numba.get_num_threads()
    plain = {"seven loops": seven_loops, "loop order": loop_order, "tiles": tiles, "registers": registers}
    steps = {name: (lambda step=step: step(x, w, y)) for name, step in plain.items()}
    steps["vectors"] = by_tiles(problem, x, w, y, 1)
    steps[f"{threads} threads"] = by_tiles(problem, x, w, y, threads)
    # 7. Caches: blocks of k, c and pixels, so that packed weights and stripes are reused (`direct`).
    # 8. Winograd: fewer multiplications (`winograd`).
    for name in ("direct", "winograd"):
        steps[f"fastconv: {name}"] = lambda name=name: fastconv.conv2d(x, w, algorithm=name, out=y)
    return problem, x, w, y, steps


def measure(call, seconds=0.5):
    """Return the least time of a call."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def main():
    """Check and time every step; print a table, and draw it."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--png", help="where to draw")
    png = options.parse_args().png
    problem, x, w, y, steps = ladder()
    exact = definition(problem, x.astype("float64"), w.astype("float64"))
    rows = []
    print(f"{problem}\n{'step':20} {'ms':>9} {'GFLOP/s':>9} {'times as fast':>14} {'error':>8}")
    for name, call in steps.items():
        y.fill(np.nan)
        call()
        error = float(np.abs(y - exact).max() / exact.std())
        if not error < 1e-4:
            raise SystemExit(f"{name} is wrong by {error}")
        rows.append((name, measure(call)))
        rate, faster = problem.flops / rows[-1][1] / 1e9, rows[0][1] / rows[-1][1]
        print(f"{name:20} {rows[-1][1] * 1e3:9.3f} {rate:9.1f} {faster:14.1f} {error:8.0e}")
    if png:
        draw(problem, rows, png)


def draw(problem, rows, png):
    """Draw the rate of each step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.45 * len(rows) + 1.2), layout="constrained")
    panel = figure.subplots()
    rates = [problem.flops / seconds / 1e9 for _, seconds in rows]
    bars = panel.barh(range(len(rows)), rates, color="#2f6db5")
    panel.bar_label(bars, [f"{rate:.1f}" for rate in rates], padding=4)
    panel.set_yticks(range(len(rows)), [name for name, _ in rows])
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlim(min(rates) / 2, max(rates) * 2)
    panel.set(
        xlabel="GFLOP/s, operations of the definition", title=f"One convolution, one idea a step: {problem}"
    )
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=130)


if __name__ == "__main__":
    main()
