"""Generalised advantage estimation, right at both ways an episode can end."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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

    An episode that terminates has no future: its bootstrap is zero. One that a time limit cuts
    short has a future nobody saw: V(s') of its last observation stands for it. Both ends cut the
    lambda-sum, since the next row belongs to another episode. The last row bootstraps with
    `next_values[-1]`.

    Args:
        rewards: r_t, reward of the transition out of s_t.
        values: V(s_t).
        next_values: V(s'_t), where s'_t is the observation that followed, before any reset.
        terminated: whether s'_t is terminal.
        truncated: whether the episode was cut at s'_t.
        gamma: discount, in [0, 1].
        gae_lambda: lambda, in [0, 1].

    Raises:
        AssertionError: if the arrays differ in shape (broadcasting would hide it).
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
    """Returns the running sums R_t = r_t + gamma R_{t-1}, restarted after the end of each episode.

    It looks backwards, so it needs no bootstrap: its spread is what rewards are scaled by
    (Engstrom et al. 2020, arXiv:2005.12729, section 3).

    Args:
        rewards: r_t.
        done: whether the episode ended with row t.
        initial: sum carried over from the rows before.
        gamma: discount, in [0, 1].

    Returns:
        The sum to carry on with, and the sums of all rows.
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

    A TRPO step does not change with their scale, only with their centre. So a batch that is
    constant but for rounding becomes exactly 0: scaled up, the rounding would be followed at full
    length.

    Args:
        advantages: A.
        values: what A is a difference of, whose size decides the size of its rounding.
    """
    centred = advantages - jnp.mean(advantages)
    deviation = jnp.std(advantages)
    largest = jnp.maximum(jnp.max(jnp.abs(advantages)), jnp.max(jnp.abs(values)))
    varies = deviation > 10 * jnp.finfo(advantages.dtype).eps * largest
    return jnp.where(varies, centred / jnp.where(varies, deviation, 1.0), 0.0)
