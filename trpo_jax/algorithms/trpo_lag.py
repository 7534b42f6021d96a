"""TRPO with a Lagrangian: TRPO on the return minus multipliers times costs.

A multiplier is the dual variable of a limit (Ray, Achiam and Amodei 2019, "Benchmarking safe
exploration in deep reinforcement learning", section 5). Adam raises the multiplier while the cost
is above its limit, and lowers it while the cost is below. It is never negative.
"""

import jax.numpy as jnp
import optax

from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.constrained import Rule, make_priced
from trpo_jax.envs.base import Environment

Config = configs.TRPOLag


def adam_rule(config: configs.AdamPrice) -> Rule:
    """Returns the rule that moves multipliers by Adam along the excess of their costs."""
    adam = optax.scale_by_adam()

    def update(state, multiplier, excess):
        ascent, state = adam.update(excess, state)
        return state, jnp.maximum(multiplier + config.multiplier_lr * ascent, 0.0)

    return Rule(adam.init, update)


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns TRPO with a Lagrangian on an environment with costs; see `trpo.make`.

    Examples:
        >>> env = trpo_jax.make_env("native/TollRoad")
        >>> config = trpo_jax.trpo_lag.Config(cost_limit=2.0, num_envs=4, num_steps=16)
        >>> algorithm = trpo_jax.trpo_lag.make(env, config.replace(multiplier_lr=0.05))
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> print(f"{metrics['cost_multiplier']:.3f}")
        0.050
    """
    config = config or Config()
    return make_priced(env, config, agent, trpo.step_arguments, adam_rule(config))
