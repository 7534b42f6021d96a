"""TRPO on return less price times cost, with a PID controller for the price.

Proportional and derivative terms damp the swings of a multiplier that only integrates the excess of
the cost, as a Lagrangian's does (Stooke et al. 2020, arXiv:2007.03964, algorithm 2).
"""

from typing import NamedTuple, no_type_check

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from trpo_jax.agent import Agent
from trpo_jax.algorithms import fields, trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.constrained import Constrained, Rule, make_priced
from trpo_jax.envs.base import Environment


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(Constrained, trpo.Config):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""

    pid_p: fields.Real = fields.real(0.1, "gain on the smoothed excess of the cost", 0.0)
    pid_i: fields.Real = fields.real(
        0.01, "gain on the sum of the excesses, which is never negative", 0.0
    )
    pid_d: fields.Real = fields.real(
        0.01, "gain on a rise of the smoothed excess since the last update", 0.0
    )
    pid_smoothing: fields.Real = fields.real(
        0.9, "weight of the past in the smoothed excess", 0.0, 1.0, open_high=True
    )


class PIDState(NamedTuple):
    """What the controller keeps; each array is `[K]`.

    Attributes:
        integral: sum of the excesses so far, never negative.
        smoothed: exponential mean of the excess.
        started: whether there was an excess yet, scalar.
    """

    integral: Float[Array, " K"]
    smoothed: Float[Array, " K"]
    started: Bool[Array, ""]


def pid_rule(config: Config) -> Rule:
    """Returns the rule lambda = max(0, K_P e + K_I sum max(0, .) + K_D max(0, rise of e)).

    The first excess starts the smoothed one, e.
    """

    def init(multiplier):
        return PIDState(multiplier, jnp.zeros_like(multiplier), jnp.zeros((), bool))

    def update(state, multiplier, excess):
        integral = jnp.maximum(state.integral + excess, 0.0)
        before = jnp.where(state.started, state.smoothed, excess)
        smoothed = config.pid_smoothing * before + (1 - config.pid_smoothing) * excess
        rise = jnp.maximum(smoothed - before, 0.0)
        terms = config.pid_p * smoothed + config.pid_i * integral + config.pid_d * rise
        return PIDState(integral, smoothed, jnp.ones((), bool)), jnp.maximum(terms, 0.0)

    return Rule(init, update)


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns TRPO with a PID controller of its multipliers; see `trpo.make`."""
    config = config or Config()
    return make_priced(env, config, agent, trpo.step_arguments, pid_rule(config))
