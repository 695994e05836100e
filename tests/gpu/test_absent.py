"""Without a GPU, a driver or numba-cuda: calls that need one say so, and nothing else changes."""

from importlib.metadata import version

import numpy as np
import pytest

import fastconv
from fastconv.cuda import driver


class Foreign:
    """What a library shows of an array on a GPU."""

    def __init__(self, shape):
        self.shape = shape

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "typestr": "<f4", "data": (0, False), "version": 3}


IMAGES, WEIGHT, HALF = (Foreign(shape) for shape in ((1, 2, 4, 4), (2, 2, 3, 3), (1, 2, 2, 2)))
ONES = np.ones((1, 1, 3, 3))
CALLS = {
    "forward": lambda: fastconv.conv2d(IMAGES, WEIGHT),
    "gradients": lambda: fastconv.conv2d_backward(IMAGES, WEIGHT, HALF),
    "transposed": lambda: fastconv.conv_transpose2d(IMAGES, WEIGHT),
    "maxima": lambda: fastconv.max_pool2d(IMAGES, 2),
    "means": lambda: fastconv.avg_pool2d_backward((1, 2, 4, 4), HALF, 2),
    "NumPy": lambda: fastconv.config(device="cuda")(fastconv.conv2d)(ONES, ONES),
    "NumPy maxima": lambda: fastconv.config(device="cuda")(fastconv.max_pool2d)(ONES, 2),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_error_says_so(call):
    try:
        driver.bindings()
    except fastconv.DeviceError:
        pass
    else:
        pytest.skip("there is a GPU")
    with pytest.raises(fastconv.DeviceError, match=r"driver|GPU|numba-cuda"):
        call()


def test_an_old_driver_is_named(monkeypatch):
    """Whose error would be that of an image which is not valid."""
    pytest.importorskip("numba_cuda")
    from cuda.bindings import driver as bound

    wanted = int(version("cuda-bindings").partition(".")[0])
    monkeypatch.setattr(bound, "cuInit", lambda flags: (bound.CUresult.CUDA_SUCCESS,))
    for known in (wanted - 1, wanted):
        answer = bound.CUresult.CUDA_SUCCESS, 1000 * known + 40
        monkeypatch.setattr(bound, "cuDriverGetVersion", lambda answer=answer: answer)
        if known == wanted:
            assert driver.bindings.__wrapped__() is bound
            continue
        with pytest.raises(fastconv.DeviceError, match=rf"numba-cuda\[cu{known}\]"):
            driver.bindings.__wrapped__()
