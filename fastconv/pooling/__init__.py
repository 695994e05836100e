"""Pooling: the largest or the mean pixel of each window, and the gradients.

`windows` says where windows lie and `plan` makes tables of them.  Small windows, which most are, go by rows (`rowwise`):
`lines` and `slices` walk over them, `rows`, `tiled` and `back` have the vector code, `blocks` the kernel.  Others go sixteen
maps at a time: `lanes` and `cpu`.  Whole maps are sums, or maxima, of planes.  `call` runs a call; users see `functional`,
`adaptive`, `norms`, `unpool` and `patches`.
"""

from fastconv.pooling.adaptive import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
)
from fastconv.pooling.functional import (
    avg_pool1d,
    avg_pool1d_backward,
    avg_pool2d,
    avg_pool2d_backward,
    avg_pool3d,
    avg_pool3d_backward,
    max_pool1d,
    max_pool1d_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool3d,
    max_pool3d_backward,
)
from fastconv.pooling.norms import lp_pool1d, lp_pool2d, lp_pool3d
from fastconv.pooling.patches import fold, unfold
from fastconv.pooling.unpool import max_unpool1d, max_unpool2d, max_unpool3d

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool1d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool3d",
    "avg_pool3d_backward",
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
    "unfold",
]
