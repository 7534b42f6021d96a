import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import counter

from trpo_jax import envs
from trpo_jax.algorithms.base import Actor
from trpo_jax.distributions import Categorical, DiagGaussian
from trpo_jax.errors import EnvironmentFailure
from trpo_jax.normalization import init_statistics
from trpo_jax.running.evaluation import Played, evaluate, make_evaluation, require_finite_returns


def test_each_episode_counts_once_and_is_whole():
    act = lambda key, observations: jnp.zeros(len(observations), jnp.int32)
    returns = evaluate(counter(terminates_at=4), act, jax.random.key(0), 5).returns
    np.testing.assert_array_equal(returns, np.full(5, 60.0))
    returns = evaluate(counter(time_limit=3), act, jax.random.key(0), 5).returns
    np.testing.assert_array_equal(returns, np.full(5, 30.0))


def test_short_episodes_keep_their_return_while_long_ones_go_on():
    env = envs.make("CartPole-v1")
    act = lambda key, observations: (observations[:, 2] > 0).astype(jnp.int32)
    returns = np.asarray(evaluate(env, act, jax.random.key(0), 16).returns)
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
        returns = make_evaluation(env._replace(step=step), policy, 2)(actor, (3, 4)).returns
        require_finite_returns(env, (3, 4), returns)


def test_seed_and_number_decide_the_episodes():
    env = envs.make("Pendulum-v1")
    actor = Actor(jnp.zeros(3), jax.vmap(lambda _: init_statistics((3,)))(jnp.zeros(3)))
    policy = lambda actor, observations: DiagGaussian(
        jnp.zeros((len(observations), 1)), jnp.zeros((len(observations), 1))
    )
    evaluation = make_evaluation(env, policy, 2)
    returns = evaluation(actor, (3, 4, 3)).returns
    assert returns.shape == (3, 2)
    np.testing.assert_array_equal(returns[0], returns[2])
    np.testing.assert_array_equal(evaluation(actor, (3, 4, 3)).returns, returns)
    assert len({*returns[:2].ravel(), *evaluation(actor, (3, 4, 3), 7).returns[:2].ravel()}) == 8
    stochastic = make_evaluation(env, policy, 2, stochastic=True)(actor, (3, 4, 3)).returns
    assert (stochastic != returns).all()


def test_no_two_evaluations_share_a_key(monkeypatch):
    """`split(key, n)[i]` is `fold_in(key, i)`: numbers must not be folded in where keys split."""

    def keys_of(env, act, key, num_episodes, max_steps):
        keys = jnp.stack([key, *jax.random.split(key)])
        numbers = jax.random.key_data(keys)[:, 0].astype(jnp.float32)
        return Played(numbers, jnp.zeros(3, bool))

    monkeypatch.setattr("trpo_jax.running.evaluation.evaluate", keys_of)
    evaluation = make_evaluation(counter(time_limit=2), lambda *_: None, 3)
    actor = Actor(jnp.zeros(1), jax.vmap(lambda _: init_statistics((1,)))(jnp.zeros(1)))
    found = [evaluation(actor, (3,), number).returns[0].tolist() for number in range(4)]
    assert len({x for keys in found for x in keys}) == 12
