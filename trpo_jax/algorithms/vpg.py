"""Vanilla policy gradient: REINFORCE (Williams 1992) with a critic and Adam.

One step of Adam for each batch, along the plain gradient that TRPO preconditions.
"""

from typing import no_type_check

import optax
from flax import struct

from trpo_jax.advantages import standardize
from trpo_jax.algorithms import fields, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.groups import Exploration, OnPolicy, decay, validate
from trpo_jax.envs.base import Environment
from trpo_jax.trust_region import (
    importance_sampled_surrogate,
    measure_change,
    surrogate_gradient,
)


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(Exploration, OnPolicy):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""

    policy_lr: float = fields.real(1e-2, "step size of Adam for the policy", 0.0)


def make(env: Environment, config: Config | None = None) -> Algorithm:
    """Returns the vanilla policy gradient on an environment; see `trpo.make`."""
    config = Config() if config is None else config
    validate(env, config)
    behavior = on_policy.make_behavior(env, config)
    batch_size = config.num_envs * config.num_steps
    optimizer = optax.adam(config.policy_lr)

    def policy_step(key, state, trajectory, batch):
        params = state.actor.policy_params
        distribution_fn = lambda p: behavior.apply(p, batch)
        surrogate = importance_sampled_surrogate(
            batch.actions, standardize(batch.advantages), config.entropy_coef
        )
        gradient = surrogate_gradient(params, distribution_fn, surrogate)
        updates, moments = optimizer.update(optax.tree.scale(-1.0, gradient), state.memory)
        shortened = optax.tree.scale(decay(config, state.num_updates, batch_size), updates)
        new_params = optax.apply_updates(params, shortened)
        change = measure_change(distribution_fn, surrogate, params, new_params)
        return new_params, moments, change._asdict()

    return on_policy.make(env, config, policy_step, init_memory=optimizer.init)
