"""PPO of a team whose agents share one policy, with a critic for all: MAPPO (arXiv:2103.01955)."""

from typing import no_type_check

from flax import struct

from trpo_jax.agent import Agent
from trpo_jax.algorithms import fields, happo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.envs.base import Environment


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(happo.Config):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""

    share_parameters: bool = fields.flag(
        True, "let all agents act by one network, which is shown the number of the agent too"
    )


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns MAPPO (Yu et al. 2022) on the environment of a team; see `make_team_algorithm`."""
    return happo.make(env, config or Config(), agent=agent)
