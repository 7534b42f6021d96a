"""Multi-agent PPO (Yu et al. 2022, arXiv:2103.01955).

All agents of a team share one policy network, and one critic sees the whole team.
"""

from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, happo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.envs.base import Environment

Config = configs.MAPPO


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns MAPPO on an environment with several agents; see `make_team_algorithm`.

    Examples:
        >>> env = trpo_jax.make_env("native/ClimbingGame")
        >>> config = trpo_jax.mappo.Config(policy_epochs=2, policy_minibatches=4)
        >>> algorithm = trpo_jax.mappo.make(env, config.replace(num_envs=4, num_steps=16))
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> optax.tree.get(state.step_state, "count")  # steps of Adam of the shared policy
        Array(8, dtype=int32)
    """
    return happo.make(env, config or Config(), agent=agent)
