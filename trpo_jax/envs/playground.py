"""Adapter for MuJoCo Playground 0.2 (https://github.com/google-deepmind/mujoco_playground)."""

import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from mujoco_playground import registry

from trpo_jax.envs.base import Environment
from trpo_jax.envs.functional import make_environment
from trpo_jax.envs.options import require_known_args
from trpo_jax.envs.specs import Box
from trpo_jax.errors import ConfigurationError, require_known_environment

PRIVILEGED = "privileged_state"


def names() -> list[str]:
    """Returns the names of the environments in this suite."""
    return list(registry.ALL_ENVS)


def make(name: str, **args: Any) -> Environment:
    """Returns an environment of MuJoCo Playground, such as "CheetahRun".

    The physics is MJX. Without a GPU, it is the implementation of MJX in JAX. With a GPU, it is the
    default of Playground. If the observation has a part `privileged_state`, only the critic sees
    this part.

    Args:
        name: a name of MuJoCo Playground.
        **args: entries of the config of the environment. A name with dots stands for an inner
            entry.

    Raises:
        ConfigurationError: if the name or an argument is unknown, or if a download failed.
    """
    full_name = require_known_environment("playground", name, names())
    require_known_args(full_name, args, list(_entries(registry.get_default_config(name))))
    overrides = ({} if jax.default_backend() == "gpu" else {"impl": "jax"}) | args
    try:
        env = registry.load(name, config_overrides=overrides)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"Environment {full_name!r} must download its robot, but the download failed: {error}. "
            "The tasks of dm_control, such as playground/CheetahRun, need no download."
        ) from error

    def reset(key):
        state = env.reset(key)
        return state, state.obs

    def step(key, state, action):
        state = env.step(state, action)
        return state, state.obs, state.reward, state.done > 0, False

    def render(states):
        return env.render(states, height=240, width=320)

    size = env.observation_size
    has_privileged = isinstance(size, Mapping) and PRIVILEGED in size
    ones = np.ones(env.action_size, np.float32)
    time_limit = int(env._config.episode_length)
    return make_environment(
        full_name,
        reset,
        step,
        Box(-ones, ones),
        time_limit,
        expensive_reset=True,
        render=render,
        critic_observation=PRIVILEGED if has_privileged else None,
    )


def _entries(config: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from _entries(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"
