"""Teams of PettingZoo as pools. Each agent has a row, also after it has left the episode."""

from contextlib import closing

import jax
import numpy as np
import pytest
from gymnasium import spaces

import trpo_jax
from trpo_jax import envs
from trpo_jax.algorithms import hatrpo
from trpo_jax.envs.base import require_usable
from trpo_jax.envs.specs import ArraySpec, split_mask, to_environment_action
from trpo_jax.errors import ConfigurationError, EnvironmentFailure
from trpo_jax.host_rollout import advance_host_episodes, start_host_episodes
from trpo_jax.rollout import random_actions

pytest.importorskip("pettingzoo", reason="uv sync --extra pettingzoo")
pytest.importorskip("mpe2", reason="uv sync --extra pettingzoo")
import team_tasks

from trpo_jax.envs import pettingzoo as adapter

NUM_ENVS = 2
FLOAT, INTEGER, BOOLEAN = (np.dtype(x) for x in ("float32", "int32", "bool"))
SPREAD = "pettingzoo/mpe2.simple_spread_v3"


def relay(processes=False, maker="Relay", **args):
    args = {"rewards": "sum", **args}
    return envs.make(f"pettingzoo/team_tasks:{maker}", args, processes=processes)


def transitions(env, num_steps, seed=0):
    """Returns the transitions of all environments for random actions, `[T, B, ...]`."""
    team_tasks.Relay.given.clear()
    require_usable(env)
    with closing(env.open(seed, NUM_ENVS)) as pool:
        episodes, found = start_host_episodes(env, pool, NUM_ENVS), []
        for key in jax.random.split(jax.random.key(0), num_steps):
            mask = split_mask(episodes.observation)[1]
            actions = random_actions(key, env.action, NUM_ENVS, mask)
            given = jax.vmap(lambda action: to_environment_action(env.action, action))(actions)
            episodes, transition = advance_host_episodes(env, pool, episodes, given)
            found.append(transition)
    return jax.tree.map(lambda *xs: np.stack(xs), *found)


def test_an_environment_of_mpe2_is_truncated_and_shows_its_last_observation():
    env = envs.make(SPREAD, {"N": 2, "max_cycles": 3})
    assert (env.name, env.num_agents, env.time_limit) == (SPREAD, 2, 3)
    assert env.observation == ArraySpec((2, 12), FLOAT)
    assert env.critic_observation is None  # its state is all observations together
    found = transitions(env, 4)
    assert found.truncated[:, 0].tolist() == [False, False, True, False]
    assert not found.terminated.any()
    assert found.next_observation[2].any(axis=-1).all()
    np.testing.assert_array_equal(found.next_observation[1], found.observation[2])
    assert (found.next_observation[2] != found.observation[3]).any(axis=(1, 2)).all()
    assert envs.make(SPREAD).time_limit == 25


def test_the_seed_decides_the_episodes():
    env = relay()
    numbers = lambda seed: transitions(env, 5, seed).observation[:, :, 0, 1]
    np.testing.assert_array_equal(numbers(1), numbers(1))
    assert len(np.unique(numbers(1))) == 2 * NUM_ENVS  # all copies and episodes differ
    assert not set(numbers(1).ravel()) & set(numbers(2).ravel())


@pytest.mark.parametrize("processes", [False, True])
def test_agents_with_different_spaces_have_rows_of_one_shape(processes):
    env = relay(processes)
    assert env.observation == ArraySpec((2, 3), FLOAT)
    assert env.action.padded.choices == (3, 2)
    found = transitions(env, 5)
    number = found.observation[0, 0, 0, 1]
    assert found.observation[1, 0].tolist() == [[1, number, -1], [1, number, 0]]
    assert found.length[:, 0].tolist() == [1, 2, 3, 4, 1]
    assert found.reward.tolist() == [[11.0, 11.0]] * 5
    assert bool(team_tasks.Relay.given) != processes
    if not processes:  # the environment also asserts that actions are in its spaces
        given = team_tasks.Relay.given[0]
        assert (given["long"].dtype, given["short"].dtype) == (np.int8, np.int64)


@pytest.mark.parametrize(
    ("ends", "length", "truncated"),
    [
        ({"length": 3}, 3, False),
        ({}, 4, True),
        ({"length": 4}, 4, True),  # at the limit, some environments say that all terminated
        ({"leaves": 2, "tires": 3}, 3, True),
        ({"leaves": 3, "tires": 3}, 3, True),
        ({"tires": 2, "length": 3}, 3, False),
    ],
)
def test_termination_and_truncation_are_different(ends, length, truncated):
    found = transitions(relay(**ends), 2 * length)
    over = np.arange(1, 2 * length + 1) % length == 0
    np.testing.assert_array_equal(found.truncated[:, 0], over & truncated)
    np.testing.assert_array_equal(found.terminated[:, 0], over & (not truncated))
    assert found.next_observation[over, 0, :, 0].max() == length  # the last observation is kept


def test_an_agent_that_has_left_shows_zeros_and_gets_no_action():
    found = transitions(relay(leaves=2, length=4, max_cycles=5), 5)
    assert found.observation[:, 0, 1, 0].tolist() == [0, 1, 0, 0, 0]
    assert found.observation[1:4, 0, 1, 1].astype(bool).tolist() == [True, False, False]
    assert found.observation[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 0]
    acted = [len(actions) for actions in team_tasks.Relay.given[::NUM_ENVS]]
    assert acted == [2, 2, 1, 1, 2]
    assert found.reward[:, 0].tolist() == [11, 11, 1, 1, 11]
    assert found.terminated[:, 0].tolist() == [False, False, False, True, False]
    assert not found.truncated.any()


def test_the_reward_of_the_team_is_the_sum_the_mean_or_the_same():
    leaves = {"leaves": 1, "max_cycles": 3}
    rewards = lambda how: transitions(relay(rewards=how, **leaves), 2).reward[:, 0].tolist()
    assert rewards("mean") == [5.5, 0.5]
    assert rewards("same") == [1, 1]


@pytest.mark.parametrize("masks", ["observation", "info"])
def test_masks_are_rows_for_all_choices_of_the_padded_actions(masks):
    env = relay(masks=masks, leaves=2)
    assert env.observation == {
        "observation": ArraySpec((2, 3), FLOAT),
        "action_mask": ArraySpec((2, 5), BOOLEAN),
    }
    found = transitions(env, 3)
    shown = found.observation["action_mask"][:, 0].astype(int).tolist()
    long, short, gone = [0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [1, 1, 0, 1, 0]
    assert shown == [[long, short], [long, short], [long, gone]]
    given = team_tasks.Relay.given
    assert {x["long"][0] for x in given} <= {5, 6}
    assert {x["short"] for x in given if "short" in x} == {0}


def test_a_mask_of_a_wrong_size_is_refused():
    env = relay(masks="info", own={"legal": {"long": [1] * 5, "short": [1] * 3}})
    with pytest.raises(EnvironmentFailure, match="action_mask of 3 numbers for the agent 'short'"):
        transitions(env, 1)


def test_a_mask_of_smaller_choices_is_placed_at_their_values():
    chosen = {"long": spaces.MultiDiscrete([3, 2]), "short": spaces.MultiDiscrete([2, 2])}
    legal = {"long": [1] * 5, "short": [1, 0, 0, 1]}
    found = transitions(relay(masks="info", own={"chosen": chosen, "legal": legal}), 1)
    assert found.observation["action_mask"][0, 0, 1].tolist() == [True, False, False, False, True]


def test_only_the_critic_sees_the_state_of_the_team():
    env = relay(state=(7,))
    assert env.critic_observation == "state"
    assert env.observation["state"].shape == (7,)
    found = transitions(env, 2)
    np.testing.assert_array_equal(found.observation["state"][1], np.ones((NUM_ENVS, 7)))
    assert (
        relay(state=(5,)).critic_observation is None
    )  # it has as many numbers as all observations


ANY = spaces.Discrete(2)


@pytest.mark.parametrize(
    ("long", "short", "spec"),
    [
        (spaces.Discrete(5, start=2), spaces.Discrete(3), ArraySpec((2,), INTEGER, (5,))),
        (spaces.MultiDiscrete([2, 3]), spaces.Discrete(4), ArraySpec((2, 2), INTEGER, (4,))),
        (spaces.MultiBinary((2, 2)), spaces.MultiBinary((2, 2)), ArraySpec((2, 2, 2), BOOLEAN)),
        (spaces.Discrete(5), spaces.Box(0, 1, (3,)), ArraySpec((2, 3), FLOAT)),
        (
            spaces.Box(0, 255, (3, 8, 9), np.uint8),
            spaces.Box(0, 255, (3, 8, 9), np.uint8),
            ArraySpec((2, 8, 9, 3), np.dtype("uint8")),
        ),
        (
            spaces.Dict(at=spaces.Box(0, 1, (3,)), on=ANY),
            spaces.Dict(at=spaces.Box(0, 1, (1,)), on=ANY),
            {"at": ArraySpec((2, 3), FLOAT), "on": ArraySpec((2,), INTEGER, (2,))},
        ),
    ],
)
def test_observations_of_all_agents_become_one_array(long, short, spec):
    env = relay(maker="odd", seen={"long": long, "short": short})
    assert env.observation == spec
    found = transitions(env, 2).observation
    same = jax.tree.map(lambda x, y: x.shape[2:] == y.shape and x.dtype == y.dtype, found, spec)
    assert jax.tree.all(same)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"chosen": {"long": spaces.Discrete(2), "short": spaces.Box(-1, 1, (2,))}},
            r"actions long: Discrete\(2\), short: Box.*Supported: integers .* or Box for all",
        ),
        (
            {"chosen": {"long": ANY, "short": spaces.Tuple([ANY, ANY])}},
            r"short: Tuple.*Supported: integers",
        ),
        (
            {"seen": {"long": spaces.Box(0, 1, (2,)), "short": spaces.Dict(at=ANY)}},
            "observations with different parts",
        ),
        (
            {"seen": {"long": spaces.Box(0, 1, (2, 2)), "short": spaces.Box(0, 1, (3, 2))}},
            r"observations of different shapes: \(2, 2\), \(3, 2\)",
        ),
        ({"rewards": "max"}, "rewards = 'max' is not allowed"),
        ({"rewards": None}, "whether the agents of team_tasks:odd work together.*rewards=sum"),
        ({"render_mode": "human"}, "render_mode is not allowed"),
    ],
)
def test_environments_that_no_team_can_learn_in_are_refused(args, message):
    with pytest.raises(ConfigurationError, match=message):
        relay(maker="odd", **args)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mpe2.simple_spred_v3", "Did you mean pettingzoo/mpe2.simple_spread_v3"),
        ("sisl.multiwalker_v8", "Did you mean pettingzoo/sisl.multiwalker_v9"),
        ("", "Unknown environment 'pettingzoo/'"),
        ("sisl", "has no parallel_env in"),
        ("mpe2.simple_tag_v3", "The agents of mpe2.simple_tag_v3 compete: adversaries chase"),
        ("team_tasks:Relai", "Unknown function 'Relai'. Did you mean Relay"),
        ("team_task:Relay", "Unknown module 'team_task'"),
    ],
)
def test_names_that_cannot_work_are_refused(name, message):
    with pytest.raises(ConfigurationError, match=message):
        envs.make(f"pettingzoo/{name}")


def test_the_error_for_a_missing_package_names_it(monkeypatch):
    monkeypatch.setattr(adapter, "import_module", lambda path: __import__("nobody_has_this"))
    with pytest.raises(ConfigurationError, match=r"nobody_has_this.*with pettingzoo\[butterfly\]"):
        envs.make("pettingzoo/butterfly.pistonball_v6")


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        ("in_turns", r"returned AECEnv, not pettingzoo.ParallelEnv.*aec_to_parallel"),
        ("broken", r"team_tasks.py, line \d+, in broken: RuntimeError: no floor"),
    ],
)
def test_a_function_that_makes_no_team_is_refused(maker, message):
    with pytest.raises(ConfigurationError, match=message):
        relay(maker=maker)


def test_unknown_arguments_of_an_environment_are_refused():
    with pytest.raises(ConfigurationError, match=r"spread_v3 'n'. Did you mean N\?(?!.*render)"):
        envs.make(SPREAD, {"n": 2})


def test_the_names_come_from_the_installed_packages(monkeypatch):
    found = adapter.names()
    assert {"mpe2.simple_spread_v3", "mpe2.simple_tag_v3", "sisl.pursuit_v5"} <= set(found)
    monkeypatch.setitem(adapter.COOPERATIVE, "sisl.multiwalker_v99", "mean")
    assert adapter.names() == found


def test_competing_agents_are_a_team_if_the_user_says_so():
    env = envs.make("pettingzoo/mpe2.simple_tag_v3", {"rewards": "mean"})
    assert env.num_agents == 4


def test_frames_are_drawn():
    with closing(envs.make(SPREAD).open(0, 1, render=True)) as pool:
        pool.reset(np.ones(1, bool))
        assert pool.render().shape == (1, 700, 700, 3)


@pytest.mark.slow
def test_a_team_learns_and_is_evaluated():
    config = hatrpo.Config(num_envs=2, num_steps=8, hidden_sizes=(8,))
    options = {"total_steps": 32, "seeds": 1, "env_args": {"N": 2, "max_cycles": 5}}
    run = trpo_jax.train(SPREAD, config, **options, evaluation_episodes=3, progress=False)
    assert run.metrics["kl"].shape == (1, 2)
    assert (run.metrics["episodic_return"] < 0).all()
    assert run.evaluation.returns.shape == (1, 3)
    assert (run.evaluation.returns < 0).all()
