"""Plans are kept, found again and bounded; settings are part of their key."""

import threading

import numpy as np
import pytest

import fastconv
from fastconv import arrays
from fastconv import plan as plans
from fastconv.__main__ import main
from fastconv.algorithms import reference


@pytest.fixture(autouse=True)
def fresh():
    plans.clear()
    yield
    plans.clear()


X, W = np.ones((1, 2, 6, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)


def test_second_call_finds_the_plan():
    fastconv.conv2d(X, W)
    fastconv.conv2d(X.copy(), W * 2)
    fastconv.conv2d(X, W, stride=1, padding=0, algorithm="auto")
    assert len(plans._plans) == 1


def test_what_need_not_be_read_finds_the_plan_of_what_must():
    y = fastconv.conv2d(X, W)
    locked = X.copy()
    locked.flags.writeable = False
    for x in (locked, X[0], X[..., ::-1], X.astype(">f4")):
        assert np.array_equal(fastconv.conv2d(x, W), y if x.ndim == 4 else y[0])
    assert np.array_equal(fastconv.conv2d(X, W, out=np.empty_like(y)), y)
    assert np.array_equal(fastconv.conv2d(X, W, residual=np.zeros_like(y)), y)
    assert len(plans._plans) == 1
    fastconv.conv2d(X, W.astype(np.float64))
    assert len(plans._plans) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"stride": 2}, {"padding": 1}, {"padding": "same"}, {"dilation": 2}, {"algorithm": "reference"},
        {"workspace": 0},
    ],
)  # fmt: skip
def test_every_argument_is_in_the_key(change):
    fastconv.conv2d(X, W)
    fastconv.conv2d(X, W, **change)
    assert len(plans._plans) == 2


def test_settings_are_in_the_key():
    fastconv.conv2d(X, W)
    for change in ({"algorithm": "reference"}, {"precision": "strict"}, {"workspace": 0}):
        with fastconv.config(**change):
            fastconv.conv2d(X, W)
    assert len(plans._plans) == 4
    with fastconv.config(threads=1):  # results do not depend on it
        fastconv.conv2d(X, W)
    assert len(plans._plans) == 4


def test_equal_but_wrong_types_do_not_find_a_plan():
    fastconv.conv2d(X, W, stride=1)
    fastconv.conv2d(X, W, stride=(1, 1))
    for wrong in (1.0, True, (1.0, 1), (1, True)):
        with pytest.raises(TypeError, match="stride must be an integer"):
            fastconv.conv2d(X, W, stride=wrong)


def test_failures_are_not_kept():
    for _ in range(2):
        with pytest.raises(ValueError, match="does not fit"):
            fastconv.conv2d(X, W, dilation=9)
    assert not plans._plans


def test_bounded_and_the_used_stay(monkeypatch):
    monkeypatch.setattr(plans, "KEPT", 8)
    for n in range(1, 40):
        fastconv.conv1d(np.ones((n, 1, 4)), np.ones((1, 1, 2)), algorithm="reference")
        fastconv.conv2d(X, W, algorithm="reference")
        assert len(plans._plans) <= 8
    used = next(p for p in plans._plans.values() if p.problem.n == 1)
    fastconv.conv2d(X, W, algorithm="reference")
    assert any(p is used for p in plans._plans.values())


def test_many_threads_at_once(monkeypatch):
    monkeypatch.setattr(plans, "KEPT", 4)
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(40):
            size = int(rng.integers(3, 12))
            x = np.ones((1, 1, size))
            y = fastconv.conv1d(x, np.ones((1, 1, 3)), algorithm="reference")
            if y.shape != (1, 1, size - 2) or not (y == 3).all():
                wrong.append(y)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_plan_says_what_it_is():
    fastconv.conv2d(X, W, algorithm="reference")
    assert repr(next(iter(plans._plans.values()))) == "<Plan forward n1 c2 k3 i6x6 f3x3 by reference>"


# ------------------------------------------------------------------------------------ warmup, command line


def test_warmup_of_given_problems(capfd):
    assert fastconv.warmup(["n1 c3 k8 i8x8 f3x3", fastconv.ConvProblem.parse("n0 c1 i5 f3")]) == 3
    assert "warmup" in capfd.readouterr().err


def test_warmup_runs_what_calls_run(monkeypatch):
    """In the layout that is served, and without taps that meet nothing."""
    ran, run = set(), reference._Run.run

    def seen(self, first, *others):
        ran.add((str(self.problem), arrays.order(first, first.dtype)))
        run(self, first, *others)

    monkeypatch.setattr(reference._Run, "run", seen)
    with fastconv.config(algorithm="reference"):
        assert fastconv.warmup(["n1 c2 k3 i5x6 f3x3 p9 d9 nhwc"]) == 3
    assert ran == {("n1 c2 k3 i5x6 f1x1 nhwc", "nhwc")}


def test_warmup_refuses():
    with pytest.raises(ValueError, match="cannot read 'x'"):
        fastconv.warmup(["x"])
    for problems in ("n1 c3 k8 i8x8 f3x3", 3, fastconv.ConvProblem.parse("n1 c3 i8 f3")):
        with pytest.raises(TypeError, match="problems must be a sequence of problems, got"):
            fastconv.warmup(problems)
    for problem in (None, 3, b"n1 c3 i8 f3"):
        with pytest.raises(TypeError, match="problem line must be text, got"):
            fastconv.warmup([problem])


def test_explain_command(capsys):
    assert main(["explain", "n8", "c64", "k64", "i56x56", "f3x3", "p1"]) == 0
    text = capsys.readouterr().out
    assert text.count("* ") == 3
    assert main(["explain", "c64 i56x56 f3x3", "--direction", "weight_grad", "--algorithm", "reference"]) == 0
    assert capsys.readouterr().out.startswith("weight_grad n1 c64 k64 i56x56 f3x3\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["explain", "c64 i5 f9"], "kernel does not fit"),
        (["explain", "c64 i5 f3", "--algorithm", "magic"], "algorithm must be 'auto' or one of"),
        (["warmup", "hello"], "cannot read 'hello'"),
    ],
)
def test_commands_refuse(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["fly"])
    assert exit.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
