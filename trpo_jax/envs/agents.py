"""What adapters of several agents share: rows of one form, and one reward for the team."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from trpo_jax.envs.base import Agents, Box, Discrete, MultiDiscrete
from trpo_jax.errors import ConfigurationError

STATE = "state"  # part of an observation that only the critic sees
# Tasks of MPE, which several suites have.
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
        name: of the environment, for messages.
        what: the arrays are, likewise.
        shapes: of the array of each agent.

    Raises:
        ConfigurationError: if arrays of several axes differ in shape.
    """
    distinct = sorted(set(map(tuple, shapes)))
    if len(distinct) == 1:
        return distinct[0]
    if any(len(shape) > 1 for shape in distinct):
        raise ConfigurationError(
            f"Environment {name!r} shows its agents {what} of the shapes "
            f"{', '.join(map(str, distinct))}. Only arrays of one axis can be padded to one shape. "
            "Flatten them, or make them of one shape, in a wrapper."
        )
    return (max(shape[0] if shape else 1 for shape in distinct),)


def stacked(shape: tuple[int, ...], arrays: Sequence[Any], numpy: Any = jnp) -> Any:
    """Returns the rows `[N, *shape]` of arrays, padded with zeros where one is shorter."""

    def row(x):
        x = numpy.asarray(x)
        return x if x.shape == shape else numpy.pad(x.ravel(), (0, shape[0] - x.size))

    return numpy.stack([row(x) for x in arrays])


def own_actions(action: Agents, rows: Any) -> list[Any]:
    """Returns the action of each agent, in the shape of its own space.

    Args:
        action: the actions of the team.
        rows: what `to_environment_action` gives, `[N]` or `[N, D]`.
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
    """Returns how the rewards of the agents make the reward of the team, a key of `REWARDS`.

    Args:
        name: the environment's own name.
        rewards: what the user says; None for nothing.
        cooperative: how, by the names of the environments in which agents work together.
        competing: why they do not, by the names of the others.

    Raises:
        ConfigurationError: if the agents compete, or nothing is known of them.
    """
    allowed = f"rewards = {' or '.join(REWARDS)} (--env-arg rewards=sum)"
    if rewards is not None:
        if rewards not in REWARDS:
            raise ConfigurationError(
                f"rewards = {rewards!r} cannot work with {name}. Choose {allowed}."
            )
        return rewards
    if name in cooperative:
        return cooperative[name]
    if name in competing:
        raise ConfigurationError(
            f"The agents of {name} compete: {competing[name]}. Algorithms here learn for one team "
            f"with one reward. Supported as it is: {', '.join(sorted(cooperative))}."
        )
    raise ConfigurationError(
        f"Nothing is known of how the rewards of the agents in {name} belong together. If they "
        f"work for one team, say how its reward comes of theirs: {allowed}; same takes the reward "
        "of the first agent. Agents that compete are not supported."
    )
