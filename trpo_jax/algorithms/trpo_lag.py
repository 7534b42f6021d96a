"""TRPO on return less price times cost, whose price Adam raises while a limit is exceeded.

The multiplier is the dual variable of the limit (Ray, Achiam and Amodei 2019, "Benchmarking safe
exploration in deep reinforcement learning", section 5): it ascends the excess of the cost, and is
never negative.
"""

from typing import no_type_check

import jax.numpy as jnp
import optax
from flax import struct

from trpo_jax.agent import Agent
from trpo_jax.algorithms import fields, trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.constrained import Constrained, Rule, make_priced
from trpo_jax.envs.base import Environment


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class AdamPrice(Constrained):
    """The multipliers of a Lagrangian."""

    multiplier_lr: fields.Real = fields.real(0.035, "step size of Adam for the multipliers", 0.0)


@no_type_check
@struct.dataclass
class Config(AdamPrice, trpo.Config):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""


def adam_rule(config: AdamPrice) -> Rule:
    """Returns the rule by which multipliers climb the excess of their costs."""
    adam = optax.scale_by_adam()

    def update(state, multiplier, excess):
        ascent, state = adam.update(excess, state)
        return state, jnp.maximum(multiplier + config.multiplier_lr * ascent, 0.0)

    return Rule(adam.init, update)


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns TRPO with a Lagrangian on an environment with costs; see `trpo.make`."""
    config = config or Config()
    return make_priced(env, config, agent, trpo.step_arguments, adam_rule(config))
