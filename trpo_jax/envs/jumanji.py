"""Adapter for Jumanji 1.x (https://github.com/instadeepai/jumanji)."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import jumanji
import numpy as np
from jumanji import specs

from trpo_jax.envs.base import Environment
from trpo_jax.envs.functional import as_tree, make_environment
from trpo_jax.envs.options import parameters_of, require_known_args
from trpo_jax.envs.specs import (
    MASK,
    MOST_VALUES,
    ArraySpec,
    Box,
    Discrete,
    MultiDiscrete,
    split_mask,
)
from trpo_jax.errors import ConfigurationError, require_known_environment

NEVER = np.iinfo(np.int32).max


def names() -> list[str]:
    """Returns the names of the environments in this suite."""
    return list(jumanji.registered_environments())


def make(name: str, **args: Any) -> Environment:
    """Returns an environment of Jumanji, such as "Snake-v1".

    Jumanji terminates an episode at its time limit. So this adapter switches that limit off, and
    gives the same limit to the environment, which truncates the episode. Integers of a known range
    start at 0, not at their smallest value. If a mask has a number for each combination of several
    choices, the action becomes one choice. If a choice has no legal value, the mask shows all of
    its values as legal.

    Args:
        name: a name of Jumanji.
        **args: arguments of the class of the environment.

    Raises:
        ConfigurationError: if the name or an argument is unknown, if a download failed, or if the
            spaces of the environment are not supported.
    """
    full_name = require_known_environment("jumanji", name, names())
    try:
        env = jumanji.make(name)
        known = parameters_of(type(env))
        require_known_args(full_name, args, known)
        env = jumanji.make(name, **args)
    except OSError as error:
        raise ConfigurationError(
            f"Environment {full_name!r} must download data, but the download failed: {error}."
        ) from error
    time_limit = None
    if known is not None and "time_limit" in known:
        time_limit = int(env.time_limit)
        # MMST has an array with an element for every step, so its limit cannot be large.
        never = time_limit + 1 if name.startswith("MMST") else NEVER
        env = jumanji.make(name, **args | {"time_limit": never})

    promised = _promised(env.observation_spec)
    if name.startswith("TSP"):  # its spec lacks -1, the position before the first city
        promised["position"] = promised["trajectory"].replace(shape=())
    mask = split_mask(promised)[1]
    action = _action_spec(full_name, env.action_spec, mask)
    joint = _is_joint(env.action_spec, mask)
    if joint:
        sizes, action = action.num_actions, Discrete(math.prod(action.num_actions))

    def show(timestep):
        shown = jax.tree.map(_from_zero, promised, as_tree(timestep.observation))
        if mask is None:
            return shown
        # A choice without a legal value has no effect. An agent that is done has such a choice.
        none = ~jnp.any(shown[MASK], axis=None if joint else -1, keepdims=True)
        return shown | {MASK: shown[MASK] | none}

    def reset(key):
        state, timestep = env.reset(key)
        return state, show(timestep)

    def step(key, state, action):
        if joint:
            action = jnp.stack(jnp.unravel_index(action, sizes)).astype(jnp.int32)
        state, timestep = env.step(state, action)
        terminated = timestep.last() & jnp.all(timestep.discount == 0)
        truncated = timestep.last() & ~terminated
        return state, show(timestep), timestep.reward, terminated, truncated

    made = make_environment(full_name, reset, step, action, time_limit, expensive_reset=True)
    return made._replace(observation=jax.tree.map(_with_range, promised, made.observation))


def _promised(spec: specs.Spec) -> Any:
    """Returns the specs of the arrays in an observation, as a tree of Jumanji's specs."""
    inner = getattr(spec, "_specs", None)
    return {name: _promised(x) for name, x in inner.items()} if inner else spec


def _range(spec: specs.Spec) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the smallest value and the number of values of each integer. None if they are many.

    The result is also None if the array does not hold integers of a known range.
    """
    if not isinstance(spec, specs.BoundedArray) or not np.issubdtype(spec.dtype, np.integer):
        return None
    low, high = np.asarray(spec.minimum), np.asarray(spec.maximum)
    count = np.asarray(high.astype(int) - low + 1)
    return (low, count) if count.max() <= MOST_VALUES else None


def _from_zero(spec: specs.Spec, x: Any) -> Any:
    found, x = _range(spec), jnp.asarray(x)
    return x if found is None else x - found[0].astype(x.dtype)


def _with_range(spec: specs.Spec, array: ArraySpec) -> ArraySpec:
    found = _range(spec)
    if found is None:
        return array
    alike = np.unique(found[1])
    counts = alike if alike.size == 1 else np.broadcast_to(found[1], array.shape)
    return replace(array, num_values=tuple(map(int, np.ravel(counts))))


def _is_joint(action: specs.Spec, mask: specs.Spec | None) -> bool:
    """Returns whether a mask has a number for each combination of several choices."""
    several = isinstance(action, specs.MultiDiscreteArray) and action.num_values.size > 1
    return several and mask is not None and mask.shape == tuple(action.num_values.tolist())


def _action_spec(
    name: str, spec: specs.Array, mask: specs.Spec | None
) -> Discrete | MultiDiscrete | Box:
    match spec:
        case specs.DiscreteArray():
            return Discrete(int(spec.num_values))
        case specs.MultiDiscreteArray() if spec.num_values.ndim == 1:
            return MultiDiscrete(tuple(map(int, spec.num_values)))
        case specs.BoundedArray() if np.issubdtype(spec.dtype, np.floating):
            low, high = (np.broadcast_to(x, spec.shape) for x in (spec.minimum, spec.maximum))
            return Box(low.astype(np.float32), high.astype(np.float32))
        case specs.BoundedArray(shape=(size,)) if mask and mask.shape[:-1] == (size,):
            # The mask has the right number of values. The bounds of MultiCVRP allow one too many.
            return MultiDiscrete(mask.shape[-1:] * size, dtype=np.dtype(spec.dtype))
    raise ConfigurationError(
        f"Environment {name!r} has actions of type {type(spec).__name__} and shape {spec.shape}, "
        "which no policy can choose. Supported: DiscreteArray, MultiDiscreteArray of one axis, and "
        "BoundedArray of floating-point numbers. Choose another environment."
    )
