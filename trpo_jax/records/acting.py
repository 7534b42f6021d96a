"""A trained policy of one seed, as a function from what an environment shows to what it takes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Num, PRNGKeyArray

from trpo_jax.algorithms.base import Actor
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import (
    ArraySpec,
    Box,
    Discrete,
    MultiDiscrete,
    to_environment_action,
    to_space_action,
)
from trpo_jax.envs.observations import centre, flatten

Action = Discrete | MultiDiscrete | Box
Choose = Callable[[Actor, Num[Array, "B ..."], PRNGKeyArray | None], Num[Array, "B ..."]]


class ActingPolicy(NamedTuple):
    """The policy of one seed: `(observation, key=None) -> action`, NumPy's on both sides.

    It takes one observation or a batch of them, as the environment shows them: a number, a
    dictionary, a tuple, an array. Where these differ, it takes the array that its network is shown
    too, in which integers are one-hot. Normalisation, scaling and clipping are inside. Without a
    key the action is the policy's mode, with a key it is drawn from the policy.

    Inside a compiled program it takes what its network is shown, and returns JAX's arrays.

    Attributes:
        environment: name of the environment that it was trained in.
        observation: what its network is shown.
        action: what the environment takes.
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
    network: Mapping[str, Any] | None
    normalized: bool
    actor: Actor
    choose: Choose

    def __call__(self, observation: Any, key: PRNGKeyArray | None = None) -> Any:
        """Returns the action for an observation, or those for a batch of them.

        Raises:
            ValueError: if it is none that the environment shows.
        """
        traced = isinstance(observation, jax.core.Tracer)
        shown = observation if traced else self.shown(observation)
        batch_shape = shown.shape[: shown.ndim - len(self.observation.shape)]
        actions = self.choose(self.actor, shown.reshape(-1, *self.observation.shape), key)
        if traced:
            return actions.reshape((*batch_shape, *actions.shape[1:]))
        actions = to_space_action(self.action, actions)
        # The index makes a number of an array without axes, which can be an index itself.
        actions = actions.reshape((*batch_shape, *actions.shape[1:]))
        return actions if isinstance(self.action, Box) else actions[()]

    def shown(self, observation: Any) -> Num[np.ndarray, "..."]:
        """Returns what the network is shown in place of an observation or a batch of them.

        Raises:
            ValueError: if it is none that the environment shows.
        """
        try:
            return _shown(self.observation, observation)
        except ValueError as error:
            raise ValueError(
                f"The policy of {self.environment} was given {error}. It takes an observation, or "
                "a batch of them, as the environment shows it, or as an array of shape "
                f"{self.observation.shape}, in which integers are one-hot."
            ) from error


def _shown(spec: ArraySpec, observation: Any) -> np.ndarray:
    """Returns an observation as networks see it, whichever of its forms it has."""
    layout = spec.layout or {"kind": "box", "shape": spec.shape, "dtype": spec.dtype.name}
    if layout["kind"] == "box":
        values = np.asarray(observation)
        own = tuple(layout["shape"])
        moved = own != spec.shape and values.shape[max(0, values.ndim - 3) :] == spec.shape
        return centre(spec, values if moved else flatten(layout, values))
    if not isinstance(observation, Mapping | tuple | list):
        values = np.asarray(observation)
        # Integers of a set are numbers even where there are as many as the set has.
        number = layout["kind"] == "discrete" and values.dtype.kind in "iu"
        if not number and values.shape[max(0, values.ndim - 1) :] == spec.shape:
            return centre(spec, values)
    return centre(spec, flatten(layout, observation))


def make_act(
    policy: Callable[[Actor, Num[Array, "B ..."]], Distribution],
    actor: Actor,
    name: str,
    observation: ArraySpec,
    action: Action,
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
        network: the arguments of `make_policy` that it was built with, if it was.
        normalized: whether the network is shown standardised observations.
    """

    @jax.jit
    def choose(actor, observations, key=None):
        distribution = policy(actor, observations)
        actions = distribution.mode() if key is None else distribution.sample(key)
        return jax.vmap(partial(to_environment_action, action))(actions)

    return ActingPolicy(name, observation, action, network, normalized, actor, choose)
