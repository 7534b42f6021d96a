"""Natural policy gradient (Kakade 2001): TRPO's direction, without its line search.

Two lengths: the step normalised to `max_kl` under the quadratic model of the KL divergence
(Rajeswaran et al. 2017, arXiv:1703.02660, equation 5, whose delta is 2 max_kl), or a fixed multiple
of F^-1 g, Kakade's own.
"""

from typing import no_type_check

from flax import struct

from trpo_jax.advantages import standardize
from trpo_jax.algorithms import fields, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.groups import (
    Exploration,
    NaturalGradient,
    OnPolicy,
    decay,
    kl_radius,
    natural_gradient_options,
    validate,
)
from trpo_jax.algorithms.trpo import fisher_metric
from trpo_jax.envs.base import Environment
from trpo_jax.trust_region import (
    full_step,
    importance_sampled_surrogate,
    natural_step,
    surrogate_gradient,
)


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(NaturalGradient, Exploration, OnPolicy):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""

    normalized_step: bool = fields.flag(
        True, "end the step at max_kl, as a quadratic model sees it; else take step_size * F^-1 g"
    )
    step_size: float = fields.real(
        0.1, "length of the step where it is not normalised", 0.0, open_low=True
    )


def make(env: Environment, config: Config | None = None) -> Algorithm:
    """Returns natural policy gradient on an environment; see `trpo.make`."""
    config = Config() if config is None else config
    validate(env, config)
    behavior = on_policy.make_behavior(env, config)
    batch_size = config.num_envs * config.num_steps

    def policy_step(key, state, trajectory, batch):
        params = state.actor.policy_params
        distribution_fn = lambda p: behavior.apply(p, batch)
        surrogate = importance_sampled_surrogate(
            batch.actions, standardize(batch.advantages), config.entropy_coef
        )
        full = natural_step(
            surrogate_gradient(params, distribution_fn, surrogate),
            **fisher_metric(env, config, params, batch),
            max_kl=kl_radius(env, config, state.num_updates, batch_size),
            **natural_gradient_options(config),
            step_size=None
            if config.normalized_step
            else config.step_size * decay(config, state.num_updates, batch_size),
        )
        params, info = full_step(params, distribution_fn, surrogate, full)
        return params, state.memory, info._asdict()

    return on_policy.make(env, config, policy_step)
