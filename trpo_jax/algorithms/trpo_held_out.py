"""TRPO that tests its step on environments that were not used to compute it.

This is the project's own algorithm, not a published one. One half of the environments gives the
step. The line search accepts the longest candidate whose gain on the other half is positive with
confidence 1 - alpha, by Student's t-test over environments.
"""

import jax
import jax.numpy as jnp

from trpo_jax.advantages import init_spread, standardize
from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.checks import prepare
from trpo_jax.algorithms.natural_gradient import (
    advantage_strength,
    kl_radius,
    length_options,
    line_search_options,
    make_solve,
    require_solver,
)
from trpo_jax.confidence import p_value
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError
from trpo_jax.trust_region import (
    importance_sampled_surrogate,
    natural_step,
    search_along,
    surrogate_gradient,
)

Config = configs.TRPOHeldOut


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns TRPO with a line search on held-out environments; see `trpo.make`.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> config = trpo_jax.trpo_held_out.Config(alpha=1e-30, num_envs=4, num_steps=64)
        >>> algorithm = trpo_jax.trpo_held_out.make(env, config)
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> bool(metrics["step_rejected"])  # no gain is so certain
        True
    """
    config, agent = prepare(env, config or Config(), agent)
    if config.num_envs < 4:
        raise ConfigurationError(
            f"num_envs = {config.num_envs} cannot be halved into at least 2 environments that "
            "compute a step and at least 2 that test it. Choose at least 4."
        )
    num_fitted = config.num_envs - config.num_envs // 2
    require_solver(env, config, agent, num_fitted)
    batch_size = config.num_envs * config.num_steps

    def policy_step(key, step_input):
        params, batch = step_input.actor.policy_params, step_input.batch
        spread, strength = advantage_strength(config, step_input)
        max_kl = kl_radius(env, config, step_input.num_updates, batch_size)
        advantages = standardize(batch.advantages, batch.values)
        fitted = jax.tree.map(lambda x: x[:, :num_fitted], batch)
        fitted_surrogate = importance_sampled_surrogate(
            fitted.actions, advantages[:, :num_fitted], config.entropy_coef
        )
        full = natural_step(
            surrogate_gradient(params, lambda p: agent.distributions(p, fitted), fitted_surrogate),
            make_solve(env, config, agent, key, params, fitted),
            max_kl=max_kl,
            **length_options(env, config, strength),
        )

        def confident_gain(new, old):
            gains = jnp.exp(new.log_prob(batch.actions) - old.log_prob(batch.actions)) - 1
            per_env = jnp.mean((gains * advantages)[:, num_fitted:], axis=0)
            return config.alpha - p_value(per_env)

        params, info = search_along(
            params,
            lambda p: agent.distributions(p, batch),
            importance_sampled_surrogate(batch.actions, advantages, config.entropy_coef),
            full,
            max_kl=max_kl,
            **line_search_options(config),
            acceptance=confident_gain,
        )
        return params, spread, info._asdict() | {"advantage_strength": strength}

    return on_policy.make(
        env, config, agent=agent, policy_step=policy_step, init_step_state=init_spread
    )
