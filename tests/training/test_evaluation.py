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
from trpo_jax.training.evaluation import (
    evaluate,
    evaluate_seeds,
    interquartile_mean,
    summarize,
)


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
        evaluate_seeds(env._replace(step=step), policy, actor, (3, 4), 2)


def test_summary_of_scores():
    scores = np.array([1.0, 2.0, 3.0, 100.0])
    summary = summarize(scores)
    assert summary.mean == 26.5
    assert summary.iqm == 2.5
    np.testing.assert_allclose(summary.std, np.std(scores, ddof=1))
    low, high = summary.ci95
    assert 1 <= low < 26.5 < high <= 100
    low, high = summary.iqm_ci95
    assert 1 <= low < 2.5 < high <= 100
    assert summarize(scores) == summary  # seeded


def test_seeds_that_agree_have_an_interval_of_no_width_and_one_seed_has_none():
    assert summarize(np.full(5, 500.0)).ci95 == (500.0, 500.0)
    single = summarize(np.array([7.0]))
    assert single == (7.0, None, 7.0, None, None)


@pytest.mark.parametrize(("scores", "expected"), [([0, 1, 2, 3, 4, 5, 6, 100], 3.5), ([5], 5)])
def test_interquartile_mean(scores, expected):
    assert interquartile_mean(np.array(scores, float)) == expected
