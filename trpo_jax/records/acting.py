"""A trained policy of one seed, as a function from what an environment shows to what it takes."""

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
    """The policy of one seed: `(observation, key=None) -> action`, NumPy's on both sides.

    It takes one observation or a batch of them, as the environment shows them: a number, a
    dictionary, a tuple, an array. Normalisation, scaling and clipping are inside. Without a key the
    action is the policy's mode, with a key it is drawn from the policy.

    A policy with a memory remembers the observations that it is given. Call `start` before the
    first one of an episode:

        act.start()
        action = act(observation)

    Inside a compiled program a policy without a memory takes arrays as `observation` says, and
    returns JAX's; one with a memory has `step` for that.

    Attributes:
        environment: name of the environment that it was trained in.
        observation: what it sees.
        action: what the environment takes.
        network: the arguments of `build_policy` that it was built with; None of a policy that was
            handed in.
        normalized: whether its network is shown standardised observations.
        actor: its parameters and statistics.
        choose: `(actor, carry, observations [B, ...], key=None) -> (carry, actions [B, ...])` as
            the environment takes them, compiled.
        carry: `num_envs -> carry`, the memory at the start of episodes, `[B, ...]`; `()` without.
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
        """Whether it has a memory."""
        return remembers(self.carry)

    def start(self, where: Bool[Array | np.ndarray, "..."] | Sequence[bool] | None = None) -> None:
        """Forgets what was shown before: an episode starts.

        Args:
            where: of a batch of environments, in which of them an episode starts; all if None.
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
        """Returns the action for an observation, or those for a batch of them.

        Raises:
            ValueError: if it is none that the environment shows, or another number of environments
                than the policy remembers.
        """
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(observation))
        if traced and self.remembers:
            raise ValueError(
                f"The policy of {self.environment} has a memory, which a compiled program passes "
                "on by itself: carry, actions = act.step(carry, observations), beginning with "
                "act.carry(number of environments)."
            )
        shown = observation if traced else self.shown(observation)
        batch = batch_shape(self.observation, shown)
        count = math.prod(batch)
        flat = jax.tree.map(lambda spec, x: x.reshape(-1, *spec.shape), self.observation, shown)
        known, memory = self._memory or (count, self.carry(count))
        if known != count:
            raise ValueError(
                f"The policy of {self.environment} remembers {known} environments and was shown "
                f"{count}. Call start() before the first observations of others."
            )
        memory, actions = self.choose(self.actor, memory, flat, key)
        if not traced:
            self._memory = (count, memory) if self.remembers else None
            actions = to_space_action(self.action, actions)
        return jax.tree.map(lambda spec, x: _reshaped(spec, x, batch), self.action, actions)

    def step(
        self, carry: Any, observations: Any, key: PRNGKeyArray | None = None
    ) -> tuple[Any, Any]:
        """Returns the next memory and the actions `[B, ...]`, and remembers nothing itself.

        Args:
            carry: from `carry`, or from the step before.
            observations: arrays `[B, ...]` as `observation` says.
            key: to draw actions; the policy's mode if None.
        """
        return self.choose(self.actor, carry, observations, key)

    def shown(self, observation: Any) -> Any:
        """Returns the arrays that an observation or a batch of them consists of.

        Raises:
            ValueError: if it is none that the environment shows.
        """
        try:
            return centre(self.observation, to_arrays(self.observation, observation))
        except ValueError as error:
            raise ValueError(
                f"The policy of {self.environment} was given {error}. It takes an observation, or "
                "a batch of them, as the environment shows it."
            ) from error


def _reshaped(spec: Any, x: Any, batch: tuple[int, ...]) -> Any:
    x = x.reshape((*batch, *x.shape[1:]))
    # The index makes a number of an array without axes, which can be an index itself.
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
    """Returns the policy of one seed.

    Args:
        policy: `(actor, carry, observations [B, ...]) -> (carry, action distribution)`.
        carry: `num_envs -> carry`.
        actor: of the seed.
        name: of the environment.
        observation: what the policy sees.
        action: what the environment takes.
        network: the arguments of `build_policy` that it was built with, if it was.
        normalized: whether the network is shown standardised observations.
    """

    @jax.jit
    def choose(actor, carry, observations, key=None):
        carry, distribution = policy(actor, carry, observations)
        actions = distribution.mode() if key is None else distribution.sample(key)
        return carry, jax.vmap(partial(to_environment_action, action))(actions)

    return ActingPolicy(name, observation, action, network, normalized, actor, choose, carry)
