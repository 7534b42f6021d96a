"""Adapter for EnvPool 1.x (https://github.com/sail-sg/envpool): C++ environments on threads."""

import envpool
import numpy as np

from trpo_jax.envs.base import ArraySpec, Environment, Pool, host_environment
from trpo_jax.envs.gymnasium import action_spec, environment_seeds, observation_spec, vector_pool
from trpo_jax.errors import ConfigurationError, unknown_name


def make(name: str) -> Environment:
    """Returns an environment of EnvPool, such as "HalfCheetah-v4" or "Breakout-v5" (Atari).

    Stacked frames are shown with their channels last.

    Raises:
        ConfigurationError: if the name is unknown, or its spaces are not supported.
    """
    full_name = f"envpool/{name}"
    if name not in envpool.list_all_envs():
        known = (f"envpool/{x}" for x in envpool.list_all_envs())
        raise unknown_name("environment", full_name, known)
    spec = envpool.make_spec(name)
    observation, show = observation_spec(full_name, spec.gymnasium_observation_space)
    if len(observation.shape) == 3:
        channels, height, width = observation.shape
        observation = ArraySpec((height, width, channels), observation.dtype)
        show = lambda frames: np.moveaxis(frames, 1, -1)
    action_space = spec.gymnasium_action_space

    def open(seeds: int | tuple[int, ...], num_envs: int, render: bool = False) -> Pool:
        env_seeds = environment_seeds(seeds, num_envs)
        if render and hasattr(spec.config, "xml_file"):
            raise ConfigurationError(
                f"Environment {full_name!r} needs a screen to draw itself, and aborts the process "
                f"where there is none. Gymnasium draws the same task: --env gym/{name}"
            )
        options = {"render_mode": "rgb_array"} if render else {}
        envs = envpool.make_gymnasium(name, num_envs=num_envs, seed=env_seeds, **options)

        def reset(mask: np.ndarray) -> np.ndarray:
            return show(envs.reset(options={"reset_mask": mask})[0])

        return vector_pool(envs, action_space, show, reset)

    action = action_spec(full_name, action_space)
    time_limit = spec.config.max_episode_steps
    return host_environment(full_name, observation, action, time_limit, open)
