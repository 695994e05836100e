"""Nothing outside of the callers' arrays is touched, whatever function is called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = '''
import sys
import types
import numpy as np
import fastconv
from fastconv import testing

at_end = sys.argv[1] == "end"

def array(*shape, dtype="float32"):
    """Draw integers into an array that ends, or begins, where touching memory kills the process."""
    a = testing.guarded(shape, dtype, at_end)
    a[...] = np.random.default_rng(0).integers(0 if dtype[0] in "ub" else -4, 5, shape)
    return a

class Guarded(types.ModuleType):
    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=float):
        return testing.guarded(shape if isinstance(shape, tuple) else (shape,), dtype, at_end)

def guarding(module):
    """Give a module that makes its results itself guarded memory for them."""
    module.np = Guarded("numpy")

import fastconv.arrays, fastconv.convolve, fastconv.reuse, fastconv.pooling.call, fastconv.pooling.scatter
for module in (fastconv.arrays, fastconv.convolve, fastconv.reuse, fastconv.pooling.call, fastconv.pooling.scatter):
    guarding(module)

x, w, gy, b = array(2, 3, 7, 9), array(5, 3, 3, 3), array(2, 5, 7, 9), array(5)
deep, cube = array(1, 2, 4, 5, 3), array(3, 2, 3, 2, 3)
last = array(2, 7, 9, 3)
each = {"padding": 1}
for mode in ("zeros", "reflect", "replicate", "circular"):
    walk = each | {"padding_mode": mode}
    for name in ("direct", "im2col", "winograd"):
        with fastconv.config(algorithm=name):
            print(mode, name, flush=True)
            fastconv.conv2d(x, w, b, residual=gy, activation="relu", out=array(2, 5, 7, 9), **walk)
            fastconv.conv2d_input(x.shape, w, gy, out=array(2, 3, 7, 9), **walk)
            fastconv.conv2d_weight(x, w.shape, gy, out=array(5, 3, 3, 3), **walk)
with fastconv.config(algorithm="im2col"):
    for dtype in ("float16", "int8", "uint64", "bool", "complex64"):
        print(dtype, flush=True)
        fastconv.conv2d_backward(*(array(*a.shape, dtype=dtype) for a in (x, w, gy)), **each)
    print("volumes", flush=True)
    y = fastconv.conv3d(deep, cube, padding=1)
    fastconv.conv3d_backward(deep, cube, array(*y.shape), padding=1)
    print("transposed", flush=True)
    y = fastconv.conv_transpose2d(gy, w, b[:3].copy(), stride=2, output_padding=1)
    fastconv.conv_transpose2d_backward(gy, w, array(*y.shape), stride=2, output_padding=1)
print("pixel by pixel", flush=True)
with fastconv.config(algorithm="direct"):
    fastconv.conv2d(last, w, layout="NHWC", out=array(2, 7, 9, 5), **each)
    fastconv.conv2d_backward(last, w, array(2, 7, 9, 5), layout="NHWC", **each)
for k, s, p in ((2, 2, 0), (3, 2, 1), (3, 1, 0)):
    print("pooling", k, s, p, flush=True)
    y, at = fastconv.max_pool2d(x, k, s, p, return_indices=True)
    fastconv.max_pool2d_backward(x, array(*y.shape), k, s, p)
    fastconv.avg_pool2d_backward(x.shape, array(*fastconv.avg_pool2d(x, k, s, p).shape), k, s, p)
fastconv.max_unpool2d(array(1, 1, 2, 2), array(1, 1, 2, 2, dtype="uint8").astype("int64") % 16, 2)
fastconv.max_pool3d(deep, 2)
fastconv.avg_pool1d(x[0, 0][None], 3, 2)
fastconv.adaptive_avg_pool2d(x, (3, 4))
fastconv.adaptive_max_pool2d(x, (3, 4))
columns = fastconv.unfold(x, 3, padding=1, stride=2)
fastconv.fold(array(*columns.shape), (7, 9), 3, padding=1, stride=2)
print("done")
'''


@pytest.mark.skipif(sys.platform == "win32", reason="no mprotect")
@pytest.mark.parametrize("side", ["begin", "end"])
def test_arrays_beside_memory_that_kills(side):
    """The last line printed is the culprit."""
    result = subprocess.run(
        [sys.executable, "-c", CALLS, side],
        check=False, capture_output=True, text=True, timeout=300, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    last = result.stdout.splitlines()[-1] if result.stdout else ""
    assert last == "done", f"died ({result.returncode}) in {last}\n{result.stderr[-2000:]}"


CHECKED = [
    "algorithms/test_contract.py::test_result",
    "test_borders.py",
    "test_degenerate.py",
    "test_dtypes.py",
    "test_layout.py",
    "test_pooling.py",
    "test_transpose.py",
]
# Kernels whose transforms are others; sampled lists repeat what the written ones have.
LEFT_OUT = "not (winograd and not f3x3) and not (fft and not f5x5)"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_index_leaves_its_array(tmp_path):
    """Numba checks every index of an array; what it does not see, pointers and vectors, the tests above do."""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    tests = [str(Path(__file__).with_name(name)) for name in CHECKED]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", LEFT_OUT, *tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
