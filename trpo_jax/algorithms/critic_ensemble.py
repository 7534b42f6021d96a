"""An ensemble of critics, for the mean and the spread of the values it assigns to states.

This project's own, not a published algorithm's. Members differ in their initialisation and in the
environments they are fitted to: each is given a bootstrap sample of them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

from trpo_jax.algorithms.on_policy import Critic


def make_ensemble(member: Critic, size: int) -> Critic:
    """Returns a critic whose values are the mean over `size` members, leading axis `[size]`."""

    def init(key):
        return jax.vmap(member.init)(jax.random.split(key, size))

    def values(params, observations):
        return jnp.mean(member_values(member, params, observations), axis=0)

    def fit(key, state, batch):
        def fit_member(key, state):
            draw_key, fit_key = jax.random.split(key)
            num_envs = batch.targets.shape[1]
            envs = jax.random.randint(draw_key, (num_envs,), 0, num_envs)
            return member.fit(fit_key, state, jax.tree.map(lambda x: x[:, envs], batch))

        state, losses = jax.vmap(fit_member)(jax.random.split(key, size), state)
        return state, jnp.mean(losses)

    return Critic(init, values, fit)


def member_values(
    member: Critic, params: PyTree[Array], observations: Num[Array, "..."]
) -> Float[Array, "K ..."]:
    """Returns each member's values, leading axis `[K]`."""
    return jax.vmap(member.values, in_axes=(0, None))(params, observations)


def uncertainty_weights(
    spread: Float[Array, "*batch"], exponent: Float[Array, ""] | float
) -> Float[Array, "*batch"]:
    """Returns weights of mean 1 that grow with the critics' disagreement about a state.

    clip((sigma / median sigma)^exponent, 1/2, 2), divided by its mean. In the metric of a trust
    region they allow the policy less change where the values are less certain.
    """
    median = jnp.median(spread)
    relative = jnp.where(median > 0, spread / jnp.where(median > 0, median, 1.0), 1.0)
    weights = jnp.clip(jnp.maximum(relative, 1e-6) ** exponent, 0.5, 2.0)
    return weights / jnp.mean(weights)
