"""The trained policy of one seed, as a function from observations to actions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from trpo_jax.algorithms.base import Actor
from trpo_jax.distributions import Distribution
from trpo_jax.envs.observations import batch_shape, centre, to_arrays
from trpo_jax.envs.specs import (
    ActionSpec,
    Discrete,
    ObservationSpec,
    to_environment_action,
    to_space_action,
)
from trpo_jax.recurrent import remembers, restarted


@dataclass(eq=False)  # hashed by identity, so that jax.jit takes it
class ActingPolicy:
    """The policy of one seed: a function `(observation, key=None) -> action` with NumPy arrays.

    It takes one observation or a batch of observations, as the environment shows them: a number,
    an array, a dictionary or a tuple. The policy does the normalisation, scaling and clipping
    itself. Without a key it returns the mode of the action distribution. With a key it draws the
    action.

    A policy with a memory remembers the observations that it was given. Call `start` before the
    first observation of an episode:

        act.start()
        action = act(observation)

    Inside a compiled program, a policy without a memory takes arrays that fit the spec
    `observation`, and returns JAX arrays. A policy with a memory offers `step` for this.

    Attributes:
        environment: name of the environment that the policy was trained in.
        observation: spec of the observations that the policy sees.
        action: spec of the actions that the environment takes.
        network: the arguments of `build_policy` that built the policy; None if the user passed in
            the policy.
        normalized: whether the network sees standardised observations.
        actor: parameters and observation statistics of the policy.
        choose: the compiled function `(actor, carry, observations [B, ...], key=None) ->
            (carry, actions [B, ...])`. The environment takes these actions as they are.
        carry: `num_envs -> carry`, the memory `[B, ...]` at the start of episodes; `()` for a
            policy without a memory.
    """

    environment: str
    observation: ObservationSpec
    action: ActionSpec
    network: Mapping[str, Any] | None
    normalized: bool
    actor: Actor
    choose: Callable[..., tuple[Any, Any]]
    carry: Callable[[int], Any]
    _memory: Any = field(default=None, repr=False)

    @cached_property
    def remembers(self) -> bool:
        """Whether the policy has a memory."""
        return remembers(self.carry)

    def start(self, where: Bool[Array | np.ndarray, "..."] | Sequence[bool] | None = None) -> None:
        """Forgets the observations so far, because an episode starts.

        Args:
            where: True for each environment of the batch that starts an episode; None for all.

        Raises:
            ValueError: if the policy remembers another number of environments.
        """
        if where is None or self._memory is None:
            self._memory = None
            return
        count, memory = self._memory
        where = np.ravel(np.asarray(where, bool))
        if len(where) != count:
            raise ValueError(f"The policy remembers {count} environments, not {len(where)}.")
        self._memory = count, restarted(self.carry, jnp.asarray(where), memory)

    def __call__(self, observation: Any, key: PRNGKeyArray | None = None) -> Any:
        """Returns the action for one observation, or the actions for a batch of observations.

        Raises:
            ValueError: if the observation does not fit the spec, or if the policy remembers another
                number of environments.
        """
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(observation))
        if traced and self.remembers:
            raise ValueError(
                f"The policy of {self.environment} has a memory. A compiled program must pass the "
                "memory on: carry, actions = act.step(carry, observations), beginning with "
                "act.carry(number of environments)."
            )
        shown = observation if traced else self.shown(observation)
        batch = batch_shape(self.observation, shown)
        count = math.prod(batch)
        flat = jax.tree.map(lambda spec, x: x.reshape(-1, *spec.shape), self.observation, shown)
        known, memory = self._memory or (count, self.carry(count))
        if known != count:
            raise ValueError(
                f"The policy of {self.environment} remembers {known} environments, but was given "
                f"observations of {count}. Call start() before you "
                "give it observations of other environments."
            )
        memory, actions = self.choose(self.actor, memory, flat, key)
        if not traced:
            self._memory = (count, memory) if self.remembers else None
            actions = to_space_action(self.action, actions)
        return jax.tree.map(lambda spec, x: _reshaped(spec, x, batch), self.action, actions)

    def step(
        self, carry: Any, observations: Any, key: PRNGKeyArray | None = None
    ) -> tuple[Any, Any]:
        """Returns the next memory and the actions `[B, ...]`. The policy itself does not change.

        Args:
            carry: the memory, from `carry` or from the step before.
            observations: arrays `[B, ...]` that fit the spec `observation`.
            key: key to draw actions; None for the mode of the action distribution.
        """
        return self.choose(self.actor, carry, observations, key)

    def shown(self, observation: Any) -> Any:
        """Returns an observation or a batch of observations as the arrays that the network takes.

        Raises:
            ValueError: if the observation does not fit the spec.
        """
        try:
            return centre(self.observation, to_arrays(self.observation, observation))
        except ValueError as error:
            raise ValueError(
                f"The policy of {self.environment} was given {error}. Give it one observation or "
                "a batch of observations, as the environment shows them."
            ) from error


def _reshaped(spec: Any, x: Any, batch: tuple[int, ...]) -> Any:
    x = x.reshape((*batch, *x.shape[1:]))
    # The index turns an array without axes into a number, which can be used as an index.
    return x[()] if isinstance(spec, Discrete) and isinstance(x, np.ndarray) else x


def make_act(
    policy: Callable[[Actor, Any, Any], tuple[Any, Distribution]],
    carry: Callable[[int], Any],
    actor: Actor,
    name: str,
    observation: ObservationSpec,
    action: ActionSpec,
    network: Mapping[str, Any] | None = None,
    normalized: bool = False,
) -> ActingPolicy:
    """Returns the acting policy of one seed.

    Args:
        policy: `(actor, carry, observations [B, ...]) -> (carry, action distribution)`.
        carry: `num_envs -> carry`, the memory at the start of episodes.
        actor: parameters and observation statistics of the seed.
        name: name of the environment.
        observation: spec of the observations that the policy sees.
        action: spec of the actions that the environment takes.
        network: the arguments of `build_policy` that built the policy; None if the user passed in
            the policy.
        normalized: whether the network sees standardised observations.
    """

    @jax.jit
    def choose(actor, carry, observations, key=None):
        carry, distribution = policy(actor, carry, observations)
        actions = distribution.mode() if key is None else distribution.sample(key)
        return carry, jax.vmap(partial(to_environment_action, action))(actions)

    return ActingPolicy(name, observation, action, network, normalized, actor, choose, carry)
