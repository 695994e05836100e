"""The choice of an algorithm, on stand-ins whose answers are known."""

import numpy as np
import pytest

import fastconv
from fastconv import select as selecting
from fastconv.algorithms import find, registry
from fastconv.algorithms.base import Algorithm
from fastconv.bench import corpus
from fastconv.config import Settings
from fastconv.plan import Plan
from fastconv.problem import ConvProblem, Direction
from fastconv.select import admitted, ranked, select

PROBLEM = ConvProblem.parse("n8 c64 k64 i56x56 f3x3 p1")


class StandIn(Algorithm):
    def __init__(self, name, cost=1.0, workspace=0, reason=None, growth=1.0):
        self.name = name
        self._cost, self._workspace, self._reason, self._growth = cost, workspace, reason, growth
        self.exact = growth == 1.0

    def reject(self, problem, direction):
        return self._reason

    def workspace(self, problem, direction, limit):
        return self._workspace

    def cost(self, problem, direction):
        return self._cost

    def error_growth(self, problem, direction):
        return self._growth

    def build(self, problem, direction, limit):
        raise NotImplementedError


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    table = {
        a.name: a
        for a in (
            StandIn("rough", 0.001, growth=8.0),
            StandIn("greedy", 0.002, workspace=2**20),
            StandIn("narrow", 0.0, reason="stride 1 only"),
            StandIn("plain", 0.003, workspace=2000),
            StandIn("slow", 9.0),
        )
    }
    monkeypatch.setattr(selecting, "registry", lambda: table)
    monkeypatch.setattr(selecting, "find", lambda name, device: table[name])
    return table


def chosen(**settings):
    return select(PROBLEM, Direction.FORWARD, Settings(**settings)).algorithm


def test_cheapest_wins():
    assert chosen() == "rough"


def test_prepared_weights_cost_nothing(stand_ins, monkeypatch):
    names = ["rough", "plain"]
    assert [n for n in ranked(PROBLEM, Direction.FORWARD, Settings())[1] if n in names] == names
    monkeypatch.setattr(StandIn, "preparing", lambda self, problem: 0.0025 if self.name == "plain" else 0.0)
    prepared = ranked(PROBLEM, Direction.FORWARD, Settings(), prepared=True)[1]
    assert [n for n in prepared if n in names] == names[::-1]


def test_strict_leaves_out_what_is_less_exact():
    assert chosen(precision="strict") == "greedy"


def test_workspace_leaves_out_what_needs_more():
    assert chosen(precision="strict", workspace=2**20) == "greedy"
    assert chosen(precision="strict", workspace=2**20 - 1) == "plain"
    assert chosen(precision="strict", workspace=0) == "slow"


def test_named_is_taken_whatever_it_costs():
    assert chosen(algorithm="slow") == "slow"


def test_named_that_rejects():
    with pytest.raises(fastconv.AlgorithmError, match=r"'narrow' cannot serve forward n8.*: stride 1 only"):
        chosen(algorithm="narrow")
    with pytest.raises(fastconv.AlgorithmError, match="come from a whole tile"):
        chosen(algorithm="rough", precision="strict")


def test_named_over_the_limit():
    with pytest.raises(fastconv.WorkspaceError, match=r"needs at least 1048576 bytes.*limit is 1000"):
        chosen(algorithm="greedy", workspace=1000)


def test_prints_a_table():
    text = str(select(PROBLEM, Direction.FORWARD, Settings(workspace=10_000)))
    greedy = "needs at least 1048576 bytes of workspace, the limit is 10000"
    assert text.splitlines() == [
        "forward n8 c64 k64 i56x56 f3x3 p1:1x1:1",
        "  algorithm     predicted      measured   workspace   error  note",
        "* rough          1.000 ms             -     0.0 KiB      8x",
        f"  greedy                -             -     1.0 MiB      1x  {greedy}",
        "  narrow                -             -           -       -  stride 1 only",
        "  plain          3.000 ms             -     2.0 KiB      1x",
        "  slow        9000.000 ms             -     0.0 KiB      1x",
    ]


def test_ranked_by_cost_without_what_is_out(stand_ins, monkeypatch):
    def names(**settings):
        return list(ranked(PROBLEM, Direction.FORWARD, Settings(**settings))[1])

    assert names() == ["rough", "greedy", "plain", "slow"]
    assert names(algorithm="slow") == ["slow"]
    with monkeypatch.context() as alone:
        for name in ("rough", "greedy", "plain"):
            alone.setattr(
                stand_ins[name], "workspace", lambda *_: pytest.fail("asked, though another is named")
            )
        assert names(algorithm="slow") == ["slow"]
    assert names(precision="strict") == ["greedy", "plain", "slow"]


LAYERS = [layer.problem for layer in corpus.load("core")][::3]


def test_a_choice_builds_nothing(monkeypatch):
    monkeypatch.undo()
    for algorithm in registry().values():
        monkeypatch.setattr(type(algorithm), "build", None)
    for problem in LAYERS:
        for direction in Direction:
            assert next(ranked(problem, direction, Settings())[1]) != "reference"


@pytest.mark.parametrize("settings", [Settings(), Settings(precision="strict"), Settings(workspace=2**20)])
def test_a_call_chooses_what_is_explained(monkeypatch, settings):
    monkeypatch.undo()
    for problem in [*LAYERS[::2], ConvProblem.parse("n2 c8 k8 i9x9 f3x3 p1 nhwc")]:
        for direction in Direction:
            assert (
                Plan(problem, direction, settings).algorithm == select(problem, direction, settings).algorithm
            )


def test_admitted(stand_ins):
    assert admitted(stand_ins["slow"], PROBLEM, Direction.FORWARD, Settings())
    assert not admitted(stand_ins["narrow"], PROBLEM, Direction.FORWARD, Settings())


def test_find():
    assert find("reference") is registry()["reference"]
    with pytest.raises(ValueError, match=r"algorithm must be 'auto' or one of .*reference, got 'referenec'"):
        find("referenec")
    with pytest.raises(ValueError, match="reference has no variants, got 'reference:x'"):
        find("reference:x")


@pytest.mark.parametrize("direction", list(Direction))
def test_explain(monkeypatch, direction):
    monkeypatch.undo()
    x, w = np.zeros((2, 4, 9, 9), np.float32), np.zeros((6, 2, 3, 3), np.float32)
    selection = fastconv.explain(x, w, padding="same", groups=2, direction=direction)
    assert selection.problem == ConvProblem.parse("n2 c4 k6 i9x9 f3x3 p1 g2")
    assert selection.direction is direction
    assert tuple(c.name for c in selection.candidates) == fastconv.algorithms()
    assert selection.algorithm in fastconv.algorithms()
    assert fastconv.explain(x[0], w, groups=2).problem.n == 1
    assert fastconv.explain(x[:, :, 0], w[:, :, 0], groups=2, algorithm="reference").algorithm == "reference"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("groups", [1, 64])
@pytest.mark.parametrize("direction", list(Direction))
def test_explain_of_no_images(monkeypatch, direction, groups, layout):
    """A call returns something empty then, or zeros, by any name that is one."""
    monkeypatch.undo()
    x = np.zeros((0, 64, 28, 28) if layout == "NCHW" else (0, 28, 28, 64), np.float32)
    given = {"groups": groups, "direction": direction, "layout": layout}
    w = np.zeros((64, 64 // groups, 3, 3), np.float32)
    selection = fastconv.explain(x, w, padding=1, **given)
    assert selection.algorithm == "empty"
    assert f"{direction} n0 c64" in str(selection)
    with pytest.raises(ValueError, match="algorithm must be 'auto' or one of"):
        fastconv.explain(x, w, algorithm="quickest", **given)


def test_explain_refuses(monkeypatch):
    monkeypatch.undo()
    x, w = np.zeros((2, 4, 9, 9)), np.zeros((6, 4, 3, 3))
    with pytest.raises(
        ValueError, match="direction must be one of forward, input_grad, weight_grad, got 'back'"
    ):
        fastconv.explain(x, w, direction="back")
    with pytest.raises(ValueError, match=r"weight must be .* got 2 dimensions"):
        fastconv.explain(x, w[0, 0])
