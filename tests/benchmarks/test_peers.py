"""Runs of other libraries: planned, trained in their own processes, and read back."""

import json
import sys

import numpy as np
import peer_returns
import peers
import pytest
from rich.console import Console

BENCHMARK = {
    "tasks": {"Hopper": {"env": "envpool/Hopper-v4"}, "Other": {"env": "x/y", "peers": False}},
    "peers": {"libraries": ["sb3-contrib"], "seeds": [3, 4], "steps": "1e3"},
}


@pytest.fixture
def runs(tmp_path):
    return peers.plan(BENCHMARK, ["Hopper", "Other"], tmp_path)


def test_the_command_names_the_packages_the_task_and_the_seed(runs):
    assert [(run.task, run.seed) for run in runs] == [("Hopper", 3), ("Hopper", 4)]
    command = " ".join(runs[0].command())
    assert "--with sb3-contrib==" in command
    assert command.endswith("sb3-contrib --task Hopper-v4 --seed 3 --steps 1000")


def test_a_finished_run_is_kept_and_a_failure_is_told(runs, monkeypatch, capsys):
    found = {
        "returns": [1.0, 2.0],
        "seconds": 3.0,
        "curve": [None, 4.0],
        "steps": 1000,
        "versions": {},
    }
    words = [sys.executable, "-c", f"print('noise'); print({json.dumps(found)!r})"]
    monkeypatch.setattr(peers.PeerRun, "command", lambda run: words)
    assert not peers.execute(runs[:1], Console(width=200))
    assert "Hopper-v4" in capsys.readouterr().out
    monkeypatch.setattr(peers.PeerRun, "command", lambda run: [sys.executable, "-c", "1 / 0"])
    assert peers.execute(runs, Console(width=200)), "only the second run fails"
    said = capsys.readouterr().out
    assert said.count("ZeroDivisionError") == 1
    assert "seed 4 failed" in said
    row = peers.read(runs)["sb3-contrib, run here"]["Hopper"]
    assert (row["per_seed"], row["curve"], row["seeds"]) == ([1.5], [[None, 4.0]], [3])
    assert (row["steps"], row["episodes_per_seed"]) == (1000, 2)


def test_a_curve_adds_rewards_until_an_episode_ends():
    curve = peer_returns.Curve()
    curve.add(np.array([1.0, 10.0]), np.array([False, True]))
    curve.add(np.array([2.0, 20.0]), np.array([True, False]))
    curve.add(np.array([4.0, 40.0]), np.array([False, True]))
    assert (curve.returns, curve.ends) == ([10.0, 3.0, 60.0], [2, 4, 6])
    assert [x for x in curve.points(6) if x is not None] == [10.0, 3.0, 60.0]


def test_the_cross_entropy_method_learns_to_hold_a_pendulum():
    pytest.importorskip("envpool")
    curve = peer_returns.Curve()
    act = peer_returns.train_cross_entropy("InvertedPendulum-v4", 0, 20_000, curve)
    assert curve.steps >= 20_000
    returns = peer_returns.play("InvertedPendulum-v4", 0, act)
    assert np.mean(returns) > 2 * np.mean(curve.returns[:32])
