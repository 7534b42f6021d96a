"""Small tasks of this library, in JAX. Their best policies are known in closed form."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.envs.base import Environment
from trpo_jax.envs.functional import make_environment
from trpo_jax.envs.options import parameters_of, require_known_args
from trpo_jax.envs.specs import Agents, Discrete
from trpo_jax.errors import ConfigurationError, require_known_environment


def names() -> list[str]:
    """Returns the names of the environments in this suite."""
    return list(TASKS)


def make(name: str, **args: Any) -> Environment:
    """Returns a task. See the functions below for its arguments.

    Raises:
        ConfigurationError: if the name or an argument is unknown.
    """
    full_name = require_known_environment("native", name, names())
    require_known_args(full_name, args, parameters_of(TASKS[name]))
    return TASKS[name](**args)


def toll_road(length: int = 20) -> Environment:
    """Returns a road with toll gates. Each toll is a cost.

    At each gate, the observation shows how much time the toll road saves: a random number x, drawn
    uniformly from [0, 1]. Action 1 takes the toll road: the reward is x, and the cost `toll` is 1.
    Action 0 does not take it: the reward and the cost are 0. An episode has H = `length` gates, and
    terminates after the last one.

    If the limit is d tolls an episode, the best policy takes the toll road at each gate where x is
    at least tau = 1 - d / H. See `best_return`. The Lagrange multiplier of the limit is then tau.

    Args:
        length: number of gates, at least 1.
    """
    if not (isinstance(length, int) and length >= 1):
        raise ConfigurationError(f"length = {length!r} must be an integer of at least 1.")

    def draw(key):
        return jax.random.uniform(key, (1,))

    def reset(key):
        saving = draw(key)
        return (jnp.zeros((), jnp.int32), saving), saving

    def step(key, state, action):
        gate, saving = state
        pays = (action == 1).astype(jnp.float32)
        shown = draw(key)
        over = gate + 1 >= length
        return (gate + 1, shown), shown, pays * saving[0], over, False, pays[None]

    return make_environment("native/TollRoad", reset, step, Discrete(2), None, costs=("toll",))


def best_return(limit: float, length: int = 20) -> float:
    """Returns the largest mean return in `toll_road` with at most `limit` tolls, on average.

    It is H (1 - tau^2) / 2, with tau = max(0, 1 - limit / H).
    """
    tau = max(0.0, 1 - limit / length)
    return length * (1 - math.pow(tau, 2)) / 2


# The reward in the climbing game. The row is the action of agent 0, the column that of agent 1.
CLIMBING = np.array([[11, -30, 0], [-30, 7, 6], [0, 0, 5]], np.float32)


def climbing_game() -> Environment:
    """Returns the climbing game, a matrix game for a team of two agents.

    An episode has one step. Both agents choose one of three actions at the same time, and the
    reward of the team is the entry of `CLIMBING` (Claus and Boutilier 1998, "The dynamics of
    reinforcement learning in cooperative multiagent systems"). If both choose action 0, the reward
    is 11. If one chooses action 0 and the other chooses action 1, the reward is -30. Both agents
    see a constant.
    """
    shown = jnp.ones((2, 1), jnp.float32)

    def reset(key):
        return (), shown

    def step(key, state, actions):
        return (), shown, jnp.asarray(CLIMBING)[actions[0], actions[1]], True, False

    action = Agents((Discrete(3), Discrete(3)))
    return make_environment("native/ClimbingGame", reset, step, action, None)


TASKS = {"TollRoad": toll_road, "ClimbingGame": climbing_game}
