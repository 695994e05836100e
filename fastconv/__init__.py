"""Convolution for NumPy arrays, compiled by Numba.

>>> import numpy as np
>>> import fastconv
>>> image = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
>>> kernel = np.array([[1.0, 0], [0, 1]])
>>> fastconv.conv2d(image[None, None], kernel[None, None])[0, 0]
array([[ 6.,  8.],
       [12., 14.]])
"""

from fastconv.config import config
from fastconv.convolve import Grads
from fastconv.errors import AlgorithmError, DeviceError, WorkspaceError
from fastconv.explain import algorithms, explain
from fastconv.functional import (
    conv1d,
    conv1d_backward,
    conv1d_input,
    conv1d_weight,
    conv2d,
    conv2d_backward,
    conv2d_input,
    conv2d_weight,
    conv3d,
    conv3d_backward,
    conv3d_input,
    conv3d_weight,
    conv_transpose1d,
    conv_transpose1d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
    conv_transpose3d,
    conv_transpose3d_backward,
)
from fastconv.pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool1d_backward,
    avg_pool2d,
    avg_pool2d_backward,
    avg_pool3d,
    avg_pool3d_backward,
    fold,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool1d_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool3d,
    max_pool3d_backward,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
    unfold,
)
from fastconv.prepared import Prepared, prepare
from fastconv.problem import ConvProblem, Direction
from fastconv.select import Selection
from fastconv.warmup import warmup

__version__ = "0.1.0"

__all__ = [
    "AlgorithmError",
    "ConvProblem",
    "DeviceError",
    "Direction",
    "Grads",
    "Prepared",
    "Selection",
    "WorkspaceError",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "algorithms",
    "avg_pool1d",
    "avg_pool1d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool3d",
    "avg_pool3d_backward",
    "config",
    "conv1d",
    "conv1d_backward",
    "conv1d_input",
    "conv1d_weight",
    "conv2d",
    "conv2d_backward",
    "conv2d_input",
    "conv2d_weight",
    "conv3d",
    "conv3d_backward",
    "conv3d_input",
    "conv3d_weight",
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "conv_transpose3d",
    "conv_transpose3d_backward",
    "explain",
    "fold",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool1d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool3d",
    "max_pool3d_backward",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "prepare",
    "unfold",
    "warmup",
]
