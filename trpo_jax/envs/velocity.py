"""Robots with a speed limit: the -v4 tasks of MuJoCo with the costs of Safety-Gymnasium.

The cost of a step is 1 if the robot is faster than a published threshold, and else 0. The reward is
the reward of the -v4 task (Ji et al. 2023, arXiv:2310.12567, the tasks Safety...Velocity-v1). An
episode has at most 1,000 steps. The usual limit of the cost of an episode is 25.

The tasks come from EnvPool, because it is fast. If EnvPool is not installed, they come from
Gymnasium. Gymnasium also draws the tasks.
"""

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from trpo_jax.envs import gymnasium
from trpo_jax.envs.base import Environment, Pool
from trpo_jax.errors import require_known_environment

# The threshold of each task, in metres per second, and whether the speed is measured in the plane.
# If not, it is measured only forwards.
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
    """Returns the names of the environments in this suite."""
    return list(THRESHOLDS)


def make(name: str, **args: Any) -> Environment:
    """Returns a task, such as "HalfCheetah".

    Args:
        name: a name of this suite.
        **args: arguments of the -v4 task in EnvPool, or in Gymnasium if EnvPool is not installed.

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
    """Returns 1 if the speed in an info is above a threshold, and else 0."""
    speed = info["x_velocity"]
    if in_plane:
        speed = np.hypot(speed, info["y_velocity"])
    return np.asarray(speed > threshold, np.float64)
