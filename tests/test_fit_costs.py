"""The fit of the cost model, on times that the model itself has made."""

from copy import deepcopy
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from fastconv import machine, roofline
from fastconv.algorithms import registry
from fastconv.bench import corpus
from fastconv.bench.measure import Sample
from fastconv.bench.results import Results, Row
from fastconv.problem import Direction


@pytest.fixture
def fit_costs(monkeypatch):
    spec = spec_from_file_location("fit_costs", Path(__file__).parents[1] / "bench" / "fit_costs.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(roofline, "CYCLES", deepcopy(roofline.CYCLES))
    monkeypatch.setattr(machine, "machine", machine.machine)
    for name in module.TELLING:
        monkeypatch.setattr(import_module(f"fastconv.algorithms.{name}"), "seconds", module.tell)
    return module


def test_finds_the_cycles_that_times_were_made_with(fit_costs, capsys):
    results = Results({"threads": machine.machine().cores}, {}, {})
    for layer in corpus.load("core"):
        p = layer.problem
        row = Row(str(p), layer.category, layer.name, 1, "forward", p.flops, p.bytes, "direct")
        for name in ("direct", "im2col"):
            seconds = float(registry()[name].cost(p, Direction.FORWARD))
            row.samples[f"fastconv:{name}"] = Sample(seconds, seconds, 1)
        results.rows.append(row)
    made_with = deepcopy(roofline.CYCLES)
    for part in ("products", "fill"):
        roofline.CYCLES["direct"][part] *= 1.3  # where the search begins
    for _ in range(4):
        fit_costs.fit([results])
    for part in ("products", "memory"):
        assert roofline.CYCLES["direct"][part] == pytest.approx(made_with["direct"][part], rel=0.05)
    fit_costs.report([results])
    assert "regret: median 1.00, 95th percentile 1.00" in capsys.readouterr().out
