import csv
import tomllib

import numpy as np
import pytest
import tune
from command_line import defaults_for

from trpo_jax import algorithms
from trpo_jax.algorithms import ppo

TINY = ["--num-trials", "2", "--num-seeds", "2", "--num-steps", "32", "--hidden-sizes", "8"]


def test_trials_start_from_the_settings_and_spread_over_their_ranges():
    spaces = {
        "gamma": ["log1m", 0.9, 0.99],
        "policy_lr": ["log", 0.001, 0.1],
        "clip": ["uniform", 0.1, 0.3],
    }
    config = ppo.Config(gamma=0.5, policy_lr=0.5, clip=0.5)
    trials = tune.draw_trials(spaces, config, 400)
    for name, (_, low, high) in spaces.items():
        assert trials[name][0] == 0.5
        assert low <= trials[name][1:].min() < trials[name][1:].max() <= high
    np.testing.assert_allclose(np.median(1 - trials["gamma"]), np.sqrt(0.1 * 0.01), rtol=0.2)
    np.testing.assert_allclose(np.median(trials["policy_lr"]), 0.01, rtol=0.4)
    np.testing.assert_allclose(np.median(trials["clip"]), 0.2, rtol=0.1)


@pytest.mark.parametrize("algorithm", algorithms.ALGORITHMS)
def test_what_is_searched_are_fields_that_may_differ_between_trials(algorithm):
    spaces = defaults_for(algorithm, "Breakout-MinAtar", tune.SPACES_FILE)
    config = algorithms.get(algorithm).Config()
    trials = tune.draw_trials(spaces, config, 4)
    assert len(trials) > 3
    config.replace(**{name: values[1] for name, values in trials.items()})


def test_it_scores_every_trial_and_prints_the_best_as_a_table_of_defaults(tmp_path, capsys):
    argv = [*TINY, "--total-steps", "1024", "--out", str(tmp_path / "out")]
    assert tune.main(argv) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    with (tmp_path / "out" / "trials.csv").open() as file:
        trials = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert len(trials) == 2
    score = lambda trial: trial["seed_0"] + trial["seed_1"]
    best = max(trials, key=score)
    chosen = printed["trpo"]["CartPole-v1"]
    assert chosen.keys() == best.keys() - {"seed_0", "seed_1"}
    for name, value in chosen.items():
        np.testing.assert_allclose(value, best[name], rtol=0.01)
    assert score(trials[0]) != score(trials[1])
    assert all(10 < trial["seed_0"] < 100 for trial in trials)  # the return of a novice


@pytest.mark.parametrize("flags", [["--num-trials", "0"], ["--total-steps", "256"]])
def test_what_cannot_be_searched_is_refused(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        tune.main([*TINY, *flags, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "at least two updates" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_environment_of_the_host_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        tune.main(["--env", "gym/CartPole-v1", "--out", str(tmp_path / "out")])
    assert "gym/CartPole-v1 runs on the host" in capsys.readouterr().err
