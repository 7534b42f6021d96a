"""A trained policy of one seed, as a function from what an environment shows to what it takes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Num, PRNGKeyArray

from trpo_jax.algorithms.base import Actor
from trpo_jax.distributions import Distribution
from trpo_jax.envs import layouts
from trpo_jax.envs.base import ArraySpec, Box, Discrete, MultiDiscrete, to_environment_action

Action = Discrete | MultiDiscrete | Box
Choose = Callable[[Actor, Num[Array, "B ..."], PRNGKeyArray | None], Num[Array, "B ..."]]


class ActingPolicy(NamedTuple):
    """The policy of one seed: `(observation, key=None) -> action`, NumPy's on both sides.

    It takes one observation or a batch of them, as the environment shows them: a number, a
    dictionary, a tuple, an array. Where these differ, it takes the array that its network is shown
    too, in which integers are one-hot. Normalisation, scaling and clipping are inside. Without a
    key the action is the policy's mode, with a key it is drawn from the policy.

    Attributes:
        environment: name of the environment that it was trained in.
        observation: what its network is shown.
        action: what the environment takes.
        layout: how the environment lays out an observation; None if that is `observation`.
        network: the arguments of `make_policy` that it was built with; None of a policy that was
            handed in.
        normalized: whether its network is shown standardised observations.
        actor: its parameters and statistics.
        choose: `(actor, observations [B, ...], key=None) -> actions [B, ...]` as the environment
            takes them, compiled.
    """

    environment: str
    observation: ArraySpec
    action: Action
    layout: Mapping[str, Any] | None
    network: Mapping[str, Any] | None
    normalized: bool
    actor: Actor
    choose: Choose

    def __call__(self, observation: Any, key: PRNGKeyArray | None = None) -> Any:
        """Returns the action for an observation, or those for a batch of them.

        Raises:
            ValueError: if it is none that the environment shows.
        """
        shown = self.shown(observation)
        batch_shape = shown.shape[: shown.ndim - len(self.observation.shape)]
        actions = self.choose(self.actor, shown.reshape(-1, *self.observation.shape), key)
        actions = to_numpy_action(self.action, np.asarray(actions))
        # The index makes a number of an array without axes, which can be an index itself.
        actions = actions.reshape(*batch_shape, *actions.shape[1:])
        return actions if isinstance(self.action, Box) else actions[()]

    def shown(self, observation: Any) -> Num[np.ndarray, "..."]:
        """Returns what the network is shown in place of an observation or a batch of them.

        Raises:
            ValueError: if it is none that the environment shows.
        """
        shape, dtype = self.observation
        layout = self.layout or layouts.box(shape)
        try:
            flat = _as_flat(layout, observation, shape)
            if flat is None:
                seen = layouts.flatten(layout, observation)
            elif layout["kind"] == "box" and not np.can_cast(flat.dtype, dtype, "same_kind"):
                raise ValueError(f"they are {dtype}; got {flat.dtype}")
            else:
                seen = flat
        except ValueError as error:
            raise ValueError(
                f"An observation of {self.environment} cannot be read: {error}. Pass it as the "
                f"environment shows it, or as an array of shape {shape}; batch axes come before."
            ) from error
        return seen.astype(dtype)


def _as_flat(
    layout: Mapping[str, Any], observation: Any, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Returns an observation as the array of a shape that it is already, or None."""
    if layout["kind"] != "box" and isinstance(observation, Mapping | tuple | list):
        return None
    values = np.asarray(observation)
    if layout["kind"] == "discrete" and np.issubdtype(values.dtype, np.integer):
        return None  # numbers, of which there may be as many as a one-hot array has
    own = tuple(layout.get("shape", shape))
    if own != shape and values.shape[values.ndim - len(own) :] == own and len(own) == 3:
        values = np.moveaxis(values, -3, -1)  # channels that the environment shows first
    if values.ndim < len(shape) or values.shape[values.ndim - len(shape) :] != shape:
        if layout["kind"] == "box":
            raise ValueError(f"shape {shape} is expected, not {values.shape}")
        return None
    return values


def make_act(
    policy: Callable[[Actor, Num[Array, "B ..."]], Distribution],
    actor: Actor,
    name: str,
    observation: ArraySpec,
    action: Action,
    layout: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None,
    normalized: bool = False,
) -> ActingPolicy:
    """Returns the policy of one seed.

    Args:
        policy: `(actor, observations [B, ...]) -> action distribution`.
        actor: of the seed.
        name: of the environment.
        observation: what the network is shown.
        action: what the environment takes.
        layout: how the environment lays out an observation.
        network: the arguments of `make_policy` that it was built with, if it was.
        normalized: whether the network is shown standardised observations.
    """

    @jax.jit
    def choose(actor, observations, key=None):
        distribution = policy(actor, observations)
        actions = distribution.mode() if key is None else distribution.sample(key)
        return jax.vmap(partial(to_environment_action, action))(actions)

    return ActingPolicy(name, observation, action, layout, network, normalized, actor, choose)


def to_numpy_action(action: Action, values: np.ndarray) -> np.ndarray:
    """Returns actions in the number type of the environment, within its own bounds.

    Args:
        action: what the environment takes.
        values: from `to_environment_action`; 32 bits may have rounded them over a bound.
    """
    if isinstance(action, Box):
        values = values.astype(action.low.dtype)
        return np.clip(values, action.low, action.high)
    return values.astype(getattr(action, "dtype", np.int64))
