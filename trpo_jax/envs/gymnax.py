"""Adapter for gymnax 1.x (https://github.com/RobertTLange/gymnax)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from trpo_jax.envs.base import Environment
from trpo_jax.envs.deferred import deferred
from trpo_jax.envs.functional import make_environment
from trpo_jax.envs.options import parameters_of, replace_fields, require_known_args
from trpo_jax.envs.specs import Box, Discrete
from trpo_jax.errors import ConfigurationError, unknown_name

with deferred("seaborn", "matplotlib.pyplot"):  # slow to import, and only for drawing
    import gymnax
    from gymnax.environments import spaces
    from gymnax.visualize import Visualizer


def names() -> list[str]:
    """Returns the names of the environments in this suite."""
    return list(gymnax.registered_envs)


def make(name: str, **args: Any) -> Environment:
    """Returns a gymnax environment.

    The function `step` of gymnax always resets an environment whose episode ended. So this adapter
    calls its parts `step_env` and `is_truncated` instead. In gymnax, only DeepSea has its own
    `step`. It keeps some counters after a reset, but observations and rewards do not depend on
    them. Observations keep their dtype.

    Args:
        name: a registered name, such as "CartPole-v1". `gymnax.register` adds names.
        **args: fields of the parameters of the environment, and arguments of its class.

    Raises:
        ConfigurationError: if the name or an argument is unknown, if a download failed, or if the
            spaces of the environment are not supported.
    """
    if name not in names():
        raise unknown_name("environment", name, names())
    try:
        env, params = gymnax.make(name)
        if args:
            fields = {field.name for field in dataclasses.fields(params)}
            own = parameters_of(type(env)) or set()
            require_known_args(name, args, fields | own)
            env, params = gymnax.make(name, **{x: args[x] for x in args.keys() - fields})
            params = replace_fields(name, params, {x: args[x] for x in args.keys() & fields})
    except OSError as error:
        raise ConfigurationError(
            f"Environment {name!r} must download data, but the download failed: {error}."
        ) from error

    action = _action_spec(name, env.action_space(params))
    observation_space = env.observation_space(params)
    is_integer = isinstance(observation_space, spaces.Discrete)

    def reset(key):
        observation, state = env.reset_env(key, params)
        return state, observation

    def step(key, state, action):
        observation, state, reward, terminated, _ = env.step_env(key, state, action, params)
        # In most environments, this is the time limit.
        truncated = env.is_truncated(state, params)
        return state, observation, reward, terminated, truncated

    def render(states):
        visualizer = Visualizer(env, params, states)
        visualizer.init()
        if not hasattr(visualizer, "im"):
            raise ConfigurationError(f"gymnax cannot draw environment {name!r}.")
        canvas = visualizer.fig.canvas
        frames = []
        for index in range(len(states)):
            visualizer.update(index)
            canvas.draw()
            frames.append(np.array(canvas.buffer_rgba())[..., :3])
        return frames

    time_limit = int(params.max_steps_in_episode)
    made = make_environment(name, reset, step, action, time_limit, render=render)
    if not is_integer:
        return made
    num_values = (int(observation_space.n),)
    return made._replace(observation=dataclasses.replace(made.observation, num_values=num_values))


def _action_spec(name: str, space: Any) -> Discrete | Box:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box) and jnp.issubdtype(space.dtype, jnp.floating):
        shape = tuple(space.shape)
        low, high = (
            np.broadcast_to(np.asarray(x, np.float32), shape) for x in (space.low, space.high)
        )
        return Box(low, high)
    raise ConfigurationError(
        f"Environment {name!r} has actions of type {type(space).__name__}, which no policy can "
        "choose. Supported: Discrete, and Box of floating-point numbers. Wrap it so that it takes "
        "one of these, and register the wrapped environment with gymnax."
    )
