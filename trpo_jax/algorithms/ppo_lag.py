"""PPO on return less price times cost: the usual baseline of constrained algorithms."""

from typing import no_type_check

from flax import struct

from trpo_jax.agent import Agent
from trpo_jax.algorithms import on_policy, ppo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.constrained import priced, require_costs
from trpo_jax.algorithms.groups import prepare
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
    config, agent = prepare(env, config or Config(), agent)
    require_costs(env, config)
    step, init_step_state = ppo.policy_step(config, agent)
    arguments = priced(env, config, step, adam_rule(config), init_step_state)
    return on_policy.make(env, config, agent=agent, **arguments)
