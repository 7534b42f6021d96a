"""TRPO that changes the policy less at states about which several critics disagree.

This is the project's own algorithm, not a published one. The members of an ensemble of critics have
different initial parameters. Each member is fitted to its own bootstrap sample of the environments.
The spread of their values weights the states in the metric of the trust region.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from trpo_jax.advantages import init_spread
from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.checks import prepare
from trpo_jax.algorithms.natural_gradient import (
    advantage_strength,
    fisher_precision,
    kl_radius,
    require_every_step,
    require_solver,
    solver_of,
    step_options,
)
from trpo_jax.algorithms.on_policy import reward_surrogate
from trpo_jax.critics import Critic, Sequences, several
from trpo_jax.envs.base import Environment
from trpo_jax.fisher import fisher_vector_product
from trpo_jax.trust_region import trust_region_step

Config = configs.TRPOEnsemble


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns TRPO with an ensemble of critics; see `trpo.make` for the arguments.

    Each member of the ensemble is a copy of the agent's critic, with its own parameters.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> config = trpo_jax.trpo_ensemble.Config(num_critics=3, num_envs=4, num_steps=64)
        >>> algorithm = trpo_jax.trpo_ensemble.make(env, config)
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> bool(metrics["value_std"] > 0)  # disagreement of the critics
        True
    """
    config, agent = prepare(env, config or Config(), agent)
    require_solver(env, config, agent)
    require_every_step(config, "the metric weights the state of every time step")
    member = agent.critic
    agent = agent._replace(critic=make_ensemble(member, config.num_critics))
    batch_size = config.num_envs * config.num_steps

    def policy_step(key, step_input):
        params, batch = step_input.actor.policy_params, step_input.batch
        spread, strength = advantage_strength(config, step_input)
        values, _ = member_values(member, step_input.critic_params, step_input.sequences)
        disagreement = jnp.std(values, axis=0)
        weights = uncertainty_weights(disagreement, config.uncertainty_exponent)
        distribution_fn = lambda p: agent.distributions(p, batch)
        with fisher_precision(config):
            product = fisher_vector_product(distribution_fn, params, weights)
        params, info = trust_region_step(
            params,
            distribution_fn,
            reward_surrogate(config, batch),
            solver_of(env, config, agent, params, batch, product),
            max_kl=kl_radius(env, config, step_input.num_updates, batch_size),
            **step_options(env, config, strength),
            state_weights=weights,
        )
        spread_metrics = {"value_mean": jnp.mean(values), "value_std": jnp.mean(disagreement)}
        return params, spread, info._asdict() | {"advantage_strength": strength} | spread_metrics

    return on_policy.make(
        env, config, agent=agent, policy_step=policy_step, init_step_state=init_spread
    )


def make_ensemble(member: Critic, size: int) -> Critic:
    """Returns a critic whose values are the mean of `size` members.

    The parameters of the members have the leading axis `[size]`.
    """
    members = several(member, size)

    def values(params, sequences):
        of_all, carries = member_values(member, params, sequences)
        return jnp.mean(of_all, axis=0), jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), carries)

    def fit(key, state, sequences, targets):
        def fit_member(key, state, carry):
            draw_key, fit_key = jax.random.split(key)
            num_envs = targets.shape[1]
            envs = jax.random.randint(draw_key, (num_envs,), 0, num_envs)
            drawn = Sequences(
                jax.tree.map(lambda x: x[envs], carry),
                *jax.tree.map(lambda x: x[:, envs], sequences[1:]),
            )
            return member.fit(fit_key, state, drawn, targets[:, envs])

        fit_all = jax.vmap(fit_member, (0, 0, 1))
        state, losses = fit_all(jax.random.split(key, size), state, sequences.carry)
        return state, jnp.mean(losses)

    return members._replace(values=values, fit=fit)


def member_values(
    member: Critic, params: PyTree[Array], sequences: Sequences
) -> tuple[Float[Array, "K T B"], Any]:
    """Returns the values and the carries of each of K members; see `Critic.values`.

    The second axis of `sequences.carry` is the axis of the members, `[B, K, ...]`.
    """
    axes = Sequences(1, None, None)
    return jax.vmap(member.values, in_axes=(0, axes))(params, sequences)


def uncertainty_weights(
    spread: Float[Array, "*batch"], exponent: Float[Array, ""] | float
) -> Float[Array, "*batch"]:
    """Returns weights with mean 1 that grow with the critics' disagreement about a state.

    A weight is clip((sigma / median sigma)^exponent, 1/2, 2), divided by the mean over the states.
    In the metric of a trust region, these weights allow less change of the policy at states whose
    values are less certain.

    Args:
        spread: sigma, standard deviation of the critics' values.
        exponent: exponent of the relative spread.

    Examples:
        >>> uncertainty_weights(jnp.array([1.0, 1.0, 2.0]), 1.0)
        Array([0.75, 0.75, 1.5 ], dtype=float32)
    """
    median = jnp.median(spread)
    relative = jnp.where(median > 0, spread / jnp.where(median > 0, median, 1.0), 1.0)
    weights = jnp.clip(jnp.maximum(relative, 1e-6) ** exponent, 0.5, 2.0)
    return weights / jnp.mean(weights)
