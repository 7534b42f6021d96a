"""Heterogeneous-agent TRPO (Kuba et al. 2022, arXiv:2109.11251, algorithm 3).

The agents of a team take the trust-region step of `trpo` one after another. The steps of the
earlier agents change the advantages of the later agents; see `trpo_jax.algorithms.team`. Each agent
has its own trust region: `max_kl` bounds the KL divergence of this agent's policy.
"""

from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.team import make_team_algorithm
from trpo_jax.envs.base import Environment

Config = configs.HATRPO


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns HATRPO on an environment with several agents; see `make_team_algorithm`.

    Examples:
        >>> env = trpo_jax.make_env("native/ClimbingGame")
        >>> config = trpo_jax.hatrpo.Config(max_kl=0.005, num_envs=4, num_steps=16)
        >>> algorithm = trpo_jax.hatrpo.make(env, config)
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> [bool(metrics[f"kl_agent_{index}"] <= 0.005) for index in range(env.num_agents)]
        [True, True]
    """
    return make_team_algorithm(env, config or Config(), agent, trpo.step_arguments)
