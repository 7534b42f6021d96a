"""Adapter for EnvPool 1.x (https://github.com/sail-sg/envpool): C++ environments on threads."""

from dataclasses import replace
from typing import Any

import envpool
import numpy as np
from envpool.registration import registry

from trpo_jax.envs.base import Environment, Pool, StepResult, host_environment
from trpo_jax.envs.costs import INFO, NONE, InfoCosts, require_entries
from trpo_jax.envs.gymnasium import Seeds, action_spec, environment_seeds, observation_spec
from trpo_jax.envs.observations import to_arrays
from trpo_jax.envs.options import require_known_args
from trpo_jax.envs.specs import to_space_action
from trpo_jax.errors import ConfigurationError, require_known_environment

OWN = {"num_envs", "seed"}  # entries of the config that the library sets
NEVER = np.iinfo(np.int32).max  # the time limit in EnvPool of an environment without a time limit


def names() -> list[str]:
    """Returns the names of the environments in this suite."""
    return list(envpool.list_all_envs())


def make(name: str, *, info_costs: InfoCosts = NONE, **args: Any) -> Environment:
    """Returns an environment of EnvPool, such as "HalfCheetah-v4" or "Breakout-v5" (Atari).

    The channels of images come last.

    Args:
        name: a name of EnvPool.
        info_costs: functions of `info`. The entries of `info` have the leading axis `[B]`.
        **args: entries of the config of the environment, such as `frame_skip`.

    Raises:
        ConfigurationError: if the name is unknown, if the environment cannot run on this machine,
            if it needs several players, or if its spaces are not supported.
    """
    full_name = require_known_environment("envpool", name, names())
    try:
        known = envpool.make_spec(name).config._fields
        require_known_args(full_name, args, set(known) - OWN)
        spec = envpool.make_spec(name, **args)
    except (ImportError, RuntimeError) as error:
        raise ConfigurationError(
            f"Environment {full_name!r} cannot be made on this machine: {error}."
        ) from error
    if spec.config.max_num_players > 1:
        raise ConfigurationError(
            f"Environment {full_name!r} needs {spec.config.max_num_players} players. Choose a task "
            "with one player."
        )
    entries = [key.removeprefix(INFO) for key in spec.state_array_spec if key.startswith(INFO)]
    require_entries(full_name, info_costs, {key: np.zeros(1) for key in entries})
    observation = observation_spec(full_name, spec.gymnasium_observation_space)
    shape = getattr(observation, "shape", ())
    if len(shape) == 3 and shape[0] < min(shape[1:]) and not observation.channels_first:
        observation = replace(observation, shape=(*shape[1:], shape[0]), channels_first=True)
    action = action_spec(full_name, spec.gymnasium_action_space)

    def open(seeds: Seeds | list[Seeds], num_envs: int, render: bool = False) -> Pool:
        env_seeds = environment_seeds(seeds, num_envs)
        if render and registry.specs[name][0].startswith("envpool.mujoco"):
            raise ConfigurationError(
                f"Environment {full_name!r} needs a screen to draw itself. Without a screen, it "
                "aborts the process. Gymnasium can draw the same tasks: --env gym/Hopper-v4"
            )
        options = {"render_mode": "rgb_array"} if render else {}
        envs = envpool.make_gymnasium(
            name, num_envs=len(env_seeds), seed=env_seeds, **args, **options
        )

        def reset(mask: np.ndarray) -> Any:
            return to_arrays(observation, envs.reset(options={"reset_mask": mask})[0])

        def step(actions: Any) -> StepResult:
            observations, *rest, info = envs.step(to_space_action(action, actions))
            costs = [cost(info) for cost in info_costs.values()]
            costs = np.stack(costs, axis=1) if costs else ()
            return StepResult(to_arrays(observation, observations), *rest, costs)

        return Pool(reset, step, envs.close, lambda: np.stack(envs.render()))

    time_limit = int(spec.config.max_episode_steps)
    return host_environment(
        full_name,
        observation,
        action,
        None if time_limit == NEVER else time_limit,
        open,
        tuple(info_costs),
        joint=True,
    )
