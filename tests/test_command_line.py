import argparse
import dataclasses
import fnmatch
import tomllib

import gymnax
import pytest
from command_line import DEFAULTS_FILE, config_from, defaults_for, step_count

from trpo_jax import algorithms, envs

RUN_SETTINGS = {"total_steps", "num_seeds"}
TABLES = tomllib.loads(DEFAULTS_FILE.read_text())


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_every_default_is_a_field_of_its_algorithm_and_every_pattern_matches(name):
    fields = {field.name for field in dataclasses.fields(algorithms.get(name).Config)}
    for pattern, table in TABLES[name].items():
        assert set(table) <= fields | RUN_SETTINGS
        assert fnmatch.filter(gymnax.registered_envs, pattern)


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1", "Breakout-MinAtar"]
)
def test_the_defaults_make_an_algorithm(name):
    module = algorithms.get("trpo")
    defaults = {k: v for k, v in defaults_for("trpo", name).items() if k not in RUN_SETTINGS}
    fields = {field.name: field.default for field in dataclasses.fields(module.Config)}
    config = config_from(argparse.Namespace(**(fields | defaults)), module)
    algorithm = module.make(envs.make(name), config)
    assert algorithm.steps_per_update <= defaults_for("trpo", name)["total_steps"]


def test_later_tables_win():
    assert defaults_for("trpo", "CartPole-v1") == {"total_steps": 100_000, "num_seeds": 8}
    assert defaults_for("trpo", "Anything")["num_seeds"] == 4
    assert defaults_for("trpo", "Freeway-MinAtar")["total_steps"] == 2_000_000


@pytest.mark.parametrize(("text", "steps"), [("1e5", 100_000), ("20_000", 20_000), ("7", 7)])
def test_step_counts_as_people_write_them(text, steps):
    assert step_count(text) == steps


@pytest.mark.parametrize("text", ["1.5", "nan", "inf", "1e300", "many"])
def test_other_step_counts_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no whole number"):
        step_count(text)
