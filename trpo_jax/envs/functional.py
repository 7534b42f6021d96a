"""Makes an `Environment` from the functions of a suite that runs in JAX."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from trpo_jax.envs.base import Environment, StepResult, key_shape
from trpo_jax.envs.specs import ActionSpec, ArraySpec, Box
from trpo_jax.errors import ConfigurationError


def make_environment(
    name: str,
    reset: Callable[[PRNGKeyArray], tuple[Any, Any]],
    step: Callable[[PRNGKeyArray, Any, Any], tuple[Any, ...]],
    action: ActionSpec,
    time_limit: int | None,
    *,
    expensive_reset: bool = False,
    render: Callable[[Sequence[Any]], Sequence[np.ndarray]] | None = None,
    critic_observation: str | None = None,
    costs: tuple[str, ...] = (),
) -> Environment:
    """Returns an `Environment` from two functions that almost follow the protocol.

    In many suites, the dtypes and weak types of a state or an observation differ between a reset
    and a step, so JAX would compile every program twice. This function casts both to the dtypes of
    a step. Rewards become float32 scalars, and flags become booleans. Observations become trees of
    dictionaries, tuples and arrays.

    Args:
        name: the name of the environment.
        reset: `key -> (state, observation)`.
        step: `(key, state, action) -> (state, observation, reward, terminated, truncated)`.
        action: the spec of the actions.
        time_limit: number of steps after which an episode is truncated, or None.
        expensive_reset: whether a reset costs much more than a step.
        render: `[state, ...] -> [frame, ...]`. None if the environment cannot be drawn.
        critic_observation: name of the part of an observation that only the critic sees, or None.
        costs: the names of the costs. If there are any, `step` also returns the costs `[K]`, after
            the flags.

    Raises:
        ConfigurationError: if a step returns several rewards.
    """

    def first_step(key):
        state, _ = reset(key)
        state, observation, reward, *_ = step(key, state, _example(action))
        return state, as_tree(observation), reward

    state_spec, observation_spec, reward_spec = jax.eval_shape(first_step, key_shape())
    if reward_spec.size != 1:
        raise ConfigurationError(
            f"Environment {name!r} returns {reward_spec.size} rewards in each step, probably one "
            "for each agent. It must return one reward. Combine them, in a wrapper of its suite."
        )

    def cast(state, observation):
        state = jax.tree.map(_as, state, state_spec)
        return state, jax.tree.map(_as, as_tree(observation), observation_spec)

    def cast_step(key, state, action):
        state, observation, reward, terminated, truncated, *of_costs = step(key, state, action)
        state, observation = cast(state, observation)
        return state, StepResult(
            observation=observation,
            reward=jnp.asarray(reward, jnp.float32).reshape(()),
            terminated=jnp.asarray(terminated, bool).reshape(()),
            truncated=jnp.asarray(truncated, bool).reshape(()),
            costs=jnp.asarray(of_costs[0], jnp.float32).reshape(len(costs)) if costs else (),
        )

    return Environment(
        name=name,
        reset=lambda key: cast(*reset(key)),
        step=cast_step,
        observation=jax.tree.map(lambda x: ArraySpec(x.shape, np.dtype(x.dtype)), observation_spec),
        action=action,
        time_limit=time_limit,
        expensive_reset=expensive_reset,
        render=render,
        critic_observation=critic_observation,
        costs=costs,
    )


def as_tree(observation: Any) -> Any:
    """Returns an observation as a tree of dictionaries and tuples.

    Named tuples and dataclasses become dictionaries.
    """
    if isinstance(observation, Mapping):
        return {str(name): as_tree(x) for name, x in observation.items()}
    if hasattr(observation, "_asdict"):
        return as_tree(observation._asdict())
    if dataclasses.is_dataclass(observation):
        names = [field.name for field in dataclasses.fields(observation)]
        return {name: as_tree(getattr(observation, name)) for name in names}
    return (
        tuple(map(as_tree, observation)) if isinstance(observation, tuple | list) else observation
    )


def box_of(space: Any) -> Box:
    """Returns the spec of a space whose bounds are one number, or an array of the space's shape."""
    bounds = (np.asarray(x, np.float32) for x in (space.low, space.high))
    return Box(*(np.broadcast_to(x, tuple(space.shape)) for x in bounds))


def frames_of(figure: Any, draw: Callable[[Any], Any], views: Iterable[Any]) -> list[np.ndarray]:
    """Returns a frame `[H, W, 3]` of a figure of matplotlib for each view that `draw` draws."""
    frames = []
    for view in views:
        draw(view)
        figure.canvas.draw()
        frames.append(np.array(figure.canvas.buffer_rgba())[..., :3])
    figure.clear()
    return frames


def _as(x: Any, spec: jax.ShapeDtypeStruct) -> Array:
    if jnp.issubdtype(spec.dtype, jax.dtypes.prng_key):
        return x
    return jnp.asarray(x, spec.dtype)


def _example(action: ActionSpec) -> Any:
    def of_part(part):
        if isinstance(part, Box):
            return jnp.zeros(part.low.shape, jnp.float32)
        return jnp.zeros(part.shape, jnp.int32)

    return jax.tree.map(of_part, action)
