"""Heterogeneous-agent TRPO (Kuba et al. 2022, arXiv:2109.11251, algorithm 3).

Each agent of a team takes the trust-region step of `trpo` in its turn, at the advantages that the
steps of the agents before it leave; see `trpo_jax.algorithms.team`. A KL divergence is that of the
whole distribution of an agent, and each agent has a trust region of its own.
"""

from typing import no_type_check

from flax import struct

from trpo_jax.agent import Agent
from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.groups import OnPolicy, Team, TrustRegion
from trpo_jax.algorithms.team import make_team_algorithm
from trpo_jax.envs.base import Environment


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(Team, TrustRegion, OnPolicy):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns HATRPO on the environment of a team; see `make_team_algorithm`.

    Example:
        >>> env = envs.make("jaxmarl/MPE_simple_spread_v3")
        >>> algorithm = make(env, Config(max_kl=0.005))
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
    """
    return make_team_algorithm(env, config or Config(), agent, trpo.step_arguments)
