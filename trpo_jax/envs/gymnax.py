"""Adapter for gymnax 1.x (https://github.com/RobertTLange/gymnax)."""

from functools import partial
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from trpo_jax.envs.base import ArraySpec, Box, Discrete, Environment, StepResult
from trpo_jax.errors import ConfigurationError, unknown_name


def make(name: str) -> Environment:
    """Returns a gymnax environment with its default parameters.

    gymnax's `step` resets by itself and cannot be told not to, so its parts `step_env` and
    `is_truncated` are called instead (the one `step` that gymnax overrides, DeepSea's, differs in
    counters that neither observation nor reward depends on). Observations keep their dtype; an
    integer from a finite set is shown one-hot.

    Args:
        name: a registered name, such as "CartPole-v1"; `gymnax.register` adds to them.

    Raises:
        ConfigurationError: if the name is unknown, the environment needs a download, or its spaces
            are not supported.
    """
    if name not in gymnax.registered_envs:
        raise unknown_name("environment", name, gymnax.registered_envs)
    try:
        env, params = gymnax.make(name)
    except OSError as error:
        raise ConfigurationError(
            f"Environment {name!r} downloads data when it is made, and that failed: {error}."
        ) from error

    action = _action_spec(name, env.action_space(params))
    observation_space = env.observation_space(params)
    show = (
        _one_hot(observation_space.n)
        if isinstance(observation_space, spaces.Discrete)
        else jnp.asarray
    )
    # States and observations after a reset and after a step differ in dtype and weak type in many
    # environments, and would compile every program twice: both are cast to the dtypes of a step.
    state_spec, observation_spec = _shapes(env, params)
    cast_state = partial(jax.tree.map, lambda spec, x: jnp.asarray(x, spec.dtype), state_spec)
    if not isinstance(observation_spec, jax.ShapeDtypeStruct):
        raise ConfigurationError(
            f"Environment {name!r} shows several arrays at a time, and networks here take one. "
            "Wrap it so that they are joined, and register the wrapped environment with gymnax."
        )
    shown_spec = jax.eval_shape(show, observation_spec)

    def observe(observation):
        return jnp.asarray(show(observation), shown_spec.dtype)

    def reset(key):
        observation, state = env.reset_env(key, params)
        return cast_state(state), observe(observation)

    def step(key, state, action):
        observation, state, reward, terminated, _ = env.step_env(key, state, action, params)
        return cast_state(state), StepResult(
            observation=observe(observation),
            reward=jnp.asarray(reward, jnp.float32).reshape(()),
            terminated=jnp.asarray(terminated, bool).reshape(()),
            # The time limit, unless the environment has another rule.
            truncated=jnp.asarray(env.is_truncated(state, params), bool).reshape(()),
        )

    return Environment(
        name=name,
        reset=reset,
        step=step,
        observation=ArraySpec(shown_spec.shape, np.dtype(shown_spec.dtype)),
        action=action,
        time_limit=int(params.max_steps_in_episode),
    )


def _one_hot(num_values: int):
    return lambda x: jax.nn.one_hot(x, num_values, dtype=jnp.float32)


def _shapes(env: Any, params: Any) -> tuple[Any, Any]:
    """Returns the shapes and dtypes of (state, observation) after a step."""

    def first_step(key):
        _, state = env.reset_env(key, params)
        observation, state, *_ = env.step_env(
            key, state, env.action_space(params).sample(key), params
        )
        return state, observation

    return jax.eval_shape(first_step, jax.random.key(0))


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
        f"Environment {name!r} has actions of type {type(space).__name__}, which no policy here "
        "can produce. Supported: Discrete, and Box of floating-point numbers. Wrap it so that it "
        "takes one of these, and register the wrapped environment with gymnax."
    )
