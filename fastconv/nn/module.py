"""What layers have in common: parameters, two modes, and a place in a tree of layers.

A layer computes its output in ``forward`` and keeps what ``backward`` will need.  ``backward`` takes the
gradient of the loss by that output, gives each parameter its gradient, and returns the gradient by the
input.  That is the whole of back-propagation: the chain rule, one layer at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import numpy as np

from fastconv.nn import pointwise
from fastconv.typing import Array


class Parameter:
    """An array that training changes, and the gradient of the loss by it.

    Parameters
    ----------
    data : array
        Changed in place by an optimizer.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> w = nn.Parameter(np.zeros(2))
    >>> w.accumulate(np.ones(2))
    >>> w.accumulate(np.ones(2))
    >>> w.grad.tolist()
    [2.0, 2.0]
    """

    def __init__(self, data: Array) -> None:
        self.data = data
        self.grad: Array | None = None

    def accumulate(self, grad: Array) -> None:
        """Add to the gradient, which is None until the first."""
        self.grad = grad if self.grad is None else self.grad + grad

    def __repr__(self) -> str:
        return f"Parameter{self.data.shape}"


class Module(ABC):
    """A layer, or several of them as one.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> class Square(nn.Module):
    ...     def forward(self, x):
    ...         self.x = x
    ...         return x * x
    ...     def backward(self, gy):
    ...         return 2 * self.x * gy
    >>> model = nn.Sequential(Square(), nn.ReLU())
    >>> model(np.array([3.0])).tolist(), model.backward(np.array([1.0])).tolist()
    ([9.0], [6.0])
    """

    training = True
    buffers: tuple[str, ...] = ()  # names of arrays that are saved but not trained

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Return the output for ``x``."""

    @abstractmethod
    def backward(self, gy: Array) -> Array:
        """Return the gradient by the last input, given that by its output; parameters take theirs."""

    def __call__(self, x: Array) -> Array:
        return self.forward(x)

    def forward_added(self, x: Array, other: Array, rectify: bool) -> Array:
        """Return the output plus another array, or max(that, 0); a layer that can adds as it writes its results."""
        return pointwise.added(self(x), other, rectify)

    def backward_added(self, gy: Array, other: Array) -> Array:
        """Return what `backward` does plus another branch's gradient; a layer that can adds as it writes its own."""
        return pointwise.added(self.backward(gy), other)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the layers that this one holds as attributes, by name."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Yield all parameters with PyTorch's names, such as ``0.weight``."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value
        for name, child in self.children():
            yield from child.named_parameters(f"{prefix}{name}.")

    def parameters(self) -> list[Parameter]:
        """Return all parameters."""
        return [parameter for _, parameter in self.named_parameters()]

    def train(self, mode: bool = True) -> Module:
        """Switch this layer and all below it to training, or with False to inference."""
        self.training = mode
        for _, child in self.children():
            child.train(mode)
        return self

    def eval(self) -> Module:
        """Switch to inference: no dropout, and normalisation by the averages that training gathered."""
        return self.train(False)

    def _arrays(self, prefix: str = "") -> Iterator[tuple[str, Array]]:
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value.data
        for name in self.buffers:
            yield prefix + name, getattr(self, name)
        for name, child in self.children():
            yield from child._arrays(f"{prefix}{name}.")

    def state_dict(self) -> dict[str, Array]:
        """Return copies of everything that training changed, by name."""
        return {name: array.copy() for name, array in self._arrays()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over arrays by name; nothing changes unless every name and shape fits.

        Raises
        ------
        ValueError
            A name is missing or unknown, or a shape differs; PyTorch's ``num_batches_tracked`` is ignored.
        """
        own = dict(self._arrays())
        given = {n: np.asarray(a) for n, a in state.items() if not n.endswith("num_batches_tracked")}
        if missing := sorted(own.keys() - given.keys()):
            raise ValueError(f"state lacks {', '.join(missing)}")
        if unknown := sorted(given.keys() - own.keys()):
            raise ValueError(f"state has {', '.join(unknown)}, which the model has not")
        for name, array in own.items():
            if given[name].shape != array.shape:
                raise ValueError(f"{name} has shape {array.shape}, state has {given[name].shape}")
        for name, array in own.items():
            array[...] = given[name]

    def save(self, file: str | PathLike[str]) -> None:
        """Write the state to an .npz file."""
        with open(file, "wb") as stream:
            np.savez(stream, allow_pickle=False, **self.state_dict())

    def load(self, file: str | PathLike[str]) -> None:
        """Read the state from an .npz file; see `load_state_dict`."""
        with np.load(file, allow_pickle=False) as state:
            self.load_state_dict(state)


class Sequential(Module):
    """Layers one after the other.

    Parameters
    ----------
    *layers : Module

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> model(np.ones((3, 1, 2, 2), "float32")).shape
    (3, 2)
    >>> [name for name, _ in model.named_parameters()]
    ['1.weight', '1.bias']
    """

    def __init__(self, *layers: Module) -> None:
        self.layers = layers

    def children(self) -> Iterator[tuple[str, Module]]:
        yield from ((str(i), layer) for i, layer in enumerate(self.layers))

    def forward(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x

    def forward_added(self, x: Array, other: Array, rectify: bool) -> Array:
        if not self.layers:
            return super().forward_added(x, other, rectify)
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1].forward_added(x, other, rectify)

    def backward(self, gy: Array) -> Array:
        for layer in reversed(self.layers):
            gy = layer.backward(gy)
        return gy

    def backward_added(self, gy: Array, other: Array) -> Array:
        if not self.layers:
            return super().backward_added(gy, other)
        for layer in reversed(self.layers[1:]):
            gy = layer.backward(gy)
        return self.layers[0].backward_added(gy, other)


class Residual(Module):
    """Two branches added: y = body(x) + shortcut(x), where no shortcut is x itself.

    The gradient goes back through both and adds up: gx = body'(gy) + shortcut'(gy).  Through the identity
    it arrives undiminished, which is why deep networks of such blocks train (K. He et al., Deep residual
    learning for image recognition, arXiv:1512.03385).
    With ``activation="relu"`` the sum is rectified in the same pass.

    Parameters
    ----------
    body : Module
    shortcut : Module, optional
        Needed where the body changes the shape.
    activation : {None, "relu"}

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Residual(nn.Sequential())(np.array([3.0])).tolist()
    [6.0]
    """

    def __init__(
        self, body: Module, shortcut: Module | None = None, *, activation: str | None = None
    ) -> None:
        if activation not in (None, "relu"):
            raise ValueError(f"activation of a sum must be None or 'relu', got {activation!r}")
        self.body, self.shortcut, self.activation_name = body, shortcut, activation

    def forward(self, x: Array) -> Array:
        other = x if self.shortcut is None else self.shortcut(x)
        self.y = self.body.forward_added(x, other, rectify=self.activation_name == "relu")
        return self.y

    def backward(self, gy: Array) -> Array:
        if self.activation_name == "relu":
            gy = pointwise.kept(gy, self.y)
        other = gy if self.shortcut is None else self.shortcut.backward(gy)
        return self.body.backward_added(gy, other)


class Concat(Module):
    """The input and what a body makes of it, side by side along the channels: y = [x, body(x)].

    A U-Net joins its way up to its way down so.  The gradient is cut where the channels meet; the input takes
    the first part as it is and what the body returns for the second: gx = gy[:C] + body'(gy[C:]).

    Parameters
    ----------
    body : Module
        Leaves the sizes of images as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Concat(nn.ReLU())(np.array([[-1.0, 2.0]])).tolist()
    [[-1.0, 2.0, 0.0, 2.0]]
    """

    def __init__(self, body: Module) -> None:
        self.body = body

    def forward(self, x: Array) -> Array:
        self.channels = x.shape[1]
        return np.concatenate([x, self.body(x)], axis=1)

    def backward(self, gy: Array) -> Array:
        gx: Array = gy[:, : self.channels] + self.body.backward(gy[:, self.channels :])
        return gx
