"""PPO with a Lagrangian: PPO on the return minus multipliers times costs.

This is the usual baseline of constrained algorithms; see `trpo_jax.algorithms.trpo_lag`.
"""

from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, ppo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.constrained import make_priced
from trpo_jax.algorithms.trpo_lag import adam_rule
from trpo_jax.envs.base import Environment

Config = configs.PPOLag


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns PPO with a Lagrangian on an environment with costs; see `trpo.make`.

    Examples:
        >>> env = trpo_jax.make_env("native/TollRoad")
        >>> config = trpo_jax.ppo_lag.Config(cost_limit=2.0, num_envs=4, num_steps=16)
        >>> algorithm = trpo_jax.ppo_lag.make(env, config)
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> print(f"{metrics['cost_multiplier']:.3f}")
        0.035
    """
    config = config or Config()
    return make_priced(env, config, agent, ppo.step_arguments, adam_rule(config))
