"""Constrained policy optimisation (Achiam et al. 2017, arXiv:1705.10528), with one limit.

Each step solves a program with a trust region and a half-plane exactly; see `trpo_jax.constraints`.
Gradients of a cost are noisy, so that a step lowers the cost by less than it predicts, and the cost
may stay above its limit. A margin that grows meanwhile brings it back (Ray, Achiam and Amodei 2019,
"Benchmarking safe exploration in deep reinforcement learning", appendix A); the paper has none.
"""

from typing import Any, NamedTuple, no_type_check

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from trpo_jax.advantages import standardize
from trpo_jax.agent import Agent
from trpo_jax.algorithms import fields, on_policy, trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.constrained import (
    Constrained,
    cost_figures,
    episode_costs,
    require_costs,
)
from trpo_jax.algorithms.groups import prepare
from trpo_jax.algorithms.natural_gradient import (
    kl_radius,
    line_search_options,
    make_solve,
    require_solver,
)
from trpo_jax.constraints import CostSide, constrained_step, cost_acceptance, cost_surrogate
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError
from trpo_jax.trust_region import (
    importance_sampled_surrogate,
    natural_step,
    search_along,
    surrogate_gradient,
)


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(Constrained, trpo.Config):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""

    cost_margin_rate: fields.Real = fields.real(
        0.0,
        "share of the excess of the cost by which each update moves a margin, which is taken off "
        "the limit and never negative; 0 for no margin",
        0.0,
    )


class LimitState(NamedTuple):
    """What a limited step keeps from update to update; scalars.

    Attributes:
        length: see `EpisodeCosts`.
        margin: what is taken off the limit.
    """

    length: Float[Array, ""]
    margin: Float[Array, ""]


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns CPO on an environment with one cost; see `trpo.make`."""
    solution = lambda gradient, plain, cost, max_kl: constrained_step(gradient, plain, cost, max_kl)
    return make_limited(env, config or Config(), agent, solution)


def make_limited(env: Environment, config: Any, agent: Agent | None, solution: Any) -> Algorithm:
    """Returns the algorithm whose steps are solutions of a program with a half-plane.

    Args:
        env: the environment.
        config: with the fields of `Config`.
        agent: what acts and what judges; what the config describes if None.
        solution: `(gradient, plain step, CostSide, max_kl) -> ConstrainedStep`.

    Raises:
        ConfigurationError: if a field's value cannot work, or the environment has not one cost.
    """
    config, agent = prepare(env, config, agent)
    require_costs(env, config, most=1)
    require_solver(env, config, agent)
    if not config.damped_scaling:
        raise ConfigurationError(
            "damped_scaling = False cannot work with a limit: the half-plane and the region are "
            "seen in the metric of the solve, which is damped. Leave it away."
        )
    batch_size = config.num_envs * config.num_steps

    def policy_step(key, step_input):
        params, batch = step_input.actor.policy_params, step_input.batch
        length, margin = step_input.step_state
        measured = episode_costs(env, config, length, step_input.trajectory)
        margin = jnp.maximum(margin + config.cost_margin_rate * measured.excess[0], 0.0)
        max_kl = kl_radius(env, config, step_input.num_updates, batch_size)
        distribution_fn = lambda p: agent.distributions(p, batch)
        surrogate = importance_sampled_surrogate(
            batch.actions, standardize(batch.advantages, batch.values), config.entropy_coef
        )
        of_cost = cost_surrogate(batch.actions, batch.cost_advantages[..., 0])
        solve = make_solve(config, agent, key, params, batch)
        gradient, cost_gradient = (
            surrogate_gradient(params, distribution_fn, x) for x in (surrogate, of_cost)
        )
        plain = natural_step(gradient, solve, max_kl=max_kl, damping=config.damping)
        excess = (measured.excess[0] + margin) / measured.steps  # of a step, as surrogates are
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
