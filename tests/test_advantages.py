import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.advantages import (
    discounted_returns,
    generalized_advantages,
    init_spread,
    standardize,
    update_spread,
)

GAMMA, LAMBDA = 0.9, 0.8


def batch(num_steps=12, num_envs=5, seed=0):
    rng = np.random.default_rng(seed)
    shape = (num_steps, num_envs)
    floats = [rng.normal(size=shape).astype(np.float32) for _ in range(3)]
    flags = [rng.random(shape) < 0.2 for _ in range(2)]
    return [jnp.asarray(x) for x in (*floats, *flags)]


def quadratic_sum(rewards, values, next_values, terminated, truncated):
    """Returns A_t = sum_l (gamma lambda)^l delta_{t+l}, up to the end of the episode of row t."""
    rewards, values, next_values, terminated, truncated = map(
        np.asarray, (rewards, values, next_values, terminated, truncated)
    )
    advantages = np.zeros(rewards.shape)
    for t in range(rewards.shape[0]):
        for b in range(rewards.shape[1]):
            for k in range(t, rewards.shape[0]):
                bootstrap = 0.0 if terminated[k, b] else GAMMA * next_values[k, b]
                delta = rewards[k, b] + bootstrap - values[k, b]
                advantages[t, b] += (GAMMA * LAMBDA) ** (k - t) * delta
                if terminated[k, b] or truncated[k, b]:
                    break
    return advantages


def test_advantages_equal_the_explicit_sum_of_deltas():
    arrays = batch()
    result = generalized_advantages(*arrays, GAMMA, LAMBDA)
    np.testing.assert_allclose(result, quadratic_sum(*arrays), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        (False, False, [1 + 0.9 * 5 - 2 + 0.72 * (10 + 0.9 * 7 - 3), 10 + 0.9 * 7 - 3]),
        (True, False, [1 - 2, 10 + 0.9 * 7 - 3]),
        (False, True, [1 + 0.9 * 5 - 2, 10 + 0.9 * 7 - 3]),
        (True, True, [1 - 2, 10 + 0.9 * 7 - 3]),
    ],
)
def test_advantages_after_termination_and_truncation(terminated, truncated, expected):
    column = lambda *x: jnp.array(x)[:, None]
    result = generalized_advantages(
        column(1.0, 10.0),
        column(2.0, 3.0),
        column(5.0, 7.0),
        column(terminated, False),
        column(truncated, False),
        GAMMA,
        LAMBDA,
    )
    np.testing.assert_allclose(result[:, 0], expected, rtol=1e-6)


def test_lambda_1_gives_the_discounted_return_minus_the_value():
    rewards, values, next_values, terminated, _ = batch()
    next_values = jnp.concatenate([values[1:], next_values[-1:]])  # a single episode
    never = jnp.zeros_like(terminated)
    result = generalized_advantages(rewards, values, next_values, never, never, GAMMA, 1.0)
    future = next_values[-1]
    for reward in rewards[::-1]:
        future = reward + GAMMA * future
    np.testing.assert_allclose(result[0], future - values[0], rtol=1e-5, atol=1e-5)


def test_arrays_of_different_shapes_raise_an_error():
    rewards, values, *rest = batch()
    unchecked = inspect.unwrap(generalized_advantages)  # without the import hook, as users call it
    with pytest.raises(AssertionError, match="shape"):
        unchecked(rewards, values[..., None], *rest, GAMMA, LAMBDA)


def test_discounted_returns_restart_after_an_episode_and_continue_from_the_rows_before():
    rewards = jnp.array([1.0, 2.0, 3.0])[:, None]
    done = jnp.array([False, True, False])[:, None]
    carry, sums = discounted_returns(rewards, done, jnp.array([10.0]), 0.5)
    np.testing.assert_allclose(sums[:, 0], [6.0, 5.0, 3.0])
    np.testing.assert_allclose(carry, [3.0])


def test_standardize_divides_by_the_standard_deviation():
    advantages = jax.random.normal(jax.random.key(0), (7, 3)) * 5 + 2
    result = standardize(advantages)
    np.testing.assert_allclose(result.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(result.std(), 1, rtol=1e-5)


def test_advantages_that_are_only_rounding_errors_become_zero():
    """A perfect critic with V = 100 leaves advantages as small as the last digit of V."""
    values = jnp.full((256, 8), 100.0)
    noise = jax.random.randint(jax.random.key(0), values.shape, -1, 2) * np.spacing(np.float32(100))
    rewards = jnp.full_like(values, 1.0) + noise
    never = jnp.zeros(values.shape, bool)
    advantages = generalized_advantages(rewards, values, values, never, never, 0.99, 0.95)
    assert jnp.abs(advantages).max() > 0
    np.testing.assert_array_equal(standardize(advantages, values), 0)
    assert jnp.std(standardize(advantages + jnp.arange(8.0), values)) > 0.99


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0, -7.3, 100.1])
def test_constant_advantages_become_zero(value):
    noise = jax.random.normal(jax.random.key(0), (2048,)) * abs(value) * 1e-7
    np.testing.assert_array_equal(standardize(jnp.full((2048,), value)), 0)
    np.testing.assert_array_equal(standardize(value + noise), 0)


def test_the_strength_compares_an_update_with_the_weighted_mean_of_variances():
    rng, spread, memory = np.random.default_rng(0), init_spread(), 0.8
    batches = [scale * rng.normal(size=(4, 3)) for scale in (1.0, 5.0, 0.1, 0.7)]
    for count, advantages in enumerate(batches, 1):
        spread, strength = update_spread(spread, jnp.float32(advantages.std()), memory)
        weights = memory ** np.arange(count)[::-1]
        mean = np.average([x.var() for x in batches[:count]], weights=weights)
        expected = min(1.0, 2 * np.sqrt(advantages.var() / mean))
        np.testing.assert_allclose(strength, expected, rtol=1e-5)
    assert expected < 0.9


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_the_strength_is_one_without_other_updates_and_positive_without_advantages(memory):
    spread, strength = update_spread(init_spread(), jnp.zeros(()), memory)  # no signal yet
    assert strength == 1
    spread, strength = update_spread(spread, jnp.ones(()), memory)
    assert strength == 1
    _, strength = update_spread(spread, jnp.zeros(()), memory)
    assert 0 < strength <= 1
