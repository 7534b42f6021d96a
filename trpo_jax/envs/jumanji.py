"""Adapter for Jumanji 1.x (https://github.com/instadeepai/jumanji)."""

from typing import Any

import jax
import jax.numpy as jnp
import jumanji
import numpy as np
from jumanji import specs

from trpo_jax.envs.base import Box, Discrete, Environment, MultiDiscrete
from trpo_jax.envs.functional import make_environment
from trpo_jax.envs.options import parameters_of, require_known_args
from trpo_jax.errors import ConfigurationError, require_known_environment

NEVER = np.iinfo(np.int32).max


def names() -> list[str]:
    """Returns the names that `make` knows."""
    return list(jumanji.registered_environments())


def make(name: str, **args: Any) -> Environment:
    """Returns an environment of Jumanji, such as "Snake-v1", whose class takes the arguments.

    Several arrays are flattened and joined; one alone keeps its shape. The mask of legal actions is
    not shown: it is part of the state, as its second item. Jumanji ends an episode at the time
    limit as if the task had; here its own limit never comes, and an episode is truncated after as
    many steps.

    Raises:
        ConfigurationError: if the name is unknown, it needs a download, or its spaces are not
            supported.
    """
    full_name = require_known_environment("jumanji", name, names())
    try:
        env = jumanji.make(name)
        known = parameters_of(type(env))
        require_known_args(full_name, args, known)
        env = jumanji.make(name, **args)
    except OSError as error:
        raise ConfigurationError(
            f"Environment {full_name!r} downloads data when it is made, and that failed: {error}."
        ) from error
    time_limit = None
    if known is not None and "time_limit" in known:
        time_limit = int(env.time_limit)
        env = jumanji.make(name, **args | {"time_limit": NEVER})

    def split(timestep):
        fields = timestep.observation._asdict()
        mask = fields.pop("action_mask", ())
        leaves = jax.tree.leaves(fields)
        if len(leaves) == 1:
            return mask, leaves[0]
        return mask, jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in leaves])

    def reset(key):
        state, timestep = env.reset(key)
        mask, observation = split(timestep)
        return (state, mask), observation

    def step(key, state, action):
        state, timestep = env.step(state[0], action)
        mask, observation = split(timestep)
        terminated = timestep.last() & jnp.all(timestep.discount == 0)
        truncated = timestep.last() & ~terminated
        return (state, mask), observation, timestep.reward, terminated, truncated

    action = _action_spec(full_name, env.action_spec)
    return make_environment(full_name, reset, step, action, time_limit, expensive_reset=True)


def _action_spec(name: str, spec: specs.Array) -> Discrete | MultiDiscrete | Box:
    match spec:
        case specs.DiscreteArray():
            return Discrete(int(spec.num_values))
        case specs.MultiDiscreteArray() if spec.num_values.ndim == 1:
            return MultiDiscrete(tuple(map(int, spec.num_values)))
        case specs.BoundedArray() if np.issubdtype(spec.dtype, np.floating):
            low, high = (np.broadcast_to(x, spec.shape) for x in (spec.minimum, spec.maximum))
            return Box(low.astype(np.float32), high.astype(np.float32))
    raise ConfigurationError(
        f"Environment {name!r} has actions of type {type(spec).__name__} and shape {spec.shape}, "
        "which no policy here can produce. Supported: DiscreteArray, MultiDiscreteArray of one "
        "axis, and BoundedArray of floating-point numbers."
    )
