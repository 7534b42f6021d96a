"""The suites of the accelerator, as far as they are installed.

Those that take minutes to compile are left out unless asked for:

    uv run --extra envs --extra playground --extra craftax pytest -m heavy tests/envs

Navix needs Python 3.12:

    uv run --python 3.12 --extra envs --extra navix pytest tests/envs/test_suites.py
"""

import re

import jax
import numpy as np
import pytest
from conformance import check_episodes, check_types

from trpo_jax import envs
from trpo_jax.envs.base import Box, Discrete, MultiDiscrete
from trpo_jax.errors import ConfigurationError
from trpo_jax.installing import how_to_install

heavy = pytest.mark.heavy
NAMES = [
    "brax/inverted_pendulum",
    "jumanji/Game2048-v1",
    "pgx/2048",
    "navix/Navix-Empty-Random-5x5-v0",
    pytest.param("brax/ant", marks=heavy),
    pytest.param("brax/hopper/positional", marks=heavy),
    pytest.param("craftax/Craftax-Classic-Symbolic-v1", marks=heavy),
    pytest.param("jumanji/Snake-v1", marks=heavy),
    pytest.param("jumanji/Tetris-v0", marks=heavy),
    pytest.param("pgx/minatar-seaquest", marks=heavy),
    pytest.param("playground/CheetahRun", marks=heavy),
]
PACKAGES = {"playground": "mujoco_playground"}


def make(name):
    suite, _ = envs.suite_of(name)
    pytest.importorskip(PACKAGES.get(suite, suite), reason=f"uv sync --extra {suite}")
    return envs.make(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_keeps_to_the_protocol(name):
    env = make(name)
    assert env.name == name
    check_types(env)
    check_episodes(env)


def test_brax_knows_its_environments_and_physics():
    env = make("brax/inverted_pendulum")
    assert isinstance(env.action, Box)
    assert env.time_limit == 1000
    with pytest.raises(ConfigurationError, match=r"Did you mean brax/ant"):
        envs.make("brax/ants")
    with pytest.raises(ConfigurationError, match=r"physics of Brax 'sprung'.*Did you mean spring"):
        envs.make("brax/ant/sprung")


def test_jumanji_shows_its_arrays_by_name_and_makes_one_choice_of_those_with_one_mask():
    env = make("jumanji/Maze-v0")
    _, observation = env.reset(jax.random.key(0))
    assert observation["agent_position"]["row"].shape == ()
    assert observation["walls"].shape == (10, 10)
    assert observation["action_mask"].shape == (4,)
    assert env.time_limit == 100
    assert make("jumanji/Game2048-v1").observation["board"].shape == (4, 4)
    assert make("jumanji/Tetris-v0").action == Discrete(4 * 10)
    assert make("jumanji/JobShop-v0").action == MultiDiscrete((21,) * 10)


def test_jumanji_s_own_time_limit_never_comes():
    env = make("jumanji/Maze-v0")
    state, observation = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    legal = int(np.argmax(observation["action_mask"]))
    for _ in range(env.time_limit + 1):
        state, result = step(jax.random.key(0), state, legal)
    assert not result.terminated
    assert not result.truncated  # left to the time limit of `trpo_jax.envs.episodes`


def test_jumanji_refuses_several_rewards():
    pytest.importorskip("jumanji")
    with pytest.raises(ConfigurationError, match="rewards at a time"):
        envs.make("jumanji/LevelBasedForaging-v0")


def test_pgx_refuses_games_of_several_players():
    pytest.importorskip("pgx")
    with pytest.raises(ConfigurationError, match=r"played by 2.*minatar"):
        envs.make("pgx/chess")
    assert make("pgx/2048").action == Discrete(4)


@pytest.mark.parametrize("suite", [suite for suite in envs.SUITES if suite != "gymnax"])
def test_a_missing_suite_is_answered_with_its_extra(suite, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {suite!r}", name=suite)

    monkeypatch.setattr(envs, "import_module", missing)
    answer = f"not installed.*{re.escape(how_to_install(suite))}"
    with pytest.raises(ConfigurationError, match=answer):
        envs.make(f"{suite}/anything")


def test_a_suite_of_another_version_is_named(monkeypatch):
    def too_old(name):
        raise ImportError("cannot import name 'AutoresetMode' from 'gymnasium.vector'")

    monkeypatch.setattr(envs, "import_module", too_old)
    with pytest.raises(ConfigurationError, match=r"another version.*AutoresetMode.*gymnasium"):
        envs.make("gym/CartPole-v1")


def test_an_unknown_suite_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match="Did you mean playground"):
        envs.make("playgroud/CheetahRun")
