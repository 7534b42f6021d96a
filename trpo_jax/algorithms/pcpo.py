"""Projection-based constrained policy optimisation (Yang et al. 2020, arXiv:2010.03152).

TRPO's step first, then back to the nearest point of the half-plane that the limit allows.
"""

from typing import no_type_check

from flax import struct

from trpo_jax.agent import Agent
from trpo_jax.algorithms import cpo, fields
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.constraints import projected_step
from trpo_jax.envs.base import Environment


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(cpo.Config):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""

    projection: str = fields.choice(
        "kl",
        "metric that says which point is nearest: of the KL divergence, or of the parameters",
        ("kl", "l2"),
    )


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns PCPO on an environment with one cost; see `trpo.make`."""
    config = config or Config()
    by_kl = config.projection == "kl"
    solution = lambda gradient, plain, cost, max_kl: projected_step(gradient, plain, cost, by_kl)
    return cpo.make_limited(env, config, agent, solution)
