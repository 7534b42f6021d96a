"""What every algorithm looks like from outside, and how every policy sees an observation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment
from trpo_jax.envs.episodes import Episode, Transition
from trpo_jax.networks import Network
from trpo_jax.normalization import RunningStatistics, normalize

State = Any  # an immutable pytree that holds the whole run; it has a field `actor`
Metrics = dict[str, Float[Array, ""]]


class Actor(NamedTuple):
    """All that acting needs.

    Attributes:
        policy_params: parameters of the policy network.
        observation_statistics: what observations are standardised by.
    """

    policy_params: PyTree[Array]
    observation_statistics: RunningStatistics


class Algorithm(NamedTuple):
    """A learning algorithm as pure functions; each can be jitted, vmapped and scanned.

    Attributes:
        env: the environment it is on.
        init: `key -> state`.
        update: `state -> (state, metrics)`, which is `learn` after `collect`.
        collect: `state -> (state, trajectory [T, B])`.
        begin: `state -> (key, memory)` that a rollout starts from.
        act: `(state.actor, key, episodes [B], memory) -> (actions, context, memory)`, one step of a
            rollout; `begin` and `act` are `collect` for environments that run on the host.
        learn: `(state, trajectory) -> (state, metrics)`: `improve`, then `fit`.
        improve: `(state, trajectory) -> (state, lesson, metrics)`: all but the critic's fit, and so
            all that the next rollout waits for.
        fit: `(state.critic, lesson) -> (state.critic, metrics)`.
        policy: `(state.actor, observations [*batch, ...]) -> action distribution`, for
            observations as the environment shows them.
        steps_per_update: environment steps in one update.
    """

    env: Environment
    init: Callable[[PRNGKeyArray], State]
    update: Callable[[State], tuple[State, Metrics]]
    collect: Callable[[State], tuple[State, Transition]]
    begin: Callable[[State], tuple[PRNGKeyArray, Any]]
    act: Callable[[Actor, PRNGKeyArray, Episode, Any], tuple[Num[Array, "B ..."], Any, Any]]
    learn: Callable[[State, Transition], tuple[State, Metrics]]
    improve: Callable[[State, Transition], tuple[State, Any, Metrics]]
    fit: Callable[[Any, Any], tuple[Any, Metrics]]
    policy: Callable[[Actor, Num[Array, "..."]], Distribution]
    steps_per_update: int


def observe(
    statistics: RunningStatistics, observations: Num[Array, "..."], normalized: bool
) -> Float[Array, "..."]:
    """Returns observations as networks see them: float32, and standardised if `normalized`.

    If not, bytes, which is what pixels come as, become fractions of 255.
    """
    if normalized:
        return normalize(statistics, observations)
    seen = observations.astype(jnp.float32)
    return seen / 255 if observations.dtype == jnp.uint8 else seen


def make_acting(
    network: Network, normalized: bool
) -> Callable[[Actor, Num[Array, "..."]], Distribution]:
    """Returns the function `(actor, observations) -> action distribution` of a policy network."""

    def policy(actor: Actor, observations: Num[Array, "..."]) -> Distribution:
        seen = observe(actor.observation_statistics, observations, normalized)
        return network.apply(actor.policy_params, seen)

    return policy
