"""Driving with a cost: tasks of highway-env with a cost for damage.

The cost of a step is 1 if the car has crashed or is off the road. The rewards of highway-env punish
a crash and are 0 off the road. This adapter removes both from the rewards.
"""

from functools import partial
from typing import Any

from trpo_jax.envs import gymnasium
from trpo_jax.envs.base import Environment
from trpo_jax.envs.costs import entry
from trpo_jax.errors import require_known_environment

COST = "damage"
HARMLESS = {"collision_reward": 0.0, "on_road_reward": 1.0}  # parts of the reward without damage


def names() -> list[str]:
    """Returns the names of the environments in this suite."""
    return ["highway-v0", "highway-fast-v0", "roundabout-v0", "racetrack-v0"]


def make(name: str, *, processes: bool = False, **args: Any) -> Environment:
    """Returns a task, such as "highway-fast-v0". See `trpo_jax.envs.gymnasium.make`.

    Raises:
        ConfigurationError: if the name or an argument is unknown, or highway-env is not installed.
    """
    full_name = require_known_environment("driving", name, names())
    costs = {COST: partial(entry, COST)}
    env = gymnasium.make(name, args, (damage_as_cost,), processes, costs)
    return env._replace(name=full_name)


def damage_as_cost(env: Any) -> Any:
    """Returns a task of highway-env that shows damage in its info, not in its rewards."""
    task = env.unwrapped
    task.config["collision_reward"] = 0.0
    rewards, info = task._rewards, task._info

    def info_with_damage(shown: Any, action: Any = None) -> dict[str, Any]:
        damage = task.vehicle.crashed or not task.vehicle.on_road
        return info(shown, action) | {COST: float(damage)}

    task._rewards = lambda action: rewards(action) | HARMLESS
    task._info = info_with_damage
    return env
