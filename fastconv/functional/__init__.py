"""The functions users call: PyTorch's names, order and defaults, NumPy's manners.

The kernel is not turned: this is the correlation that neural networks call convolution.  Signatures and
documentation only; `fastconv.convolve` and `fastconv.transpose` do it for any number of axes.
"""

from fastconv.functional.backward import conv1d_backward, conv2d_backward, conv3d_backward
from fastconv.functional.forward import conv1d, conv2d, conv3d
from fastconv.functional.gradients import (
    conv1d_input,
    conv1d_weight,
    conv2d_input,
    conv2d_weight,
    conv3d_input,
    conv3d_weight,
)
from fastconv.functional.transposed import (
    conv_transpose1d,
    conv_transpose1d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
    conv_transpose3d,
    conv_transpose3d_backward,
)

__all__ = [
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
]
