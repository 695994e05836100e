"""Measured choices, and the files that keep them."""

import json
import threading

import numpy as np
import pytest

import fastconv
from fastconv import database, plan, roofline, tune
from fastconv.__main__ import main
from fastconv.bench import peak
from fastconv.config import Settings
from fastconv.problem import ConvProblem, Direction

PROBLEM = ConvProblem.parse("n3 c8 k8 i12x12 f3x3 p1")
FORWARD = Direction.FORWARD
ON, OFF, FORCE = (Settings(tune=mode) for mode in ("on", "off", "force"))


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_TUNE_FOLDER", str(tmp_path / "tune"))
    plan.clear()
    yield tmp_path / "tune"
    plan.clear()


@pytest.fixture
def measured(monkeypatch):
    """Give the last candidate by the model the least time; list what is measured."""
    seen = []

    def measure(selection, settings):
        seen.append(selection.problem)
        return {"im2col": 2e-3, "reference": 1e-3}

    monkeypatch.setattr(tune, "measure", measure)
    return seen


def key(problem=PROBLEM, settings=ON):
    return database.key(problem, FORWARD, settings)


def test_off_measures_nothing_and_keeps_to_the_model(measured):
    database.write(key(), {"reference": 1e-9})
    assert tune.choose(PROBLEM, FORWARD, OFF).algorithm != "reference"
    assert measured == []


def test_on_measures_once_and_takes_the_fastest(measured):
    assert tune.choose(PROBLEM, FORWARD, ON).algorithm == "reference"
    assert tune.choose(PROBLEM, FORWARD, ON).algorithm == "reference"
    assert measured == [PROBLEM]


def test_force_measures_again(measured):
    database.write(key(), {"im2col": 1e-9})
    assert tune.choose(PROBLEM, FORWARD, ON).algorithm == "im2col"
    assert tune.choose(PROBLEM, FORWARD, FORCE).algorithm == "reference"
    assert database.read(key()) == {"im2col": 2e-3, "reference": 1e-3}


def test_a_named_algorithm_is_not_tuned(measured):
    assert tune.choose(PROBLEM, FORWARD, Settings("im2col", tune="on")).algorithm == "im2col"
    assert measured == []


def test_batches_share_entries_with_the_next_power_of_two(measured):
    for n in (3, 4, 5):
        tune.choose(ConvProblem.parse(f"n{n} c8 k8 i12x12 f3x3 p1"), FORWARD, ON)
    assert [p.n for p in measured] == [3, 5]


def test_entries_are_named_by_all_that_their_times_depend_on(monkeypatch):
    base = key()
    assert {"device", "threads", "sources"} <= base.keys()
    others = [
        key(settings=Settings(precision="strict")),
        key(settings=Settings(workspace=10)),
        database.key(PROBLEM, Direction.INPUT_GRAD, ON),
        key(ConvProblem.parse(f"{PROBLEM} float64")),
    ]
    monkeypatch.setattr(fastconv, "__version__", "next")
    others.append(key())
    assert len({database.path(k) for k in (base, *others)}) == 6


def test_a_limit_of_threads_changes_no_choice():
    assert key(settings=Settings(threads=1)) == key()


@pytest.mark.parametrize(
    "content", ["", '{"key": ', "[]", '{"key": {}, "seconds": {"direct": 1}}', "NO TIMES", "NEGATIVE"]
)
def test_a_file_that_is_no_entry_is_ignored_with_a_warning(content, measured):
    seconds = {"NO TIMES": {}, "NEGATIVE": {"direct": -1.0}}.get(content)
    if seconds is not None:
        content = json.dumps({"key": key(), "seconds": seconds})
    path = database.path(key())
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.warns(UserWarning, match="is no entry of fastconv's tuning and is ignored"):
        assert tune.choose(PROBLEM, FORWARD, ON).algorithm == "reference"
    assert database.read(key()) == {"im2col": 2e-3, "reference": 1e-3}


def test_a_folder_that_cannot_be_written_costs_a_warning(monkeypatch, tmp_path, measured):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTCONV_TUNE_FOLDER", str(tmp_path / "file" / "tune"))
    monkeypatch.setattr(database, "read", lambda of: None)
    with pytest.warns(UserWarning, match="could not be kept"):
        assert tune.choose(PROBLEM, FORWARD, ON).algorithm == "reference"


def test_writers_at_once_lose_nothing(folder):
    keys = [key(ConvProblem.parse(f"n1 c{c} k8 i12x12 f3x3")) for c in range(1, 9)]

    def write(seconds):
        for k in keys:
            database.write(k, {"direct": seconds})

    writers = [threading.Thread(target=write, args=(float(i),)) for i in range(1, 9)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert all(1.0 <= database.read(k)["direct"] <= 8.0 for k in keys)
    assert len(list(folder.iterdir())) == len(keys)


@pytest.mark.parametrize("direction", Direction)
def test_measures_the_likeliest_and_keeps_their_times(direction):
    selection = tune.choose(PROBLEM, direction, ON)
    times = {c.name: c.measured for c in selection.candidates if c.measured}
    assert 2 <= len(times) <= tune.CANDIDATES
    assert selection.algorithm == min(times, key=times.get)
    assert database.read(database.key(PROBLEM, direction, ON)) == times


def test_measures_images_held_pixel_by_pixel():
    problem = ConvProblem.parse(f"{PROBLEM} nhwc")
    selection = tune.choose(problem, FORWARD, ON)
    assert selection.algorithm in {c.name for c in selection.candidates if c.reason is None}


def test_calls_run_what_was_the_fastest(measured):
    x, w = np.ones((3, 8, 12, 12), "float32"), np.ones((8, 8, 3, 3), "float32")
    with fastconv.config(tune="on"):
        fastconv.conv2d(x, w, padding=1)
        assert fastconv.explain(x, w, padding=1).algorithm == "reference"
    with fastconv.config(tune="off"):
        selection = fastconv.explain(x, w, padding=1)
    assert selection.algorithm != "reference"
    assert "1.000 ms" in str(selection)
    assert len(measured) == 1


def test_command(tmp_path, measured, capsys):
    (tmp_path / "suite.txt").write_text(f"{PROBLEM}\n")
    assert main(["tune", str(tmp_path / "suite.txt"), "--directions", "forward"]) == 0
    assert "1 tuned, 1 otherwise than predicted" in capsys.readouterr().out
    assert main(["tune", "nothing"]) == 2
    assert "suite must be a file" in capsys.readouterr().err


def test_machine(monkeypatch, capsys):
    """Rates are measured, kept, and taken at once; the rest of the session has typical ones again."""
    monkeypatch.setattr(peak, "COPIED", 2**20)
    assert main(["tune", "--machine"]) == 0
    assert "FMAs a cycle at" in capsys.readouterr().out
    measured = database.rates()
    assert roofline.rates() == measured
    assert measured.units >= 1
    roofline.rates.cache_clear()
    assert main(["tune"]) == 2
    assert "name a suite" in capsys.readouterr().err


def test_refuses_other_words():
    with pytest.raises(ValueError, match="tune must be 'off', 'on' or 'force', got 'yes'"):
        Settings(tune="yes")
