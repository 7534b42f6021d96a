"""Adapter for the environments of Brax 0.14 (https://github.com/google/brax)."""

from typing import Any

import numpy as np
from brax import envs
from brax.io import image

from trpo_jax.envs.base import Environment
from trpo_jax.envs.functional import make_environment
from trpo_jax.envs.options import parameters_of, require_known_args
from trpo_jax.envs.specs import Box
from trpo_jax.errors import require_known_environment, unknown_name

BACKENDS = ("spring", "positional", "generalized", "mjx")
EPISODE_LENGTH = 1000  # the same as in Brax's own training


def names() -> list[str]:
    """Returns the names of the environments in this suite."""
    return list(envs._envs)


def make(name: str, episode_length: int = EPISODE_LENGTH, **args: Any) -> Environment:
    """Returns an environment of Brax.

    Args:
        name: a registered name, such as "ant". The physics is `spring`. A name after a slash
            chooses another physics, such as "ant/generalized".
        episode_length: number of steps after which an episode is truncated.
        **args: arguments of the class of the environment.

    Raises:
        ConfigurationError: if there is no such environment or physics.
    """
    task, _, backend = name.partition("/")
    require_known_environment("brax", task, names())
    if (backend or "spring") not in BACKENDS:
        raise unknown_name("physics engine of Brax", backend, BACKENDS)
    known = parameters_of(envs._envs[task])
    require_known_args(f"brax/{name}", args, known and (known | {"episode_length"}) - {"sys"})
    env = envs.get_environment(task, **{"backend": backend or "spring"} | args)

    def reset(key):
        state = env.reset(key)
        return state, state.obs

    def step(key, state, action):
        state = env.step(state, action)
        return state, state.obs, state.reward, state.done > 0, False

    def render(states):
        states = [state.pipeline_state for state in states]
        model = env.sys.mj_model
        camera = model.camera(0).name if model.ncam else None  # the first camera follows the robot
        return image.render_array(env.sys, states, height=240, width=320, camera=camera)

    ones = np.ones(env.action_size, np.float32)
    action = Box(-ones, ones)
    return make_environment(
        f"brax/{name}", reset, step, action, episode_length, expensive_reset=True, render=render
    )
