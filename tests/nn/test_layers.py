"""Every layer's and loss's gradients against differences, and a training run against PyTorch's."""

import numpy as np
import pytest

import fastconv
from fastconv import nn
from fastconv.examples.step_time import translated

RNG = np.random.default_rng(0)


def layers():
    """Return layers with the shapes of their inputs."""
    rng = np.random.default_rng(1)
    return [
        (nn.Conv2d(3, 4, 3, padding=1, rng=rng), (2, 3, 5, 6)),
        (nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding="same", groups=2, bias=False, rng=rng), (2, 4, 7, 7)),
        (nn.Conv1d(2, 3, 4, stride=3, rng=rng), (2, 2, 11)),
        (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1, rng=rng), (2, 3, 4, 3)),
        (nn.MaxPool2d(2), (2, 3, 6, 6)),
        (nn.AvgPool2d(3, 2, 1), (2, 3, 7, 6)),
        (nn.AdaptiveAvgPool2d((1, 2)), (2, 3, 4, 6)),
        (nn.AdaptiveAvgPool2d(3), (2, 3, 4, 7)),
        (nn.Linear(5, 4, rng=rng), (3, 5)),
        (nn.Linear(5, 4, bias=False, rng=rng), (2, 5)),
        (nn.Linear(3, 4, rng=rng), (2, 4, 3)),
        (nn.Flatten(), (2, 3, 4, 5)),
        (nn.BatchNorm2d(3), (4, 3, 3, 2)),
        (nn.BatchNorm1d(6), (5, 6)),
        (nn.BatchNorm2d(3).eval(), (4, 3, 2, 2)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", activation="tanh", rng=rng), (2, 3, 4, 6)),
        (nn.Conv2d(2, 4, 3, activation="relu", rng=rng), (2, 2, 5, 6)),
        (nn.ConvTranspose2d(3, 2, 2, 2, activation="sigmoid", rng=rng), (2, 3, 3, 4)),
        (nn.Linear(5, 4, activation="relu", rng=rng), (4, 5)),
        (nn.BatchNorm2d(3, activation="relu"), (3, 3, 4, 2)),
        (nn.BatchNorm1d(2, activation="relu").eval(), (5, 2, 19)),
        (nn.Residual(nn.Conv2d(3, 3, 3, padding=1, rng=rng), activation="relu"), (2, 3, 4, 6)),
        (
            nn.Residual(nn.Sequential(nn.Conv2d(3, 3, 1, rng=rng), nn.BatchNorm2d(3)), activation="relu"), (3, 3, 4, 5),
        ),
        (nn.Residual(nn.BatchNorm1d(4), nn.Sequential()), (5, 4)),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 2, 6, 5)),
        (nn.ReLU(), (3, 7)),
        (nn.LeakyReLU(), (3, 7)),
        (nn.Sigmoid(), (3, 7)),
        (nn.Tanh(), (3, 7)),
        (nn.GELU(), (3, 7)),
        (nn.Softmax(), (3, 7, 2)),
        (nn.Residual(nn.Conv2d(3, 3, 3, padding=1, rng=rng)), (2, 3, 5, 6)),
        (nn.Residual(nn.Linear(4, 2, rng=rng), nn.Linear(4, 2, rng=rng)), (3, 4)),
        (nn.Concat(nn.Conv2d(2, 3, 3, padding=1, rng=rng)), (2, 2, 4, 3)),
        (nn.Sequential(nn.Conv2d(2, 3, 3, rng=rng), nn.Tanh(), nn.Flatten(), nn.Linear(27, 2, rng=rng)), (2, 2, 5, 5)),
    ]  # fmt: skip


def in_float64(layer):
    for parameter in layer.parameters():
        parameter.data = parameter.data.astype(np.float64)
        parameter.data += 0.1 * RNG.standard_normal(parameter.data.shape)  # no scale of 1, no shift of 0
    return layer


def slope(function, array, step=1e-6):
    """Return the gradient of a number by an array from differences."""
    gradient = np.empty_like(array)
    for i in np.ndindex(array.shape):
        before = array[i]
        array[i] = before + step
        above = function()
        array[i] = before - step
        gradient[i] = (above - function()) / (2 * step)
        array[i] = before
    return gradient


@pytest.mark.parametrize(
    ("layer", "shape"), layers(), ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v)
)
def test_gradients(layer, shape):
    layer = in_float64(layer)
    x = RNG.standard_normal(shape)
    gy = RNG.standard_normal(layer(x).shape)
    gx = layer.backward(gy)
    np.testing.assert_allclose(gx, slope(lambda: (layer(x) * gy).sum(), x), rtol=1e-6, atol=1e-7)
    for name, parameter in layer.named_parameters():
        expected = slope(lambda: (layer(x) * gy).sum(), parameter.data)
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("layer", "shape"), layers(), ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v)
)
def test_gradients_are_pytorchs(layer, shape):
    """On the same weights and the same batch."""
    torch = pytest.importorskip("torch")
    if getattr(layer, "arguments", {}).get("padding") == "same":
        layer.arguments["padding"] = 2  # PyTorch refuses strides with "same"
    x = RNG.standard_normal(shape)
    copy = translated(in_float64(layer), torch).double().train(layer.training)
    copy.load_state_dict({n: torch.from_numpy(a) for n, a in layer.state_dict().items()}, strict=False)
    y, image = layer(x), torch.from_numpy(x).requires_grad_()
    expected = copy(image)
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-6, atol=1e-9)
    gy = RNG.standard_normal(y.shape)
    for parameter in layer.parameters():
        parameter.grad = None
    gx = layer.backward(gy)
    expected.backward(torch.from_numpy(gy))
    np.testing.assert_allclose(gx, image.grad, rtol=1e-6, atol=1e-9)
    theirs = dict(copy.named_parameters())
    for name, parameter in layer.named_parameters():
        np.testing.assert_allclose(parameter.grad, theirs[name].grad, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (nn.CrossEntropyLoss(), np.array([0, 3, 1])),
        (nn.CrossEntropyLoss(label_smoothing=0.1), np.array([2, 2, 0])),
        (nn.MSELoss(), RNG.standard_normal((3, 4))),
        (nn.L1Loss(), RNG.standard_normal((3, 4))),
        (nn.HuberLoss(0.5), RNG.standard_normal((3, 4))),
        (nn.BCEWithLogitsLoss(), RNG.random((3, 4))),
    ],
    ids=lambda v: repr(v) if v.__class__ is np.ndarray and v.ndim == 1 else type(v).__name__,
)
def test_gradients_of_losses(loss, target):
    x = RNG.standard_normal((3, 4))
    value = loss(x, target)
    np.testing.assert_allclose(loss.backward(), slope(lambda: loss(x, target), x), rtol=1e-6, atol=1e-9)
    torch = pytest.importorskip("torch")
    name = type(loss).__name__
    arguments = {
        "CrossEntropyLoss": {"label_smoothing": getattr(loss, "smoothing", 0)},
        "HuberLoss": {"delta": 0.5},
    }
    expected = getattr(torch.nn, name)(**arguments.get(name, {}))(
        torch.from_numpy(x), torch.from_numpy(target)
    )
    assert value == pytest.approx(expected.item(), rel=1e-12)


def test_loss_for_every_pixel():
    """Classes of pixels: (N, K, H, W) and (N, H, W), as for (N*H*W, K)."""
    x, target = RNG.standard_normal((2, 3, 4, 5)), RNG.integers(0, 3, (2, 4, 5))
    loss = nn.CrossEntropyLoss()
    rows = x.transpose(0, 2, 3, 1).reshape(-1, 3)
    assert loss(x, target) == pytest.approx(nn.CrossEntropyLoss()(rows, target.ravel()))
    np.testing.assert_allclose(loss.backward(), slope(lambda: loss(x, target), x), rtol=1e-5, atol=1e-9)


def model():
    rng = np.random.default_rng(2)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False, input_grad=False, rng=rng), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, rng=rng), nn.GELU())), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(36, 5, rng=rng),
    )  # fmt: skip


def torch_model(torch):
    class Residual(torch.nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return x + self.body(x)

    t = torch.nn
    body = t.Sequential(t.Conv2d(4, 4, 3, padding=1), t.GELU())
    return t.Sequential(
        t.Conv2d(1, 4, 3, padding=1, bias=False), t.BatchNorm2d(4), t.ReLU(), t.MaxPool2d(2), Residual(body), t.AvgPool2d(2),
        t.Flatten(), t.Linear(36, 5),
    )  # fmt: skip


OPTIMIZERS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True},
    "Adam": {"lr": 3e-3, "weight_decay": 1e-3},
    "AdamW": {"lr": 3e-3},
    "RMSprop": {"lr": 1e-3},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trains_as_pytorch_does(name):
    """From the same weights on the same batches, 50 losses are the same to 1e-4; then outputs of inference."""
    torch = pytest.importorskip("torch")
    ours, theirs = model(), torch_model(torch)
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in ours.state_dict().items()}, strict=False)
    optimizer = getattr(nn, name)(ours.parameters(), **OPTIMIZERS[name])
    other = getattr(torch.optim, name)(theirs.parameters(), **OPTIMIZERS[name])
    loss, criterion = nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss()
    x = RNG.standard_normal((64, 1, 12, 12), dtype="float32")
    target = RNG.integers(0, 5, 64)
    values = []
    for step, (xb, tb) in enumerate(batch for _ in range(13) for batch in nn.batches(x, target, 16)):
        value = loss(ours(xb), tb)
        optimizer.zero_grad()
        assert ours.backward(loss.backward()).size == 0
        optimizer.step()
        expected = criterion(theirs(torch.from_numpy(xb)), torch.from_numpy(tb))
        other.zero_grad()
        expected.backward()
        other.step()
        assert value == pytest.approx(expected.item(), abs=1e-4), step
        values.append(value)
    assert values[-1] < values[0]
    with torch.no_grad():
        np.testing.assert_allclose(
            ours.eval()(x), theirs.eval()(torch.from_numpy(x)).numpy(), rtol=1e-3, atol=1e-3
        )


def test_weights_move_to_pytorch_and_back(tmp_path):
    ours = model()
    ours.save(tmp_path / "model.npz")
    other = model()
    for parameter in other.parameters():
        parameter.data += 1
    other.load(tmp_path / "model.npz")
    x = RNG.standard_normal((2, 1, 12, 12), dtype="float32")
    np.testing.assert_array_equal(ours.eval()(x), other.eval()(x))
    torch = pytest.importorskip("torch")
    other.load_state_dict({n: t.numpy() for n, t in torch_model(torch).state_dict().items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.weight"), "state lacks 0.weight"),
        (lambda s: s.update(other=1), "state has other, which"),
        (lambda s: s.update({"0.weight": np.zeros((4, 1, 5, 5))}), r"0.weight has shape \(4, 1, 3, 3\), state has"),
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    ours = model()
    before = ours.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        ours.load_state_dict(state)
    for name, array in ours.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_nothing_comes_back_through_a_rectifier_at_its_floor_and_nan_stays():
    x, gy = np.array([[-1.0, 2, np.nan, 0]], "float32"), np.array([[1.0, 2, 3, 4]], "float32")
    layer = nn.ReLU()
    np.testing.assert_array_equal(layer(x), [[0, 2, np.nan, 0]])
    np.testing.assert_array_equal(layer.backward(gy), [[0, 2, 3, 0]])
    both = nn.Residual(nn.Flatten(), activation="relu")
    np.testing.assert_array_equal(both(x), [[0, 4, np.nan, 0]])
    np.testing.assert_array_equal(both.backward(gy), [[0, 4, 6, 0]])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "shape", [(5, 3, 1, 1), (4, 45, 7, 7), (3, 2, 33, 35), (6, 5, 31, 33), (2, 3, 40, 64)]
)
def test_normalisation_over_rows_of_channels_and_pieces_of_maps(shape, threads):
    """Maps that share rows, and such as are cut; a mean of 1000 deviations costs no more than x itself lost by it."""
    x, gy = (RNG.standard_normal(shape).astype("f4") for _ in range(2))
    x[0] += 5  # the guess of the mean is wrong
    layer = nn.BatchNorm2d(shape[1], activation="relu")
    layer.weight.data[:], layer.bias.data[:] = RNG.standard_normal((2, shape[1]))
    per_channel = (1, -1, 1, 1)
    weight, bias = (p.data.astype(float).reshape(per_channel) for p in (layer.weight, layer.bias))
    for level, error in ((0, 1e-5), (1000, 2e-3)):
        layer.weight.grad = layer.bias.grad = None
        moved = x + np.float32(level)
        wide = moved.astype(float)
        mean, deviation = (
            wide.mean((0, 2, 3), keepdims=True),
            np.sqrt(wide.var((0, 2, 3), keepdims=True) + layer.eps),
        )
        u = (wide - mean) / deviation
        with fastconv.config(threads=threads):
            y = layer(moved)
            gx = layer.backward(gy)
        np.testing.assert_allclose(y, np.maximum(weight * u + bias, 0), atol=error)
        g = np.where(y > 0, gy, 0).astype(float)
        by_bias, by_weight = g.sum((0, 2, 3)), (g * u).sum((0, 2, 3))
        np.testing.assert_allclose(layer.bias.grad, by_bias, atol=1e-3)
        np.testing.assert_allclose(layer.weight.grad, by_weight, atol=1e-3 + error)
        along = by_weight.reshape(per_channel) * u + by_bias.reshape(per_channel)
        np.testing.assert_allclose(gx, weight / deviation * (g - along * shape[1] / x.size), atol=error)


def test_dropout():
    """A share of p is dropped, the mean stays, the gradient has the same mask; inference does nothing."""
    layer, x = nn.Dropout(0.25, rng=np.random.default_rng(0)), np.ones((100, 100), "float32")
    y = layer(x)
    assert abs((y == 0).mean() - 0.25) < 0.02
    np.testing.assert_array_equal(np.unique(y), np.array([0, 1 / 0.75], "float32"))
    np.testing.assert_array_equal(layer.backward(x), y)
    layer.eval()
    assert layer(x) is x
    assert layer.backward(x) is x


SCHEDULES = {
    "step": lambda o, lib: lib.StepLR(o, 2, 0.5),
    "cosine": lambda o, lib: lib.CosineAnnealingLR(o, 6, 0.1),
    "linear": lambda o, lib: lib.LinearLR(o, 0.1, total_iters=4),
    "warm-up": lambda o, lib: lib.SequentialLR(
        o, [lib.LinearLR(o, 0.25, total_iters=3), lib.CosineAnnealingLR(o, 4), lib.StepLR(o, 1)], [3, 7]
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_pytorchs(name):
    torch = pytest.importorskip("torch")
    ours, theirs = nn.SGD([], lr=2.0), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, other = SCHEDULES[name](ours, nn), SCHEDULES[name](theirs, torch.optim.lr_scheduler)
    for step in range(9 if name == "warm-up" else 6):
        assert ours.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-6), step
        theirs.step()
        schedule.step()
        other.step()


def test_initialisers_keep_the_size_of_signals():
    from fastconv.nn import initialisers

    rng, shape = np.random.default_rng(0), (256, 64, 3, 3)
    x = rng.standard_normal((576, 500))
    for draw in (initialisers.kaiming_normal, initialisers.kaiming_uniform):
        y = np.maximum(draw(rng, shape).reshape(256, -1) @ x, 0)
        assert (y * y).mean() == pytest.approx(1, rel=0.05)
    for draw in (initialisers.xavier_normal, initialisers.xavier_uniform):
        assert draw(rng, shape).var() == pytest.approx(2 / (576 + 2304), rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "channels must be divisible by groups: 3, 4 % 2"),
        (lambda: nn.Conv2d(3, 4, 3, activation="gelu"), "None or one of relu, sigmoid, tanh, got 'gelu'"),
        (
            lambda: nn.BatchNorm2d(3, activation="tanh"),
            "of a normalisation must be None or 'relu', got 'tanh'",
        ),
        (lambda: nn.Residual(nn.ReLU(), activation="tanh"), "of a sum must be None or 'relu', got 'tanh'"),
        (
            lambda: nn.Residual(nn.Linear(3, 2))(np.zeros((4, 3), "f4")),
            r"one shape and dtype, got float32 \(4, 2\)",
        ),
        (lambda: nn.Dropout(1.0), "p must be at least 0 and less than 1"),
        (lambda: nn.LinearLR(nn.SGD([]), 0), "from 0 to 1, the first more than 0, got 0"),
        (lambda: nn.SequentialLR(nn.SGD([]), [], []), "got 0 schedules and 0 milestones"),
        (
            lambda: nn.Linear(3, 2)(np.zeros((4, 5))),
            r"must have 3 features on its last axis, got shape \(4, 5\)",
        ),
        (lambda: nn.SGD([], lr=-1), "lr must be at least 0, got -1"),
        (lambda: nn.Adam([], lr=float("nan")), "lr must be at least 0, got nan"),
        (lambda: nn.StepLR(nn.SGD([]), 0), "step_size must be at least 1, got 0"),
        (lambda: nn.CosineAnnealingLR(nn.SGD([]), 0), "T_max must be at least 1, got 0"),
        (lambda: nn.Conv2d(0, 3, 3), "in_channels must be at least 1, got 0"),
        (lambda: nn.Conv1d(3, 3, 3, groups=0), "groups must be at least 1, got 0"),
        (lambda: nn.ConvTranspose2d(3, 0, 3), "out_channels must be at least 1, got 0"),
        (lambda: nn.Linear(0, 3), "in_features must be at least 1, got 0"),
        (lambda: next(nn.batches(np.zeros(3), np.zeros(3), 0)), "batch_size must be at least 1, got 0"),
        (lambda: nn.SGD([], nesterov=True), "needs momentum"),
        (lambda: nn.CrossEntropyLoss()(np.zeros((2, 3)), np.array([0, 3])), "from 0 to 2, got 0 to 3"),
        (lambda: nn.MSELoss()(np.zeros((2, 3)), np.zeros(3)), r"the outputs' shape \(2, 3\), got \(3,\)"),
        (lambda: nn.BatchNorm2d(3)(np.zeros((2, 4, 2, 2))), "must have 3 channels on axis 1"),
        (lambda: nn.AdaptiveAvgPool2d(2)(np.zeros((5, 4))), "input must be"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
