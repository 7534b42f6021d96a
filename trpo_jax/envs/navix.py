"""Adapter for Navix 4.x (https://github.com/epignatelli/navix), which needs Python 3.12."""

import dataclasses
from typing import Any

import navix

from trpo_jax.envs.base import Environment
from trpo_jax.envs.functional import make_environment
from trpo_jax.envs.options import require_known_args
from trpo_jax.envs.specs import Discrete
from trpo_jax.errors import require_known_environment


def names() -> list[str]:
    """Returns the names of the environments in this suite."""
    return list(navix.registry())


def make(name: str, **args: Any) -> Environment:
    """Returns an environment of Navix, such as "Navix-Empty-5x5-v0".

    Args:
        name: a name of Navix.
        **args: fields of the environment.

    Raises:
        ConfigurationError: if the name or an argument is unknown.
    """
    full_name = require_known_environment("navix", name, names())
    env = navix.make(name, disable_autoreset=True)
    if args:
        require_known_args(full_name, args, [x.name for x in dataclasses.fields(env)])
        env = navix.make(name, **{"disable_autoreset": True} | args)

    def reset(key):
        timestep = env.reset(key)
        return timestep, timestep.observation

    def step(key, timestep, action):
        timestep = env.step(timestep, action)
        terminated, truncated = timestep.is_termination(), timestep.is_truncation()
        return timestep, timestep.observation, timestep.reward, terminated, truncated

    action = Discrete(int(env.action_space.n))
    return make_environment(
        full_name, reset, step, action, int(env.max_steps), expensive_reset=True
    )
