"""JaxMARL: rows, ends of episodes, masks, team states, rewards, frames and bad names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import check_episodes, check_types

from trpo_jax import envs
from trpo_jax.algorithms import hatrpo
from trpo_jax.envs.base import require_usable
from trpo_jax.envs.specs import Agents, ArraySpec, Discrete
from trpo_jax.errors import ConfigurationError

pytestmark = pytest.mark.xdist_group("jaxmarl")
FLOAT = np.dtype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def jaxmarl():
    """Takes seconds to import, so only the worker that runs these tests does it."""
    return pytest.importorskip("jaxmarl", reason="uv sync --extra jaxmarl")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "MPE_simple_reference_v3",
        "switch_riddle",
        pytest.param("SMAX", marks=pytest.mark.heavy),
        pytest.param("overcooked", marks=pytest.mark.heavy),
        pytest.param("hanabi", marks=pytest.mark.heavy),
        pytest.param("jaxnav", marks=pytest.mark.heavy),
    ],
)
def test_jaxmarl_follows_the_protocol(name):
    env = envs.make(f"jaxmarl/{name}")
    assert env.name == f"jaxmarl/{name}"
    require_usable(env)
    check_types(env)
    check_episodes(env)


@pytest.mark.slow
def test_rows_are_padded_if_agents_differ():
    env = envs.make("jaxmarl/MPE_simple_speaker_listener_v4")
    assert env.observation == ArraySpec((2, 11), FLOAT)
    assert env.action == Agents((Discrete(3), Discrete(5)))
    _, shown = env.reset(jax.random.key(0))
    np.testing.assert_array_equal(shown[0, 3:], 0)  # the speaker sees three numbers
    require_usable(env)
    algorithm = hatrpo.make(env, hatrpo.Config(num_envs=2, num_steps=8, critic_minibatches=2))
    jax.eval_shape(lambda key: algorithm.update(algorithm.init(key)), jax.random.key(0))


def test_the_team_gets_the_sum_of_the_rewards_and_the_observations_of_all_agents(jaxmarl):
    env, own = envs.make("jaxmarl/MPE_simple_spread_v3"), jaxmarl.make("MPE_simple_spread_v3")
    mean = envs.make("jaxmarl/MPE_simple_spread_v3", {"rewards": "mean"})
    key = jax.random.key(3)
    (state, shown), (own_shown, own_state) = env.reset(key), own.reset(key)
    for index, agent in enumerate(own.agents):
        np.testing.assert_array_equal(shown[index], own_shown[agent])
    actions = jnp.array([1, 2, 3])
    _, result = jax.jit(env.step)(key, state, actions)
    given = dict(zip(own.agents, actions, strict=True))
    _, _, rewards, _, _ = own.step_env(key, own_state, given)
    np.testing.assert_allclose(result.reward, sum(rewards.values()), rtol=1e-6)
    _, result = jax.jit(mean.step)(key, state, actions)
    np.testing.assert_allclose(result.reward, sum(rewards.values()) / 3, rtol=1e-6)


def test_the_time_limit_truncates_and_the_task_terminates():
    """JaxMARL itself says `done` in both cases."""
    env = envs.make("jaxmarl/switch_riddle", {"num_agents": 3})
    assert env.time_limit == 6
    step, key = jax.jit(env.step), jax.random.key(0)
    nothing, tell = jnp.zeros(3, jnp.int32), jnp.full(3, 2)
    state, _ = env.reset(key)
    for index in range(6):
        state, result = step(key, state, nothing)
        assert not result.terminated
        assert bool(result.truncated) == (index == 5)
    state, _ = env.reset(key)
    _, result = step(key, state, tell)
    assert result.terminated
    assert not result.truncated


def test_an_episode_of_mpe_has_max_steps_steps():
    env = envs.make("jaxmarl/MPE_simple_v3", {"max_steps": 4})
    assert env.time_limit == 4
    assert env.num_agents == 1


def test_jaxmarl_draws_states():
    env = envs.make("jaxmarl/MPE_simple_reference_v3")
    state, _ = env.reset(jax.random.key(0))
    first, second = env.render([state, state])
    assert first.shape[2] == 3
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first)) > 10
    assert envs.make("jaxmarl/switch_riddle").render is None


def test_smax_shows_masks_and_a_state():
    env = envs.make("jaxmarl/SMAX", {"scenario": "3m"})
    assert env.critic_observation == "state"
    assert set(env.observation) == {"observation", "action_mask", "state"}
    assert env.observation["action_mask"].shape == (3, 8)
    assert env.num_agents == 3
    require_usable(env)
    assert envs.make("jaxmarl/HeuristicEnemySMAX").num_agents == 5


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("MPE_simple_tag_v3", {}, "agents of MPE_simple_tag_v3 compete: adversaries chase"),
        ("MPE_simple_spred_v3", {}, "Did you mean jaxmarl/MPE_simple_spread_v3"),
        ("MPE_simple_spread_v3", {"local_ration": 1}, "'local_ration'. Did you mean local_ratio"),
        ("MPE_simple_spread_v3", {"rewards": "most"}, "rewards = 'most' is not allowed"),
        ("SMAX", {"scenario": "4x"}, "Unknown scenario '4x' of jaxmarl/SMAX. Known: 3m"),
    ],
)
def test_bad_names_and_arguments_are_refused(name, args, message):
    with pytest.raises(ConfigurationError, match=message):
        envs.make(f"jaxmarl/{name}", args)
