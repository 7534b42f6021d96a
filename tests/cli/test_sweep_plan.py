import numpy as np
import pytest

from trpo_jax import algorithms
from trpo_jax.algorithms import ppo, trpo
from trpo_jax.cli.sweep_plan import (
    SPACES_FILE,
    Group,
    Range,
    draw,
    group_settings,
    parse_grid,
    parse_range,
    plan_settings,
)
from trpo_jax.errors import ConfigurationError
from trpo_jax.running.defaults import defaults_for

BASE = trpo.Config()


def plan(grid=(), ranges=(), num_random=None, env="CartPole-v1"):
    return plan_settings(trpo, BASE, grid, ranges, num_random, env)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("max_kl=0.003,1e-2", [0.003, 0.01]),
        ("num_envs=4,8", [4, 8]),
        ("hidden_sizes=64,64x64", [(64,), (64, 64)]),
        ("damped_scaling=true,false", [True, False]),
        ("activation=tanh,relu", ["tanh", "relu"]),
    ],
)
def test_values_are_of_the_kind_of_their_field(text, values):
    assert parse_grid(trpo, text) == (text.partition("=")[0], values)


def test_a_grid_is_every_combination():
    settings = plan(["max_kl=0.01,0.03", "cg_iters=5,10"])
    assert settings == [
        {"max_kl": 0.01, "cg_iters": 5},
        {"max_kl": 0.01, "cg_iters": 10},
        {"max_kl": 0.03, "cg_iters": 5},
        {"max_kl": 0.03, "cg_iters": 10},
    ]
    groups = list(group_settings(trpo, settings))
    assert groups == [Group({"cg_iters": 5}, [0, 2]), Group({"cg_iters": 10}, [1, 3])]


def test_real_fields_are_one_group():
    settings = plan(["max_kl=0.01,0.03", "damping=0.1,0.2"], ["gamma=0.9:0.99"], 3)
    assert list(group_settings(trpo, settings)) == [Group({}, list(range(12)))]


def test_random_draws_spread_over_their_ranges_and_start_from_what_is():
    ranges = {"gamma": Range("log1m", 0.9, 0.99), "policy_lr": Range("log", 0.001, 0.1)}
    ranges["clip"] = Range("linear", 0.1, 0.3)
    settings = draw(ranges, ppo.Config(gamma=0.5, policy_lr=0.5, clip=0.5), 400)
    assert settings[0] == {"gamma": 0.5, "policy_lr": 0.5, "clip": 0.5}
    columns = {name: np.array([setting[name] for setting in settings[1:]]) for name in ranges}
    for name, (_, low, high) in ranges.items():
        assert low <= columns[name].min() < columns[name].max() <= high
    np.testing.assert_allclose(np.median(1 - columns["gamma"]), np.sqrt(0.1 * 0.01), rtol=0.2)
    np.testing.assert_allclose(np.median(columns["policy_lr"]), 0.01, rtol=0.4)
    np.testing.assert_allclose(np.median(columns["clip"]), 0.2, rtol=0.1)
    assert plan(num_random=4) == plan(num_random=4)


@pytest.mark.parametrize("algorithm", algorithms.ALGORITHMS)
def test_the_ranges_of_the_file_are_of_fields_that_may_differ_inside_a_program(algorithm):
    module = algorithms.get(algorithm)
    spaces = defaults_for(algorithm, "Breakout-MinAtar", SPACES_FILE)
    assert len(spaces) > 3
    settings = draw({name: Range(*x) for name, x in spaces.items()}, module.Config(), 3)
    assert len(list(group_settings(module, settings))) == 1
    module.Config().replace(**settings[2])


def test_what_the_grid_lists_is_not_drawn_as_well():
    settings = plan(["max_kl=0.01,0.03"], num_random=3)
    assert [setting["max_kl"] for setting in settings] == [0.01] * 3 + [0.03] * 3
    assert settings[0]["gamma"] == BASE.gamma != settings[1]["gamma"]


def test_a_range_has_a_scale():
    assert parse_range(trpo, "max_kl=1e-3:1e-1:log") == ("max_kl", Range("log", 1e-3, 1e-1))
    assert parse_range(trpo, "damping=0:1") == ("damping", Range("linear", 0.0, 1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": ["maxkl=1,2"]}, r"Unknown hyperparameter 'maxkl'. Did you mean max_kl"),
        ({"grid": ["max_kl"]}, r"not of the form NAME=VALUE"),
        ({"grid": ["max_kl=small"]}, r"'small' is not a number"),
        ({"grid": ["num_envs=2.5"]}, r"'2.5' is not an integer"),
        ({"grid": ["hidden_sizes=64,wide"]}, r"'wide' is not integers with an x between"),
        ({"grid": ["damped_scaling=yes"]}, r"'yes' is not true or false"),
        ({"grid": ["max_kl=0.1,0.10"]}, r"has 0.1 twice"),
        ({"grid": ["max_kl=0.1", "max_kl=0.2"]}, r"max_kl is swept twice"),
        ({"grid": ["max_kl=0.1"], "ranges": ["max_kl=0:1"], "num_random": 2}, r"swept twice"),
        ({"ranges": ["num_envs=8:64:log"], "num_random": 4}, r"List them: --grid num_envs="),
        ({"ranges": ["max_kl=0.1"], "num_random": 4}, r"not of the form NAME=LOW:HIGH"),
        ({"ranges": ["max_kl=0.1:x"], "num_random": 4}, r"not of the form NAME=LOW:HIGH"),
        ({"ranges": ["max_kl=0.1:0.2:lgo"], "num_random": 4}, r"Unknown scale 'lgo'. .* log"),
        ({"ranges": ["max_kl=0:1:log"], "num_random": 4}, r"more than 0 on the scale log"),
        ({"ranges": ["gamma=0.9:1:log1m"], "num_random": 4}, r"less than 1 on the scale log1m"),
        ({"ranges": ["gamma=0.9:0.8"], "num_random": 4}, r"LOW must be less than HIGH"),
        ({"ranges": ["max_kl=0.1:0.2"]}, r"add --random 64"),
        ({"num_random": 0}, r"--random 0 must be at least 1"),
        ({}, r"Nothing is swept"),
    ],
)
def test_what_cannot_be_swept_says_why(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        plan(**arguments)
