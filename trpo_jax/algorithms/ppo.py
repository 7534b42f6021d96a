"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347), and the loss of SPO.

Each update runs several epochs of minibatch Adam on a surrogate that gains nothing from probability
ratios far from 1. PPO clips the ratio (equation 7). SPO (Xie et al. 2025, arXiv:2401.16025) uses a
quadratic penalty instead, and the gain is largest at the same distance from 1. Unlike the clip, the
penalty pulls back a ratio that went too far.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from trpo_jax.advantages import standardize
from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.checks import decay, prepare
from trpo_jax.algorithms.on_policy import reward_surrogate
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError
from trpo_jax.minibatches import Minibatches
from trpo_jax.trust_region import measure_change


def clipped_gain(
    ratios: Float[Array, "*B"], advantages: Float[Array, "*B"], clip: Float[Array, ""] | float
) -> Float[Array, "*B"]:
    """Returns PPO's gain of each action, min(r A, clip(r, 1 - c, 1 + c) A).

    Args:
        ratios: r = new(a|s) / old(a|s).
        advantages: A.
        clip: c, distance of the ratio from 1 at which the gain stops growing.

    Examples:
        >>> clipped_gain(jnp.array([1.0, 1.2, 1.5]), jnp.ones(3), 0.25)
        Array([1.  , 1.2 , 1.25], dtype=float32)
    """
    return jnp.minimum(ratios * advantages, jnp.clip(ratios, 1 - clip, 1 + clip) * advantages)


def spo_gain(
    ratios: Float[Array, "*B"], advantages: Float[Array, "*B"], clip: Float[Array, ""] | float
) -> Float[Array, "*B"]:
    """Returns SPO's gain of each action, r A - |A| (r - 1)^2 / (2 c); see `clipped_gain`.

    Examples:
        >>> spo_gain(jnp.array([1.0, 1.25, 1.5]), jnp.ones(3), 0.25)
        Array([1.   , 1.125, 1.   ], dtype=float32)
    """
    return ratios * advantages - jnp.abs(advantages) / (2 * clip) * (ratios - 1) ** 2


GAINS = {"clip": clipped_gain, "spo": spo_gain}

Config = configs.PPO


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns PPO on an environment; see `trpo.make` for the arguments.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> config = trpo_jax.ppo.Config(policy_epochs=2, policy_minibatches=4)
        >>> algorithm = trpo_jax.ppo.make(env, config.replace(num_envs=4, num_steps=64))
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> int(optax.tree.get(state.step_state, "count"))  # steps of Adam
        8
    """
    config, agent = prepare(env, config or Config(), agent)
    return on_policy.make(env, config, agent=agent, **step_arguments(env, config, agent))


def step_arguments(env: Environment, config: configs.Proximal, agent: Agent) -> dict[str, Any]:
    """Returns the arguments of `on_policy.make` for the step of PPO.

    Raises:
        ConfigurationError: if the batch cannot be split into so many minibatches.
    """
    batch_size = config.num_envs * config.num_steps
    if batch_size % config.policy_minibatches:
        raise ConfigurationError(
            f"policy_minibatches = {config.policy_minibatches} does not divide the batch of "
            f"num_envs * num_steps = {config.num_envs} * {config.num_steps} = {batch_size}. "
            "Choose a divisor of the batch."
        )
    if batch_size == config.policy_minibatches:
        raise ConfigurationError(
            f"policy_minibatches = {config.policy_minibatches} puts a single step into each "
            "minibatch, but an advantage needs other steps to be compared with. "
            f"Choose at most half of the batch, {batch_size // 2}."
        )
    gain = GAINS[config.loss]
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=1e-5)
    )

    def loss(params, minibatch, old_log_probs):
        distribution = agent.distributions(params, minibatch)
        ratios = jnp.exp(distribution.log_prob(minibatch.actions) - old_log_probs)
        advantages = standardize(minibatch.advantages, minibatch.values)
        gains = gain(ratios, advantages, config.clip)
        return -jnp.mean(gains + config.entropy_coef * distribution.entropy())

    def step(key, step_input):
        old_params, batch = step_input.actor.policy_params, step_input.batch
        old_log_probs = agent.distributions(old_params, batch).log_prob(batch.actions)
        parts = Minibatches(
            (batch, old_log_probs), config.policy_minibatches, agent.policy.remembers
        )
        learning_rate = config.policy_lr * decay(config, step_input.num_updates, batch_size)

        def minibatch_step(carry, indices):
            params, moments = carry
            gradient = jax.grad(loss)(params, *parts.take(indices))
            updates, moments = optimizer.update(gradient, moments)
            return (optax.tree.add_scale(params, -learning_rate, updates), moments), None

        (params, moments), _ = jax.lax.scan(
            minibatch_step,
            (old_params, step_input.step_state),
            parts.shuffled(key, config.policy_epochs),
        )
        surrogate = reward_surrogate(config, batch)
        change = measure_change(
            lambda p: agent.distributions(p, batch), surrogate, old_params, params
        )
        return params, moments, change._asdict()

    return {"policy_step": step, "init_step_state": lambda key, params: optimizer.init(params)}
