"""The parts that algorithms with limits on costs share, above all the cost of an episode.

A limit is the largest cost of a whole episode, but advantages are about single steps. The length of
an episode connects them. If a step costs m on average and an episode has L steps, an episode costs
m L. The mean m uses all steps of the batch, also the steps of episodes that have not ended.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy
from trpo_jax.algorithms.base import Algorithm, Metrics
from trpo_jax.algorithms.checks import prepare
from trpo_jax.algorithms.on_policy import StepInput
from trpo_jax.envs.base import Environment, cost_metrics
from trpo_jax.envs.episodes import Transition
from trpo_jax.errors import ConfigurationError
from trpo_jax.rollout import episode_metrics

SHARE = 0.2  # weight of the latest batch in the running mean of the episode length


def require_costs(env: Environment, config: configs.Constrained, most: int | None = None) -> None:
    """Raises a ConfigurationError if the costs of an environment do not fit a config.

    Args:
        env: the environment.
        config: the config.
        most: largest number of costs that the algorithm can limit; None for any number.
    """
    if not env.costs:
        raise ConfigurationError(
            f"{env.name} has no costs, but this algorithm limits costs. Name a cost with --cost, "
            "such as --cost info:cost, choose an environment with costs, such as "
            "velocity/HalfCheetah, or choose trpo."
        )
    if most is not None and len(env.costs) > most:
        raise ConfigurationError(
            f"{env.name} has {len(env.costs)} costs ({', '.join(env.costs)}), but this algorithm "
            f"limits {most}. Choose trpo_lag, trpo_pid or ppo_lag. They limit any number of costs."
        )
    size = np.size(config.cost_limit)
    if np.ndim(config.cost_limit) and size != len(env.costs):
        raise ConfigurationError(
            f"cost_limit = {config.cost_limit!r} has {size} numbers, but {env.name} has "
            f"{len(env.costs)} costs: {', '.join(env.costs)}. Give one number for each cost, or "
            "one for all costs."
        )


class EpisodeCosts(NamedTuple):
    """Estimate of the costs of an episode.

    Attributes:
        length: running mean of the episode length, scalar; 0 until an episode has ended.
        steps: L, the episode length that `costs` uses, scalar.
        costs: m L of each cost, `[K]`.
        excess: `costs` minus their limits, `[K]`.
    """

    length: Float[Array, ""]
    steps: Float[Array, ""]
    costs: Float[Array, " K"]
    excess: Float[Array, " K"]


def episode_costs(
    env: Environment, config: configs.Constrained, length: Float[Array, ""], trajectory: Transition
) -> EpisodeCosts:
    """Returns the estimated costs of an episode; see the top of this file.

    Args:
        env: the environment.
        config: gives the limits.
        length: `EpisodeCosts.length` of the last update; 0 in the first update.
        trajectory: the trajectory of this update, `[T, B]`.
    """
    ended = episode_metrics(trajectory)
    share = jnp.where(length > 0, SHARE, 1.0)
    nearer = length + share * (ended["episode_length"] - length)
    length = jnp.where(ended["num_episodes"] > 0, nearer, length)
    # Until an episode has ended: the time limit, or the longest length so far if there is none.
    longest = jnp.max(trajectory.length) if env.time_limit is None else env.time_limit
    steps = jnp.where(length > 0, length, longest)
    costs = jnp.mean(trajectory.costs, axis=(0, 1)) * steps
    return EpisodeCosts(length, steps, costs, costs - jnp.asarray(config.cost_limit))


class PricedState(NamedTuple):
    """State that a step with multipliers keeps between updates.

    Attributes:
        length: see `EpisodeCosts`.
        multiplier: multiplier of each cost, `[K]`.
        rule: state of the rule that updates the multipliers.
        step: state of the policy's step.
    """

    length: Float[Array, ""]
    multiplier: Float[Array, " K"]
    rule: Any
    step: Any


class Rule(NamedTuple):
    """A rule that updates the multipliers from the excess of the costs.

    Attributes:
        init: `multipliers [K], all 0 -> state`.
        update: `(state, multipliers [K], excess [K]) -> (state, multipliers)`.
    """

    init: Callable[[Float[Array, " K"]], Any]
    update: Callable[[Any, Float[Array, " K"], Float[Array, " K"]], tuple[Any, Any]]


def make_priced(
    env: Environment,
    config: configs.Constrained,
    agent: Agent | None,
    step_arguments: Any,
    rule: Rule,
) -> Algorithm:
    """Returns an algorithm that subtracts the costs, times multipliers, from the return.

    The policy's step uses (A - sum_k lambda_k A_k) / (1 + sum_k lambda_k) as advantages. A is the
    advantage of the reward, A_k is the advantage of cost k, and lambda_k is its multiplier. This
    gives the gradient of the Lagrangian, return - lambda . cost. The unit of a multiplier is reward
    (after `scale_rewards`) per cost. Each update changes the multipliers before the policy's step.

    Args:
        env: the environment.
        config: the config.
        agent: policy, critic and exploration; made from the config if None.
        step_arguments: `(env, config, agent) -> arguments of on_policy.make` of an algorithm
            without limits, such as `trpo.step_arguments`.
        rule: updates the multipliers.

    Raises:
        ConfigurationError: if the value of a field cannot work, or the environment has no costs.
    """
    config, agent = prepare(env, config, agent)
    require_costs(env, config)
    plain = step_arguments(env, config, agent)
    init_plain = plain.get("init_step_state", lambda key, params: ())

    def init(key, params):
        start = jnp.zeros(len(env.costs))
        return PricedState(jnp.zeros(()), start, rule.init(start), init_plain(key, params))

    def step(key, step_input: StepInput):
        state: PricedState = step_input.step_state
        measured = episode_costs(env, config, state.length, step_input.trajectory)
        rule_state, multiplier = rule.update(state.rule, state.multiplier, measured.excess)
        batch = step_input.batch
        priced_costs = batch.cost_advantages @ multiplier
        advantages = (batch.advantages - priced_costs) / (1 + jnp.sum(multiplier))
        params, step_state, metrics = plain["policy_step"](
            key,
            step_input._replace(step_state=state.step, batch=batch._replace(advantages=advantages)),
        )
        metrics |= cost_figures(env, measured) | of_costs(env, "cost_multiplier", multiplier)
        state = PricedState(measured.length, multiplier, rule_state, step_state)
        return params, state, metrics

    return on_policy.make(
        env, config, agent=agent, policy_step=step, init_step_state=init, constrained=True
    )


def of_costs(env: Environment, metric: str, values: Sequence[Any] | Array) -> Metrics:
    """Returns one metric for each cost."""
    return dict(zip(cost_metrics(env.costs, metric), values, strict=True))


def cost_figures(env: Environment, measured: EpisodeCosts) -> Metrics:
    """Returns the metrics `cost_estimate`, and `cost_excess` (the estimate minus the limit)."""
    return of_costs(env, "cost_estimate", measured.costs) | of_costs(
        env, "cost_excess", measured.excess
    )
