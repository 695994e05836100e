"""The race against cuDNN, run on the CPU: contestants agree, and the table says who won and who was wrong."""

import json
import time

import pytest

from fastconv.bench import gpu
from fastconv.bench.corpus import Layer
from fastconv.problem import ConvProblem, Direction

torch = pytest.importorskip("torch")


def clock(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@pytest.mark.parametrize("line", ["n2 c4 k6 i7x6 f3x3 p1 s2 g2", "n1 c3 k2 i9 f3 d2"])
def test_contestants_agree(line, monkeypatch):
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    layer = Layer(ConvProblem.parse(line), "3x3")
    for direction, fused in [*((d, False) for d in Direction), (Direction.FORWARD, True)]:
        row = gpu.row(layer, direction, fused, "cpu", clock)
        assert row["right"], row
        assert set(row["seconds"]) >= {"fastconv NCHW", "cuDNN NCHW"}


def test_algorithms_race_by_name_and_rows_are_kept_as_they_come(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "NAMED", ("winograd:F(4,3)",))
    layers = [
        Layer(ConvProblem.parse(line), "3x3") for line in ("n1 c3 k2 i9x8 f3x3 p1", "n1 c3 k2 i9 f3 s2")
    ]
    record, late = gpu.Record(tmp_path / "race.json", {"gpu": "none"}, [], 9), time.monotonic() + 100
    gpu.measure(layers, True, "cpu", clock, time.monotonic() - 1, record)
    assert not record.rows, "out of time"
    gpu.measure(layers, True, "cpu", clock, late, record)
    assert all(r["right"] for r in record.rows), record.rows
    assert {r["direction"] for r in record.rows} == {f"{d} {name}" for d in Direction for name in gpu.NAMED}
    assert {r["problem"] for r in record.rows} == {str(layers[0].problem)}, "tiles need stride 1"
    assert json.loads((tmp_path / "race.json").read_text()) == {"gpu": "none", "rows": record.rows}
    told = capsys.readouterr().out
    assert told.count("TFLOP/s") == len(record.rows)
    assert f"{len(record.rows)}/9 (" in told

    monkeypatch.setattr(gpu, "call", lambda *_: 1 / 0)
    gpu.measure(layers, True, "cpu", clock, late, record)
    assert len(record.rows) == 3, "what is there is not measured again"
    gpu.measure(layers, False, "cpu", clock, late, record)
    assert len(record.rows) == 3 + 8
    assert "ZeroDivisionError" in record.rows[-1]["error"]
    assert "FAILED forward" in gpu.summary(record.rows)


def test_the_first_layers_are_of_all_categories():
    layers = list(range(20))
    assert sorted(gpu.spread(layers)) == layers
    assert gpu.spread(layers)[:3] == [0, 7, 14]


def test_what_is_wrong_is_named_and_not_counted():
    good = {"problem": "a", "direction": "forward", "difference": 0.0, "right": True, "flops": 4e12, "algorithm": "fft", "workspace": 64,
            "seconds": {"fastconv NCHW": 1.0, "cuDNN NCHW": 4.0, "fastconv NHWC": 0.5, "cuDNN NHWC": 1.5}}  # fmt: skip
    table = gpu.summary([good, good | {"problem": "b", "difference": 1.0, "right": False}]).splitlines()
    assert table[1].split() == ["forward", "1", "4.00", "3.00", "3.00", "8.0"]
    assert table[2].startswith("b forward: fft in 64 B of workspace, 8.0 TFLOP/s")
    assert table[2].endswith("WRONG by 1")
