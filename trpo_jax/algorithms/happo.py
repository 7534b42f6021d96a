"""Heterogeneous-agent PPO (Kuba et al. 2022, arXiv:2109.11251, algorithm 4).

Each agent of a team takes the epochs of `ppo` in its turn, at the advantages that the steps of the
agents before it leave; see `trpo_jax.algorithms.team`.
"""

from typing import no_type_check

from flax import struct

from trpo_jax.agent import Agent
from trpo_jax.algorithms import ppo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.groups import OnPolicy, Team
from trpo_jax.algorithms.team import make_team_algorithm
from trpo_jax.envs.base import Environment


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(Team, ppo.Proximal, OnPolicy):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns HAPPO on the environment of a team; see `make_team_algorithm`."""
    return make_team_algorithm(env, config or Config(), agent, ppo.step_arguments)
