"""Projection-based constrained policy optimisation (Yang et al. 2020, arXiv:2010.03152).

The policy takes TRPO's step. Then it is projected onto the half-plane that the limit allows: it
moves to the nearest point there.
"""

from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, cpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.constraints import projected_step
from trpo_jax.envs.base import Environment

Config = configs.PCPO


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns PCPO on an environment with one cost; see `trpo.make` for the arguments.

    Examples:
        >>> env = trpo_jax.make_env("native/TollRoad")
        >>> config = trpo_jax.pcpo.Config(projection="l2", num_envs=4, num_steps=16)
        >>> algorithm = trpo_jax.pcpo.make(env, config.replace(cost_limit=2.0))
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> bool(metrics["cost_active"])
        True
    """
    config = config or Config()
    by_kl = config.projection == "kl"
    solution = lambda gradient, plain, cost, max_kl: projected_step(gradient, plain, cost, by_kl)
    return cpo.make_limited(env, config, agent, solution)
