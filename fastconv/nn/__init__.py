"""Neural networks in NumPy, on the engine's convolutions: to train one, and to see how that works.

A convolution slides a small kernel over an image and writes, at each place, the sum of products of the
kernel with the pixels under it.  A 2 x 2 kernel has 2 x 2 places on a 3 x 3 image:

>>> import numpy as np
>>> import fastconv
>>> image = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
>>> kernel = np.array([[1.0, 0], [0, 1]])
>>> fastconv.conv2d(image[None, None], kernel[None, None])[0, 0]
array([[ 6.,  8.],
       [12., 14.]])

The first result is 1*1 + 2*0 + 4*0 + 5*1 = 6.  In general, R taps that are ``dilation`` apart span
dilation*(R - 1) + 1 pixels; of lo + H + hi padded pixels the first tap may stand on those that leave as
many to its right, and on every ``stride``-th of them:

    P = (lo + H + hi - dilation*(R - 1) - 1) // stride + 1

A layer learns its kernels.  The loss says how wrong the output is; `Module.backward` carries its gradient
from the last layer to the first and leaves each parameter its share; an optimizer takes a step against it:

>>> from fastconv import nn
>>> rng = np.random.default_rng(0)
>>> x, target = rng.standard_normal((8, 1, 6, 6), dtype="float32"), rng.integers(0, 3, 8)
>>> model = nn.Sequential(nn.Conv2d(1, 4, 3, rng=rng), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3, rng=rng))
>>> loss, optimizer = nn.CrossEntropyLoss(), nn.SGD(model.parameters(), lr=0.1)
>>> values = []
>>> for _ in range(20):
...     values.append(loss(model(x), target))
...     optimizer.zero_grad()
...     gradient = model.backward(loss.backward())
...     optimizer.step()
>>> values[-1] < values[0] / 4
True

Names, defaults and the shapes of weights are PyTorch's, so `Module.state_dict` moves between the two.
"""

from fastconv.nn.activations import GELU, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from fastconv.nn.convolution import Conv1d, Conv2d, ConvTranspose2d
from fastconv.nn.data import batches
from fastconv.nn.dense import Dropout, Flatten, Linear
from fastconv.nn.losses import BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, Loss, MSELoss
from fastconv.nn.module import Concat, Module, Parameter, Residual, Sequential
from fastconv.nn.normalisation import BatchNorm1d, BatchNorm2d
from fastconv.nn.optimizers import SGD, Adam, AdamW, RMSprop
from fastconv.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from fastconv.nn.schedules import CosineAnnealingLR, LinearLR, SequentialLR, StepLR

__all__ = [
    "GELU",
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Concat",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "CosineAnnealingLR",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "HuberLoss",
    "L1Loss",
    "LeakyReLU",
    "Linear",
    "LinearLR",
    "Loss",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "Parameter",
    "RMSprop",
    "ReLU",
    "Residual",
    "Sequential",
    "SequentialLR",
    "Sigmoid",
    "Softmax",
    "StepLR",
    "Tanh",
    "batches",
]
