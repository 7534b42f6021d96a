"""The parts that the adapters for teams share: rows of one shape, and one reward for the team."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from trpo_jax.envs.specs import Agents, Box, Discrete, MultiDiscrete
from trpo_jax.errors import ConfigurationError

STATE = "state"  # part of an observation that only the critic sees
# Tasks of MPE. Several suites have them.
MPE_COOPERATIVE = ("simple_v3", "simple_spread_v3", "simple_reference_v3")
MPE_COOPERATIVE += ("simple_speaker_listener_v4",)
MPE_COMPETING = {
    "simple_tag_v3": "adversaries chase the others",
    "simple_world_comm_v3": "adversaries chase the others",
    "simple_crypto_v3": "one agent listens in on the others",
    "simple_push_v3": "an adversary keeps the other from its goal",
    "simple_adversary_v3": "an adversary looks for the goal of the others",
}
REWARDS = {
    "sum": lambda rewards: sum(rewards),
    "mean": lambda rewards: sum(rewards) / len(rewards),
    "same": lambda rewards: rewards[0],
}


def row_shape(name: str, what: str, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the shape of a row that holds the array of each agent.

    Args:
        name: the name of the environment, for messages.
        what: what the arrays are, for messages.
        shapes: the shape of the array of each agent.

    Raises:
        ConfigurationError: if the shapes differ, and an array has several axes.
    """
    distinct = sorted(set(map(tuple, shapes)))
    if len(distinct) == 1:
        return distinct[0]
    if any(len(shape) > 1 for shape in distinct):
        raise ConfigurationError(
            f"Environment {name!r} gives its agents {what} of different shapes: "
            f"{', '.join(map(str, distinct))}. Only arrays of one axis can be padded to one shape. "
            "Flatten them, or give them one shape, in a wrapper."
        )
    return (max(shape[0] if shape else 1 for shape in distinct),)


def stacked(shape: tuple[int, ...], arrays: Sequence[Any], numpy: Any = jnp) -> Any:
    """Returns arrays as rows `[N, *shape]`. Shorter arrays are padded with zeros."""

    def row(x):
        x = numpy.asarray(x)
        return x if x.shape == shape else numpy.pad(x.ravel(), (0, shape[0] - x.size))

    return numpy.stack([row(x) for x in arrays])


def own_actions(action: Agents, rows: Any) -> list[Any]:
    """Returns the action of each agent, in the shape of its own space.

    Args:
        action: the spec of the actions of the team.
        rows: the result of `to_environment_action`, `[N]` or `[N, D]`.
    """

    def own(spec: Discrete | MultiDiscrete | Box, row: Any) -> Any:
        if isinstance(spec, Discrete):
            return row if row.ndim == 0 else row[0]
        shape = spec.low.shape if isinstance(spec, Box) else spec.shape
        return row[: spec.size].reshape(shape)

    return [own(spec, rows[index]) for index, spec in enumerate(action.each)]


def team_reward(
    name: str, rewards: str | None, cooperative: Mapping[str, str], competing: Mapping[str, str]
) -> str:
    """Returns how to compute the reward of the team from the rewards of the agents.

    The result is a key of `REWARDS`.

    Args:
        name: the name of the environment in its suite.
        rewards: the choice of the user. None if the user made no choice.
        cooperative: the key for each environment whose agents work together.
        competing: for each environment whose agents compete, how they compete.

    Raises:
        ConfigurationError: if the user made no choice, and the agents compete or are not known.
    """
    allowed = f"rewards = {' or '.join(REWARDS)} (--env-arg rewards=sum)"
    if rewards is not None:
        if rewards not in REWARDS:
            raise ConfigurationError(
                f"rewards = {rewards!r} is not allowed for {name}. Choose {allowed}."
            )
        return rewards
    if name in cooperative:
        return cooperative[name]
    if name in competing:
        raise ConfigurationError(
            f"The agents of {name} compete: {competing[name]}. The algorithms here train one team "
            f"with one reward. These environments work: {', '.join(sorted(cooperative))}."
        )
    raise ConfigurationError(
        f"The library does not know whether the agents of {name} work together. If they are one "
        f"team, say how to compute its reward from the rewards of the agents: {allowed}. The value "
        "same takes the reward of the first agent. Agents that compete are not supported."
    )
