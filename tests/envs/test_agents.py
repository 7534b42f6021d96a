"""Teams of agents: specs, random actions, validation, and the functions that adapters share."""

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from trpo_jax import algorithms
from trpo_jax.algorithms import hatrpo, trpo
from trpo_jax.algorithms.unused import unused_fields
from trpo_jax.envs import agents
from trpo_jax.envs.base import require_usable
from trpo_jax.envs.specs import (
    Agents,
    ArraySpec,
    Box,
    Discrete,
    MultiDiscrete,
    to_environment_action,
    to_space_action,
)
from trpo_jax.envs.wrappers import observe_previous
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.spaces import essence, from_plain, in_words, to_plain
from trpo_jax.rollout import random_actions

FLOAT = np.dtype(np.float32)
UNEVEN = Agents((Discrete(2, start=5), Discrete(4)))
SEVERAL = Agents((MultiDiscrete((2, 3), (1, 0)), Discrete(4)))
LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)
BOXES = Agents((Box(LOW, HIGH), Box(np.zeros((1, 1), np.float32), np.full((1, 1), 4, np.float32))))


def test_the_rows_of_a_team_can_hold_the_largest_action():
    assert UNEVEN.padded == Discrete(4)
    np.testing.assert_array_equal(UNEVEN.used, [[1, 1, 0, 0], [1, 1, 1, 1]])
    assert (UNEVEN.count, UNEVEN.shape, UNEVEN.choices) == (2, (2,), (4, 4))
    assert SEVERAL.padded == MultiDiscrete((4, 3))
    np.testing.assert_array_equal(SEVERAL.used, [[1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
    assert (SEVERAL.shape, SEVERAL.size) == ((2, 2), 4)
    assert BOXES.padded.size == 2
    np.testing.assert_array_equal(BOXES.used, [[1, 1], [1, 0]])
    assert BOXES.shape == (2, 2)


def test_actions_of_a_team_become_actions_of_its_environment():
    given = to_environment_action(UNEVEN, jnp.array([1, 3]))
    np.testing.assert_array_equal(given, [6, 3])
    assert [int(x) for x in agents.own_actions(UNEVEN, given)] == [6, 3]

    given = to_environment_action(SEVERAL, (jnp.array([1, 3]), jnp.array([2, 0])))
    first, second = agents.own_actions(SEVERAL, given)
    np.testing.assert_array_equal(first, [2, 2])
    assert second == 3
    assert second.ndim == 0

    given = to_environment_action(BOXES, jnp.array([[-3.0, 0.0], [0.5, 9.0]]))
    first, second = agents.own_actions(BOXES, given)
    np.testing.assert_allclose(first, [-2, 0.5])
    np.testing.assert_allclose(second, [[3.0]])
    batch = np.asarray(given)[None]
    np.testing.assert_array_equal(to_space_action(BOXES, batch), batch)


@pytest.mark.parametrize("team", [UNEVEN, SEVERAL])
def test_random_actions_are_legal_and_cover_all_legal_actions(team):
    drawn = random_actions(jax.random.key(0), team, 200)
    columns = drawn if isinstance(drawn, tuple) else (drawn,)
    for index, spec in enumerate(team.each):
        for column, count in zip(columns, spec.choices, strict=False):
            assert set(np.unique(column[:, index])) == set(range(count))
    width = team.used.shape[1]
    mask = jnp.zeros((200, 2, width), bool).at[:, :, 1].set(True)
    mask = mask | (jnp.arange(width) >= team.padded.choices[0])
    drawn = random_actions(jax.random.key(0), team, 200, mask)
    first = drawn[0] if isinstance(drawn, tuple) else drawn
    np.testing.assert_array_equal(first, 1)


def test_specs_of_a_team_are_stored_and_compared():
    for team in (UNEVEN, SEVERAL, BOXES):
        again = from_plain(to_plain(team))
        assert essence(again) == essence(team)
        assert in_words(again) == in_words(team)
    assert essence(UNEVEN) != essence(Agents((Discrete(2), Discrete(4))))
    assert in_words(UNEVEN).startswith("those of 2 agents: integers with 2 values, from 5 on;")


def test_the_previous_action_of_each_agent_is_shown():
    env = observe_previous(probes.team_of(probes.noise(), 2, (Discrete(2), Discrete(3))))
    require_usable(env)
    state, shown = env.reset(jax.random.key(0))
    np.testing.assert_array_equal(shown["previous_action"], [0, 0])
    _, result = env.step(jax.random.key(0), state, jnp.array([1, 2]))
    np.testing.assert_array_equal(result.observation["previous_action"], [2, 3])
    assert result.observation["previous_reward"].shape == (2,)
    algorithm = hatrpo.make(env, hatrpo.Config(num_envs=2, num_steps=8))
    jax.eval_shape(lambda key: algorithm.update(algorithm.init(key)), jax.random.key(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"action": Agents((Discrete(2), Box(LOW, HIGH)))},
            r"agents whose actions are Discrete, Box\. Either all agents must choose integers",
        ),
        (
            {"observation": ArraySpec((3, 2), FLOAT)},
            r"2 agents, and observation of shape \(3, 2\)\. Its first axis",
        ),
        (
            {"observation": {"a": ArraySpec((2, 1), FLOAT), "state": ArraySpec((7,), FLOAT)}},
            r'observation\["state"\] of shape \(7,\).*name it in critic_observation',
        ),
        (
            {"observation": ArraySpec((2, 2), np.dtype(np.int32), (3, 4, 3, 4))},
            "num_values must be one number",
        ),
        ({"action": Agents((Discrete(0), Discrete(2)))}, "nothing to choose from"),
    ],
)
def test_a_team_with_wrong_specs_is_refused(changes, message):
    env = probes.team_of(probes.noise())._replace(**changes)
    with pytest.raises(ConfigurationError, match=message):
        require_usable(env)


def test_algorithms_refuse_the_wrong_number_of_agents():
    one, team = probes.noise(), probes.team_of(probes.noise())
    assert (one.num_agents, team.num_agents) == (None, 2)
    for name in algorithms.ALGORITHMS:
        module = algorithms.get(name)
        of_team = hasattr(module.Config(), "share_parameters")
        wrong = one if of_team else team
        says = "has one agent.*such as trpo" if of_team else "2 agents.*Choose hatrpo"
        with pytest.raises(ConfigurationError, match=says):
            module.make(wrong, module.Config())
    with pytest.raises(ConfigurationError, match="critic_observation = 'x' cannot work"):
        hatrpo.make(team, hatrpo.Config(critic_observation="x"))
    with pytest.raises(ConfigurationError, match="2 agents"):
        trpo.make(team)


def test_a_setting_is_unused_if_it_has_no_effect_for_any_agent():
    unused = lambda env: dict(unused_fields(env, hatrpo.Config()))
    choices, boxes = (probes.team_of(probes.noise(), 2, x.each) for x in (UNEVEN, BOXES))
    assert {"log_std_init", "max_kl_per_dimension"} <= set(unused(choices))
    assert not {"log_std_init", "max_kl_per_dimension"} & set(unused(boxes))


def test_the_reward_of_a_team():
    known, competing = {"a": "sum"}, {"b": "they fight"}
    reward = lambda *args: agents.team_reward(*args, known, competing)
    assert reward("a", None) == "sum"
    assert reward("a", "mean") == "mean"
    assert reward("b", "sum") == "sum"  # the user says that they are a team
    assert agents.REWARDS["mean"]([1.0, 3.0]) == 2.0
    for args, message in (
        (("b", None), "agents of b compete: they fight.*These environments work: a"),
        (("c", None), "agents of c work together.*rewards = sum or mean or same"),
        (("a", "most"), "rewards = 'most' is not allowed for a"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            reward(*args)


def test_arrays_of_agents_are_padded_to_one_shape():
    shape = agents.row_shape("env", "observations", [(2,), (3,)])
    rows = agents.stacked(shape, [np.ones(2), np.ones(3)], np)
    np.testing.assert_array_equal(rows, [[1, 1, 0], [1, 1, 1]])
    assert agents.row_shape("env", "observations", [(2, 2), (2, 2)]) == (2, 2)
    with pytest.raises(ConfigurationError, match=r"\(2,\), \(2, 2\). Only arrays of one axis"):
        agents.row_shape("env", "observations", [(2, 2), (2,)])
