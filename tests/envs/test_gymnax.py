"""The environments of gymnax. Environments that are slow to compile run only with:

uv run pytest -m heavy tests/envs/test_gymnax.py
"""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import check_types

import trpo_jax.envs.gymnax
from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.envs.episodes import advance_episode, start_episode
from trpo_jax.envs.gymnax import CLASSES
from trpo_jax.envs.specs import ArraySpec, Box
from trpo_jax.errors import ConfigurationError
from trpo_jax.observing import observe

DOWNLOADS = "MNISTBandit-bsuite"
NAMES = [name for name in gymnax.registered_envs if name != DOWNLOADS]
# One environment for each kind of observation and action.
COMPILED = ("Pendulum-v1", "MountainCar-v0", "FrozenLake-misc", "Breakout-MinAtar", "Reacher-misc")
CONFIG = trpo.Config(
    num_envs=2, num_steps=6, hidden_sizes=(8,), cg_iters=2, critic_epochs=1, critic_minibatches=2
)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_and_a_reset_return_the_same_types(name):
    check_types(envs.make(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name in COMPILED else pytest.param(name, marks=pytest.mark.heavy) for name in NAMES],
)
def test_two_updates_are_finite_and_compile_once(name):
    algorithm = trpo.make(envs.make(name), CONFIG)
    traces = []

    @jax.jit
    def update(state):
        traces.append(name)
        return algorithm.update(state)

    state = jax.jit(algorithm.init)(jax.random.key(0))
    for _ in range(2):
        state, metrics = update(state)
    assert len(traces) == 1
    assert update._cache_size() == 1
    finite = {k: v for k, v in metrics.items() if k not in ("episodic_return", "episode_length")}
    assert all(np.isfinite(x) for x in finite.values()), metrics
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.actor, state.critic)))


def test_scalar_integer_observations_are_one_hot():
    env = envs.make("FrozenLake-misc")
    _, observation = env.reset(jax.random.key(0))
    assert env.observation == ArraySpec((), np.dtype(np.int32), (16,))
    assert observation.shape == ()
    seen = observe(env.observation, (), observation[None], normalized=True)
    np.testing.assert_array_equal(seen, np.eye(16)[[observation]])


def test_box_bounds_come_from_the_space():
    env = envs.make("PointRobot-misc")
    assert isinstance(env.action, Box)
    np.testing.assert_allclose(env.action.low, [-0.1, -0.1])
    assert envs.make("Pendulum-v1").action.size == 1


def test_a_time_limit_truncates_and_keeps_the_last_observation():
    env = envs.make("Pendulum-v1")
    episode = start_episode(env, jax.random.key(0))

    def body(episode, keys):
        return advance_episode(env, keys, episode, jnp.zeros(1))

    keys = jax.random.split(jax.random.key(1), (201, 2))
    episode, transitions = jax.lax.scan(body, episode, keys)
    assert not transitions.terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(transitions.truncated), [199])
    assert jnp.abs(transitions.next_observation[199] - transitions.observation[200]).max() > 1e-3
    np.testing.assert_array_equal(
        transitions.next_observation[:199], transitions.observation[1:200]
    )


def test_the_error_for_an_unknown_name_names_the_nearest_name():
    with pytest.raises(ConfigurationError, match=r"Did you mean CartPole-v1"):
        envs.make("cartpole")


def test_every_class_is_found_where_gymnax_has_it():
    assert CLASSES.keys() == {*NAMES, DOWNLOADS}
    for name in NAMES:
        kind = type(gymnax.make(name)[0])
        assert f"{kind.__module__}.{kind.__qualname__}" == f"gymnax.environments.{CLASSES[name]}"


@pytest.mark.parametrize("known", [{}, {"CartPole-v1": "moved.elsewhere.CartPole"}])
def test_an_environment_is_also_found_through_the_list_of_gymnax(known, monkeypatch):
    monkeypatch.setattr(trpo_jax.envs.gymnax, "CLASSES", known)
    assert envs.make("CartPole-v1", {"gravity": 20.0}).time_limit == 500


def test_the_error_for_a_failed_download_says_so(monkeypatch):
    def fail(self):
        raise OSError("no network")

    monkeypatch.setattr(gymnax.environments.MNISTBandit, "__init__", fail)
    with pytest.raises(ConfigurationError, match="download failed: no network"):
        envs.make(DOWNLOADS)


def test_unsupported_spaces_are_refused(monkeypatch):
    spaces = gymnax.environments.spaces
    monkeypatch.setattr(
        gymnax.environments.CartPole,
        "action_space",
        lambda self, params: spaces.Tuple([spaces.Discrete(2)]),
    )
    with pytest.raises(ConfigurationError, match=r"actions of type Tuple.*Supported: Discrete"):
        envs.make("CartPole-v1")


def test_observations_of_several_arrays_are_a_tree(monkeypatch):
    shown = lambda self, state, **_: {"x": state.x, "turn": (state.theta, state.theta_dot)}
    monkeypatch.setattr(gymnax.environments.CartPole, "get_obs", shown)
    number = ArraySpec((), np.dtype(np.float32))
    made = envs.make("CartPole-v1")
    assert made.observation == {"x": number, "turn": (number, number)}
    check_types(made)
