"""A task has the same default settings in every suite."""

import io

import pytest
from rich.console import Console

from trpo_jax import algorithms
from trpo_jax.running.defaults import SPACES_FILE, defaults_for, sources_of
from trpo_jax.running.plan import plan_run
from trpo_jax.running.train import say_defaults

SHARED = {  # by suites that have them: the five of classic control, MinAtar, MuJoCo and Atari
    "gym/CartPole-v1": "CartPole-v1",
    "gym/CartPole-v0": "CartPole-v1",
    "gym/phys2d/CartPole-v1": "CartPole-v1",
    "envpool/CartPole-v1": "CartPole-v1",
    "gymnax/CartPole-v1": "CartPole-v1",
    "gym/Acrobot-v1": "envpool/Acrobot-v1",
    "envpool/Acrobot-v1": "Acrobot-v1",
    "gym/MountainCar-v0": "MountainCar-v0",
    "envpool/MountainCar-v0": "MountainCar-v0",
    "gym/MountainCarContinuous-v0": "MountainCarContinuous-v0",
    "gym/Pendulum-v1": "Pendulum-v1",
    "envpool/Pendulum-v1": "Pendulum-v1",
    "pgx/minatar-breakout": "Breakout-MinAtar",
    "pgx/minatar-space_invaders": "SpaceInvaders-MinAtar",
    "gym/Hopper-v5": "envpool/Hopper-v4",
    "gym/Swimmer-v5": "envpool/Swimmer-v4",
    "gym/HalfCheetah-v5": "envpool/HalfCheetah-v4",
    "gym/ALE/Breakout-v5": "envpool/Breakout-v5",
}


@pytest.mark.parametrize("algorithm", algorithms.ALGORITHMS)
@pytest.mark.parametrize("name", SHARED)
def test_a_task_has_the_same_defaults_in_every_suite(name, algorithm):
    assert defaults_for(algorithm, name) == defaults_for(algorithm, SHARED[name])
    ranges = (defaults_for(algorithm, x, SPACES_FILE) for x in (name, SHARED[name]))
    assert next(ranges) == next(ranges)


def test_every_task_that_gymnax_shares_with_another_suite_is_among_them():
    gymnasium = pytest.importorskip("gymnasium")
    envpool = pytest.importorskip("envpool")
    gymnax = pytest.importorskip("gymnax")
    for suite, names in (("gym", gymnasium.registry), ("envpool", envpool.list_all_envs())):
        for name in {*names} & {*gymnax.registered_envs}:
            assert defaults_for("trpo", f"{suite}/{name}") == defaults_for("trpo", name)


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("CartPole-v1", ["CartPole-v1"]),
        ("gym/CartPole-v1", ["CartPole-v1"]),
        ("brax/ant", ["*/*", "brax/*"]),
        ("gym/Swimmer-v5", ["*/*", "*/Swimmer-v*"]),
        ("my_module:make_env", []),
    ],
)
def test_sources_are_the_matching_tables(name, sources):
    assert sources_of("trpo", name) == sources


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gym/CartPole-v1", "Defaults: table CartPole-v1 of defaults.toml\n"),
        ("gym/Swimmer-v5", "Defaults: tables */* and */Swimmer-v* of defaults.toml\n"),
        ("CartPole-v1", ""),
    ],
)
def test_a_run_prints_the_tables_of_its_defaults(name, line):
    console = Console(file=io.StringIO())
    say_defaults(plan_run(name), console)
    assert console.file.getvalue() == line
