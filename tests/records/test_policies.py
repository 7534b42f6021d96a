import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo_jax
from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.base import Learnt
from trpo_jax.envs.base import ArraySpec, MultiDiscrete, to_environment_action
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.policies import save_policy

SEEDS = (4, 9)


def saved(tmp_path, env, **settings):
    config = trpo.Config(num_envs=2, num_steps=8, hidden_sizes=(8,), **settings)
    algorithm = trpo.make(env, config)
    states = jax.vmap(algorithm.init)(jax.vmap(jax.random.key)(jnp.array(SEEDS)))
    # A mean of 0.5 and a deviation of 0.5, so that forgetting to standardise shows.
    statistics = states.actor.observation_statistics
    half = jnp.full_like(statistics.mean, 0.5)
    statistics = statistics._replace(count=statistics.count + 1, mean=half, deviation=half)
    actor = states.actor._replace(observation_statistics=statistics)
    path = tmp_path / "policy.msgpack"
    save_policy(path, algorithm, Learnt(actor), SEEDS, [1.0, 2.0])
    return algorithm, actor, path


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-misc"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_loaded_policy_acts_as_the_trained_one(tmp_path, name, normalize):
    env = envs.make(name)
    algorithm, actor, path = saved(tmp_path, env, normalize_observations=normalize)
    observations = jnp.stack([env.reset(jax.random.key(i))[1] for i in range(6)])
    for index, seed in enumerate(SEEDS):
        policy = trpo_jax.load_policy(path, seed=seed)
        distribution = algorithm.policy(jax.tree.map(lambda x: x[index], actor), observations)  # noqa: B023
        scale = jax.vmap(lambda a: to_environment_action(env.action, a))
        np.testing.assert_allclose(
            policy(observations), scale(distribution.mode()), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            policy(observations[2]), policy(observations)[2], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            policy(observations, jax.random.key(0)),
            scale(distribution.sample(jax.random.key(0))),
            rtol=1e-5,
            atol=1e-6,
        )
    best = trpo_jax.load_policy(path)
    np.testing.assert_array_equal(best(observations), policy(observations))


def test_a_policy_of_several_choices_is_kept(tmp_path):
    env = envs.make("CartPole-v1")
    step = env.step
    env = env._replace(
        action=MultiDiscrete((2, 3)), step=lambda key, state, action: step(key, state, action[0])
    )
    _, _, path = saved(tmp_path, env)
    assert trpo_jax.load_policy(path)(jnp.zeros((5, 4))).shape == (5, 2)


def test_pixels_of_another_type_are_refused_and_longer_numbers_shortened(tmp_path):
    env = envs.make("CartPole-v1")
    _, _, path = saved(tmp_path, env)
    policy, observations = trpo_jax.load_policy(path), np.linspace(-1, 1, 20).reshape(5, 4)
    np.testing.assert_array_equal(policy(observations), policy(observations.astype(np.float32)))
    _, _, path = saved(tmp_path, env._replace(observation=ArraySpec((4,), np.dtype(np.uint8))))
    policy = trpo_jax.load_policy(path)
    assert policy(np.ones((5, 4), np.uint8)).shape == (5,)
    with pytest.raises(ValueError, match="promises uint8"):
        policy(np.ones((5, 4)))


def test_wrong_observations_and_files_are_named(tmp_path):
    _, _, path = saved(tmp_path, envs.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        trpo_jax.load_policy(path)(jnp.zeros(3))
    with pytest.raises(ConfigurationError, match=r"no seed 5. It has \[4, 9\]"):
        trpo_jax.load_policy(path, seed=5)
    with pytest.raises(ConfigurationError, match="no policy file"):
        trpo_jax.load_policy(tmp_path / "missing.msgpack")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigurationError, match="damaged"):
        trpo_jax.load_policy(path)
