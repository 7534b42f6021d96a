"""TRPO with a PID controller for the multipliers of the costs.

The multiplier of a plain Lagrangian integrates the excess of the cost over its limit, so it swings.
The proportional and derivative terms of the controller damp these swings (Stooke et al. 2020,
arXiv:2007.03964, algorithm 2).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.constrained import Rule, make_priced
from trpo_jax.envs.base import Environment

Config = configs.TRPOPID


class PIDState(NamedTuple):
    """State of the controller; arrays are `[K]`.

    Attributes:
        integral: sum of the excesses so far, never negative.
        smoothed: exponential moving average of the excess.
        started: whether the controller has seen an excess, scalar.
    """

    integral: Float[Array, " K"]
    smoothed: Float[Array, " K"]
    started: Bool[Array, ""]


def pid_rule(config: Config) -> Rule:
    """Returns the rule lambda = max(0, K_P e + K_I sum max(0, .) + K_D max(0, rise of e)).

    Here e is the exponential moving average of the excess. It starts at the first excess.
    """

    def init(multiplier):
        return PIDState(multiplier, jnp.zeros_like(multiplier), jnp.zeros((), bool))

    def update(state, multiplier, excess):
        integral = jnp.maximum(state.integral + excess, 0.0)
        before = jnp.where(state.started, state.smoothed, excess)
        smoothed = config.pid_smoothing * before + (1 - config.pid_smoothing) * excess
        rise = jnp.maximum(smoothed - before, 0.0)
        terms = config.pid_p * smoothed + config.pid_i * integral + config.pid_d * rise
        return PIDState(integral, smoothed, jnp.ones((), bool)), jnp.maximum(terms, 0.0)

    return Rule(init, update)


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns TRPO with a PID controller for its multipliers; see `trpo.make`.

    Examples:
        >>> env = trpo_jax.make_env("native/TollRoad")
        >>> config = trpo_jax.trpo_pid.Config(cost_limit=2.0, num_envs=4, num_steps=16)
        >>> algorithm = trpo_jax.trpo_pid.make(env, config.replace(pid_p=0.1, pid_i=0.0))
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> bool(jnp.isclose(metrics["cost_multiplier"], 0.1 * metrics["cost_excess"]))
        True
    """
    config = config or Config()
    return make_priced(env, config, agent, trpo.step_arguments, pid_rule(config))
