"""The environment protocol: two pure functions and what a learner must know of them.

An environment never resets itself; `trpo_jax.envs.episodes` does that, once for all suites. Its
state is a pytree, so any state can be stored, repeated and restarted from.

Simulators that run on the host have no such state. They have `open` in place of the two functions,
which starts a `Pool` of them; `trpo_jax.host_rollout` steps it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray


class ArraySpec(NamedTuple):
    """Shape and dtype of one observation."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Discrete(NamedTuple):
    """One integer action in {0, ..., num_actions - 1}."""

    num_actions: int

    @property
    def size(self) -> int:
        """Number of components."""
        return 1


class MultiDiscrete(NamedTuple):
    """A vector of integer actions, component k in {0, ..., num_actions[k] - 1}."""

    num_actions: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of components."""
        return len(self.num_actions)


class Box(NamedTuple):
    """A real array within bounds; policies see it as a vector of `size` components.

    Attributes:
        low: lower bounds, in the action's shape; -inf for none.
        high: upper bounds, likewise.
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def size(self) -> int:
        """Number of components."""
        return math.prod(self.low.shape)


class StepResult(NamedTuple):
    """What one step of one environment gives.

    Attributes:
        observation: the observation that follows the action, before any reset.
        reward: float32 scalar.
        terminated: whether the episode ended by the task's own rules.
        truncated: whether it was cut short, by a time limit for instance.
    """

    observation: Num[Array, "..."]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]


class Pool(NamedTuple):
    """Copies of one environment on the host, B of them, stepped together; all arrays are NumPy's.

    Attributes:
        reset: `mask [B] -> observations [k, ...]` of the k environments in the mask, which start
            new episodes.
        step: `actions [B, ...] -> StepResult` with leading axis `[B]`; a finished environment must
            be reset before the next one.
        close: ends it, and its processes if it has any; more than once does no harm.
        render: `() -> frames [B, H, W, 3]` of bytes, if it was opened for that.
    """

    reset: Callable[[np.ndarray], np.ndarray]
    step: Callable[[np.ndarray], StepResult]
    close: Callable[[], None]
    render: Callable[[], np.ndarray] | None = None


class Environment(NamedTuple):
    """A task, for one copy of it; batches are `jax.vmap`s.

    Attributes:
        name: the name that `trpo_jax.envs.make` knows it by.
        reset: `key -> (state, observation)`.
        step: `(key, state, action) -> (state, StepResult)`, without resetting.
        observation: what it shows.
        action: what it accepts.
        time_limit: number of steps after which an episode is truncated, or None.
        expensive_reset: whether a reset costs much more than a step; then the episodes of a rollout
            begin from states made in advance, see `trpo_jax.rollout.rollout`.
        restartable: whether `step` may go on from any state, however old, as often as wanted.
        open: `(seeds, num_envs, render=False) -> Pool` of an environment that runs on the host,
            with one or more integers that decide its randomness; its `reset` only shows zeros and
            its `step` is an error. None of all others.
        render: `[state, ...] -> [frame [H, W, 3] of bytes, ...]`, not compiled; None where it
            cannot be drawn, or draws itself on the host.
    """

    name: str
    reset: Callable[[PRNGKeyArray], tuple[Any, Num[Array, "..."]]]
    step: Callable[[PRNGKeyArray, Any, Num[Array, "..."]], tuple[Any, StepResult]]
    observation: ArraySpec
    action: Discrete | MultiDiscrete | Box
    time_limit: int | None
    expensive_reset: bool = False
    restartable: bool = True
    open: Callable[..., Pool] | None = None
    render: Callable[[Sequence[Any]], Sequence[np.ndarray]] | None = None


def host_environment(
    name: str,
    observation: ArraySpec,
    action: Discrete | MultiDiscrete | Box,
    time_limit: int | None,
    open: Callable[..., Pool],
) -> Environment:
    """Returns an environment that runs on the host."""

    def reset(key):
        return (), jnp.zeros(observation.shape, observation.dtype)

    def step(key, state, action):
        raise TypeError(
            f"{name} runs on the host and cannot be part of a compiled program; collect from it "
            "with trpo_jax.host_rollout."
        )

    return Environment(
        name, reset, step, observation, action, time_limit, restartable=False, open=open
    )


def to_environment_action(
    spec: Discrete | MultiDiscrete | Box, action: Num[Array, "..."]
) -> Num[Array, "..."]:
    """Returns what the environment is given when the policy chose `action`.

    Discrete actions pass through. A policy over a bounded `Box` works in units in which every
    component spans [-1, 1], so that one initial standard deviation suits every task: it is clipped
    to that range and mapped onto the bounds. The log-probability is that of the unclipped action:
    the clipping belongs to the environment. Components without two finite bounds pass through.

    Args:
        spec: the environment's actions.
        action: one action (no batch axes), for a `Box` a vector of `spec.size` components.
    """
    if not isinstance(spec, Box):
        return action
    bounded = np.isfinite(spec.low) & np.isfinite(spec.high)
    low, high = np.where(bounded, spec.low, -1.0), np.where(bounded, spec.high, 1.0)
    action = action.reshape(spec.low.shape)
    scaled = low + (jnp.clip(action, -1.0, 1.0) + 1.0) * (0.5 * (high - low))
    scaled = jnp.clip(scaled, low, high)  # rounding may have left the bounds
    return jnp.where(bounded, scaled, action).astype(jnp.float32)
