"""The suites that run in JAX, if they are installed.

Environments that take minutes to compile run only with:

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
from trpo_jax.envs.base import require_usable
from trpo_jax.envs.specs import ArraySpec, Box, Discrete, MultiDiscrete
from trpo_jax.errors import ConfigurationError
from trpo_jax.installing import how_to_install

heavy = pytest.mark.heavy
BOOLEAN, INTEGER = np.dtype(bool), np.dtype("int32")
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
OWN = ("gymnax", "native")  # suites that need no extra
PACKAGES = {"playground": "mujoco_playground"}


def make(name):
    suite, _ = envs.suite_of(name)
    pytest.importorskip(PACKAGES.get(suite, suite), reason=f"uv sync --extra {suite}")
    return envs.make(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_suite_follows_the_protocol(name):
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
    with pytest.raises(
        ConfigurationError, match=r"physics engine of Brax 'sprung'.*Did you mean spring"
    ):
        envs.make("brax/ant/sprung")


def test_observations_of_jumanji_keep_the_names_of_their_parts():
    env = make("jumanji/Maze-v0")
    cell = {axis: ArraySpec((), INTEGER, (10,)) for axis in ("row", "col")}
    assert env.observation == {
        "agent_position": cell,
        "target_position": cell,
        "walls": ArraySpec((10, 10), BOOLEAN),
        "step_count": ArraySpec((), INTEGER),
        "action_mask": ArraySpec((4,), BOOLEAN),
    }
    assert env.time_limit == 100
    assert make("jumanji/Game2048-v1").observation["board"] == ArraySpec((4, 4), INTEGER)


def both(name):
    """Returns an environment of Jumanji: from this library, and from Jumanji itself."""
    return make(f"jumanji/{name}"), pytest.importorskip("jumanji").make(name)


def test_choices_of_jumanji_with_one_mask_become_one_choice():
    env, own = both("Minesweeper-v0")
    assert env.action == Discrete(100)
    assert env.observation["board"] == ArraySpec(
        (10, 10), INTEGER, (10,)
    )  # in Jumanji, from -1 to 8
    require_usable(env)
    (state, shown), (own_state, _) = (jax.jit(x.reset)(jax.random.key(0)) for x in (env, own))
    assert shown["action_mask"].all()
    _, result = jax.jit(env.step)(jax.random.key(0), state, 37)
    _, timestep = jax.jit(own.step)(own_state, np.array([3, 7]))
    np.testing.assert_array_equal(result.observation["board"], timestep.observation.board + 1)
    assert np.flatnonzero(~np.asarray(result.observation["action_mask"])).tolist() == [37]


def test_choices_of_jumanji_with_separate_masks_stay_separate():
    env = make("jumanji/JobShop-v0")
    assert env.action == MultiDiscrete((21,) * 10)
    assert env.observation["action_mask"].shape == (10, 21)
    require_usable(env)


@pytest.mark.parametrize("name", ["Minesweeper-v0", "Cleaner-v0"])
def test_all_actions_are_legal_if_jumanji_has_no_legal_action(monkeypatch, name):
    _, own = both(name)
    joint = name == "Minesweeper-v0"

    class Stuck:
        """An environment whose first choice has no legal value."""

        def __getattr__(self, name):
            return getattr(own, name)

        def reset(self, key):
            state, timestep = own.reset(key)
            mask = timestep.observation.action_mask
            mask = mask & (not joint) & (np.arange(len(mask)) > 0)[:, None]
            shown = timestep.observation._replace(action_mask=mask)
            return state, timestep.replace(observation=shown)

    monkeypatch.setattr("jumanji.make", lambda name: Stuck())
    mask = jax.jit(make(f"jumanji/{name}").reset)(jax.random.key(0))[1]["action_mask"]
    if joint:
        assert mask.all()
    else:  # the other choices stay the same
        own_mask = jax.jit(own.reset)(jax.random.key(0))[1].observation.action_mask
        assert mask[0].all()
        assert not own_mask.all()
        np.testing.assert_array_equal(mask[1:], own_mask[1:])


@heavy
def test_every_environment_of_jumanji_works_or_says_why_not():
    jumanji, refused = pytest.importorskip("jumanji"), set()
    for name in jumanji.registered_environments():
        if "Sokoban" in name:  # it downloads its levels
            continue
        try:
            env = make(f"jumanji/{name}")
        except ConfigurationError as error:
            assert "rewards in each step" in str(error)
            refused.add(name)
            continue
        require_usable(env)
        check_types(env)
        state, _ = jax.eval_shape(env.reset, jax.random.key(0))
        # No array has an element for every step of an episode without a limit.
        assert sum(x.size for x in jax.tree.leaves(state)) < 1_000_000, name
    assert refused == {"Connector-v3", "LevelBasedForaging-v0", "SearchAndRescue-v0"}


def test_the_time_limit_of_jumanji_itself_is_never_reached():
    env = make("jumanji/Maze-v0")
    state, observation = jax.jit(env.reset)(jax.random.key(0))
    step, key = jax.jit(env.step), jax.random.key(0)
    legal = int(np.argmax(observation["action_mask"]))
    for _ in range(env.time_limit + 1):
        state, result = step(key, state, legal)
    assert not result.terminated
    assert not result.truncated  # `trpo_jax.envs.episodes` truncates


def test_jumanji_refuses_several_rewards():
    pytest.importorskip("jumanji")
    with pytest.raises(ConfigurationError, match="rewards in each step"):
        envs.make("jumanji/LevelBasedForaging-v0")


def test_pgx_refuses_games_of_several_players():
    pytest.importorskip("pgx")
    with pytest.raises(ConfigurationError, match=r"needs 2 players.*minatar"):
        envs.make("pgx/chess")
    env = make("pgx/2048")
    assert env.action == Discrete(4)
    assert env.observation == {
        "observation": ArraySpec((4, 4, 31), BOOLEAN),
        "action_mask": ArraySpec((4,), BOOLEAN),
    }
    assert make("pgx/minatar-breakout").observation == ArraySpec((10, 10, 4), BOOLEAN)


@pytest.mark.parametrize("suite", [suite for suite in envs.SUITES if suite not in OWN])
def test_the_error_for_a_missing_suite_names_its_extra(suite, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {suite!r}", name=suite)

    monkeypatch.setattr(envs, "import_module", missing)
    answer = f"not installed.*{re.escape(how_to_install(suite))}"
    with pytest.raises(ConfigurationError, match=answer):
        envs.make(f"{suite}/anything")


def test_the_error_for_a_suite_of_a_wrong_version_names_it(monkeypatch):
    def too_old(name):
        raise ImportError("cannot import name 'AutoresetMode' from 'gymnasium.vector'")

    monkeypatch.setattr(envs, "import_module", too_old)
    with pytest.raises(ConfigurationError, match=r"installed version.*AutoresetMode.*gymnasium"):
        envs.make("gym/CartPole-v1")


def test_the_error_for_an_unknown_suite_names_the_nearest():
    with pytest.raises(ConfigurationError, match="Did you mean playground"):
        envs.make("playgroud/CheetahRun")
