"""Generalised advantage estimation, for episodes that terminate and episodes that are cut short."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

USUAL = 0.5  # the standard deviation of advantages, as a share of the recent one, while one learns


def generalized_advantages(
    rewards: Float[Array, "T *B"],
    values: Float[Array, "T *B"],
    next_values: Float[Array, "T *B"],
    terminated: Bool[Array, "T *B"],
    truncated: Bool[Array, "T *B"],
    gamma: Float[Array, ""] | float,
    gae_lambda: Float[Array, ""] | float,
) -> Float[Array, "T *B"]:
    """Returns GAE(gamma, lambda) advantages (Schulman et al. 2016, arXiv:1506.02438, equation 16).

        delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)
        A_t     = delta_t + gamma lambda (1 - terminated_t)(1 - truncated_t) A_{t+1}

    After a termination there are no more rewards, so the value of s'_t counts as zero. After a
    truncation, for example by a time limit, rewards would have followed. V(s'_t) estimates them.
    Both kinds of end stop the sum over lambda, because the next row belongs to another episode. The
    last row uses `next_values[-1]`.

    Args:
        rewards: r_t, the reward of the transition out of s_t.
        values: V(s_t).
        next_values: V(s'_t). s'_t is the observation that followed, before any reset.
        terminated: whether s'_t is terminal.
        truncated: whether the episode was cut at s'_t.
        gamma: discount, in [0, 1].
        gae_lambda: lambda, in [0, 1].

    Raises:
        AssertionError: if the arrays differ in shape. Broadcasting would hide such a mistake.

    Examples:
        >>> rewards = jnp.array([[1.0], [1.0], [1.0]])  # T = 3 steps of B = 1 environment
        >>> values, never = jnp.zeros((3, 1)), jnp.zeros((3, 1), bool)
        >>> ended = never.at[1].set(True)
        >>> advantages = generalized_advantages(
        ...     rewards, values, values, ended, never, gamma=0.5, gae_lambda=1.0
        ... )
        >>> advantages[:, 0]
        Array([1.5, 1. , 1. ], dtype=float32)
    """
    chex.assert_equal_shape([rewards, values, next_values, terminated, truncated])
    deltas = rewards + gamma * jnp.where(terminated, 0.0, next_values) - values
    decays = gamma * gae_lambda * jnp.where(terminated | truncated, 0.0, 1.0)

    def body(advantage, row):
        delta, decay = row
        advantage = delta + decay * advantage
        return advantage, advantage

    start = jnp.zeros_like(deltas[0])
    _, advantages = jax.lax.scan(body, start, (deltas, decays), reverse=True, unroll=8)
    return advantages


def discounted_returns(
    rewards: Float[Array, "T *B"],
    done: Bool[Array, "T *B"],
    initial: Float[Array, "*B"],
    gamma: Float[Array, ""] | float,
) -> tuple[Float[Array, "*B"], Float[Array, "T *B"]]:
    """Returns the running sums R_t = r_t + gamma R_{t-1}. The sum restarts after each episode.

    The sum looks backwards in time, so it needs no value of a next state. Rewards are scaled by the
    spread of these sums (Engstrom et al. 2020, arXiv:2005.12729, section 3).

    Args:
        rewards: r_t.
        done: whether the episode ended with row t.
        initial: the sum carried over from the rows before.
        gamma: discount, in [0, 1].

    Returns:
        The sum to carry over to the next rows, and the sums of all rows.

    Examples:
        >>> rewards, done = jnp.ones((3, 1)), jnp.array([[False], [True], [False]])
        >>> carry, sums = discounted_returns(rewards, done, initial=jnp.zeros(1), gamma=0.5)
        >>> sums[:, 0]
        Array([1. , 1.5, 1. ], dtype=float32)
    """
    chex.assert_equal_shape([rewards, done])

    def body(carry, row):
        reward, end = row
        total = reward + gamma * carry
        return jnp.where(end, 0.0, total), total

    return jax.lax.scan(body, initial, (rewards, done), unroll=8)


def standardize(
    advantages: Float[Array, "*B"], values: Float[Array, "*B"] | float = 0.0
) -> Float[Array, "*B"]:
    """Returns the advantages shifted to mean 0 and divided by their standard deviation.

    A TRPO step depends on the mean of the advantages, but not on their scale. If the advantages are
    constant except for rounding errors, the result is exactly 0. Otherwise the policy would take a
    full step along the rounding errors.

    Args:
        advantages: A, of any shape.
        values: numbers that A was computed from, such as the values of the critic. The larger
            they are, the larger are the rounding errors of A.

    Examples:
        >>> standardize(jnp.array([1.0, 3.0]))
        Array([-1.,  1.], dtype=float32)
        >>> standardize(jnp.array([3.0, 3.0]))
        Array([0., 0.], dtype=float32)
    """
    centred = advantages - jnp.mean(advantages)
    deviation = jnp.std(advantages)
    largest = jnp.maximum(jnp.max(jnp.abs(advantages)), jnp.max(jnp.abs(values)))
    varies = deviation > 10 * jnp.finfo(advantages.dtype).eps * largest
    return jnp.where(varies, centred / jnp.where(varies, deviation, 1.0), 0.0)


class Spread(NamedTuple):
    """A running mean of the variance of the advantages over updates. Both fields are scalars.

    Attributes:
        variance: the sum of the variances of all updates so far, each times its weight.
        weight: the sum of the weights.
    """

    variance: Float[Array, ""]
    weight: Float[Array, ""]


def init_spread(*_: object) -> Spread:
    """Returns the spread before the first update. It ignores its arguments.

    Examples:
        >>> print(init_spread().weight)
        0.0
    """
    return Spread(jnp.zeros(()), jnp.zeros(()))


def update_spread(
    spread: Spread, deviation: Float[Array, ""], memory: Float[Array, ""] | float
) -> tuple[Spread, Float[Array, ""]]:
    """Returns the spread after one more update, and how strong the advantages of this update are.

    The strength is the standard deviation of the advantages, divided by `USUAL` times the root of
    the running mean of variances. It is at most 1, and never 0. If a task is solved, the advantages
    of most updates are only errors of the critic, and they are small. Standardised advantages do
    not show this, but the strength does.

    Args:
        spread: the spread so far.
        deviation: standard deviation of the advantages of this update, in a unit that all updates
            share.
        memory: in [0, 1), the factor of all weights from one update to the next. With 0, the mean
            holds this update only, so the strength is 1.

    Examples:
        >>> spread, strength = update_spread(init_spread(), jnp.array(7.0), 0.5)
        >>> spread, strength = update_spread(spread, jnp.array(1.0), 0.5)
        >>> print(strength)  # the mean of 49 and 1 with weights of 1/3 and 2/3 is 17; 2 / sqrt(17)
        0.48507124
    """
    variance = deviation**2
    spread = Spread(memory * spread.variance + variance, memory * spread.weight + 1)
    mean = spread.variance / spread.weight
    varies = mean > 0
    strength = jnp.sqrt(variance / jnp.where(varies, mean, 1.0)) / USUAL
    return spread, jnp.where(varies, jnp.clip(strength, jnp.finfo(mean.dtype).eps, 1.0), 1.0)
