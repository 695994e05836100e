"""F(2x2, 3x3) on a GPU in one kernel: transformed tiles and products never leave a multiprocessor.

A block of threads sums 64 result channels of 32 tiles at all 16 points, after Yan, Wang and Chu, "Optimizing
batched Winograd convolution on GPUs", PPoPP 2020: each of the 8 warps has two points, each thread 8 x 8 sums of both.
A stage is four channels; while one is multiplied, half of the warps load and transform the next one's tiles, the
others load its weights.  In shared memory, whose 48 KB two stages fill::

    U   [stage][channel][point][64]       from the transformed weights, as they lie, 16 KB a stage
    V   [stage][channel][point][32]       tile t of channel c at t ^ 8c, so that neither way of storing collides

At the end the sums of all points meet there, 16 channels at a time, and are transformed back, biased and activated.
"""

from __future__ import annotations

from typing import NamedTuple

from fastconv.algorithms.staged import SLAB, place_of
from fastconv.algorithms.winograd.cuda_transforms import bilinear
from fastconv.algorithms.winograd.transforms import matrices
from fastconv.cuda.codelet import codelet
from fastconv.cuda.compiler import Kernel
from fastconv.cuda.language import (
    U,
    activation,
    arrived,
    copy4,
    cuda,
    float32,
    further,
    inline,
    int64,
    load,
    load4,
    outer,
    spaced,
    store4,
    uint64,
)  # fmt: skip
from fastconv.gemm.cuda import placer

THREADS, CHANNELS, TILES, RESULTS = 256, 4, 32, SLAB
POINTS = 16
BESIDE = 1.37  # instructions of the main loop for one FFMA
U_STAGE, V_STAGE = CHANNELS * POINTS * RESULTS, CHANNELS * POINTS * TILES
SHARED = 2 * (U_STAGE + V_STAGE)
ROW = 36  # of 32 tiles at the end: rows that meet begin in different banks


class Geometry(NamedTuple):
    """What the kernel needs to know; names as in `staged.Geometry`, with ``to_`` for the result."""

    tiles: int
    tile_blocks: int
    channels: int
    stages: int
    results: int
    result_blocks: int
    image_tiles: int
    image_m: int
    image_s: int
    row_tiles: int
    row_m: int
    row_s: int
    step_y: int
    step_x: int
    lo_y: int
    lo_x: int
    height: int
    width: int
    group: int
    image: int
    channel: int
    row: int
    pixel: int
    to_height: int
    to_width: int
    to_group: int
    to_image: int
    to_channel: int
    to_row: int
    to_pixel: int
    has_bias: int = 0
    has_residual: int = 0


def loader(near):
    """Return device functions that fetch and place a thread's part of a stage; ``near``: channels are side by side."""
    _, _, b = matrices(2, 3)
    transform = codelet(bilinear(b, b), POINTS)

    @inline
    def position(tid, tile_block, g):
        """Return (channel, tile in the block, where the tile's pixels begin, which of them are inside)."""
        c, tile = U(tid // U(TILES)), U(tid % U(TILES))
        if near:
            c, tile = U(tid % U(CHANNELS)), U(tid // U(CHANNELS))
        t = U(tile_block * U(TILES) + tile)
        n, y, x = place_of(t, g)
        inside = U(0)
        if t < U(g.tiles):
            for i in range(4):
                for j in range(4):
                    if U(y + i) < U(g.height) and U(x + j) < U(g.width):
                        inside = U(inside | U(1 << (4 * i + j)))
        return c, tile, n * g.image + int64(c) * g.channel + y * g.row + x * g.pixel, inside

    @inline
    def fetch_tile(begin, inside, g, regs):
        for i in range(4):
            line = further(begin, i * g.row)
            for j in range(4):
                value = float32(0)
                if U(inside & U(1 << (4 * i + j))) != U(0):
                    value = load(spaced(line, U(j), U(4 * g.pixel)) if near else further(line, j))
                regs[4 * i + j] = value

    @inline
    def place_tile(shared, to, regs):
        transform(regs)
        for i in range(POINTS):
            shared[uint64(to) + uint64(i * TILES)] = regs[i]

    @inline
    def bring_weights(shared, to, begin):
        for i in range(8):
            copy4(shared, uint64(to) + uint64(i * 512), begin, i * 512, True)

    return position, fetch_tile, place_tile, bring_weights


add = outer(8)


@inline
def point(shared, at_a, at_b, at_c, a, b, acc):
    """Add the products of one point and channel."""
    a[0], a[1], a[2], a[3] = load4(shared, at_a)
    a[4], a[5], a[6], a[7] = load4(shared, at_a + uint64(32))
    b[0], b[1], b[2], b[3] = load4(shared, at_b)
    b[4], b[5], b[6], b[7] = load4(shared, at_c)
    add(a, b, acc)


@inline
def both(shared, at_a, at_b, at_c, a, b, even, odd):
    """Do so for both points of a warp."""
    point(shared, at_a, at_b, at_c, a, b, even)
    point(shared, at_a + uint64(RESULTS), at_b + uint64(TILES), at_c + uint64(TILES), a, b, odd)


@inline
def multiply(shared, at_a, at_b, at_s, a, b, even, odd):
    """Add the products of a stage; ``at_s`` is ``at_b ^ 8``."""
    at_a, at_b, at_s = uint64(at_a), uint64(at_b), uint64(at_s)
    both(shared, at_a, at_b, at_b + uint64(16), a, b, even, odd)
    both(shared, at_a + uint64(1024), at_s + uint64(512), at_s + uint64(528), a, b, even, odd)
    both(shared, at_a + uint64(2048), at_b + uint64(1040), at_b + uint64(1024), a, b, even, odd)
    both(shared, at_a + uint64(3072), at_s + uint64(1552), at_s + uint64(1536), a, b, even, odd)


def finisher(near, name):
    """Return the device function that brings sums of all points together and stores results, a quarter of them."""
    act, (a, _, _) = activation(name), matrices(2, 3)
    transform = codelet(bilinear(a, a), POINTS)

    @inline
    def keep(shared, at, row, i, even, odd):
        to = uint64(at) + uint64(8 * ROW * row)
        store4(shared, to, even[i, 0], even[i, 1], even[i, 2], even[i, 3])
        store4(shared, to + uint64(16), even[i, 4], even[i, 5], even[i, 6], even[i, 7])
        to += uint64(16 * ROW)
        store4(shared, to, odd[i, 0], odd[i, 1], odd[i, 2], odd[i, 3])
        store4(shared, to + uint64(16), odd[i, 4], odd[i, 5], odd[i, 6], odd[i, 7])

    @inline
    def finish(shared, place, tile_block, k_first, group, bias, residual, out, g, values):
        """Finish element ``place`` of 16 channels x 32 tiles."""
        k, tile = U(place // U(TILES)), U(place % U(TILES))
        if near:
            k, tile = U(place % U(16)), U(place // U(16))
        for i in range(POINTS):
            values[i] = shared[U(U(U(i * 16) + k) * U(ROW) + tile)]
        transform(values)
        t, k = U(tile_block * U(TILES) + tile), U(k_first + U(k % U(8)) * U(4) + k // U(8))
        if k < U(g.results) and t < U(g.tiles):
            n, y, x = place_of(t, g)
            y, x = y + g.lo_y, x + g.lo_x
            at = (
                int64(group) * g.to_group
                + n * g.to_image
                + int64(k) * g.to_channel
                + y * g.to_row
                + x * g.to_pixel
            )
            shift = float32(0)
            if g.has_bias:
                shift = bias[int64(group) * g.results + int64(k)]
            for i in range(2):
                for j in range(2):
                    if y + i < g.to_height and x + j < g.to_width:
                        to = at + i * g.to_row + j * g.to_pixel
                        value = values[2 * i + j] + shift
                        if g.has_residual:
                            value += residual[to]
                        out[to] = act(value)

    @inline
    def quarter(shared, at, r, tid, even, odd, tile_block, k_first, group, bias, residual, out, g, values):
        """Finish the channels of two rows of a thread's sums: 16 of every block."""
        cuda.syncthreads()
        keep(shared, at, 0, 2 * r, even, odd)
        keep(shared, at, 1, 2 * r + 1, even, odd)
        cuda.syncthreads()
        k_first = U(k_first + U(r % 2 * 2 + r // 2 * 32))
        for half in range(2):
            place = U(tid + U(half * THREADS))
            finish(shared, place, tile_block, k_first, group, bias, residual, out, g, values)

    return quarter


def fused(name, near):
    """Make the kernel."""
    position, fetch_tile, place_tile, bring_weights = loader(near)
    quarter, own = finisher(near, name), placer(TILES // 8)
    half = U_STAGE // 32  # threads of each kind

    def fused_winograd(x, u, bias, residual, out, g):
        shared = cuda.shared.array(SHARED, float32, alignment=16)
        even, odd = cuda.local.array((8, 8), float32), cuda.local.array((8, 8), float32)
        a, b = cuda.local.array(8, float32), cuda.local.array(8, float32)
        regs = cuda.local.array(POINTS, float32)
        tid, block = U(cuda.threadIdx.x), U(cuda.blockIdx.x)
        k_block, block = U(block % U(g.result_blocks)), U(block // U(g.result_blocks))
        tile_block, group = U(block % U(g.tile_blocks)), U(block // U(g.tile_blocks))
        loads_tiles = tid < U(half)
        c, tile, at, inside = position(tid, tile_block, g)
        to, flip, step = (
            U(U(2 * U_STAGE) + U(c * U(512)) + (tile ^ U(U(8) * c))),
            U(V_STAGE),
            g.channel * CHANNELS,
        )
        begin = further(x, at + int64(group) * g.group)
        if not loads_tiles:
            to, flip, step = U(U(tid - U(half)) * U(4)), U(U_STAGE), int64(U_STAGE)
            slab = (int64(group) * g.result_blocks + int64(k_block)) * g.stages
            begin = further(u, slab * int64(U_STAGE) + int64(to))
        for i in range(8):
            for j in range(8):
                even[i, j], odd[i, j] = float32(0), float32(0)
        warp = U(tid // U(32))
        row, column = own(U(tid % U(32)))
        at_a = U(warp * U(2 * RESULTS) + row)
        at_b = U(U(2 * U_STAGE) + warp * U(2 * TILES) + column)
        at_s = U(at_b ^ U(8))

        if loads_tiles:
            fetch_tile(begin, inside if c < U(g.channels) else U(0), g, regs)
            place_tile(shared, to, regs)
        else:
            bring_weights(shared, to, begin)
        arrived()
        stage = U(g.stages)
        while stage > U(1):
            begin, c, to = further(begin, step), U(c + U(CHANNELS)), U(to ^ flip)
            if loads_tiles:
                fetch_tile(begin, inside if c < U(g.channels) else U(0), g, regs)
            else:
                bring_weights(shared, to, begin)
            multiply(shared, at_a, at_b, at_s, a, b, even, odd)
            at_a, at_b, at_s = U(at_a ^ U(U_STAGE)), U(at_b ^ U(V_STAGE)), U(at_s ^ U(V_STAGE))
            if loads_tiles:
                place_tile(shared, to, regs)
            arrived()
            stage = U(stage - U(1))
        multiply(shared, at_a, at_b, at_s, a, b, even, odd)

        keep_at = U(U(warp * U(32) + row // U(4)) * U(ROW) + column)
        k_first = U(k_block * U(RESULTS))
        rest = (tile_block, k_first, group, bias, residual, out, g, regs)
        quarter(shared, keep_at, 0, tid, even, odd, *rest)
        quarter(shared, keep_at, 1, tid, even, odd, *rest)
        quarter(shared, keep_at, 2, tid, even, odd, *rest)
        quarter(shared, keep_at, 3, tid, even, odd, *rest)

    return fused_winograd


def kernel(name: str, near: bool) -> Kernel:
    """Return the kernel with an activation by name."""
    return Kernel(fused, (name, near), ("float32",) * 5, Geometry, "int64", THREADS)
