import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import counter

from trpo_jax import envs
from trpo_jax.algorithms.base import Actor
from trpo_jax.distributions import Categorical
from trpo_jax.errors import EnvironmentFailure
from trpo_jax.normalization import init_statistics
from trpo_jax.training.evaluation import evaluate, make_evaluation


def test_each_episode_counts_once_and_is_whole():
    act = lambda key, observations: jnp.zeros(len(observations), jnp.int32)
    returns = evaluate(counter(terminates_at=4), act, jax.random.key(0), 5)
    np.testing.assert_array_equal(returns, np.full(5, 60.0))
    returns = evaluate(counter(time_limit=3), act, jax.random.key(0), 5)
    np.testing.assert_array_equal(returns, np.full(5, 30.0))


def test_short_episodes_keep_their_return_while_long_ones_go_on():
    env = envs.make("CartPole-v1")
    act = lambda key, observations: (observations[:, 2] > 0).astype(jnp.int32)
    returns = np.asarray(evaluate(env, act, jax.random.key(0), 16))
    assert len(set(returns)) > 3
    assert returns.min() > 8
    assert returns.max() < 200


def test_numbers_that_are_not_finite_name_environment_and_seed():
    env = counter(terminates_at=4)

    def step(key, count, action):
        count, result = env.step(key, count, action)
        return count, result._replace(reward=jnp.where(count > 2, jnp.nan, result.reward))

    actor = Actor(jnp.zeros(2), jax.vmap(lambda _: init_statistics((1,)))(jnp.zeros(2)))
    policy = lambda actor, observations: Categorical(jnp.zeros((len(observations), 2)))
    with pytest.raises(EnvironmentFailure, match=r"counter returned .* seed 3, 4, in its eval"):
        make_evaluation(env._replace(step=step), policy, (3, 4), 2)(actor)
