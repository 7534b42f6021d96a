import numpy as np
import pytest

from trpo_jax import algorithms
from trpo_jax.algorithms import ppo, trpo
from trpo_jax.errors import ConfigurationError
from trpo_jax.running.defaults import SPACES_FILE, defaults_for
from trpo_jax.running.sweep_plan import Compilation, Range, compilations, draw, plan_settings

BASE = trpo.Config()


SPACES = {"max_kl": (0.003, 0.05, "log"), "gamma": (0.9, 0.995, "log1m")}


def plan(grid=None, ranges=None, num_random=None):
    return plan_settings(BASE, grid or {}, ranges or {}, num_random, SPACES)


def test_a_grid_is_every_combination():
    settings = plan({"max_kl": [0.01, 0.03], "cg_iters": np.array([5, 10])})
    assert settings == [
        {"max_kl": 0.01, "cg_iters": 5},
        {"max_kl": 0.01, "cg_iters": 10},
        {"max_kl": 0.03, "cg_iters": 5},
        {"max_kl": 0.03, "cg_iters": 10},
    ]
    groups = compilations(BASE, settings)
    assert groups == [Compilation({"cg_iters": 5}, [0, 2]), Compilation({"cg_iters": 10}, [1, 3])]


def test_settings_that_differ_in_real_fields_share_a_program():
    settings = plan({"max_kl": [0.01, 0.03], "damping": (0.1, 0.2)}, {"gamma": (0.9, 0.99)}, 3)
    assert compilations(BASE, settings) == [Compilation({}, list(range(12)))]


def test_random_draws_spread_over_their_ranges_and_the_first_is_the_config():
    ranges = {"gamma": Range(0.9, 0.99, "log1m"), "policy_lr": Range(0.001, 0.1, "log")}
    ranges["clip"] = Range(0.1, 0.3)
    settings = draw(ranges, ppo.Config(gamma=0.5, policy_lr=0.5, clip=0.5), 400)
    assert settings[0] == {"gamma": 0.5, "policy_lr": 0.5, "clip": 0.5}
    columns = {name: np.array([setting[name] for setting in settings[1:]]) for name in ranges}
    for name, (low, high, _) in ranges.items():
        assert low <= columns[name].min() < columns[name].max() <= high
    np.testing.assert_allclose(np.median(1 - columns["gamma"]), np.sqrt(0.1 * 0.01), rtol=0.2)
    np.testing.assert_allclose(np.median(columns["policy_lr"]), 0.01, rtol=0.4)
    np.testing.assert_allclose(np.median(columns["clip"]), 0.2, rtol=0.1)
    assert plan(num_random=4) == plan(num_random=4)


@pytest.mark.parametrize("algorithm", algorithms.ALGORITHMS)
def test_search_spaces_toml_has_only_real_fields(algorithm):
    module = algorithms.get(algorithm)
    spaces = defaults_for(algorithm, "Breakout-MinAtar", SPACES_FILE)
    assert len(spaces) > 3
    settings = draw({name: Range(*x) for name, x in spaces.items()}, module.Config(), 3)
    assert len(compilations(module.Config(), settings)) == 1
    module.Config().replace(**settings[2])


def test_fields_of_the_grid_are_not_drawn_at_random():
    settings = plan({"max_kl": [0.01, 0.03]}, num_random=3)
    assert [setting["max_kl"] for setting in settings] == [0.01] * 3 + [0.03] * 3
    assert settings[0]["gamma"] == BASE.gamma != settings[1]["gamma"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": {"maxkl": [1, 2]}}, r"Unknown hyperparameter 'maxkl'. Did you mean max_kl"),
        ({"grid": {"max_kl": 0.1}}, r"The grid of max_kl must be a list of values, not 0.1"),
        ({"grid": {"activation": "tanh"}}, r"activation must be a list of values, not .tanh."),
        ({"grid": {"max_kl": []}}, r"max_kl must be a list of values"),
        ({"grid": {"max_kl": [0.1, 0.10]}}, r"has 0.1 twice"),
        ({"grid": {"max_kl": [0.1]}, "ranges": {"max_kl": (0, 1)}}, r"max_kl is swept twice"),
        ({"ranges": {"num_envs": (8, 64)}, "num_random": 4}, r"List its values in grid"),
        (
            {"ranges": {"max_kl": (0.1,)}, "num_random": 4},
            r"must be .low, high. or .low, high, scale.",
        ),
        ({"ranges": {"max_kl": (1, 2, "lgo")}, "num_random": 4}, r"Unknown scale 'lgo'. .* log"),
        (
            {"ranges": {"max_kl": (0, 1, "log")}, "num_random": 4},
            r"On the scale log, low must be more than 0",
        ),
        ({"ranges": {"gamma": (0.9, 1, "log1m")}, "num_random": 4}, r"high must be less than 1"),
        ({"ranges": {"gamma": (0.9, 0.8)}, "num_random": 4}, r"low must be less than high"),
        ({"ranges": {"max_kl": (0.1, 0.2)}}, r"Give random as well, 64"),
        (
            {"grid": {"max_kl": range(1, 3001), "damping": range(3000)}},
            r"give 9,000,000 settings, but a sweep can have at most 100,000",
        ),
        ({"grid": {"gamma": [0.9, 0.8]}, "num_random": 60_000}, r"give 120,000 settings"),
        ({"num_random": 0}, r"random = 0 must be at least 1"),
        ({}, r"Nothing is swept"),
    ],
)
def test_the_error_says_why_a_field_cannot_be_swept(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        plan(**arguments)
