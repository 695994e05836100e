import json
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest

import fastconv
from fastconv import machine
from fastconv.bench import contest, corpus, driver, memory, page, report, special
from fastconv.bench.check import Truth, truth
from fastconv.bench.corpus import CATEGORIES
from fastconv.bench.driver import main
from fastconv.bench.figures import FIGURES, figures
from fastconv.bench.measure import Sample, race
from fastconv.bench.peers import Operands, Ours, Peer, installed
from fastconv.bench.results import BETTER, NCHW, PREPARED, Regret, Results, Row, geomean, regressions, total
from fastconv.problem import ConvProblem, Direction

TINY = "n2 c3 k4 i6x5 f3x3 p1 x2  # first\n[odd]\nn1 c2 k2 i9 f3 s2\n"


def row(
    line="n1 c64 k64 i56x56 f3x3 p1", direction="forward", algorithm="direct", peak=1e11, times=1, **best
):
    problem = ConvProblem.parse(line)
    samples = {name: Sample(seconds, seconds, 5) for name, seconds in best.items()}
    return Row(
        line, corpus.category(problem), "", times, direction, problem.flops, problem.bytes,
        algorithm, peak, samples=samples,
    )  # fmt: skip


def results(*rows):
    machine = {"cpu": "a CPU", "threads": 2, "simd": "avx2", "peak": 2e11, "bandwidth": 1e10}
    return Results(machine, {"fastconv": "1"}, {"suite": "core", "dtype": "float32"}, list(rows))


class TestCorpus:
    @pytest.mark.parametrize("suite", corpus.names())
    def test_every_suite_parses_and_its_headings_are_right(self, suite):
        layers = corpus.load(suite)
        assert layers
        for layer in layers:
            swept = layer.category.startswith(corpus.SWEEP)
            assert swept == (suite == "sweep")
            assert swept or layer.category == corpus.category(layer.problem)

    def test_one_number_grows_in_a_sweep(self):
        layers = corpus.load("sweep")
        for section in {layer.category for layer in layers}:
            flops = [layer.problem.flops for layer in layers if layer.category == section]
            assert len(flops) >= 5
            assert flops == sorted(flops)

    @pytest.mark.parametrize("suite", ["core", "accept", "quick"])
    def test_covers_every_category(self, suite):
        assert {layer.category for layer in corpus.load(suite)} == set(CATEGORIES)

    @pytest.mark.parametrize("suite", ["core", "accept"])
    def test_is_large_enough_and_its_layers_small_enough(self, suite):
        layers = corpus.load(suite)
        assert len(layers) >= 70
        assert max(layer.problem.n for layer in layers) <= 16
        assert max(layer.problem.flops for layer in layers) < 8.5e9

    def test_what_is_accepted_is_not_tuned_on(self):
        core, accept = ({layer.problem for layer in corpus.load(s)} for s in ("core", "accept"))
        assert len(core) == len(corpus.load("core"))
        assert not core & accept

    def test_reads_times_names_and_sections(self):
        first, second = corpus.parse(TINY)
        assert (first.times, first.name, first.category) == (2, "first", "first-layer")
        assert (second.times, second.name, second.category) == (1, "", "odd")

    def test_names_the_line_that_cannot_be_read(self):
        with pytest.raises(ValueError, match="line 2: problem line: cannot read 'q3'"):
            list(corpus.parse("# head\nn1 c1 i3 f1 q3\n"))

    def test_names_the_suites_there_are(self):
        with pytest.raises(ValueError, match=r"one of .*core.* got 'nothing'"):
            corpus.load("nothing")


class TestRatios:
    def test_others_time_over_ours(self):
        r = row(fastconv=2.0, torch_nchw=6.0, torch_channels_last=3.0)
        assert r.ratio(NCHW) == 3.0
        assert r.ratio(BETTER) == 1.5
        assert r.ratio(PREPARED) is None

    def test_share_of_the_peak(self):
        r = row(fastconv=1.0)
        r.peak = 2.0 * r.flops
        assert r.share() == 0.5

    def test_regret_needs_algorithms_timed_by_name(self):
        assert row(fastconv=3.0).regret() is None
        assert row(fastconv=3.0, **{"fastconv:fft": 2.0, "torch_nchw": 1.0}).regret() == 1.5
        assert row(fastconv=3.0, **{"fastconv:fft": 4.0}).regret() == 1.0

    def test_noise_between_two_runs_of_the_chosen_is_no_regret(self):
        assert row(fastconv=3.0, **{"fastconv:direct": 2.0, "fastconv:fft": 2.5}).regret() == 1.0

    def test_regret_of_many_layers(self):
        rows = [row(fastconv=float(i), **{"fastconv:fft": 1.0}) for i in range(1, 22)]
        assert Regret.of(rows) == (11.0, 20.0, 21.0)
        assert Regret.of([row(fastconv=1.0)]) is None

    def test_geometric_mean_leaves_out_what_is_missing(self):
        assert geomean([1.0, None, 4.0]) == pytest.approx(2.0)
        assert geomean([None]) is None

    def test_total_counts_layers_as_often_as_they_occur(self):
        rows = [row(times=3, fastconv=1.0, torch_nchw=2.0), row(fastconv=1.0)]
        assert total(rows, "fastconv") == 4.0
        assert total(rows, "torch_nchw") is None

    def test_groups_are_categories_then_all_then_subsets(self):
        rows = [
            row(fastconv=1.0),
            row("n1 c64 k64 i28x28 f1x1", algorithm="im2col", fastconv=1.0),
            row("n1 c8 i9 f3"),
        ]
        groups = {name: len(found) for name, found in results(*rows).groups("forward")}
        assert groups == {
            "pointwise": 1, "3x3": 1, "1d": 1, "all": 3,
            "3x3 stride 1, C, K >= 64, maps >= 28x28": 1, "direct and 1x1, C, K >= 64": 2,
        }  # fmt: skip

    def test_regressions_are_weighed_with_the_peak(self):
        before = results(row(fastconv=1.0, peak=2e11))
        assert regressions(results(row(fastconv=1.9, peak=1e11)), before) == []
        (change,) = regressions(results(row(fastconv=1.5, peak=2e11)), before)
        assert change.slower == 1.5
        with pytest.raises(ValueError, match="none of these layers"):
            regressions(results(row("n1 c3 k3 i8x8 f3x3", fastconv=1.0)), before)


class TestCheck:
    def test_error_is_relative_to_the_mean_square(self):
        right = Truth(np.array([3.0, -3.0]), 1e-4)
        assert right.error(np.array([3.0, -1.5], "float32")) == 0.5
        assert right.error(np.array([3.0, np.nan])) == float("inf")
        assert right.error(np.array([3.0])) == float("inf")

    @pytest.mark.parametrize("direction", Direction)
    @pytest.mark.parametrize("line", ["n2 c4 k6 i7x6 f3x2 s2x1 p1:0x0:2 d1x2 g2", "n2 c3 k4 i9 f3 p1"])
    def test_every_direction_agrees_with_the_definition(self, line, direction):
        problem = ConvProblem.parse(line)
        operands = Operands.normal(problem)
        right = truth(problem, direction, operands, check_all=False)
        call = Ours("reference").make(problem, direction, operands)
        assert right.error(call()) < right.bound


ONE = "n2 c6 k6 i9x8 f3x3 p1:1x0:2 g6"


class TestPeers:
    @pytest.mark.parametrize("direction", Direction)
    @pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino", "jax", "scipy", "opencv"])
    @pytest.mark.parametrize(
        "line", ["n2 c4 k6 i9x8 f3x3 s2x1 p1 g2", "n2 c6 k6 i9x8 f3x3 p1 g6", "n2 c3 k4 i9 f3", ONE]
    )
    def test_who_applies_computes_the_same(self, name, line, direction):
        problem = ConvProblem.parse(line)
        operands = Operands.normal(problem)
        right = truth(problem, direction, operands, check_all=False)
        found, _ = installed(name, machine.cpus(), True, False)
        for peer in found:
            if peer.takes(problem, direction):
                result = peer.make(problem, direction, operands)()
                assert right.error(peer.array(result, problem, direction)) < 1e-4, peer.name

    def test_prepared_weights_race_with_prepared_weights_only(self):
        assert all(not peer.prepared for peer in installed("all", 1, False, False)[0])


class TestMemory:
    def test_counts_what_a_call_takes(self):
        taken = memory.peak(lambda: np.ones(2**22))
        assert taken is None or 2**25 * 0.9 < taken < 2**26


class TestRace:
    def test_all_run_in_every_round(self):
        calls = {"a": 0, "b": 0}

        def contestant(name):
            def call():
                calls[name] += 1

            return call

        samples = race({name: contestant(name) for name in calls}, budget=0.0, rounds=3)
        assert [s.rounds for s in samples.values()] == [3, 3]
        assert all(0 < s.best <= s.median for s in samples.values())
        assert all(count > 3 for count in calls.values())


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "tiny.txt"
    path.write_text(TINY)
    return path


class TestDriver:
    def test_checks_times_and_writes_results(self, suite, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(special, "LARGE", ("n1 c2 k2 i9x9 f3x3",))
        out = tmp_path / "results.json"
        with fastconv.config(algorithm="reference"):
            options = ["--peers", "none", "--threads", "1", "--budget", "0", "--algorithms", "reference"]
            assert main([str(suite), *options, "-o", str(out), "--scaling"]) == 0
        assert "forward: their time / ours" in capsys.readouterr().out
        assert len(json.loads(out.read_text())["rows"]) == 6
        again = Results.load(out)
        assert again.directions == ["forward", "input_grad", "weight_grad"]
        assert again.categories == ["first-layer", "odd"]
        assert len(again.special["scaling"]["speedups"]) == 3
        for r in again.rows:
            assert r.samples.keys() == {"fastconv", "fastconv:reference"}
            assert r.samples["fastconv"].rounds >= 5
            assert r.peak > 0
            assert r.error < 1e-4

    def test_a_wrong_result_fails(self, suite, monkeypatch, capsys):
        monkeypatch.setattr(Ours, "make", lambda *_: lambda: np.zeros((2, 4, 6, 5), "float32"))
        options = ["--peers", "none", "--threads", "1", "--directions", "forward", "--budget", "0"]
        assert main([str(suite), *options, "--only", "first"]) == 1
        assert "FAILED: forward n2 c3 k4" in capsys.readouterr().out

    def test_a_choice_that_costs_more_than_allowed_fails(self, suite, monkeypatch, capsys):
        options = ["--peers", "none", "--threads", "1", "--algorithms", "all"]
        for slower, status in (1.0, 0), (1.2, 1), (3.0, 1):
            measured = row(fastconv=slower, **{"fastconv:fft": 1.0})
            monkeypatch.setattr(driver, "measured", lambda *_, measured=measured: measured)
            assert main([str(suite), *options]) == status
            assert ("FAILED" in capsys.readouterr().out) == bool(status)

    def test_lines_are_measured_as_they_are_written(self, tmp_path, capsys):
        lines = [
            f"n1 c2 k2 {rest}"
            for rest in (
                "i4x5x4 f3x2x3 p1:1x0:0x1:1", "i5x5 f3x3 p1:1x1:1 reflect", "i5x5 f3x3 p1:1x0:1 nhwc",
                "i5x5 f3x3 float16", "i5x5 f3x3 int64", "i5x5 f3x3 complex64", "i5x5 f3x3 float64",
            )
        ]  # fmt: skip
        suite, out = tmp_path / "kinds.txt", tmp_path / "results.json"
        suite.write_text("\n".join(lines))
        with fastconv.config(algorithm="reference"):
            options = ["--threads", "1", "--peers", "torch", "--budget", "0", "-o", str(out)]
            assert main([str(suite), *options]) == 0
            rows = Results.load(out).rows
            assert [row.line for row in rows[::3]] == lines
            assert all(row.error is not None for row in rows)
            assert not any(
                "torch_nchw" in row.samples for row in rows if "reflect" in row.line or "nhwc" in row.line
            )
            given = ["--dtype", "float64", "--layout", "NCHW", "--batch", "2", "--minutes", "0.001"]
            assert main([str(suite), *options, *given]) == 0
            assert "nhwc" in lines[2]
            assert Results.load(out).rows[6].line == "n2 c2 k2 i5x5 f3x3 p1:1x0:1 float64"
        assert "spread %" in capsys.readouterr().out

    def test_another_that_fails_is_left_out_with_its_reason(self):
        class Failing(Peer):
            name = "failing"

            def make(self, problem, direction, operands):
                raise NotImplementedError("not today")

        class Wrong(Failing):
            name = "wrong"

            def make(self, problem, direction, operands):
                return lambda: np.ones(problem.output_shape)

        (layer,) = corpus.parse("n1 c2 k2 i5 f3")
        options = Namespace(algorithms="", prepared=False, check_all=False, memory=False, minutes=None)
        with fastconv.config(algorithm="reference"):
            row = contest.measured(layer, Direction.FORWARD, [Failing(), Wrong()], options, 0.0)
        assert not row.failure
        assert row.samples.keys() == {"fastconv"}
        assert row.left_out["failing"] == "NotImplementedError: not today"
        assert row.left_out["wrong"].startswith("differs by")

    def test_layers_share_the_minutes(self, monkeypatch):
        now = iter([0.0, 0.0, 2.0, 2.0, 4.0])
        monkeypatch.setattr(driver.time, "monotonic", lambda: next(now))
        clock = driver.Clock(Namespace(budget=0.6, minutes=0.1), jobs=3)
        with clock.budget() as first:
            assert first == 2.0  # six seconds for three
        with clock.budget() as second:
            assert second == 2.0
        clock = driver.Clock(Namespace(budget=0.6, minutes=None), jobs=3)
        monkeypatch.setattr(driver.time, "monotonic", lambda: 9.0)
        with clock.budget() as budget:
            assert budget == 0.6

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ([], "name a suite"),
            (["nothing"], "suite must be a file or one of"),
            (["core", "--directions", "back"], "directions are forward, input_grad, weight_grad, got back"),
            (["core", "--peers", "caffe"], "peers must be all, none or out of torch"),
            (["core", "--baseline", "missing.json"], "missing.json"),
        ],
    )
    def test_wrong_arguments(self, argv, message, capsys):
        assert main(argv) == 2
        assert message in capsys.readouterr().err


class TestReport:
    def test_writes_the_table_between_the_markers(self, tmp_path, capsys):
        run, readme = tmp_path / "run.json", tmp_path / "README.md"
        results(row(fastconv=1.0, torch_nchw=2.0, torch_channels_last=1.5)).save(run)
        readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
        assert main(["--render", str(run), "--readme", str(readme)]) == 0
        text = readme.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert "| category | layers | forward: torch NCHW | forward: better torch layout |" in text
        assert "| 3x3 | 1 | 2.00 | 1.50 |" in text
        assert "| **all** | **1** | **2.00** | **1.50** |" in text

    def test_needs_the_markers(self, tmp_path):
        (tmp_path / "README.md").write_text("nothing")
        with pytest.raises(ValueError, match="must contain the lines"):
            report.render(results(), tmp_path / "README.md")

    def test_plain_tables_are_aligned(self):
        text = report.aligned(["name", "ms"], [["a", "1.5"], ["longer", "10.25"]])
        assert text.splitlines() == ["name       ms", "------  -----", "a         1.5", "longer  10.25"]

    def test_shows_missing_measurements(self, capsys):
        report.show(results(row()))
        assert "a CPU: 2 threads" in capsys.readouterr().out


class TestPage:
    def test_draws_what_there_is(self, tmp_path, capsys):
        run, html = tmp_path / "run.json", tmp_path / "report.html"
        r = row(
            "n2 c64 i56x56 f3x3 p1",
            fastconv=1e-3,
            torch_nchw=2e-3,
            **{"fastconv:direct": 1e-3, "fastconv:fft": 2e-3},
        )
        r.errors, r.memory = {"fastconv:direct": 1e-6}, {"fastconv": 2**22}
        swept = row(fastconv=1e-3)
        swept.category = f"{corpus.SWEEP}channels"
        results(r, swept).save(run)
        assert page.main([str(run), "-o", str(html), "--png", str(tmp_path / "png")]) == 0
        text = html.read_text()
        for name in FIGURES:
            assert f"id={name}>" in text
            assert (tmp_path / "png" / f"{name}.png").stat().st_size > 1000
        assert "http" not in text.replace("http://www.w3.org", "")  # self-contained

    def test_leaves_out_what_there_is_not(self):
        assert list(figures(results(row()))) == []

    def test_wrong_arguments(self, tmp_path, capsys):
        assert page.main([str(tmp_path / "missing.json")]) == 2
        assert "missing.json" in capsys.readouterr().err


def test_decisions_are_measured_step_by_step():
    found = special.decisions(repeats=1)
    assert list(found) == ["choice", "plan", "look-up"]
    for times in found.values():
        assert 0 < times["median"] <= times["95th percentile"] <= times["most"]


def test_pooling_is_checked_and_timed(monkeypatch, capsys):
    from fastconv.bench import pooling

    few = [
        layer
        for layer in pooling.LAYERS
        if layer.network in ("LeNet", "global") or layer.function == "unfold"
    ]
    few = [replace(layer, shape=(2, 3, *layer.shape[2:])) for layer in few]
    monkeypatch.setattr(pooling, "LAYERS", few)
    assert pooling.main(["--seconds", "0.001", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    for name in ("forward", "gradient", "gradient, places", "unpooling", "unfold 2x3x28x28"):
        assert name in out
    layer, x = few[0], np.random.default_rng(0).standard_normal(few[0].shape)
    right = pooling.definition(layer, x)
    pooling.check(layer, "itself", right, right)
    with pytest.raises(ArithmeticError, match="another differs by"):
        pooling.check(layer, "another", right, right + np.eye(14))
