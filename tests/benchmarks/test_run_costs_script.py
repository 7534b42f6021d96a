import json

import pytest
import run_costs


def test_the_table_says_what_was_measured():
    row = {"what": "default", "bare_seconds": [2.0, 2.0], "whole_seconds": [2.1, 2.1]}
    row |= {"outside_seconds": [0.2, 0.2], "checkpoint_seconds": [0.1, 0.1], "share": 0.105}
    sweep = {"steps": 98304, "sweep_seconds": [11.0], "runs_alone_seconds": [10.0]}
    sweep |= {"process_seconds": [4.0], "extrapolated_processes_seconds": 1024.0}
    report = {"command": ["experiments/benchmarks/run_costs.py"], "versions": {"jax": "1"}}
    report |= {"device": {"kind": "cpu"}, "sweep": sweep, "around_training": [row]}
    text = "\n".join(run_costs.table_lines(report))
    assert "256 runs of 98,304 steps" in text
    assert "pictures | 11.0 | 1.10 |" in text
    assert "extrapolated from 8 | 1,024.0 | 102.40 |" in text
    assert "| default | 2.0 | 2.1 | 0.2 | 0.1 | 10.5% |" in text


@pytest.mark.heavy
def test_it_measures(tmp_path, monkeypatch):
    """python3 -m uv run pytest -m heavy tests/benchmarks/test_run_costs_script.py"""
    monkeypatch.setattr(run_costs, "GRID", ["--grid", "max_kl=0.01,0.02"])
    for name, number in (("SEEDS", 2), ("SETTINGS", 2), ("PROCESSES", 1)):
        monkeypatch.setattr(run_costs, name, number)
    out = tmp_path / "out"
    assert run_costs.main(["--steps", "6000", "--repeats", "1", "--out", str(out)]) == 0
    report = json.loads((out / "run-costs.json").read_text())
    assert report["sweep"]["ratio"] > 0
    assert [row["checkpoint_seconds"][0] > 0 for row in report["around_training"]] == [False, True]
