"""From a suite's own functions to the protocol: what every adapter would otherwise do again."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num, PRNGKeyArray

from trpo_jax.envs.base import (
    ArraySpec,
    Box,
    Discrete,
    Environment,
    MultiDiscrete,
    StepResult,
)
from trpo_jax.errors import ConfigurationError


def make_environment(
    name: str,
    reset: Callable[[PRNGKeyArray], tuple[Any, Num[Array, "..."]]],
    step: Callable[[PRNGKeyArray, Any, Num[Array, "..."]], tuple[Any, Any, Any, Any, Any]],
    action: Discrete | MultiDiscrete | Box,
    time_limit: int | None,
    *,
    expensive_reset: bool = False,
    render: Callable[[Sequence[Any]], Sequence[np.ndarray]] | None = None,
) -> Environment:
    """Returns an environment of two functions that keep to the protocol only roughly.

    In many suites a state or an observation has other dtypes or weak types after a reset than after
    a step, and would compile every program twice: both are cast to the dtypes of a step. Rewards
    become float32 scalars and the flags booleans.

    Args:
        name: the environment's name.
        reset: `key -> (state, observation)`.
        step: `(key, state, action) -> (state, observation, reward, terminated, truncated)`.
        action: what it accepts.
        time_limit: number of steps after which an episode is truncated, or None.
        expensive_reset: whether a reset costs much more than a step.
        render: `[state, ...] -> [frame, ...]`, if it can be drawn.

    Raises:
        ConfigurationError: if it shows several arrays or gives several rewards at a time.
    """

    def first_step(key):
        state, _ = reset(key)
        return step(key, state, _example(action))[:3]

    state_spec, observation_spec, reward_spec = jax.eval_shape(first_step, jax.random.key(0))
    if not isinstance(observation_spec, jax.ShapeDtypeStruct):
        raise ConfigurationError(
            f"Environment {name!r} shows several arrays at a time, and networks here take one. "
            "Wrap it so that they are joined, and register the wrapped environment with its suite."
        )
    if reward_spec.size != 1:
        raise ConfigurationError(
            f"Environment {name!r} gives {reward_spec.size} rewards at a time, one to each of its "
            "agents; algorithms here learn from one."
        )

    def cast(state, observation):
        state = jax.tree.map(_as, state, state_spec)
        return state, jnp.asarray(observation, observation_spec.dtype)

    def cast_step(key, state, action):
        state, observation, reward, terminated, truncated = step(key, state, action)
        state, observation = cast(state, observation)
        return state, StepResult(
            observation=observation,
            reward=jnp.asarray(reward, jnp.float32).reshape(()),
            terminated=jnp.asarray(terminated, bool).reshape(()),
            truncated=jnp.asarray(truncated, bool).reshape(()),
        )

    return Environment(
        name=name,
        reset=lambda key: cast(*reset(key)),
        step=cast_step,
        observation=ArraySpec(observation_spec.shape, np.dtype(observation_spec.dtype)),
        action=action,
        time_limit=time_limit,
        expensive_reset=expensive_reset,
        render=render,
    )


def _as(x: Any, spec: jax.ShapeDtypeStruct) -> Array:
    if jnp.issubdtype(spec.dtype, jax.dtypes.prng_key):
        return x
    return jnp.asarray(x, spec.dtype)


def _example(action: Discrete | MultiDiscrete | Box) -> Array:
    match action:
        case Discrete():
            return jnp.zeros((), jnp.int32)
        case MultiDiscrete(num_actions):
            return jnp.zeros(len(num_actions), jnp.int32)
        case Box(low):
            return jnp.zeros(low.shape, jnp.float32)
