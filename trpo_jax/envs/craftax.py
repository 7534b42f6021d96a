"""Adapter for Craftax 1.x (https://github.com/MichaelTMatthews/Craftax)."""

import dataclasses
from typing import Any

import numpy as np
from craftax.craftax_env import make_craftax_env_from_name

from trpo_jax.envs.base import Environment
from trpo_jax.envs.functional import make_environment
from trpo_jax.envs.options import replace_fields, require_known_args
from trpo_jax.envs.specs import Discrete
from trpo_jax.errors import require_known_environment

GAMES, VIEWS = ("Craftax", "Craftax-Classic"), ("Symbolic", "Pixels")
NAMES = tuple(f"{game}-{view}-v1" for game in GAMES for view in VIEWS)
NEVER = np.iinfo(np.int32).max


def names() -> list[str]:
    """Returns the names of the environments in this suite."""
    return list(NAMES)


def make(name: str, **args: Any) -> Environment:
    """Returns a game of Craftax, such as "Craftax-Classic-Symbolic-v1".

    Craftax terminates an episode at its time limit, as after a death. So this adapter switches that
    limit off, and gives the same limit to the environment, which truncates the episode.

    Args:
        name: a name of Craftax.
        **args: fields of the parameters of the game.

    Raises:
        ConfigurationError: if the name or an argument is unknown.
    """
    full_name = require_known_environment("craftax", name, names())
    env = make_craftax_env_from_name(name, auto_reset=False)
    params = env.default_params
    require_known_args(full_name, args, [x.name for x in dataclasses.fields(params)])
    params = replace_fields(full_name, params, args)
    time_limit = int(params.max_timesteps)
    params = params.replace(max_timesteps=NEVER)

    def reset(key):
        observation, state = env.reset(key, params)
        return state, observation

    def step(key, state, action):
        observation, state, reward, done, _ = env.step(key, state, action, params)
        return state, observation, reward, done, False

    action = Discrete(int(env.action_space(params).n))
    return make_environment(full_name, reset, step, action, time_limit, expensive_reset=True)
