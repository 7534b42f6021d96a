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
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray, Shaped

from trpo_jax.errors import ConfigurationError

NO_BOUND = 1e18  # a bound as large means that there is none; 32 bits cannot square it
MAX_LIMIT = 2**31 - 1  # of steps in an episode
WIDE = 1e5  # bounds that are farther apart are hardly those that a policy is to span
LARGEST = 1e15  # observations and rewards of which 32 bits can sum the squares are smaller


class ArraySpec(NamedTuple):
    """What a network is shown of one observation.

    Attributes:
        shape: its shape.
        dtype: its dtype, of 32 bits at the most.
        layout: what the environment itself shows, as plain data; see `trpo_jax.envs.observations`.
            None if that is this array.
        origin: what is subtracted from the flattened observation, in the precision of the
            environment, before it is cast to `dtype`; None for nothing.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    layout: dict[str, Any] | None = None
    origin: np.ndarray | None = None


class Discrete(NamedTuple):
    """One integer action, which policies see as one of {0, ..., num_actions - 1}.

    Attributes:
        num_actions: how many there are.
        start: the environment's own number of the first.
        dtype: of the environment's own number.
    """

    num_actions: int
    start: int = 0
    dtype: np.dtype = np.dtype(np.int32)

    @property
    def size(self) -> int:
        """Number of components."""
        return 1


class MultiDiscrete(NamedTuple):
    """A vector of integer actions, component k of which has num_actions[k] values.

    Attributes:
        num_actions: how many there are, of each component.
        start: the environment's own number of the first, of each component; () for zeros.
        dtype: of the environment's own numbers.
    """

    num_actions: tuple[int, ...]
    start: tuple[int, ...] = ()
    dtype: np.dtype = np.dtype(np.int32)

    @property
    def size(self) -> int:
        """Number of components."""
        return len(self.num_actions)


class Box(NamedTuple):
    """A real array within bounds; policies see it as a vector of `size` components.

    Attributes:
        low: lower bounds, in the shape and the dtype of the environment's own actions; -inf, or
            anything from -`NO_BOUND` down, for none.
        high: upper bounds, likewise.
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def size(self) -> int:
        """Number of components."""
        return math.prod(self.low.shape)

    @property
    def scaling(self) -> "BoxScaling":
        """How a policy's action becomes the environment's."""
        low = np.where(self.low > -NO_BOUND, self.low, -np.inf).astype(np.float32)
        high = np.where(self.high < NO_BOUND, self.high, np.inf).astype(np.float32)
        bounded = np.isfinite(low) & np.isfinite(high)
        finite_low, finite_high = np.where(bounded, low, 0), np.where(bounded, high, 0)
        offset = np.where(bounded, 0.5 * (finite_low + finite_high), np.clip(0, low, high))
        scale = np.where(bounded, 0.5 * (finite_high - finite_low), 1)
        return BoxScaling(offset.astype(np.float32), scale.astype(np.float32), low, high)


class BoxScaling(NamedTuple):
    """The environment is given `clip(offset + scale * action, low, high)`, all of them float32.

    Between two bounds, actions from -1 to 1 span the component. Elsewhere the scale is 1, and an
    action of 0 means 0, or the bound that is next to it.
    """

    offset: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray


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
            new episodes. Observations are flat, in the environment's own precision; see
            `trpo_jax.envs.observations.centre`.
        step: `actions [B, ...] -> StepResult` with leading axis `[B]`, for actions from
            `to_environment_action`; a finished environment must be reset before the next one.
        close: ends it, and its processes if it has any; more than once does no harm.
        render: `() -> frames [B, H, W, 3]` of bytes, if it was opened for that.
        kill: ends its processes at once, if it has any, while another thread waits for them. All
            other functions are called in one thread, which is that it was opened in.
    """

    reset: Callable[[np.ndarray], np.ndarray]
    step: Callable[[np.ndarray], StepResult]
    close: Callable[[], None]
    render: Callable[[], np.ndarray] | None = None
    kill: Callable[[], None] = lambda: None


class Environment(NamedTuple):
    """A task, for one copy of it; batches are `jax.vmap`s.

    Attributes:
        name: the name that `trpo_jax.envs.make` knows it by.
        reset: `key -> (state, observation)`.
        step: `(key, state, action) -> (state, StepResult)`, without resetting.
        observation: what it shows.
        action: what it accepts.
        time_limit: number of steps after which an episode is truncated, any integer, or None.
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

    Discrete actions become the environment's own numbers. A policy over a bounded `Box` works in
    units in which every component spans [-1, 1], so that one initial standard deviation suits every
    task: it is clipped to that range and mapped onto the bounds. A component with one bound is
    clipped there. The log-probability is that of the unclipped action: the clipping belongs to the
    environment.

    Args:
        spec: the environment's actions.
        action: one action (no batch axes), for a `Box` a vector of `spec.size` components.
    """
    if not isinstance(spec, Box):
        return action + np.array(spec.start, np.int32) if np.any(spec.start) else action
    offset, scale, low, high = spec.scaling
    action = action.reshape(spec.low.shape).astype(jnp.float32)
    return jnp.clip(offset + scale * action, low, high)


def to_space_action(
    spec: Discrete | MultiDiscrete | Box, actions: Num[Array | np.ndarray, "..."]
) -> np.ndarray:
    """Returns actions from `to_environment_action` in the dtype of the environment's own space.

    Args:
        spec: the environment's actions.
        actions: one or several, `[*B, ...]`.
    """
    if not isinstance(spec, Box):
        return np.asarray(actions, spec.dtype)
    # 32 bits may have rounded the bounds outwards.
    return np.clip(np.asarray(actions, spec.low.dtype), spec.low, spec.high)


def sound(
    x: Shaped[Array | np.ndarray, "..."], numpy: Any = jnp
) -> Bool[Array | np.ndarray, "..."]:
    """Returns which numbers of an environment are finite, and of a size that can be learnt from.

    Args:
        x: the numbers.
        numpy: `numpy` for arrays on the host.
    """
    if not numpy.issubdtype(x.dtype, numpy.floating):
        return numpy.ones(x.shape, bool)
    return numpy.abs(x) < numpy.asarray(LARGEST, x.dtype)  # NaN is not


def require_usable(env: Environment) -> None:
    """Raises a ConfigurationError if nothing can be learnt in the spaces of an environment."""
    observation, action, limit = env.observation, env.action, env.time_limit
    shape, dtype = tuple(observation.shape), observation.dtype
    is_number = jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
    wrong = None
    if not is_number or jnp.issubdtype(dtype, jnp.complexfloating):
        wrong = f"observations of dtype {dtype}, and networks take real numbers only"
    elif math.prod(shape) == 0:
        wrong = f"observations of shape {shape}, which hold no number"
    elif limit is not None and not (hasattr(limit, "__index__") and 1 <= limit <= MAX_LIMIT):
        wrong = f"a time limit of {limit!r}, which must be None or an integer from 1 to {MAX_LIMIT}"
    elif isinstance(action, Discrete | MultiDiscrete):
        numbers, starts = np.atleast_1d(action.num_actions), np.atleast_1d(action.start)
        if numbers.size == 0 or numbers.min() < 1:
            wrong = f"actions {action}, in which there is nothing to choose from"
        elif action.start != () and (starts.shape != numbers.shape):
            wrong = f"actions {action}, whose start is not one number for each component"
        elif starts.size and (starts.min() < -MAX_LIMIT or (starts + numbers).max() > MAX_LIMIT):
            wrong = f"actions {action}, whose numbers take more than 32 bits"
    elif isinstance(action, Box):
        low, high = np.asarray(action.low), np.asarray(action.high)
        if low.shape != high.shape or low.size == 0 or low.dtype.kind != "f":
            wrong = f"actions {action}, whose bounds must be two arrays of floats, of one shape"
        elif not (low <= high).all():
            index = tuple(np.argwhere(~(low <= high))[0].tolist())
            wrong = (
                f"actions whose component {', '.join(map(str, index))} has a lower bound of "
                f"{low[index]:g} and an upper one of {high[index]:g}"
            )
    if wrong:
        raise ConfigurationError(
            f"Environment {env.name!r} has {wrong}. Change its spaces, in a wrapper of it for "
            "instance."
        )


def wide_bounds(env: Environment) -> str | None:
    """Returns a warning about bounds of actions so far apart that they may mean none."""
    if not isinstance(env.action, Box):
        return None
    scale, (low, high) = env.action.scaling.scale, env.action.scaling[2:]
    index = np.unravel_index(np.argmax(scale), scale.shape)
    if scale[index] <= WIDE / 2:
        return None
    where = ", ".join(map(str, index))
    return (
        f"Component {where} of the actions of {env.name} goes from {low[index]:g} to "
        f"{high[index]:g}. A policy's first actions are spread over all of that. If these bounds "
        "mean that there are none, set them to infinity, or to the range that matters."
    )
