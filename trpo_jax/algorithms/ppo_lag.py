"""PPO on return less price times cost: the usual baseline of constrained algorithms."""

from typing import no_type_check

from flax import struct

from trpo_jax.agent import Agent
from trpo_jax.algorithms import ppo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.constrained import make_priced
from trpo_jax.algorithms.trpo_lag import AdamPrice, adam_rule
from trpo_jax.envs.base import Environment


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(AdamPrice, ppo.Config):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns PPO with a Lagrangian on an environment with costs; see `trpo.make`."""
    config = config or Config()
    return make_priced(env, config, agent, ppo.step_arguments, adam_rule(config))
