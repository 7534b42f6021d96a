"""Heterogeneous-agent PPO (Kuba et al. 2022, arXiv:2109.11251, algorithm 4).

The agents of a team run the epochs of `ppo` one after another. The steps of the earlier agents
change the advantages of the later agents; see `trpo_jax.algorithms.team`.
"""

from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, ppo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.team import make_team_algorithm
from trpo_jax.envs.base import Environment

Config = configs.HAPPO


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns HAPPO on an environment with several agents; see `make_team_algorithm`.

    Examples:
        >>> env = trpo_jax.make_env("native/ClimbingGame")
        >>> config = trpo_jax.happo.Config(policy_epochs=2, policy_minibatches=4)
        >>> algorithm = trpo_jax.happo.make(env, config.replace(num_envs=4, num_steps=16))
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> optax.tree.get(state.step_state, "count")  # steps of Adam of each agent
        Array([8, 8], dtype=int32)
    """
    return make_team_algorithm(env, config or Config(), agent, ppo.step_arguments)
