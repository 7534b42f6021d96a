"""Constrained policy optimisation (Achiam et al. 2017, arXiv:1705.10528), with one limit.

Each step maximises the surrogate inside the trust region and a half-plane that the limit gives. The
solution is exact; see `trpo_jax.constraints`. The gradient of a cost is noisy, so a step lowers the
cost by less than predicted, and the cost may stay above its limit. A margin below the limit, which
grows as long as the cost is too high, corrects this (Ray, Achiam and Amodei 2019, "Benchmarking
safe exploration in deep reinforcement learning", appendix A). The paper of CPO has no margin.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.checks import prepare
from trpo_jax.algorithms.constrained import cost_figures, episode_costs, require_costs
from trpo_jax.algorithms.natural_gradient import (
    kl_radius,
    line_search_options,
    make_solve,
    require_solver,
    total_damping,
)
from trpo_jax.algorithms.on_policy import reward_surrogate
from trpo_jax.constraints import CostSide, constrained_step, cost_acceptance, cost_surrogate
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError
from trpo_jax.trust_region import natural_step, search_along, surrogate_gradient

Config = configs.CPO


class LimitState(NamedTuple):
    """State that a step with a limit keeps between updates; scalars.

    Attributes:
        length: see `EpisodeCosts`.
        margin: number that is subtracted from the limit, at least 0.
    """

    length: Float[Array, ""]
    margin: Float[Array, ""]


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns CPO on an environment with one cost; see `trpo.make` for the arguments.

    Examples:
        >>> env = trpo_jax.make_env("native/TollRoad")
        >>> config = trpo_jax.cpo.Config(cost_limit=2.0, num_envs=4, num_steps=16)
        >>> algorithm = trpo_jax.cpo.make(env, config)
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> bool(metrics["cost_estimate"] > 2), bool(metrics["cost_active"])
        (True, True)
    """
    return make_limited(env, config or Config(), agent, constrained_step)


def make_limited(env: Environment, config: Any, agent: Agent | None, solution: Any) -> Algorithm:
    """Returns an algorithm whose step respects a half-plane that the limit on the cost gives.

    Args:
        env: the environment.
        config: has the fields of `Config`.
        agent: policy, critic and exploration; made from the config if None.
        solution: `(gradient, plain step, CostSide, max_kl) -> ConstrainedStep`.

    Raises:
        ConfigurationError: if the value of a field cannot work, or the environment has no cost or
            several costs.
    """
    config, agent = prepare(env, config, agent)
    require_costs(env, config, most=1)
    require_solver(env, config, agent)
    if not config.damped_scaling:
        raise ConfigurationError(
            "damped_scaling = False cannot work with a limit on a cost: the step that keeps the "
            "limit is computed with the damped Fisher matrix. Leave damped_scaling out."
        )
    if not (isinstance(config.kl_penalty, float | int) and config.kl_penalty == 0):
        raise ConfigurationError(
            "kl_penalty cannot work here: the step that keeps the limit of a cost ends at the edge "
            "of the trust region. Leave kl_penalty out."
        )
    batch_size = config.num_envs * config.num_steps

    def policy_step(key, step_input):
        params, batch = step_input.actor.policy_params, step_input.batch
        length, margin = step_input.step_state
        measured = episode_costs(env, config, length, step_input.trajectory)
        margin = jnp.maximum(margin + config.cost_margin_rate * measured.excess[0], 0.0)
        max_kl = kl_radius(env, config, step_input.num_updates, batch_size)
        distribution_fn = lambda p: agent.distributions(p, batch)
        surrogate = reward_surrogate(config, batch)
        of_cost = cost_surrogate(batch.actions, batch.cost_advantages[..., 0])
        solve = make_solve(env, config, agent, key, params, batch)
        gradient, cost_gradient = (
            surrogate_gradient(params, distribution_fn, x) for x in (surrogate, of_cost)
        )
        plain = natural_step(gradient, solve, max_kl=max_kl, damping=total_damping(env, config))
        excess = (measured.excess[0] + margin) / measured.steps  # per step, like the surrogates
        cost = CostSide(cost_gradient, solve(cost_gradient).x, excess)
        found = solution(gradient, plain, cost, max_kl)
        params, info = search_along(
            params,
            distribution_fn,
            surrogate,
            found.step,
            max_kl=max_kl,
            **line_search_options(config),
            acceptance=cost_acceptance(surrogate, of_cost, excess),
        )
        flags = {
            "cost_active": found.active,
            "cost_recovery": found.recovery,
            "cost_margin": margin,
        }
        return (
            params,
            LimitState(measured.length, margin),
            info._asdict() | cost_figures(env, measured) | flags,
        )

    return on_policy.make(
        env,
        config,
        agent=agent,
        policy_step=policy_step,
        init_step_state=lambda key, params: LimitState(jnp.zeros(()), jnp.zeros(())),
        constrained=True,
    )
