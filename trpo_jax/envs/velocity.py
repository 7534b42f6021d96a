"""Robots with a speed limit: MuJoCo's -v4 tasks with the costs of Safety-Gymnasium.

The cost of a step is 1 where the robot is faster than a published threshold, and the reward is that
of the task (Ji et al. 2023, arXiv:2310.12567, the tasks Safety...Velocity-v1). An episode has 1,000
steps, and the usual limit is 25.

The tasks are EnvPool's, which are fast, or Gymnasium's where EnvPool is not installed, and for
pictures.
"""

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from trpo_jax.envs import gymnasium
from trpo_jax.envs.base import Environment, Pool
from trpo_jax.errors import require_known_environment

# Metres a second, by task, and whether the speed is that in the plane, not only forwards.
THRESHOLDS = {
    "Ant": (2.6222, True),
    "HalfCheetah": (3.2096, False),
    "Hopper": (0.7402, False),
    "Humanoid": (1.4149, True),
    "Swimmer": (0.2282, False),
    "Walker2d": (2.3415, False),
}
COST = "velocity"


def names() -> list[str]:
    """Returns the names that `make` knows."""
    return list(THRESHOLDS)


def make(name: str, **args: Any) -> Environment:
    """Returns a task, such as "HalfCheetah".

    The arguments are those of the -v4 task in EnvPool, or else in Gymnasium.

    Raises:
        ConfigurationError: if the name or an argument is unknown, or MuJoCo is not installed.
    """
    full_name = require_known_environment("velocity", name, names())
    threshold, in_plane = THRESHOLDS[name]
    costs = {COST: partial(speeding, threshold, in_plane)}
    drawn = partial(gymnasium.make, f"{name}-v4", args, info_costs=costs)
    if find_spec("envpool") is None:
        return drawn()._replace(name=full_name)
    from trpo_jax.envs import envpool

    env = envpool.make(f"{name}-v4", info_costs=costs, **args)

    def open(*seeds_and_num_envs: Any, render: bool = False) -> Pool:
        return (drawn() if render else env).open(*seeds_and_num_envs, render=render)

    return env._replace(name=full_name, open=open)


def speeding(threshold: float, in_plane: bool, info: Mapping[str, Any]) -> Any:
    """Returns 1 where the speed in an info is above a threshold, and 0 elsewhere."""
    speed = info["x_velocity"]
    if in_plane:
        speed = np.hypot(speed, info["y_velocity"])
    return np.asarray(speed > threshold, np.float64)
