"""What algorithms with limits on costs share: their fields, and the cost of an episode.

Advantages are means over steps, and a limit is a sum over an episode. The two meet in the length of
an episode: with a mean cost of m for a step and L steps in an episode, an episode costs m L. That
takes the costs of the whole batch, also of episodes that have not ended.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, no_type_check

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from trpo_jax.agent import Agent
from trpo_jax.algorithms import fields, on_policy
from trpo_jax.algorithms.base import Algorithm, Metrics
from trpo_jax.algorithms.groups import prepare
from trpo_jax.algorithms.on_policy import StepInput
from trpo_jax.envs.base import Environment, cost_metrics
from trpo_jax.envs.episodes import Transition
from trpo_jax.errors import ConfigurationError

SHARE = 0.2  # of the latest episodes in the running mean of their length


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Constrained:
    """Limits on costs."""

    cost_limit: fields.Real | tuple[float, ...] = fields.real(
        25.0,
        "what an episode may cost, undiscounted; one number for each cost, or one for all",
        several=True,
    )
    cost_gamma: fields.Real = fields.real(0.99, "discount of future costs", 0.0, 1.0)


def require_costs(env: Environment, config: Constrained, most: int | None = None) -> None:
    """Raises a ConfigurationError if the costs of an environment do not fit a config.

    Args:
        env: the environment.
        config: the config.
        most: number of costs that the algorithm can serve; None for any.
    """
    if not env.costs:
        raise ConfigurationError(
            f"{env.name} has no costs, and this algorithm limits costs. Name a cost with --cost, "
            "such as --cost info:cost, choose an environment with costs, such as "
            "velocity/HalfCheetah, or choose trpo."
        )
    if most is not None and len(env.costs) > most:
        raise ConfigurationError(
            f"{env.name} has {len(env.costs)} costs ({', '.join(env.costs)}), and this algorithm "
            f"limits {most}. Choose trpo_lag, trpo_pid or ppo_lag, which limit any number."
        )
    size = np.size(config.cost_limit)
    if np.ndim(config.cost_limit) and size != len(env.costs):
        raise ConfigurationError(
            f"cost_limit = {config.cost_limit!r} has {size} numbers, and the costs of {env.name} "
            f"are {', '.join(env.costs)}. Give one number for each cost, or one for all."
        )


class EpisodeCosts(NamedTuple):
    """What an episode costs, as a batch shows it.

    Attributes:
        length: running mean of the lengths of episodes, scalar; 0 before the first one has ended.
        steps: L, the length that the costs below are of, scalar.
        costs: m L of each cost, `[K]`.
        excess: costs less their limits, `[K]`.
    """

    length: Float[Array, ""]
    steps: Float[Array, ""]
    costs: Float[Array, " K"]
    excess: Float[Array, " K"]


def episode_costs(
    env: Environment, config: Constrained, length: Float[Array, ""], trajectory: Transition
) -> EpisodeCosts:
    """Returns what an episode costs; see the top of this file.

    Args:
        env: the environment.
        config: with the limits.
        length: of the `EpisodeCosts` of the batch before; 0 at the start.
        trajectory: `[T, B]`.
    """
    done = trajectory.done & trajectory.whole
    count = jnp.sum(done)
    mean = jnp.sum(jnp.where(done, trajectory.length, 0)) / jnp.maximum(count, 1)
    share = jnp.where(length > 0, SHARE, 1.0)
    length = jnp.where(count > 0, length + share * (mean - length), length)
    # Before an episode has ended: the time limit, or as long as the longest one has been.
    longest = jnp.max(trajectory.length) if env.time_limit is None else env.time_limit
    steps = jnp.where(length > 0, length, longest)
    costs = jnp.mean(trajectory.costs, axis=(0, 1)) * steps
    return EpisodeCosts(length, steps, costs, costs - jnp.asarray(config.cost_limit))


def cost_names(env: Environment, metric: str) -> tuple[str, ...]:
    """Returns the names of a metric of each cost: its own for one, with the cost's for several."""
    return cost_metrics(env.costs, metric)


class PricedState(NamedTuple):
    """What a priced step keeps from update to update.

    Attributes:
        length: see `EpisodeCosts`.
        multiplier: of each cost, `[K]`.
        rule: what the rule of the multipliers keeps.
        step: what the policy's step keeps.
    """

    length: Float[Array, ""]
    multiplier: Float[Array, " K"]
    rule: Any
    step: Any


class Rule(NamedTuple):
    """How multipliers follow the costs.

    Attributes:
        init: `multipliers [K], all 0 -> state`.
        update: `(state, multipliers [K], excess [K]) -> (state, multipliers)`.
    """

    init: Callable[[Float[Array, " K"]], Any]
    update: Callable[[Any, Float[Array, " K"], Float[Array, " K"]], tuple[Any, Any]]


def make_priced(
    env: Environment, config: Constrained, agent: Agent | None, step_arguments: Any, rule: Rule
) -> Algorithm:
    """Returns the algorithm with the policy's step of a Lagrangian.

    The step sees (A - sum_k lambda_k A_k) / (1 + sum_k lambda_k) in place of the advantages A of
    the reward, with A_k those of cost k and lambda_k its multiplier: the gradient of return less
    lambda . cost. Multipliers are in units of reward, as `scale_rewards` leaves it, for each unit
    of cost. They follow the costs before the policy's step.

    Args:
        env: the environment.
        config: the config.
        agent: what acts and what judges; what the config describes if None.
        step_arguments: `(env, config, agent) -> arguments of on_policy.make` of an algorithm
            without limits, such as `trpo.step_arguments`.
        rule: how multipliers follow the costs.

    Raises:
        ConfigurationError: if a field's value cannot work, or the environment has no costs.
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
    """Returns a metric of each cost."""
    return dict(zip(cost_names(env, metric), values, strict=True))


def cost_figures(env: Environment, measured: EpisodeCosts) -> Metrics:
    """Returns the metrics of the cost of an episode: the estimate, and how far it is above."""
    return of_costs(env, "cost_estimate", measured.costs) | of_costs(
        env, "cost_excess", measured.excess
    )
